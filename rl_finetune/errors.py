"""Errors that end a run in a single line: exit code 2 where the user's input caused it, 1 where it did not."""

from __future__ import annotations

SHOWN = 60
"""Characters of what was got that an error repeats."""


class UserError(Exception):
    """Input that cannot be used. Says what happened, what was got, what was expected, what to do.

    The command line prints it as one line and leaves with exit code 2; nothing has been written by then.
    """

    def __init__(self, what: str, *, got: object, expected: object, do: str) -> None:
        self.what, self.got, self.expected, self.do = what, got, expected, do
        super().__init__(f"{what}: got {got}; expected {expected}; {do}")

    def __reduce__(self) -> tuple[object, ...]:
        return _rebuild, (self.what, str(self.got), str(self.expected), self.do)


class RunError(RuntimeError):
    """The run cannot go on, and its input is not to blame. The command line prints one line, with exit code 1."""


def told(error: Exception) -> UserError | RunError:
    """An error as another process hears of it: it pickles, and is a line."""
    return error if isinstance(error, UserError | RunError) else RunError(f"{type(error).__name__}: {error}")


def brief(value: object) -> str:
    """What was got, in a few characters that are safe in a log: of an array its type and shape, of a list its length.

    Any array-like value that knows `dtype` and `shape` is told so: a tensor too.
    """
    if value is None:
        return "nothing"
    if isinstance(value, str | bytes):
        return _cut(ascii(value[:SHOWN]))
    if isinstance(value, bool | int | float):
        return _cut(ascii(value))
    shape, dtype = getattr(value, "shape", None), getattr(value, "dtype", None)
    if isinstance(shape, tuple) and dtype is not None:
        return _cut(f"{type(value).__name__} of {dtype} {tuple(shape)}")
    if isinstance(value, list | tuple):
        return f"{type(value).__name__} of {len(value)}"
    return type(value).__name__


def _cut(text: str) -> str:
    return text if len(text) <= SHOWN else text[: SHOWN - 3] + "..."


def _rebuild(what: str, got: str, expected: str, do: str) -> UserError:
    """Unpickle on the other side of a process boundary (keyword-only arguments need a helper)."""
    return UserError(what, got=got, expected=expected, do=do)
