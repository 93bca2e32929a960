"""The safety envelope: what a body may be told, whatever the policy wants. Pure; numpy only.

The commanded state of a channel, of which the derivatives are limited:

    joint       the joint itself; it goes on through the chunks
    delta_ee    the tool's place since the chunk's first frame; a chunk begins at zero with the last one's speed
    waypoint    the base's place since the first frame, likewise, with speeds along the base's new axes
    grippers    the opening itself; it goes on through the chunks
    trace       points in a picture: nothing moves, so only `low` and `high` count

That a chunk begins where the last one's command ended takes the robot to follow its commands: the server sees neither
joints nor tools. Before the first command of an episode displacements begin at a stand, and absolute channels where the
first command puts them, since nothing is known of where they are.

A chunk within all limits, from which the body could be stopped within them at every step, is handed on bit by bit.
Otherwise it is followed as closely as the limits allow (see `limiter`, which also says what wins where limits
contradict each other). Limits hold to within the rounding of float32 actions.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from rl_finetune.errors import UserError
from rl_finetune.promotion.records import Limits
from rl_finetune.promotion.serving.frames import carried, framed
from rl_finetune.promotion.serving.limiter import (
    AHEAD,
    Bounds,
    Float64,
    Motion,
    brake,
    braking,
    joins,
    slopes,
    stopping,
    towards,
)
from rl_finetune.promotion.serving.workspace import Tools, tools_of
from rl_finetune.spec import EmbodimentSpec
from rl_finetune.types import FloatArray

NOT_FINITE, STALE, BACKWARDS = "not_finite", "stale", "backwards"
"""Why a body is held: the policy's numbers, the observation's age, the client's clock."""
ROUNDING = 2.0**-23
"""Of a float32 place, relative."""
TOUCH = 1e-9
"""Metres of rounding at the border of the workspace."""


@dataclass(frozen=True, slots=True)
class Guarded:
    """What the body may be told."""

    actions: FloatArray
    """[H, c] action units."""
    changed: tuple[frozenset[str], ...]
    """[H] why each step was changed; empty where it was not. `action`, `velocity`, `acceleration`, `jerk` where the
    chunk asked for more than allowed; `stopping` where a step kept these limits but not the possibility to stop within
    them, or was left to make a later one possible; `workspace`; `not_finite`, `stale`, `backwards` where all was
    held."""
    end: Motion
    """After the last step, in the frame of the next chunk."""
    held: bool = False
    """Whether the body was told to stand still."""

    @property
    def interventions(self) -> Mapping[str, int]:
        """Kind -> control steps."""
        return dict(Counter(kind for step in self.changed for kind in step))


@dataclass(frozen=True, slots=True)
class Envelope:
    """Limits of one body; see `of`."""

    body: EmbodimentSpec
    bounds: Bounds
    stale_after: float = np.inf
    """Seconds that an observation may be old."""
    workspace: Float64 | None = None
    """[3, 2] metres."""
    tools: Tools | None = None
    """Where the tools are at a command; without it the workspace cannot be watched."""

    @classmethod
    def of(cls, body: EmbodimentSpec, limits: Limits) -> Envelope:
        """Limits by second made limits by control step.

        Raises:
            UserError: limits that do not fit the body's channels, contradict each other, or forbid to stop.
        """
        tools = tools_of(body) if limits.workspace else None
        box = np.array(limits.workspace, np.float64) if limits.workspace else None
        return cls(body, bounds_of(body, limits), limits.stale_after, box, tools)

    def apply(self, chunk: FloatArray, motion: Motion | None) -> Guarded:
        """Bring a chunk [H, c] within the limits.

        Args:
            chunk: action units.
            motion: what was commanded last, in this chunk's frame; None where nothing was.

        Raises:
            UserError: it is not finite, and there is nothing to hold.
        """
        if not np.isfinite(chunk).all():
            return self.hold(motion, len(chunk), NOT_FINITE)
        return self._passed(chunk, motion) or self._followed(chunk, motion)

    def quick(self, chunk: FloatArray, motion: Motion | None) -> Guarded | None:
        """As `apply`, where that takes a fraction of a millisecond; None where the chunk may have to be followed, or
        tools with it, which takes some tens.

        Args:
            chunk: finite action units [H, c].
            motion: as in `apply`.
        """
        return self._passed(chunk, motion) if self.tools is None else None

    def _passed(self, chunk: FloatArray, motion: Motion | None) -> Guarded | None:
        """The chunk itself, where it is within all limits."""
        asked = chunk.astype(np.float64)
        start = self._start(asked, motion)
        path = start.along(asked)
        if not joins(start, asked, self.bounds, _slack(asked)).all() or (self._outside(path) > TOUCH).any():
            return None
        return Guarded(chunk, (frozenset(),) * len(chunk), carried(path.row(-1), self.body))

    def _start(self, asked: Float64, motion: Motion | None) -> Motion:
        """What the first step goes on from."""
        return motion or Motion.resting(np.where(self.bounds.framed, 0.0, self._clipped(asked[0])))

    def _clipped(self, asked: Float64) -> Float64:
        return np.clip(asked, self.bounds.low, self.bounds.high)

    def _followed(self, chunk: FloatArray, motion: Motion | None) -> Guarded:
        """The chunk as closely as the limits allow."""
        asked, bounds = chunk.astype(np.float64), self.bounds
        slack, wanted = _slack(asked), self._clipped(asked)
        changed: list[frozenset[str]] = []
        now, places = self._start(asked, motion), []
        for index, pace in enumerate(slopes(wanted)):
            step = towards(now, wanted[index : index + AHEAD], pace, bounds, slack)
            kinds = _asked(now, asked[index], wanted[index], bounds, slack)
            if (np.abs(step.place - wanted[index]) > slack).any() and not kinds:
                kinds = {"stopping"}
            step, left = self._kept_inside(now, step)
            changed.append(frozenset(kinds | left))
            now = step
            places.append(now.place)
        return Guarded(np.array(places, np.float32), tuple(changed), carried(now, self.body))

    def hold(self, motion: Motion | None, steps: int, kind: str) -> Guarded:
        """Stand still, braking as the limits allow: no displacement, joints and grippers as they were told last.

        Args:
            motion: as in `apply`.
            steps: H.
            kind: why.

        Raises:
            UserError: nothing was commanded yet that could be held.
        """
        if motion is None:
            if not self.bounds.framed.all():
                raise UserError(
                    f"{self.body.tag} cannot be held ({kind.replace('_', ' ')})", got="no command yet in this episode",
                    expected="a command to hold", do="leave the robot as it is, and ask again",
                )  # fmt: skip
            motion = Motion.resting(np.zeros(len(self.bounds.low)))
        path = braking(motion, self.bounds, steps)[1:]
        last = path[-1] if path else motion
        places = [m.place for m in path] + [last.place] * (steps - len(path))
        end = last if len(path) == steps else Motion.resting(last.place)
        why = (frozenset({kind}),) * steps
        return Guarded(np.array(places, np.float32), why, carried(end, self.body), held=True)

    def _kept_inside(self, now: Motion, step: Motion) -> tuple[Motion, set[str]]:
        """The step, or braking where it would lead a tool further out of the workspace than braking does."""
        if self.workspace is None or self.tools is None:
            return step, set()
        sure = brake(now, self.bounds)
        if self._outside(step) <= np.maximum(self._outside(sure), TOUCH):
            return step, set()
        return sure, {"workspace"}

    def _outside(self, motion: Motion) -> Float64:
        """[...] metres by which a tool leaves the workspace, now or if it is braked from here; motion is [..., c]."""
        if self.workspace is None or self.tools is None:
            return np.zeros(motion.place.shape[:-1])
        places = np.stack([m.place for m in braking(motion, self.bounds)])
        tools = self.tools(places.reshape(-1, places.shape[-1])).reshape(*places.shape[:-1], -1, 3)
        beyond = np.maximum(self.workspace[:, 0] - tools, tools - self.workspace[:, 1])
        return np.maximum(beyond.max((-1, -2)).max(0), 0.0)


