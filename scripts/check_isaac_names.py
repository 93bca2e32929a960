"""Look up every name of Isaac Lab that the worker uses in the real wheels, without importing or installing them.

    python scripts/check_isaac_names.py [WHEEL ...]        without a wheel: those of 2.3.2 and 3.0.0 are downloaded

The names come from the worker itself: imports and the arguments of imported calls from `launch.py`, members and their
arguments from the protocols in `api.py`, beyond which mypy lets the worker use nothing. Exit code 1: one is missing.
"""

from __future__ import annotations

import ast
import inspect
import re
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from envs.isaac.worker import api, launch  # noqa: E402

VERSIONS = {"2.3.2": "3.11", "3.0.0": "3.12"}
"""Release -> Python it is made for."""
FOREIGN = ("isaaclab", "isaaclab_tasks")
ONE_OF = {"launch_simulation", "AppLauncher"}
"""Imports of which a version needs one only."""


@dataclass
class Wheel:
    """The Python sources of one wheel."""

    files: dict[str, str]
    """Path from the package's folder -> source."""
    trees: dict[str, ast.Module] = field(default_factory=dict)
    """Path -> what was parsed so far."""
    classes: dict[str, str] = field(default_factory=dict)
    """Simple name of a class -> path of a file that defines it."""

    @classmethod
    def read(cls, path: Path) -> Wheel:
        """Sources below `isaaclab/` and `isaaclab_tasks/`, wherever the wheel keeps them."""
        found = {}
        with zipfile.ZipFile(path) as archive:
            for name in sorted(archive.namelist(), key=len, reverse=True):
                parts = name.split("/")
                if name.endswith((".py", ".pyi")) and "test" not in parts:
                    place = max((i for i, part in enumerate(parts[:-1]) if part in FOREIGN), default=None)
                    if place is not None:
                        found.setdefault("/".join(parts[place:]), archive.read(name).decode())
        wheel = cls(found)
        for place, source in found.items():
            for name in re.findall(r"^class (\w+)", source, re.M):
                wheel.classes.setdefault(name, place)
        return wheel

    def tree(self, place: str) -> ast.Module:
        """A file, parsed once."""
        if place not in self.trees:
            self.trees[place] = ast.parse(self.files[place])
        return self.trees[place]

    def module(self, dotted: str) -> list[ast.Module]:
        """The module, and the stub beside it where it exports lazily."""
        base = dotted.replace(".", "/")
        places = (f"{base}.py", f"{base}/__init__.py", f"{base}/__init__.pyi")
        return [self.tree(place) for place in places if place in self.files]

    def defines(self, dotted: str, name: str) -> bool:
        """Whether `from dotted import name` finds something."""
        nodes = [node for tree in self.module(dotted) for node in ast.walk(tree)]
        names = {n.name for n in nodes if isinstance(n, ast.ClassDef | ast.FunctionDef)}
        names |= {alias.asname or alias.name for n in nodes if isinstance(n, ast.ImportFrom) for alias in n.names}
        return name in names or (bool(nodes) and f"{dotted}.{name}".replace(".", "/") + ".py" in self.files)

    def find_class(self, dotted: str, name: str) -> ast.ClassDef | None:
        """A class of a module."""
        for tree in self.module(dotted):
            for node in tree.body:
                if isinstance(node, ast.ClassDef) and node.name == name:
                    return node
        return None

    def anywhere(self, name: str) -> ast.ClassDef | None:
        """A class of that name in any module: bases are imported, re-exported and aliased."""
        if name not in self.classes:
            return None
        nodes = self.tree(self.classes[name]).body
        return next((n for n in nodes if isinstance(n, ast.ClassDef) and n.name == name), None)

    def members(self, node: ast.ClassDef) -> Iterator[tuple[str, ast.AST]]:
        """Name and definition of everything a class and its bases have, nearest first."""
        for part in node.body:
            if isinstance(part, ast.FunctionDef):
                yield part.name, part
                yield from ((n.attr, n) for n in ast.walk(part) if _set_on_self(n) and isinstance(n, ast.Attribute))
            elif isinstance(part, ast.AnnAssign) and isinstance(part.target, ast.Name):
                yield part.target.id, part
            elif isinstance(part, ast.Assign):
                yield from ((t.id, part) for t in part.targets if isinstance(t, ast.Name))
        for base in node.bases:
            name = base.id if isinstance(base, ast.Name) else base.attr if isinstance(base, ast.Attribute) else ""
            above = self.anywhere(name) if name and name != node.name else None
            if above is not None:
                yield from self.members(above)


def _set_on_self(node: ast.AST) -> bool:
    return (
        isinstance(node, ast.Attribute)
        and isinstance(node.ctx, ast.Store)
        and isinstance(node.value, ast.Name)
        and node.value.id == "self"
    )


