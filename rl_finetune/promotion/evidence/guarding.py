"""Episodes played as they are served: the server's safety envelope between a policy and simulated bodies.

As on the server, an episode begins with nothing commanded, and a chunk joins on where the one before ended. A world
waits for the next chunk without time passing: the body never comes to a stand in between, as with a client that asks
ahead or gets its answers within a control step. A robot that pauses goes on from a stand instead.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np

from actors.guarding import Guard
from rl_finetune.promotion.records import Limits
from rl_finetune.promotion.serving.envelope import NOT_FINITE, Envelope
from rl_finetune.promotion.serving.limiter import Motion
from rl_finetune.spec import EmbodimentSpec
from rl_finetune.types import ActionChunk, BoolArray, IntArray

KINDS = ("action", "velocity", "acceleration", "jerk", "stopping", "workspace", NOT_FINITE)
"""Why a step is changed; its number is its bit in `Guard.changed`. Nothing is ever stale in a world that waits."""


@dataclass(frozen=True, slots=True)
class Envelopes:
    """Makes guards (see `actors.guarding.Guards`)."""

    limits: Mapping[str, Limits]
    """Robot tag -> what it may be told."""

    def __call__(self, body: EmbodimentSpec) -> Guard:
        """The guard of that body.

        Raises:
            UserError: its limits cannot be kept.
        """
        return EnvelopeGuard(Envelope.of(body, self.limits[body.tag]))


class EnvelopeGuard(Guard):
    """One envelope, and a motion for each environment."""

    def __init__(self, envelope: Envelope) -> None:
        """Guard with it."""
        self._envelope = envelope
        self.begin(0)

    def begin(self, num: int) -> None:
        """See `Guard.begin`."""
        self._motions: list[Motion | None] = [None] * num
        self.changed = np.zeros((num, self._envelope.body.action.horizon), np.int64)

    def __call__(self, chunk: ActionChunk, running: BoolArray) -> ActionChunk:
        """See `Guard.__call__`."""
        channels, actions = self._envelope.body.action.channels, chunk.actions.copy()
        self.changed = np.zeros(actions.shape[:2], np.int64)
        for row in np.flatnonzero(running).tolist():
            told = self._envelope.apply(actions[row, :, :channels], self._motions[row])
            actions[row, :, :channels], self._motions[row] = told.actions, told.end
            self.changed[row] = [sum(1 << KINDS.index(kind) for kind in step) for step in told.changed]
        return replace(chunk, actions=actions)


def counted(changed: IntArray) -> dict[str, int]:
    """Kind -> steps among [T] that were changed for that reason; kinds that never were are left out."""
    counts = {kind: int((changed >> bit & 1).sum()) for bit, kind in enumerate(KINDS)}
    return {kind: count for kind, count in counts.items() if count}