def _slack(asked: Float64) -> Float64:
    """[c] rounding of the places of a chunk [H, c]."""
    return ROUNDING * np.abs(asked).max(0)


def _asked(now: Motion, asked: Float64, wanted: Float64, bounds: Bounds, slack: Float64) -> set[str]:
    """Which limits the step itself would break."""
    step = now.to(wanted)
    over = {
        "action": (np.abs(asked - wanted) > slack).any(),
        "velocity": (np.abs(step.speed) > bounds.speed + 2 * slack).any(),
        "acceleration": (np.abs(step.push) > bounds.push + 4 * slack).any(),
        "jerk": (np.abs(step.push - now.push) > bounds.jerk + 8 * slack).any(),
    }
    return {kind for kind, broken in over.items() if broken}


def bounds_of(body: EmbodimentSpec, limits: Limits) -> Bounds:
    """Limits by control step; see `Envelope.of`.

    Raises:
        UserError: they cannot be kept.
    """
    rate, channels = body.action.rate, body.action.channels
    endless = (np.inf,) * channels
    rates: tuple[tuple[float, ...], ...] = ((), (), ())
    if body.action.control != "trace":
        rates = limits.velocity, limits.acceleration, limits.jerk
    speed, push, jerk = (np.array(r or endless) / rate**n for n, r in enumerate(rates, 1))
    low = np.array(limits.low or [-np.inf] * channels, np.float64)
    bounds = Bounds(low, np.array(limits.high or endless, np.float64), speed, push, jerk, framed(body))
    given = {"low": low, "high": bounds.high, "velocity": speed, "acceleration": push, "jerk": jerk}
    for name, values in given.items():
        if values.shape != (channels,) or np.isnan(values).any():
            raise _unfit(body, f"{name} of {values.size} numbers", f"{channels} numbers, or none")
    if min(speed.min(), push.min(), jerk.min()) <= 0:
        raise _unfit(body, "a rate that is not positive", "velocity, acceleration and jerk above zero")
    if (low > bounds.high).any() or (bounds.framed & ((low > 0) | (bounds.high < 0))).any():
        raise _unfit(body, "an empty range", "low <= high, and zero between them for displacements")
    fastest = Motion(np.zeros(channels), np.where(np.isinf(speed), 0.0, speed), np.zeros(channels))
    if not stopping(fastest, bounds).stands.all():
        raise _unfit(body, "brakes that take minutes", "acceleration and jerk that stop the greatest velocity")
    return bounds


def _unfit(body: EmbodimentSpec, got: str, expected: str) -> UserError:
    return UserError(f"limits of {body.tag!r}", got=got, expected=expected, do="correct the limits, and make it again")
