"""Settings in words: dotted names, types, defaults and sentences, taken from the schema itself."""

from __future__ import annotations

import types
from collections.abc import Iterator
from typing import Any, Literal, TypeGuard, Union, get_args, get_origin

from pydantic.fields import FieldInfo

from rl_finetune.config.schema import Section

_NAMES: dict[Any, str] = {
    int: "whole number",
    float: "number",
    str: "text",
    bool: "true or false",
    type(None): "null",
    Any: "anything",
}
_BOUNDS = {"ge": ">=", "gt": ">", "le": "<=", "lt": "<", "min_length": "entries >=", "max_length": "entries <="}


def describe(kind: type[Section]) -> str:
    """Every setting of a job, one block each: `name: type = default`, then its sentence."""
    blocks = [f"{(kind.__doc__ or kind.__name__).strip()}"]
    for name, field in walk(kind):
        default = "required" if field.is_required() else f"default {_plain(field)}"
        sentence = " ".join((field.description or "").split())
        blocks.append(f"{name}  ({type_name(field)}; {default})\n    {sentence}")
    return "\n\n".join(blocks) + "\n"


def walk(kind: type[Section], prefix: str = "") -> Iterator[tuple[str, FieldInfo]]:
    """Dotted name and field of every setting; `name.N.part` for the entries of a list of sections."""
    for name, field in kind.model_fields.items():
        inner = field.annotation
        if is_section(inner):
            yield from walk(inner, f"{prefix}{name}.")
            continue
        yield f"{prefix}{name}", field
        if get_origin(inner) is list and is_section(get_args(inner)[0]):
            yield from walk(get_args(inner)[0], f"{prefix}{name}.N.")


def is_section(annotation: Any) -> TypeGuard[type[Section]]:
    """Whether an annotation is a section of settings."""
    return isinstance(annotation, type) and issubclass(annotation, Section)


def type_name(field: FieldInfo) -> str:
    """What a setting may be, for a person: `whole number >= 1, or null`."""
    bounds = [
        f"{_BOUNDS[name]} {value:g}"
        for item in field.metadata
        for name in _BOUNDS
        if (value := getattr(item, name, None)) is not None
    ]
    kinds, nullable = _kinds(field.annotation)
    return " ".join([kinds, " and ".join(bounds)]).strip() + (", or null" if nullable else "")


def _kinds(annotation: Any) -> tuple[str, bool]:
    if get_origin(annotation) in (Union, types.UnionType):
        parts = [part for part in get_args(annotation) if part is not type(None)]
        return " or ".join(_name(part) for part in parts), type(None) in get_args(annotation)
    return _name(annotation), False


def _name(annotation: Any) -> str:
    origin, inside = get_origin(annotation), get_args(annotation)
    if origin is Literal:
        return " | ".join(str(value) for value in inside)
    if origin is list:
        return f"list of {'sections' if is_section(inside[0]) else _name(inside[0])}"
    if origin is tuple:
        return f"list of {len(inside)} {_name(inside[0])}s"
    if origin is dict:
        return "name: value pairs"
    return _NAMES.get(annotation, getattr(annotation, "__name__", str(annotation)))


def _plain(field: FieldInfo) -> str:
    value = field.get_default(call_default_factory=True)
    return (
        {None: "null", True: "true", False: "false"}.get(value, f"{value}")
        if isinstance(value, bool | None)
        else f"{value}"
    )
