"""Errors that end a run in a single line: exit code 2 where the user's input caused it, 1 where it did not."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from rl_finetune.frames import their_frames

SHOWN = 60
"""Characters of what was got that an error repeats."""
LINE = 500
"""Characters of what an exception says that an error repeats."""


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


class SimulatorError(RuntimeError):
    """A simulator that is not ours failed; the message is the line that says where. Another episode may go well."""


class NotFiniteError(FloatingPointError):
    """A number of a simulator is NaN or infinite where it must not be; says which. Its input is not to blame."""


def told(error: Exception) -> UserError | RunError:
    """An error as another process hears of it: it pickles, and is a line."""
    return error if isinstance(error, UserError | RunError) else RunError(cause(error))


def cause(error: BaseException) -> str:
    """An exception in one line, with the place in other people's code where it came from.

    `Reach.step raised ZeroDivisionError: division by zero (my_world.py:41 in step)`: who of theirs was called, and
    their last line. The errors of this module are lines already.
    """
    said = " ".join(str(error).split())
    if isinstance(error, UserError | RunError | SimulatorError | NotFiniteError):
        return said
    said = type(error).__name__ + (f": {_cut(said, LINE)}" if said else "")
    frames = their_frames(error)
    if not frames:
        return said
    who = next((frame.who for frame in frames if frame.who != "<lambda>"), "<lambda>")
    return f"{who} raised {said} ({frames[-1].place})"


@contextmanager
def simulator() -> Iterator[None]:
    """Calls of a simulator that is not ours: whatever it raises becomes a `SimulatorError`."""
    try:
        yield
    except (UserError, RunError, SimulatorError, NotFiniteError):
        raise
    except Exception as error:
        raise SimulatorError(cause(error)) from error


@contextmanager
def world_errors() -> Iterator[None]:
    """Our code around a simulator: what that raises becomes a `SimulatorError`, and our own faults fly as they are."""
    try:
        yield
    except Exception as error:
        if isinstance(error, UserError | RunError) or not is_theirs(error):
            raise
        raise SimulatorError(cause(error)) from error


def is_theirs(error: BaseException) -> bool:
    """Whether other people's code is to blame for an exception, as far as its traceback tells."""
    return isinstance(error, SimulatorError) or any(not frame.library for frame in their_frames(error))


@contextmanager
def users_code(what: str, *, certain: bool = False) -> Iterator[None]:
    """Where a user's own code is tried for the first time: its exceptions become a `UserError`.

    Args:
        what: what failed then, for example "environment 'my_world:WORLD' cannot be made".
        certain: whether every exception is theirs, and not only those that passed through their files.
    """
    try:
        yield
    except Exception as error:
        if isinstance(error, UserError | RunError) or not (certain or is_theirs(error)):
            raise
        raise UserError(
            what, got=cause(error), expected="no exception", do="mend it there, or choose another environment"
        ) from error


def brief(value: object) -> str:
    """What was got, in a few characters that are safe in a log: of an array its type and shape, of a list its length.

    Any array-like value that knows `dtype` and `shape` is told so: a tensor too.
    """
    if value is None:
        return "nothing"
    if isinstance(value, str | bytes):
        return _cut(ascii(value[:SHOWN]), SHOWN)
    if isinstance(value, bool | int | float):
        return _cut(ascii(value), SHOWN)
    shape, dtype = getattr(value, "shape", None), getattr(value, "dtype", None)
    if isinstance(shape, tuple) and dtype is not None:
        return _cut(f"{type(value).__name__} of {dtype} {tuple(shape)}", SHOWN)
    if isinstance(value, list | tuple):
        return f"{type(value).__name__} of {len(value)}"
    return type(value).__name__


def _cut(text: str, length: int) -> str:
    return text if len(text) <= length else text[: length - 3] + "..."


def _rebuild(what: str, got: str, expected: str, do: str) -> UserError:
    """Unpickle on the other side of a process boundary (keyword-only arguments need a helper)."""
    return UserError(what, got=got, expected=expected, do=do)
