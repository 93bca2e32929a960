"""The one kind of error a user can cause: a single line, exit code 2."""

from __future__ import annotations


class UserError(Exception):
    """Input that cannot be used. Says what happened, what was got, what was expected, what to do.

    The command line prints it as one line and leaves with exit code 2; nothing has been written by then.
    """

    def __init__(self, what: str, *, got: object, expected: object, do: str) -> None:
        self.what, self.got, self.expected, self.do = what, got, expected, do
        super().__init__(f"{what}: got {got}; expected {expected}; {do}")

    def __reduce__(self) -> tuple[object, ...]:
        return _rebuild, (self.what, str(self.got), str(self.expected), self.do)


def _rebuild(what: str, got: str, expected: str, do: str) -> UserError:
    """Unpickle on the other side of a process boundary (keyword-only arguments need a helper)."""
    return UserError(what, got=got, expected=expected, do=do)
