"""What a person hears while evidence is gathered."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol, TextIO


class Progress(Protocol):
    """Told of every part that is done."""

    def __call__(self, what: str, done: int, of: int) -> None:
        """`done` of `of` episodes are played; `what` is going on."""


def silent(what: str, done: int, of: int) -> None:
    """Nobody listens."""


@dataclass(slots=True)
class Spoken:
    """One line every few seconds, with the time left."""

    out: TextIO = field(default_factory=lambda: sys.stderr)
    """Where lines go."""
    every: float = 10.0
    """Seconds between lines of the same kind of work."""
    clock: Callable[[], float] = time.monotonic
    """Seconds."""
    _first: tuple[float, int] | None = None
    _last: tuple[float, str] = (float("-inf"), "")

    def __call__(self, what: str, done: int, of: int) -> None:
        """See `Progress`. Time left goes by what was played since the first call: the rest came from the disk."""
        now = self.clock()
        self._first = self._first or (now, done)
        told, kind = self._last
        if kind == what and now - told < self.every and done < of:
            return
        self._last = now, what
        share = f"{done} of {of} episodes, " if of else ""
        print(f"{share}{what}{self._left(now, done, of)}", file=self.out, flush=True)

    def _left(self, now: float, done: int, of: int) -> str:
        assert self._first is not None
        began, before = self._first
        if done <= before or done >= of:
            return ""
        minutes = (now - began) / (done - before) * (of - done) / 60
        return f", {minutes:.0f} min left" if minutes >= 1 else f", {60 * minutes:.0f} s left"
