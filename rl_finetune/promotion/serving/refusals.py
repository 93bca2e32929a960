"""What is refused: counted by kind, and written to the log without a stranger being able to fill it."""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Callable

LOG = logging.getLogger(__name__)
PERIOD = 10.0
"""Seconds between two lines of one kind."""


class Refusals:
    """Counts refusals and logs them: the first of a kind at once, later ones as a number beside the next line."""

    def __init__(self, counts: Counter[str], clock: Callable[[], float] = time.monotonic) -> None:
        """Begin.

        Args:
            counts: by kind.
            clock: seconds.
        """
        self._counts, self._clock = counts, clock
        self._next: dict[str, float] = {}
        self._unsaid: Counter[str] = Counter()

    def note(self, kind: str, line: str) -> None:
        """Count one.

        Args:
            kind: one of few; never what a client says.
            line: what the client was told.
        """
        self._counts[kind] += 1
        now = self._clock()
        if now < self._next.get(kind, now):
            self._unsaid[kind] += 1
            return
        more = f"; and {self._unsaid[kind]} more since the last line" if self._unsaid[kind] else ""
        LOG.warning("refused (%s): %s%s", kind, line, more)
        self._next[kind], self._unsaid[kind] = now + PERIOD, 0
