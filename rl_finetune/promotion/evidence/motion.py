"""How a policy commands a body: extremes of what it asked for, and how often it went beyond what the body may be told.

    actions -> commanded state -> velocity, acceleration, jerk: backward differences at the control rate

The commanded state is where the actions ask the body to be, in one frame for a whole episode, so that chunk borders are
looked at too. By control mode:

| `joint` | the action |
| `delta_ee` | displacements add up: each chunk counts from where the one before asked to be; grippers are absolute |
| `waypoint` | likewise, as poses in the plane: each chunk's waypoints stand in the frame where the one before ended |
| `trace` | the action; every chunk draws anew, so nothing is compared across its border |

This is what a server can know that sees no tool: a policy that is let through here is let through there.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from actors.watching import MotionLog
from rl_finetune.promotion.evidence.guarding import counted
from rl_finetune.promotion.records import Limits, MotionAudit
from rl_finetune.spec import ActionConvention, EmbodimentSpec
from rl_finetune.types import BoolArray

Float64 = NDArray[np.float64]
ORDERS = ("velocity", "acceleration", "jerk")
ROUNDING = 1e-6
"""Share by which a limit may be exceeded: actions are float32."""
PLACE = 2.0**-22
"""Rounding of a place relative to the channel's greatest: the envelope's, and that of a float32 after it. Each
difference of places doubles it."""


def audit(log: MotionLog, body: EmbodimentSpec, limits: Limits, world: str) -> MotionAudit:
    """Extremes of everything in the log, and the control steps beyond each limit.

    Args:
        log: episodes of one world.
        body: whose action convention tells what the actions mean.
        limits: what the body may be told; an empty tuple limits nothing, and that kind is not among the measured.
        world: label.
    """
    why = log.changed
    actions = log.actions.astype(np.float64)
    moved = differences(log, body.action)
    beyond = _beyond(log, actions, moved, limits, body.action.rate)
    known = {kind: rows for kind, rows in beyond.items() if rows is not None and len(log.episode)}
    greatest = [_greatest(moved[order]) for order in ORDERS]
    measured = (*known, *(["self_collision"] if log.touching is not None and len(log.episode) else []))
    return MotionAudit(
        world=world, embodiment=body.tag, steps=len(log.episode), actions=_range(actions), velocity=greatest[0],
        acceleration=greatest[1], jerk=greatest[2], over={kind: int(rows.sum()) for kind, rows in known.items()},
        self_collisions=0 if log.touching is None else int(log.touching.sum()), measured=measured,
        guarded=why is not None, changed=0 if why is None else int((why != 0).sum()),
        interventions={} if why is None else counted(why),
    )  # fmt: skip


def displaced(convention: ActionConvention) -> BoolArray:
    """[c] whether a channel is counted from the first frame of its chunk.

    A `delta_ee` body has, for each arm, a translation, a rotation if it has one, and a gripper if it has one.
    """
    channels = np.arange(convention.channels)
    if convention.control == "waypoint":
        return channels < 3
    if convention.control != "delta_ee":
        return np.zeros(convention.channels, bool)
    moving = 3 + 3 * (convention.rotation != "none")
    return channels % (moving + (convention.gripper != "none")) < moving


def commanded(actions: Float64, fresh: BoolArray, convention: ActionConvention) -> Float64:
    """Commanded state [F, c] of one episode.

    Args:
        actions: [F, c] executed steps.
        fresh: [F] first steps of chunks.
        convention: what the actions mean.
    """
    if not len(actions):
        return actions.copy()
    starts = np.flatnonzero(fresh)
    state, origin = actions.copy(), np.zeros(actions.shape[1])
    counted = displaced(convention)
    for first, end in zip(starts, [*starts[1:], len(actions)], strict=True):
        chunk = state[first:end]
        if convention.control == "waypoint":
            cos, sin = np.cos(origin[2]), np.sin(origin[2])
            chunk[:, :2] = chunk[:, :2] @ np.array([[cos, sin], [-sin, cos]])
        chunk[:, counted] += origin[counted]
        origin = chunk[-1].copy()
    return state


def differences(log: MotionLog, convention: ActionConvention) -> Mapping[str, Float64]:
    """Order -> [T, c] derivative of the commanded state after each step, units/s, /s^2, /s^3.

    A body is at rest when its episode begins. NaN where it is not known from where it starts, and in the first steps of
    chunks of points, which belong to no motion. Waypoints turn with the base: their derivatives are along the axes of
    the step's chunk, as its channels are and as the envelope limits them.
    """
    found = {order: np.full(log.actions.shape, np.nan) for order in ORDERS}
    counted = displaced(convention)
    for number, held in enumerate(log.held.astype(np.float64)):
        rows = np.flatnonzero(log.episode == number)
        fresh = log.fresh[rows]
        state = commanded(log.actions[rows].astype(np.float64), fresh, convention)
        rest = np.where(counted, 0.0, held)
        strokes = [(rows, state, rest)]
        if convention.control == "trace":
            starts = np.flatnonzero(fresh)[1:]
            parts = zip(np.split(rows, starts), np.split(state, starts), strict=True)
            strokes = [(at, points, np.full_like(rest, np.nan)) for at, points in parts]
        for at, points, before in strokes:
            moved = np.concatenate([np.tile(before, (len(ORDERS), 1)), points])
            for order in ORDERS:
                moved = np.diff(moved, axis=0) * convention.rate
                found[order][at] = moved[len(moved) - len(at) :]
        if convention.control == "waypoint":
            for order in ORDERS:
                found[order][rows, :2] = _turned(found[order][rows, :2], _headings(state[:, 2], fresh))
    return found


def _headings(heading: Float64, fresh: BoolArray) -> Float64:
    """[F] of the frames that steps are told in: where the chunk before ended, 0 in the first. Takes each step's own."""
    begun = np.maximum.accumulate(np.where(fresh, np.arange(len(fresh)), 0))
    return np.where(begun > 0, heading[begun - 1], 0.0)


