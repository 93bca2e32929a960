"""Paths that scripted experts follow."""

from __future__ import annotations

import numpy as np

from envs.mujoco.task import Float64

HOVER = 0.07
"""Metres above the goal at which a tool travels, so that nothing else on the table is touched."""
COLUMN = 0.03
"""Metres beside the goal within which descending is safe."""


def routes(tool: Float64, goal: Float64, hover: float = HOVER) -> Float64:
    """Corners [N, 4, 3] from each tool [N, 3] to its goal [N, 3]: rise, travel above it, descend; a straight line from
    within the column above the goal."""
    above = goal + np.array([0.0, 0.0, hover])
    risen = np.stack([tool[:, 0], tool[:, 1], np.maximum(tool[:, 2], above[:, 2])], -1)
    near = (np.hypot(*(tool - goal)[:, :2].T) <= COLUMN)[:, None]
    return np.stack([tool, np.where(near, tool, risen), np.where(near, tool, above), goal], 1)


def follow(corners: Float64, pace: Float64, steps: int) -> Float64:
    """Points [N, steps, 3] that lie `pace` [N] metres apart along corners [N, C, 3]; the last corner repeats."""
    legs = np.sqrt((np.diff(corners, axis=1) ** 2).sum(-1))
    reach = np.concatenate([np.zeros((len(corners), 1)), np.cumsum(legs, axis=1)], 1)
    along = np.minimum(pace[:, None] * np.arange(1, steps + 1), reach[:, -1:])
    points = np.empty((len(corners), steps, 3))
    for env in range(len(corners)):
        for axis in range(3):
            points[env, :, axis] = np.interp(along[env], reach[env], corners[env, :, axis])
    return points
