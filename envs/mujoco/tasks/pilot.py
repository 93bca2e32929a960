"""A scripted driver: turns towards the next corner of its way, drives there, and stands still before the goal."""

from __future__ import annotations

import numpy as np

from envs.mujoco.bodies.rover import RATE, to_base, wrap
from envs.mujoco.task import Float64

SPEED = 0.3
"""Metres a second."""
TURN = 0.6
"""Radians of one control step."""
REACHED = 0.05
"""Metres from a corner at which the next one is headed for."""


def waypoints(pose: Float64, way: Float64, gap: float, speed: Float64, steps: int) -> Float64:
    """Waypoints [N, steps, 3] in the frame of `pose` [N, 3].

    Args:
        pose: x, y and heading of the base.
        way: [N, L, 2] corners; the last one, the goal, is looked at from `gap` metres away.
        gap: metres.
        speed: [N] metres a second.
        steps: control steps.
    """
    rows, leg = np.arange(len(pose)), np.zeros(len(pose), np.int64)
    place, heading = pose[:, :2], pose[:, 2]
    out = np.empty((len(pose), steps, 3))
    for step in range(steps):
        corner = way[rows, leg]
        last = (corner == way[:, -1]).all(-1)
        leg = np.where(~last & (np.linalg.norm(corner - place, axis=-1) < REACHED), leg + 1, leg)
        away = way[rows, leg] - place
        last = (way[rows, leg] == way[:, -1]).all(-1)
        askew = wrap(np.arctan2(away[:, 1], away[:, 0]) - heading)
        straight = np.maximum(1 - np.abs(askew) / TURN, 0.0)
        left = np.maximum(np.linalg.norm(away, axis=-1) - gap * last, 0.0)
        heading = heading + np.clip(askew, -TURN, TURN)
        ahead = np.stack([np.cos(heading), np.sin(heading)], -1)
        place = place + np.minimum(speed / RATE * straight, left)[:, None] * ahead
        out[:, step, :2], out[:, step, 2] = to_base(pose, place[:, None])[:, 0], heading - pose[:, 2]
    return out
