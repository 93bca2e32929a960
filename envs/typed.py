"""Options of an environment take the types that they declare, whatever YAML or a command line brought."""

from __future__ import annotations

from dataclasses import Field, fields
from typing import Any, get_type_hints

from rl_finetune.errors import UserError


def typed(options: Any, world: str) -> None:
    """For `__post_init__` of a frozen dataclass: check each field against its annotation, and make tuples of lists.

    Raises:
        UserError: a value does not fit; names the option.
    """
    given = {field.name: getattr(options, field.name) for field in fields(options) if not _is_default(options, field)}
    if not given:
        return
    from pydantic import TypeAdapter, ValidationError  # not in every worker process: 0.3 s that most have no use for

    hints = get_type_hints(type(options), include_extras=True)
    for name, value in given.items():
        try:
            fitting: Any = TypeAdapter(hints[name]).validate_python(value)
        except ValidationError as error:
            problem = error.errors(include_url=False)[0]
            expected = problem["msg"].removeprefix("Input should be ").replace("a valid tuple", "a list")
            raise UserError(
                f"{world} cannot use option {name!r}", got=repr(value), expected=expected,
                do=f"set {'.'.join(map(str, (name, *problem['loc'])))}",
            ) from error  # fmt: skip
        object.__setattr__(options, name, fitting)


def _is_default(options: Any, field: Field[Any]) -> bool:
    value = getattr(options, field.name)
    return type(value) is type(field.default) and bool(value == field.default)
