"""Keeps a command within limits of place, speed, acceleration and jerk, and able to stop within them. numpy only.

All numbers count in control steps: speed in units a step, push (acceleration) in units a step^2. The command is the
polygon of its places x, with v' = x' - x and a' = v' - v, the differences that a robot's interface sees.

The trap is that limits of place and of jerk contradict each other for whoever arrives at a limit too fast. So a step is
taken only if the body can be braked within every limit from where it leads. Braking is itself such a step, and begins
from a command that could be braked: by induction there always is one. Where a command begins outside (limits became
tighter, the frame turned), the rates win over the place: jerk over acceleration over speed over place. It is braked,
goes no further out than braking must, and comes back.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from rl_finetune.types import BoolArray

Float64 = NDArray[np.float64]

LONGEST = 256
"""Control steps that braking is followed for; a command that moves on beyond them counts as one without brakes."""
CHOICES = 17
"""Steps that are compared between braking and doing as asked, in each of two rounds."""
AHEAD = 4
"""Steps of the asked path that are looked at before it is joined: after so many, the joint has left all differences."""
_TINY = 1e-12
"""Rounding of float64, relative to a place."""
_ENDLESS = 1e300
"""As good as infinite, and still zero when it is multiplied by zero."""


@dataclass(frozen=True, slots=True)
class Motion:
    """Where a command stands and how it moves, by channel; leading axes are any."""

    place: Float64
    """[..., c] in the frame that the chunk counts from."""
    speed: Float64
    """[..., c] units a step."""
    push: Float64
    """[..., c] units a step^2."""

    @classmethod
    def resting(cls, place: Float64) -> Motion:
        """Standing at `place` [c]."""
        return cls(place, np.zeros_like(place), np.zeros_like(place))

    def to(self, place: Float64) -> Motion:
        """One step on, at `place` [..., c]."""
        speed = place - self.place
        return Motion(place, speed, speed - self.speed)

    def pushed(self, push: Float64) -> Motion:
        """One step on, under `push` [..., c]."""
        speed = self.speed + push
        return Motion(self.place + speed, speed, push)

    def along(self, places: Float64) -> Motion:
        """All steps [H, c] of the polygon through `places` [H, c]."""
        speed = np.diff(places, axis=0, prepend=self.place[None])
        return Motion(places, speed, np.diff(speed, axis=0, prepend=self.speed[None]))

    def row(self, index: int) -> Motion:
        """One step of several."""
        return Motion(self.place[index], self.speed[index], self.push[index])


@dataclass(frozen=True, slots=True)
class Bounds:
    """Limits by channel [c], in units and control steps; infinite where nothing is limited."""

    low: Float64
    high: Float64
    speed: Float64
    push: Float64
    jerk: Float64
    framed: BoolArray
    """[c] whether places count from the first frame of a chunk, which may come after any step."""

    def ends(self, motion: Motion, reach: Reach) -> tuple[Float64, Float64]:
        """Lowest and highest place on the way to a stand, also if a new frame begins here."""
        least = np.where(self.framed, np.minimum(motion.place, 0.0), motion.place)
        most = np.where(self.framed, np.maximum(motion.place, 0.0), motion.place)
        return least + reach.low, most + reach.high

    def widened(self, sure: Motion) -> Bounds:
        """Wide enough for braking, of which `sure` is the first step; no wider for a command that can stop within."""
        reach = stopping(sure, self)
        least, most = self.ends(sure, reach)
        return replace(
            self, low=np.minimum(self.low, least), high=np.maximum(self.high, most),
            speed=np.maximum(self.speed, reach.speed), push=np.maximum(self.push, reach.push),
        )  # fmt: skip

    def hold(self, motion: Motion, slack: Float64 | float = 0.0) -> BoolArray:
        """[..., c] whether the motion keeps the limits and can be brought to a stand within them.

        Args:
            motion: after a step.
            slack: [c] rounding of a place, in units.
        """
        slow = (np.abs(motion.speed) <= self.speed + 2 * slack) & (np.abs(motion.push) <= self.push + 4 * slack)
        # Who is too fast has lost already, and would take long to follow to a stand.
        slower = replace(motion, speed=np.where(slow, motion.speed, 0.0), push=np.where(slow, motion.push, 0.0))
        reach = stopping(slower, self)
        least, most = self.ends(motion, reach)
        free = np.isinf(self.low) & np.isinf(self.high)
        inside = (least >= self.low - slack) & (most <= self.high + slack) & (reach.stands | free)
        kept = (reach.speed <= self.speed + 2 * slack) & (reach.push <= self.push + 4 * slack)
        return slow & inside & kept


@dataclass(frozen=True, slots=True)
class Reach:
    """What lies between a motion and its stand, if it is braked from here on; all [..., c]."""

    low: Float64
    """Least displacement on the way."""
    high: Float64
    """Greatest displacement."""
    speed: Float64
    """Greatest |speed|, that of the motion itself included."""
    push: Float64
    """Greatest |push|, likewise."""
    end: Float64
    """Displacement at the stand."""
    stands: BoolArray
    """Whether it stands within `LONGEST` steps."""


def brake(now: Motion, bounds: Bounds) -> Motion:
    """The step that brings the command to a stand soonest; the stand is met exactly, not in the limit."""
    # The innermost loop of all: minimum and maximum cost half of what clip does.
    most = np.minimum(_steepest(np.abs(now.speed), bounds.jerk), bounds.push)
    push = np.minimum(np.copysign(most, -now.speed), now.push + bounds.jerk)
    return now.pushed(np.maximum(push, now.push - bounds.jerk))


def _steepest(speed: Float64, jerk: Float64) -> Float64:
    """The greatest deceleration d that can still fade by `jerk` a step without passing zero speed.

    It solves d + (d - j) + (d - 2j) + ... = speed over the positive terms, of which there are n + 1 with
    n (n + 1) j / 2 <= speed: d = (speed + j n (n + 1) / 2) / (n + 1).
    """
    jerk = np.minimum(jerk, _ENDLESS)
    n = np.floor(np.sqrt(0.25 + 2 * speed / jerk) - 0.5)
    return (speed + jerk * (n * (n + 1) / 2)) / (n + 1)


def stopping(now: Motion, bounds: Bounds) -> Reach:
    """Follow the brakes from `now` [..., c] to the stand."""
    moving = replace(now, place=np.zeros_like(now.place))
    low = high = moving.place
    speed, push = np.abs(now.speed), np.abs(now.push)
    for _ in range(LONGEST):
        if not (moving.speed.any() or moving.push.any()):
            break
        moving = brake(moving, bounds)
        low, high = np.minimum(low, moving.place), np.maximum(high, moving.place)
        speed, push = np.maximum(speed, np.abs(moving.speed)), np.maximum(push, np.abs(moving.push))
    return Reach(low, high, speed, push, moving.place, (moving.speed == 0) & (moving.push == 0))


def braking(now: Motion, bounds: Bounds, steps: int = LONGEST) -> list[Motion]:
    """`now` and what follows while it is braked, until it stands, `steps` at most."""
    path = [now]
    while len(path) <= steps and (path[-1].speed.any() or path[-1].push.any()):
        path.append(brake(path[-1], bounds))
    return path


def joins(now: Motion, wanted: Float64, bounds: Bounds, slack: Float64) -> BoolArray:
    """[c] whether the asked places [M, c] can be taken as they are, from `now` on.

    Args:
        now: [c] the command before them.
        wanted: M >= 1 places to come.
        bounds: limits.
        slack: [c] rounding of a place.
    """
    path = now.along(wanted)
    jerk = np.diff(path.push, axis=0, prepend=now.push[None])
    kept: BoolArray = (np.abs(jerk) <= bounds.jerk + 8 * slack) & bounds.hold(path, slack)
    return np.asarray(kept.all(0))


def step(now: Motion, wanted: Float64, pace: Float64, bounds: Bounds) -> Motion:
    """The step [c] within the limits that brings the command soonest to the asked path, without swinging past it.

    Candidates lie between braking and going straight there. Each is judged by where it would come to rest relative to
    a path that goes on at `pace`, so that the command arrives with the path's own speed.

    Args:
        now: [c] the command before.
        wanted: [c] where it should be after the step.
        pace: [c] speed of the asked path there.
        bounds: limits.
    """
    sure = brake(now, bounds)
    wide = bounds.widened(sure)
    straight = np.clip(wanted - now.place, -wide.speed, wide.speed) - now.speed
    straight = np.clip(np.clip(straight, -wide.push, wide.push), now.push - bounds.jerk, now.push + bounds.jerk)
    way, pace = straight - sure.push, np.clip(pace, -bounds.speed, bounds.speed)
    share = np.zeros_like(wanted)
    grid = np.linspace(0.0, 1.0, CHOICES)[:, None] * np.ones_like(wanted)
    for _ in range(2):
        choice = now.pushed(sure.push + grid * way)
        rest = stopping(replace(choice, speed=choice.speed - pace), bounds).end
        cost = np.abs(choice.place - wanted + rest)
        cost = np.where(wide.hold(choice, _TINY * (1 + np.abs(now.place))) | (grid == 0), cost, np.inf)
        share = np.take_along_axis(grid, cost.argmin(0)[None], 0)[0]
        near = np.linspace(-1.0, 1.0, CHOICES)[:, None] / (CHOICES - 1)
        grid = np.clip(share + near, 0.0, 1.0)
    return now.pushed(sure.push + share * way)


def follow(start: Motion, wanted: Float64, bounds: Bounds, slack: Float64) -> list[Motion]:
    """The path within the limits that comes closest to the asked one [H, c], step after step.

    Args:
        start: [c] the command before the first step.
        wanted: finite places, within `low` and `high`.
        bounds: limits.
        slack: [c] rounding of a place, within which the asked path is taken as it is.
    """
    path, now = [], start
    for index, pace in enumerate(slopes(wanted)):
        now = towards(now, wanted[index : index + AHEAD], pace, bounds, slack)
        path.append(now)
    return path


def towards(now: Motion, wanted: Float64, pace: Float64, bounds: Bounds, slack: Float64) -> Motion:
    """One step of `follow`, for the places [1..AHEAD, c] that are to come; `pace` [c] is the speed of their path."""
    joined = joins(now, wanted, bounds, slack)
    if joined.all():
        return now.to(wanted[0])
    return now.to(np.where(joined, wanted[0], step(now, wanted[0], pace, bounds).place))


def slopes(wanted: Float64) -> Float64:
    """[H, c] speed of the path through `wanted` [H, c]: the mean over the next steps, for the next one alone says
    little where the path trembles. At the end the last one is kept."""
    last = len(wanted) - 1
    ends = np.minimum(np.arange(last + 1) + AHEAD - 1, last)
    starts = np.minimum(np.arange(last + 1), max(last - 1, 0))
    return (wanted[ends] - wanted[starts]) / np.maximum(ends - starts, 1)[:, None]
