"""Things that a user names as text: `package.module:attribute`, imported in whatever process needs them."""

from __future__ import annotations

from difflib import get_close_matches
from importlib import import_module
from typing import Any

from rl_finetune.errors import UserError, cause


def imported(text: str, what: str) -> Any:
    """The attribute that `package.module:attribute` names.

    Args:
        text: module and attribute.
        what: what it shall be, for the message: `environment`.

    Raises:
        UserError: it is written otherwise, there is no such module here, the module has no such attribute, or raises
            when it is imported.
    """
    name, _, attribute = text.partition(":")
    if not name or not attribute.isidentifier():
        raise UserError(
            f"{what} is not named as it must be", got=repr(text), expected="'package.module:attribute'",
            do="write the module, a colon, and what it is called there",
        )  # fmt: skip
    try:
        module = import_module(name)
    except Exception as error:
        absent = error.name if isinstance(error, ModuleNotFoundError) else None
        if absent is None or not f"{name}.".startswith(f"{absent}."):
            raise UserError(
                f"{what} {text!r} lies in a module that cannot be imported", got=cause(error),
                expected="a module that can", do="mend it there",
            ) from error  # fmt: skip
        raise UserError(
            f"{what} {text!r} lies in a module that cannot be imported here", got=f"no module {absent!r}",
            expected="a module on Python's path, in this process and in every actor",
            do="install its package, or put its folder on PYTHONPATH",
        ) from error  # fmt: skip
    if not hasattr(module, attribute):
        known = [public for public in vars(module) if not public.startswith("_")]
        near = get_close_matches(attribute, known, n=1, cutoff=0.0)
        raise UserError(
            f"module {name!r} has no such {what}", got=repr(attribute), expected=f"one of {known}",
            do=f"did you mean {near[0]!r}?" if near else "define it there",
        )  # fmt: skip
    return getattr(module, attribute)
