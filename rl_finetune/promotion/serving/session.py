"""One client's episodes: which chunk comes next, what was commanded, how old its pictures are."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np

from rl_finetune.promotion.serving.chunks import aligned
from rl_finetune.promotion.serving.envelope import BACKWARDS, NOT_FINITE, STALE, Envelope, Guarded
from rl_finetune.promotion.serving.limiter import Motion
from rl_finetune.promotion.serving.reading import Reading, RequestError
from rl_finetune.promotion.serving.requests import ActReply, ActRequest
from rl_finetune.types import FloatArray

_Limited = Callable[[Envelope, FloatArray, Motion | None], Guarded | None]
"""`Envelope.apply`, or `quick`."""
DRIFT = 2e-4
"""Seconds a second by which two clocks may part without anything being late."""


class Rules(Protocol):
    """What a stage knows of its bundles."""

    def envelope(self, digest: str, tag: str) -> Envelope:
        """Limits of one body in a bundle that has acted."""


@dataclass(frozen=True, slots=True)
class Answer:
    """What the client may be told."""

    actions: FloatArray
    """[H, c] action units; shorter by `ahead` where the client has asked ahead."""
    interventions: Mapping[str, int]
    """Kind -> control steps; see `envelope.Guarded`."""
    held: bool
    """Whether the robot was told to stand still."""


@dataclass(frozen=True, slots=True)
class _Asked:
    """A question that has not been answered."""

    reading: Reading
    came: float
    """Server's clock, seconds."""
    age: float
    """Seconds that its pictures were old then, as far as can be told."""
    backwards: bool
    """Whether the client's clock has run backwards."""


class Freshness:
    """Ages of pictures by the client's clock.

    The two clocks share no zero: the quickest message so far counts as new. A delay that has been there from the start
    cannot be seen.
    """

    def __init__(self) -> None:
        self._offset: float | None = None
        self._looked = self._latest = 0.0

    def age(self, time: float, now: float) -> float | None:
        """Seconds beyond the quickest message; None where `time` lies before that of an earlier message.

        Args:
            time: client's clock, seconds.
            now: server's clock, seconds.
        """
        if self._offset is None:
            self._offset, self._looked, self._latest = now - time, now, time
        if time < self._latest:
            return None
        self._offset = min(self._offset + DRIFT * (now - self._looked), now - time)
        self._looked, self._latest = now, time
        return now - time - self._offset


