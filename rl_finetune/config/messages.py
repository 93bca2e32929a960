"""What pydantic found, as one line for a person."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple, get_args, get_origin

from pydantic import ValidationError
from pydantic.fields import FieldInfo

from rl_finetune.config.describe import chooser, is_section, members, type_name, walk
from rl_finetune.config.section import Section
from rl_finetune.errors import UserError

_Details = Any


class _Place(NamedTuple):
    """Where a problem is."""

    name: str
    """Dotted, as a person writes it: without the tags that pydantic puts in for the member of a choice."""
    section: type[Section] | None
    """The section that it is, if it is one."""
    field: FieldInfo | None
    """The setting that it is."""
    choice: FieldInfo | None
    """The choice of sections that the last step went into."""


def explain(error: ValidationError, kind: type[Section], tree: Mapping[str, Any]) -> UserError:
    """The first problem in full, and how many more there are. Unknown names come first: they may cause the others."""
    problems = sorted(error.errors(include_url=False), key=lambda p: p["type"] != "extra_forbidden")
    first = problems[0]
    if first["type"] == "extra_forbidden":
        found = _unknown(first, kind)
    elif first["type"] == "value_error":
        found = _impossible(first, kind)
    elif first["type"] == "missing":
        found = _missing(_find(kind, first["loc"]))
    elif first["type"] in ("union_tag_invalid", "union_tag_not_found"):
        found = _no_member(first, kind)
    else:
        found = _wrong_value(_find(kind, first["loc"]), first["input"], first["type"])
    more = len(problems) - 1
    if not more:
        return found
    return UserError(found.what, got=found.got, expected=found.expected, do=f"{found.do} (and {more} more)")


def nearest(leaf: str, known: Iterable[str]) -> str | None:
    """The first of the known dotted names whose last part is most like `leaf`, if one is alike."""
    by_leaf = {full.rsplit(".", 1)[-1]: full for full in reversed(list(known))}
    found = difflib.get_close_matches(leaf, by_leaf, n=1, cutoff=0.7)
    return by_leaf[found[0]] if found else None


def _unknown(problem: _Details, kind: type[Section]) -> UserError:
    owner, leaf = _find(kind, problem["loc"][:-1]), str(problem["loc"][-1])
    siblings = list(owner.section.model_fields) if owner.section is not None else []
    prefix = f"{owner.name}." if owner.name else ""
    return UserError(
        f"unknown setting {prefix + leaf!r}",
        got=_short(problem["input"]),
        expected=f"one of {prefix}{{{', '.join(siblings)}}}",
        do=_hint(leaf, owner, kind, [prefix + name for name in siblings]),
    )


def _hint(leaf: str, owner: _Place, kind: type[Section], siblings: list[str]) -> str:
    """What an unknown name may be: another member's setting, a member, a sibling, or a setting elsewhere."""
    if owner.choice is not None:
        having = [tag for tag, section in members(owner.choice).items() if leaf in section.model_fields]
        if having:
            return f"{owner.name}.{owner.choice.discriminator}={' or '.join(having)} has it"
    here = owner.section.model_fields if owner.section is not None else {}
    chosen = [f"{name}.{field.discriminator}={leaf}" for name, field in here.items() if leaf in members(field)]
    found = nearest(leaf, siblings) or nearest(leaf, [setting.name for setting in walk(kind)])
    near = next(iter(chosen), found)
    return f"did you mean {near!r}?" if near else "see `rl-finetune show-config --describe`"


def _impossible(problem: _Details, kind: type[Section]) -> UserError:
    """A validator's own words, which read `field: got value; expected what`."""
    text = str(problem["ctx"]["error"])
    head, _, expected = text.partition("; expected ")
    field, _, got = head.partition(": got ")
    if not (got and expected):
        place = _find(kind, problem["loc"])
        field, got, expected = place.name or "settings", text, "settings that fit together"
    return UserError(f"impossible combination at {field!r}", got=got, expected=expected, do="change one of the two")


def _missing(place: _Place) -> UserError:
    return UserError(
        f"setting {place.name!r} is missing",
        got="nothing",
        expected=_allowed(place.field),
        do=f"add it to the config file, or give {place.name}=...",
    )


def _no_member(problem: _Details, kind: type[Section]) -> UserError:
    """A choice of sections whose name is missing or is none of the members'."""
    place = _find(kind, problem["loc"])
    assert place.field is not None  # only a choice has these problems
    name, whole = chooser(place.field)
    place = _Place(f"{place.name}.{name}", None, whole, None)
    return _wrong_value(place, problem["input"][name], "") if name in problem["input"] else _missing(place)


def _wrong_value(place: _Place, value: Any, problem: str) -> UserError:
    hint = "correct it"
    choices = _choices(place.field)
    near = nearest(str(value), choices) if choices else None
    if near:
        hint = f"did you mean {near!r}?"
    elif place.field is not None and isinstance(value, str) and value in members(place.field):
        hint = f"did you mean {f'{place.name}.{place.field.discriminator}={value}'!r}?"
    elif problem == "string_type" and isinstance(value, int | float):
        hint = f"quote it to make it text: '{place.name}=\"{value}\"'"
    what = f"setting {place.name!r} has a wrong value"
    return UserError(what, got=_short(value), expected=_allowed(place.field), do=hint)


def _find(kind: type[Section], loc: Iterable[int | str]) -> _Place:
    """What a location names; numbers step into lists, and a choice of sections is followed by the member's tag."""
    place, names = _Place("", kind, None, None), list[str]()
    for key in loc:
        tagged = members(place.field) if place.section is None else {}
        if key in tagged:
            place = place._replace(section=tagged[str(key)], choice=place.field)
            continue
        names.append(str(key))
        if isinstance(key, int):
            place = place._replace(name=".".join(names))
        elif place.section is None or key not in place.section.model_fields:
            place = _Place(".".join(names), None, None, None)
        else:
            field = place.section.model_fields[key]
            place = _Place(".".join(names), _section(field), field, None)
    return place


def _section(field: FieldInfo) -> type[Section] | None:
    """The section that a field is, or is a list of."""
    inner: Any = field.annotation
    if get_origin(inner) is list:
        inner = get_args(inner)[0]
    return inner if is_section(inner) else None


def _allowed(field: FieldInfo | None) -> str:
    if field is None:
        return "another kind of value"
    whole = is_section(field.annotation) or members(field)
    return "a section of name: value pairs" if whole else type_name(field)


def _choices(field: FieldInfo | None) -> list[str]:
    """The texts of a Literal, or of a list of one."""
    inner = None if field is None else field.annotation
    if get_origin(inner) is list:
        inner = get_args(inner)[0]
    return [value for value in get_args(inner) if isinstance(value, str)]


def _short(value: Any) -> str:
    """The value as YAML writes it, with its kind where that is the question."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."
