"""Settings in words: dotted names, types, defaults and sentences, taken from the schema itself."""

from __future__ import annotations

import types
from collections.abc import Iterator
from typing import Any, Literal, NamedTuple, TypeGuard, Union, get_args, get_origin

from pydantic.fields import FieldInfo

from rl_finetune.config.section import Section

_NAMES: dict[Any, str] = {
    int: "whole number",
    float: "number",
    str: "text",
    bool: "true or false",
    type(None): "null",
    Any: "anything",
}
_BOUNDS = {"ge": ">=", "gt": ">", "le": "<=", "lt": "<", "min_length": "entries >=", "max_length": "entries <="}


class Setting(NamedTuple):
    """One setting of a job."""

    name: str
    """Dotted."""
    field: FieldInfo
    """Its type, default and sentence."""
    only: tuple[str, ...] = ()
    """Members of a choice that have it like this; empty where it is there whatever is chosen."""


def describe(kind: type[Section]) -> str:
    """Every setting of a job, one block each: `name  (type; default; who alone has it)`, then its sentences."""
    blocks = [f"{(kind.__doc__ or kind.__name__).strip()}"]
    for name, field, only in walk(kind):
        facts = [type_name(field), "required" if field.is_required() else f"default {_plain(field)}"]
        if only:
            facts.append(f"with {', '.join(only)}")
        lines = (" ".join(part.split()) for part in (field.description or "").split("\n\n"))
        blocks.append("\n    ".join([f"{name}  ({'; '.join(facts)})", *lines]))
    return "\n\n".join(blocks) + "\n"


def walk(kind: type[Section], prefix: str = "") -> Iterator[Setting]:
    """Every setting, by its dotted name; `name.N.part` for the entries of a list of sections.

    Of a choice of sections: what all have, then each variant of what only some have or have in another way.
    """
    for name, field in kind.model_fields.items():
        inner = field.annotation
        if members(field):
            yield from _choice(field, f"{prefix}{name}.")
            continue
        if is_section(inner):
            yield from walk(inner, f"{prefix}{name}.")
            continue
        yield Setting(f"{prefix}{name}", field)
        if get_origin(inner) is list and is_section(get_args(inner)[0]):
            yield from walk(get_args(inner)[0], f"{prefix}{name}.N.")


def members(field: FieldInfo | None) -> dict[str, type[Section]]:
    """The sections of a choice by the name that chooses each; empty for any other field."""
    if field is None or not isinstance(field.discriminator, str):
        return {}
    sections = [part for part in get_args(field.annotation) if is_section(part)]
    return {name: part for part in sections for name in get_args(part.model_fields[field.discriminator].annotation)}


def chooser(field: FieldInfo) -> tuple[str, FieldInfo]:
    """The name of the setting that chooses among sections, and the setting with all their names and what they are."""
    name, sections = str(field.discriminator), members(field)
    literal: Any = Literal
    lines = [
        field.description or "",
        *(f"`{tag}`: {' '.join((s.__doc__ or '').split())}" for tag, s in sections.items()),
    ]
    default = getattr(field.get_default(call_default_factory=True), name, ...)
    whole: Any = FieldInfo(annotation=literal[tuple(sections)], default=default, description="\n\n".join(lines))
    return name, whole


def _choice(field: FieldInfo, prefix: str) -> Iterator[Setting]:
    """The chooser, then every variant of every setting with the members that have it; same names side by side."""
    sections = members(field)
    name, whole = chooser(field)
    yield Setting(prefix + name, whole)
    variants: dict[str, dict[Any, list[tuple[str, FieldInfo]]]] = {}
    for tag, section in sections.items():
        for part, own in section.model_fields.items():
            if part != name:
                looks = (type_name(own), _plain(own), own.description)
                variants.setdefault(part, {}).setdefault(looks, []).append((tag, own))
    found = [
        Setting(prefix + part, alike[0][1], tuple(tag for tag, _ in alike) if len(alike) < len(sections) else ())
        for part, ways in variants.items()
        for alike in ways.values()
    ]
    yield from sorted(found, key=lambda setting: len(setting.only) > 0)


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
        return f"list of {'sections' if is_section(inside[0]) else _plural(inside[0])}"
    if origin is tuple:
        return f"list of {len(inside)} {_plural(inside[0])}"
    if origin is dict:
        return "name: value pairs"
    return _NAMES.get(annotation, getattr(annotation, "__name__", str(annotation)))


def _plural(annotation: Any) -> str:
    return _name(annotation) + ("s" if annotation in (int, float) else "")


def _plain(field: FieldInfo) -> str:
    value = field.get_default(call_default_factory=True)
    return (
        {None: "null", True: "true", False: "false"}.get(value, f"{value}")
        if isinstance(value, bool | None)
        else f"{value}"
    )