class Session:
    """State of one connection; called by one thread at a time."""

    def __init__(self, number: int, rules: Rules, *, seed: int = 0) -> None:
        """Begin.

        Args:
            number: of the session; keys its noise.
            rules: limits of the bundles that act.
            seed: of the noise, where the client brings none.
        """
        self._number, self._rules, self._seed = number, rules, seed
        self._episode, self._chunk = -1, 0
        self._named: int | None = None
        self._body: str | None = None
        self._asked: _Asked | None = None
        self._sent: FloatArray | None = None
        self._motion: Motion | None = None
        self._told = 0.0
        self._freshness = Freshness()

    def ask(self, reading: Reading, now: float) -> ActRequest:
        """What the policy is asked. An episode begins with the first message, with `reset`, and with another number.

        Episodes that the client numbers have the noise of that held-out episode in an evaluation under the same seed.

        Args:
            reading: what the robot saw.
            now: server's monotonic clock when it came, seconds.

        Raises:
            RequestError: the robot has become another, or more steps are ahead than it was sent.
        """
        if self._episode < 0 or reading.reset or reading.episode not in (None, self._named):
            self._begin()
            self._episode += 1
            self._named, self._body = reading.episode, reading.embodiment
        if reading.embodiment != self._body:
            raise RequestError("'embodiment'", got=reading.embodiment, expected=f"{self._body}, or a reset with it")
        most = 0 if self._sent is None else len(self._sent)
        if reading.ahead > most:
            raise RequestError("'ahead'", got=reading.ahead, expected=f"at most the {most} steps of the last reply")
        age = 0.0 if reading.time is None else self._freshness.age(reading.time, now)
        self._asked = _Asked(replace(reading, images={}), now, age or 0.0, age is None)
        return ActRequest(
            observation=reading.observation(),
            seed=self._seed if reading.seed is None else reading.seed,
            env=self._number if self._named is None else self._named,
            episode=self._episode if self._named is None else 0,
            chunk=self._chunk,
        )

    def answer(self, reply: ActReply, now: float) -> Answer:
        """What the client may be told of the policy's reply to its last question.

        Args:
            reply: the policy's chunk.
            now: server's monotonic clock, seconds.

        Raises:
            RequestError: more steps are ahead than the chunk has.
            UserError: the robot must be held, and nothing has been commanded yet.
            ValueError: nothing was asked.
        """
        answer = self._answered(reply, now, Envelope.apply)
        assert answer is not None
        return answer

    def quick(self, reply: ActReply, now: float) -> Answer | None:
        """As `answer`, where that takes about a millisecond at most; None, and nothing has changed, where it may take
        longer."""
        return self._answered(reply, now, Envelope.quick)

    def hold(self, kind: str, digest: str, now: float) -> Answer:
        """What the client may be told where there is no reply of the policy: to stand still.

        Args:
            kind: why.
            digest: bundle whose limits count.
            now: server's monotonic clock, seconds.

        Raises:
            UserError, ValueError: as `answer`.
        """
        if self._asked is None:
            raise ValueError("an answer without a question")
        action = self._rules.envelope(digest, self._asked.reading.embodiment).body.action
        nothing = np.full((action.horizon, action.channels), np.nan, np.float32)
        return self.answer(ActReply(nothing, digest, seconds=0.0, batch=0, hold=kind), now)

    def _answered(self, reply: ActReply, now: float, limited: _Limited) -> Answer | None:
        if self._asked is None:
            raise ValueError("an answer without a question")
        asked, self._asked = self._asked, None
        ahead = asked.reading.ahead
        if ahead >= len(reply.actions):
            raise RequestError("'ahead'", got=ahead, expected=f"less than the {len(reply.actions)} steps of a chunk")
        envelope = self._rules.envelope(reply.digest, asked.reading.embodiment)
        guarded = self._guarded(envelope, reply, asked, now, limited)
        if guarded is None:
            self._asked = asked
            return None
        self._sent, self._motion, self._told = guarded.actions, guarded.end, now
        self._chunk += 1
        return Answer(guarded.actions, guarded.interventions, guarded.held)

    def _guarded(
        self, envelope: Envelope, reply: ActReply, asked: _Asked, now: float, limited: _Limited
    ) -> Guarded | None:
        ahead, motion = asked.reading.ahead, self._motion
        if motion is not None and self._stands(asked, now, 1 / envelope.body.action.rate):
            motion = Motion.resting(motion.place)
        late = asked.age + now - asked.came > envelope.stale_after
        finite = bool(np.isfinite(reply.actions).all())  # also in steps that alignment would drop
        if reply.hold or asked.backwards or late or not finite:
            kind = reply.hold or (BACKWARDS if asked.backwards else STALE if late else NOT_FINITE)
            return envelope.hold(motion, len(reply.actions) - ahead, kind)
        chunk = reply.actions
        if self._sent is not None:
            chunk = aligned(chunk, self._sent, ahead, envelope.body)
        return limited(envelope, chunk, motion)

    def _stands(self, asked: _Asked, now: float, period: float) -> bool:
        """Whether the robot has executed its last chunk and waited since, for an answer or before it asked."""
        ahead, sent = asked.reading.ahead, 0 if self._sent is None else len(self._sent)
        paused = ahead == 0 and asked.came - self._told > (sent + 1) * period
        return paused or now - asked.came > (ahead + 1) * period

    def _begin(self) -> None:
        """An episode in which nothing was commanded yet."""
        self._chunk, self._sent, self._motion = 0, None, None
        self._freshness = Freshness()
