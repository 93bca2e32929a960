"""Evidence as JSON and back. Reading is strict: what is missing, unknown, of another type or no number is refused."""

from __future__ import annotations

import types
from collections.abc import Mapping
from dataclasses import MISSING, Field, asdict, fields, is_dataclass
from pathlib import Path
from typing import Any, TypeVar, get_args, get_origin, get_type_hints

from rl_finetune.durable import canonical, parsed, replace_file, sha256
from rl_finetune.errors import UserError
from rl_finetune.promotion.records import Evidence

Record = TypeVar("Record")
SCHEMA = 1
"""Of the file; raised whenever an older one would be read wrongly."""


def evidence_to_dict(evidence: Evidence) -> dict[str, Any]:
    """Plain values for JSON."""
    return asdict(evidence)


def evidence_from_dict(tree: object) -> Evidence:
    """What `evidence_to_dict` gave, after JSON.

    Raises:
        UserError: it is something else; names the place.
    """
    return record_from(Evidence, tree, "evidence")


def write_evidence(path: Path, evidence: Evidence) -> str:
    """Write a file beside, then rename it (the folder is made if missing); returns the SHA-256 of its bytes.

    Raises:
        ValueError: a number is not finite.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    data = canonical({"schema": SCHEMA, "evidence": evidence_to_dict(evidence)}) + b"\n"
    replace_file(path, data)
    return sha256(data)


def read_evidence(path: Path, digest: str | None = None) -> tuple[Evidence, str]:
    """The evidence in a file, and the SHA-256 of its bytes.

    Args:
        path: what `write_evidence` wrote.
        digest: refuse any other file.

    Raises:
        UserError: missing, damaged, of another schema, or not the one that is meant.
    """
    try:
        data = path.read_bytes()
        tree = parsed(data)
    except (OSError, ValueError) as error:
        reason = " ".join(str(error).split())[:160]
        raise _refused(str(path), reason, "a readable JSON file") from error
    found = sha256(data)
    if digest is not None and found != digest:
        raise _refused(str(path), f"SHA-256 {found}", digest)
    if not isinstance(tree, Mapping) or tree.keys() != {"schema", "evidence"} or tree["schema"] != SCHEMA:
        raise _refused(str(path), str(tree)[:60], f"evidence of schema {SCHEMA}")
    return evidence_from_dict(tree["evidence"]), found


def record_from(kind: type[Record], tree: object, where: str) -> Record:
    """A dataclass of numbers, text, tuples, mappings and further dataclasses from JSON values.

    Raises:
        UserError: they do not fit; names the place.
    """
    if not isinstance(tree, Mapping):
        raise _refused(where, type(tree).__name__, "a mapping")
    known = {each.name: each for each in fields(kind)}  # type: ignore[arg-type]
    unknown = sorted(set(map(str, tree)) - known.keys())
    missing = sorted(name for name, each in known.items() if name not in tree and _needed(each))
    if unknown or missing:
        raise _refused(where, f"unknown {unknown}, missing {missing}", f"fields among {sorted(known)}")
    hints = get_type_hints(kind)
    return kind(**{name: _value(hints[name], value, f"{where}.{name}") for name, value in tree.items()})


def _value(kind: Any, value: object, where: str) -> Any:
    if is_dataclass(kind) and isinstance(kind, type):
        return record_from(kind, value, where)
    origin, inside = get_origin(kind), get_args(kind)
    if origin is tuple:
        return _tuple(inside, value, where)
    if origin is Mapping:
        if not isinstance(value, Mapping):
            raise _refused(where, type(value).__name__, "a mapping")
        return {str(key): _value(inside[1], each, f"{where}[{key!r}]") for key, each in value.items()}
    if origin is types.UnionType:  # X | None
        return None if value is None else _value(inside[0], value, where)
    if kind is float and type(value) in (int, float):
        return _finite(float(value), where)  # type: ignore[arg-type]
    if type(value) is not kind:
        raise _refused(where, repr(value)[:60], getattr(kind, "__name__", str(kind)))
    return value


def _tuple(inside: tuple[Any, ...], value: object, where: str) -> tuple[Any, ...]:
    if not isinstance(value, list | tuple):
        raise _refused(where, type(value).__name__, "a list")
    endless = len(inside) == 2 and inside[1] is Ellipsis
    if not endless and len(value) != len(inside):
        raise _refused(where, f"{len(value)} values", f"{len(inside)} values")
    kinds = [inside[0]] * len(value) if endless else inside
    return tuple(_value(kind, each, f"{where}[{i}]") for i, (kind, each) in enumerate(zip(kinds, value, strict=True)))


def _finite(value: float, where: str) -> float:
    if value - value != 0:
        raise _refused(where, value, "a finite number")
    return value


def _needed(each: Field[Any]) -> bool:
    return each.default is MISSING and each.default_factory is MISSING


def _refused(where: str, got: object, expected: str) -> UserError:
    return UserError("evidence cannot be read", got=f"{where}: {got}", expected=expected, do="gather it again")
