"""What pydantic found, as one line for a person."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from typing import Any, get_args, get_origin

from pydantic import ValidationError
from pydantic.fields import FieldInfo

from rl_finetune.config.describe import is_section, type_name, walk
from rl_finetune.config.schema import Section
from rl_finetune.errors import UserError

_Details = Any


def explain(error: ValidationError, kind: type[Section], tree: Mapping[str, Any]) -> UserError:
    """The first problem in full, and how many more there are. Unknown names come first: they may cause the others."""
    problems = sorted(error.errors(include_url=False), key=lambda p: p["type"] != "extra_forbidden")
    first = problems[0]
    if first["type"] == "extra_forbidden":
        found = _unknown(first, kind)
    elif first["type"] == "value_error":
        found = _impossible(first)
    elif first["type"] == "missing":
        found = _missing(first, kind)
    else:
        found = _wrong_value(first, kind)
    more = len(problems) - 1
    if not more:
        return found
    return UserError(found.what, got=found.got, expected=found.expected, do=f"{found.do} (and {more} more)")


def nearest(name: str, known: Iterable[str]) -> str | None:
    """The known name most like `name`, if one is alike: as a whole, or by its last part."""
    names = list(known)
    whole = difflib.get_close_matches(name, names, n=1, cutoff=0.7)
    if whole:
        return whole[0]
    by_leaf = {full.rsplit(".", 1)[-1]: full for full in reversed(names)}
    leaf = difflib.get_close_matches(name.rsplit(".", 1)[-1], by_leaf, n=1, cutoff=0.7)
    return by_leaf[leaf[0]] if leaf else None


def _unknown(problem: _Details, kind: type[Section]) -> UserError:
    name = _dotted(problem["loc"])
    *owner, _ = problem["loc"]
    here, _ = _lookup(kind, owner)
    siblings = list(here.model_fields) if here is not None else []
    prefix = _dotted(owner) + "." if owner else ""
    near = nearest(name, [prefix + s for s in siblings]) or nearest(name, [full for full, _ in walk(kind)])
    return UserError(
        f"unknown setting {name!r}",
        got=_short(problem["input"]),
        expected=f"one of {prefix}{{{', '.join(siblings)}}}" if prefix else f"one of {{{', '.join(siblings)}}}",
        do=f"did you mean {near!r}?" if near else "see `rl-finetune show-config --describe`",
    )


def _impossible(problem: _Details) -> UserError:
    """A validator's own words, which read `field: got value; expected what`."""
    text = str(problem["ctx"]["error"])
    head, _, expected = text.partition("; expected ")
    field, _, got = head.partition(": got ")
    if not (got and expected):
        field, got, expected = _dotted(problem["loc"]) or "settings", text, "settings that fit together"
    return UserError(f"impossible combination at {field!r}", got=got, expected=expected, do="change one of the two")


def _missing(problem: _Details, kind: type[Section]) -> UserError:
    name = _dotted(problem["loc"])
    _, field = _lookup(kind, problem["loc"])
    return UserError(
        f"setting {name!r} is missing",
        got="nothing",
        expected=_allowed(field),
        do=f"add it to the config file, or give {name}=...",
    )


def _wrong_value(problem: _Details, kind: type[Section]) -> UserError:
    name, value = _dotted(problem["loc"]), problem["input"]
    _, field = _lookup(kind, problem["loc"])
    hint = "correct it"
    choices = _choices(field)
    near = nearest(str(value), choices) if choices else None
    if near:
        hint = f"did you mean {near!r}?"
    elif problem["type"] == "string_type" and isinstance(value, int | float):
        hint = f"quote it to make it text: '{name}=\"{value}\"'"
    return UserError(f"setting {name!r} has a wrong value", got=_short(value), expected=_allowed(field), do=hint)


def _lookup(kind: type[Section], loc: Iterable[int | str]) -> tuple[type[Section] | None, FieldInfo | None]:
    """The section that the location ends in or names, and the field it names; numbers step into lists."""
    section: type[Section] | None = kind
    field: FieldInfo | None = None
    for key in loc:
        if isinstance(key, int):
            continue
        if section is None or key not in section.model_fields:
            return None, field
        field = section.model_fields[key]
        inner: Any = field.annotation
        if get_origin(inner) is list:
            inner = get_args(inner)[0]
        section = inner if is_section(inner) else None
    return section, field


def _allowed(field: FieldInfo | None) -> str:
    if field is None:
        return "another kind of value"
    return "a section of name: value pairs" if is_section(field.annotation) else type_name(field)


def _choices(field: FieldInfo | None) -> list[str]:
    """The texts of a Literal, or of a list of one."""
    inner = None if field is None else field.annotation
    if get_origin(inner) is list:
        inner = get_args(inner)[0]
    return [value for value in get_args(inner) if isinstance(value, str)]


def _dotted(loc: Iterable[int | str]) -> str:
    return ".".join(str(key) for key in loc)


def _short(value: Any) -> str:
    """The value as YAML writes it, with its kind where that is the question."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."