def _turned(vectors: Float64, headings: Float64) -> Float64:
    """[F, 2] vectors of the plane along axes that are turned by `headings` [F]."""
    cos, sin = np.cos(headings), np.sin(headings)
    x, y = vectors.T
    return np.stack([cos * x + sin * y, cos * y - sin * x], axis=1)


def _beyond(
    log: MotionLog, actions: Float64, moved: Mapping[str, Float64], limits: Limits, rate: float
) -> dict[str, BoolArray | None]:
    """Kind -> [T] steps beyond the limit; None where nobody limits or looked."""
    found: dict[str, BoolArray | None] = {"action": _outside(actions, limits.low, limits.high)}
    slack = PLACE * np.abs(actions).max(0, initial=0.0)
    for number, order in enumerate(ORDERS, 1):
        found[order] = _outside(np.abs(moved[order]), (), getattr(limits, order), slack * (2 * rate) ** number)
    found["workspace"] = None
    if log.tools is not None and limits.workspace:
        hands = log.tools.astype(np.float64).reshape(len(log.tools), -1)
        low, high = (np.tile([pair[end] for pair in limits.workspace], log.tools.shape[1]).tolist() for end in (0, 1))
        found["workspace"] = _outside(hands, low, high)
    found["joint"] = log.beyond
    return found


def _outside(
    values: Float64, low: Sequence[float], high: Sequence[float], slack: Float64 | float = 0.0
) -> BoolArray | None:
    """[T] whether any channel of [T, c] is beyond its limit, by more than `slack` [c]; NaN is beyond nothing."""
    if not low and not high:
        return None
    beyond = np.zeros(len(values), bool)
    for bound, sign in ((low, -1.0), (high, 1.0)):
        if bound:
            limit = np.asarray(bound, np.float64)
            beyond |= (sign * values > sign * limit + ROUNDING * np.abs(limit) + slack).any(-1)
    return beyond


def _greatest(values: Float64) -> tuple[float, ...]:
    """[c] greatest magnitude; 0 of nothing."""
    return tuple(np.max(np.nan_to_num(np.abs(values), nan=0.0), axis=0, initial=0.0).tolist())


def _range(actions: Float64) -> tuple[tuple[float, float], ...]:
    """[c] least and greatest."""
    if not len(actions):
        return tuple((0.0, 0.0) for _ in range(actions.shape[1]))
    return tuple(zip(actions.min(0).tolist(), actions.max(0).tolist(), strict=True))