def used_members() -> Iterator[tuple[str, str, str, tuple[str, ...], bool]]:
    """Module, class, member, its argument names, and whether 3.0 alone has it."""
    for table, late in ((api.ORIGIN, False), (api.SINCE_3, True)):
        for protocol, origins in table.items():
            tree = ast.parse(inspect.getsource(protocol)).body[0]
            assert isinstance(tree, ast.ClassDef)
            for part in tree.body:
                if isinstance(part, ast.FunctionDef):
                    arguments = [a.arg for a in (*part.args.args, *part.args.kwonlyargs) if a.arg != "self"]
                    yield from ((*origin, part.name, tuple(arguments), late) for origin in origins)
                elif isinstance(part, ast.AnnAssign) and isinstance(part.target, ast.Name):
                    yield from ((*origin, part.target.id, (), late) for origin in origins)


def used_imports() -> Iterator[tuple[str, str]]:
    """Module and name of each `from isaaclab... import ...` of the worker."""
    for file in sorted((ROOT / "envs/isaac/worker").glob("*.py")):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] in FOREIGN:
                yield from ((str(node.module), alias.name) for alias in node.names)


def used_arguments() -> dict[str, set[str]]:
    """Imported function or class -> keywords with which the worker calls it."""
    names, found = {name for _, name in used_imports()}, dict[str, set[str]]()
    for node in ast.walk(ast.parse(inspect.getsource(launch))):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in names:
            found.setdefault(node.func.id, set()).update(str(k.arg) for k in node.keywords)
    return found


def check(wheel: Wheel, three: bool) -> tuple[list[str], int]:
    """What is missing, in words, and how many names were looked up."""
    missing, looked = [], 0
    for module, name in used_imports():
        looked += 1
        if not wheel.defines(module, name) and not (name in ONE_OF and name != _launcher(three)):
            missing.append(f"from {module} import {name}")
    for name, arguments in used_arguments().items():
        if name in ONE_OF and name != _launcher(three):
            continue
        known = _accepted(wheel, name)
        looked += len(arguments)
        late = {"overrides"} if not three else set()  # asked of the signature before it is passed
        missing += [f"{name}({argument}=...)" for argument in sorted(arguments - known - late)]
    for module, owner, member, arguments, late in used_members():
        if late and not three:
            continue
        looked += 1 + len(arguments)
        missing += _absent(wheel, module, owner, member, arguments)
    return missing, looked


def _launcher(three: bool) -> str:
    return "launch_simulation" if three else "AppLauncher"


def _accepted(wheel: Wheel, name: str) -> set[str]:
    """Arguments of a function, or of what starts the application: it takes the keys of a table."""
    accepted: set[str] = set()
    for place, source in wheel.files.items():
        if re.search(rf"^(def|class) {name}\b", source, re.M):
            for node in wheel.tree(place).body:
                if isinstance(node, ast.FunctionDef) and node.name == name:
                    accepted |= {a.arg for a in (*node.args.args, *node.args.kwonlyargs)}
                if isinstance(node, ast.ClassDef) and node.name == name:
                    tables = [n for n in ast.walk(node) if isinstance(n, ast.Dict)]
                    accepted |= {k.value for t in tables for k in t.keys if isinstance(k, ast.Constant)}
    return accepted


def _absent(wheel: Wheel, module: str, owner: str, member: str, arguments: tuple[str, ...]) -> list[str]:
    node = wheel.find_class(module, owner)
    if node is None:
        return [f"class {module}.{owner}"]
    definitions = [part for name, part in wheel.members(node) if name == member]
    if not definitions:
        return [f"{owner}.{member}"]
    first = definitions[0]
    if not isinstance(first, ast.FunctionDef):
        return []
    known = {a.arg for a in (*first.args.args, *first.args.kwonlyargs)}
    return [f"{owner}.{member}({argument})" for argument in arguments if argument not in known]


def download(version: str, folder: Path) -> Path:
    """The wheel of one release, without what it depends on. Raises `OSError` or `CalledProcessError`."""
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:"]
    command += [f"--python-version={VERSIONS[version]}", f"--dest={folder}", f"isaaclab=={version}"]
    subprocess.run(command, check=True, capture_output=True, timeout=300)
    return next(folder.glob(f"isaaclab-{version}-*.whl"))


def main(paths: list[str]) -> int:
    """Check wheels and print a line for each."""
    missing: list[str] = []
    with tempfile.TemporaryDirectory() as folder:
        for path in [Path(p) for p in paths] or [download(version, Path(folder)) for version in VERSIONS]:
            version = path.name.split("-")[1]
            gone, looked = check(Wheel.read(path), three=int(version.split(".")[0]) >= 3)
            print(
                f"isaaclab {version}: {looked - len(gone)} of {looked} names found"
                + "".join(f"\n  no {g}" for g in gone)
            )
            missing += gone
    return bool(missing)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
