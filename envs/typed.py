"""Options of an environment take the types that they declare, whatever YAML or a command line brought."""

from __future__ import annotations

from dataclasses import fields
from typing import Any, get_type_hints

from rl_finetune.errors import UserError


def typed(options: Any, world: str) -> None:
    """For `__post_init__` of a frozen dataclass: check each field against its annotation, and make tuples of lists.

    Raises:
        UserError: a value does not fit; names the option.
    """
    from pydantic import TypeAdapter, ValidationError  # not in every worker process: most worlds have no use for it

    hints = get_type_hints(type(options), include_extras=True)
    for field in fields(options):
        value = getattr(options, field.name)
        try:
            fitting: Any = TypeAdapter(hints[field.name]).validate_python(value)
        except ValidationError as error:
            problem = error.errors(include_url=False)[0]
            expected = problem["msg"].removeprefix("Input should be ")
            raise UserError(
                f"{world} cannot use option {field.name!r}", got=repr(value), expected=expected,
                do=f"set {'.'.join(map(str, (field.name, *problem['loc'])))}",
            ) from error  # fmt: skip
        object.__setattr__(options, field.name, fitting)
