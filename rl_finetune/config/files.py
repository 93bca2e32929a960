"""YAML trees: files that extend one another, and `key.sub=value` overrides."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from rl_finetune.errors import UserError

Tree = dict[str, Any]

FOLDER = Path(__file__).resolve().parents[2] / "configs"
"""Where the named configs lie."""

_CORE_SCHEMA = (
    ("null", r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    ("bool", r"true|True|TRUE|false|False|FALSE", list("tTfF")),
    ("int", r"[-+]?(?:0|[1-9][0-9_]*)", list("-+0123456789")),
    (
        "float",
        r"[-+]?(?:(?:[0-9][0-9_]*\.[0-9_]*|\.[0-9][0-9_]*)(?:[eE][-+]?[0-9]+)?|[0-9][0-9_]*[eE][-+]?[0-9]+)",
        list("-+.0123456789"),
    ),
    ("merge", r"<<", ["<"]),
)


class _Loader(yaml.SafeLoader):
    """YAML 1.2 scalars: `5e-4` is a number, `yes` and `2024-01-01` are text, a key may stand only once."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[str] = set()
        for key, _ in node.value:
            name = str(key.value)
            if name in seen and key.tag != "tag:yaml.org,2002:merge":
                raise yaml.MarkedYAMLError(problem=f"key {name!r} stands twice", problem_mark=key.start_mark)
            seen.add(name)
        mapping: dict[Any, Any] = super().construct_mapping(node, deep=deep)
        return mapping


_Loader.yaml_implicit_resolvers = {}
for _tag, _pattern, _first in _CORE_SCHEMA:
    _Loader.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", re.compile(rf"(?:{_pattern})\Z"), _first)


def find(name: str | Path) -> Path:
    """The file that `--config` means: a path, or the stem of a file in `configs/`.

    Raises:
        UserError: there is neither.
    """
    path = Path(name)
    if path.is_file():
        return path
    named = FOLDER / f"{name}.yaml"
    if path.name == str(name) and named.is_file():
        return named
    known = sorted(p.stem for p in FOLDER.glob("*.yaml"))
    raise UserError(
        "no such config file",
        got=repr(str(name)),
        expected=f"a path to a YAML file, or one of {known}",
        do=f"look into {FOLDER}",
    )


def read(file: Path) -> Tree:
    """The tree of a YAML file, laid over the file that it extends.

    Raises:
        UserError: unreadable, not YAML, not a mapping, or a circle of `extends`.
    """
    return _read(file, below=())


def apply(tree: Tree, overrides: Sequence[str]) -> Tree:
    """A copy of `tree` with each `key.sub=value` put in; the value is YAML and replaces what stood there.

    Raises:
        UserError: an override without `=`, without a name, with a value that is not YAML, or inside of a scalar.
    """
    result = merge({}, tree)
    for override in overrides:
        name, equals, text = override.partition("=")
        keys = name.strip().split(".")
        if not equals or not all(keys):
            raise UserError(
                "override without a name and a value",
                got=repr(override),
                expected="key=value, for example run.seed=1",
                do="write the dotted name of a setting, `=` and its value, without spaces",
            )
        _put(result, keys, parse(text, where=f"override {name!r}"), name)
    return result


def parse(text: str, *, where: str) -> Any:
    """The value of one piece of YAML; `where` names it in the error."""
    try:
        return yaml.load(text, Loader=_Loader)  # a SafeLoader
    except (yaml.YAMLError, ValueError) as error:
        mark = getattr(error, "problem_mark", None)
        problem = getattr(error, "problem", None) or str(error)
        raise UserError(
            f"{where} is not valid YAML",
            got=" ".join(str(problem).split())
            + (f" in line {mark.line + 1}, column {mark.column + 1}" if mark else ""),
            expected="YAML",
            do="correct the text there; quote strings with special characters",
        ) from error


def merge(under: Mapping[str, Any], over: Mapping[str, Any]) -> Tree:
    """`over` laid on `under`: mappings are merged, everything else is replaced. Neither is changed."""
    result = {key: _copy(value) for key, value in under.items()}
    for key, value in over.items():
        below = result.get(key)
        mappings = isinstance(below, dict) and isinstance(value, Mapping)
        result[key] = merge(below or {}, value) if mappings else _copy(value)
    return result


def _copy(value: Any) -> Any:
    if isinstance(value, Mapping):
        return merge({}, value)
    return [_copy(item) for item in value] if isinstance(value, list) else value


def _read(file: Path, below: tuple[Path, ...]) -> Tree:
    file = file.resolve()
    if file in below:
        circle = " -> ".join(p.name for p in (*below[below.index(file) :], file))
        raise UserError(
            "config files extend one another in a circle",
            got=circle,
            expected="a file at the end that extends nothing",
            do=f"take `extends` out of {file}",
        )
    tree = parse(_text(file, below), where=f"config file {file}")
    tree = {} if tree is None else tree
    if not isinstance(tree, dict) or not all(isinstance(key, str) for key in tree):
        raise UserError(
            f"config file {file} is no list of settings",
            got=repr(tree)[:60],
            expected="name: value pairs",
            do="see configs/train.yaml for an example",
        )
    base = tree.pop("extends", None)
    if base is None:
        return tree
    if not isinstance(base, str):
        raise UserError(
            f"`extends` in {file} names no file",
            got=repr(base),
            expected="the path of one YAML file, relative to this one",
            do="correct it",
        )
    return merge(_read(file.parent / base, (*below, file)), tree)


def _text(file: Path, below: tuple[Path, ...]) -> str:
    try:
        return file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        by = f", which {below[-1].name} extends," if below else ""
        reason = getattr(error, "strerror", None) or "not UTF-8 text"
        raise UserError(
            f"config file {file}{by} cannot be read", got=reason, expected="a readable YAML file", do="check the path"
        ) from error


def _put(tree: Tree, keys: list[str], value: Any, name: str) -> None:
    """Set the value at the end of the dotted name; a number steps into a list."""
    here: Any = tree
    for depth, key in enumerate(keys):
        last = depth == len(keys) - 1
        if isinstance(here, list):
            if not key.isdecimal() or int(key) >= len(here):
                owner = ".".join(keys[:depth])
                raise UserError(
                    f"{owner} has no entry {key!r}",
                    got=name,
                    expected=f"a number from 0 to {len(here) - 1}",
                    do=f"or give the whole list: {owner}=[...]",
                )
            index: Any = int(key)
        elif isinstance(here, dict):
            index = key
            here.setdefault(key, {})
        else:
            owner = ".".join(keys[:depth])
            raise UserError(
                f"{owner} is a single setting without parts", got=name, expected=f"{owner}=value", do="shorten the name"
            )
        if last:
            here[index] = value
        elif here[index] is None:
            here[index] = {}
        here = here[index]
