"""Plans of scripted experts: a hand goes from corner to corner, waits, and opens or closes there."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from envs.mujoco.task import Float64

SPIN = 1.0
"""Radians a second at which they turn."""
SOON = 1e-6
"""Control steps that do not count: a corner is reached that much early."""


@dataclass(frozen=True, slots=True)
class Corner:
    """One place of a plan, for N hands."""

    place: Float64
    """[N, 3] metres."""
    yaw: Float64
    """[N] radians about the vertical."""
    opening: Float64
    """[N] gripper from the arrival on, +1 open, -1 closed."""
    dwell: Float64
    """[N] seconds to stay."""


@dataclass(frozen=True, slots=True)
class Motion:
    """What one hand does in each of H control steps, for N worlds."""

    places: Float64
    """[N, H, 3] metres."""
    yaw: Float64
    """[N, H] radians."""
    opening: Float64
    """[N, H] gripper, +1 open, -1 closed."""


def play(corners: list[Corner], pace: Float64, rate: float, steps: int) -> Motion:
    """The first `steps` control steps of a plan that begins at its first corner now.

    The gripper waits for the hand: it changes in the first whole step after the arrival.

    Args:
        corners: at least one; corners without way between them take no time.
        pace: [N] metres a second.
        rate: control steps a second.
        steps: H.
    """
    arrive, leave = _times(corners, pace, rate)
    now = np.arange(1, steps + 1)
    at = np.stack([corner.place for corner in corners], 1)
    turned = np.stack([corner.yaw for corner in corners], 1)
    knots = np.stack([arrive, leave], -1).reshape(len(pace), -1)
    values = np.repeat(np.concatenate([at, turned[..., None]], -1), 2, axis=1)
    path = np.empty((len(pace), steps, 4))
    for env in range(len(pace)):
        for axis in range(4):
            path[env, :, axis] = np.interp(now, knots[env], values[env, :, axis])
    latest = (arrive[:, None] <= now[None, :, None] - 1 + SOON).sum(-1) - 1
    opening = np.stack([corner.opening for corner in corners], 1)[np.arange(len(pace))[:, None], latest]
    return Motion(path[..., :3], path[..., 3], opening)


def _times(corners: list[Corner], pace: Float64, rate: float) -> tuple[Float64, Float64]:
    """Control steps [N, C] at which each corner is reached and left; those with a stay on whole steps."""
    arrive, leave = np.zeros((len(pace), len(corners))), np.zeros((len(pace), len(corners)))
    leave[:, 0] = np.ceil(corners[0].dwell * rate - SOON)
    for c in range(1, len(corners)):
        last, this = corners[c - 1], corners[c]
        way = np.sqrt(((this.place - last.place) ** 2).sum(-1)) / pace
        turn = np.abs(this.yaw - last.yaw) / SPIN
        arrival = leave[:, c - 1] + np.maximum(way, turn) * rate
        stay = np.ceil(this.dwell * rate - SOON)
        arrive[:, c] = np.where(stay > 0, np.ceil(arrival - SOON), arrival)
        leave[:, c] = arrive[:, c] + stay
    return arrive, leave
