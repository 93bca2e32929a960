"""A task in words, from whoever gives it: a simulator, a robot's client, a data set. One rule for all of them."""

from __future__ import annotations

from typing import Any

import numpy as np

from rl_finetune.errors import UserError, brief

SPECIAL = "<|"
"""Begins every token that means more to the model than its letters, such as the place of a picture."""
NESTED = 4
"""Lists of one within lists of one."""


def instruction(value: object, what: str = "instruction") -> str:
    """The task as a prompt takes it: a text, the bytes of one (UTF-8), or the only entry of a list, tuple or array.

    White space around it is dropped.

    Args:
        value: what was given.
        what: what it is called in an error.

    Raises:
        UserError: it is anything else, empty, of several lines, or holds `<|`.
    """
    text = _only_entry(value)
    if isinstance(text, bytes):
        text = text.decode(errors="surrogateescape")
    if not isinstance(text, str):
        raise _refused(what, value)
    text = str(text).strip()
    if not text or not text.isprintable() or SPECIAL in text:
        raise _refused(what, value)
    return text


def _only_entry(value: Any) -> Any:
    for _ in range(NESTED):
        if isinstance(value, list | tuple) and len(value) == 1:
            value = value[0]
        elif isinstance(value, np.ndarray) and value.size == 1:
            value = value.item()
    return value


def _refused(what: str, value: object) -> UserError:
    return UserError(
        f"{what} is no task in words", got=brief(value), expected=f"one printable line of text without {SPECIAL!r}",
        do="give it as a string",
    )  # fmt: skip
