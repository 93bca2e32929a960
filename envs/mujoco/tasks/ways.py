"""Shortest ways through rooms for a round base: a small visibility graph per world, all worlds at once. numpy only.

Corners of the graph stand around boxes and on both sides of doorways, so far off that the base does not touch.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from envs.mujoco.task import Float64
from rl_finetune.types import BoolArray

CLEARANCE = 0.45
"""Metres between the base's centre and that of a box that is passed."""
CORNERS = 6
RING = 0.53
"""Metres from a box's centre to the corners around it; the straight line between two of them keeps the clearance."""
OPENING = 0.25
"""Metres to either side of a doorway's middle that the base's centre may pass."""
APPROACH = 0.25
"""Metres before and behind a wall within which the base must be in the opening."""
EDGE = 0.25
"""Metres that the base's centre keeps from outer walls."""
LEGS = 8
FAR = 1e3


@dataclass(frozen=True, slots=True)
class Ground:
    """What stands in the way of N bases."""

    half: Float64
    """[2] half the length (x) and width (y) of all rooms together, metres."""
    planes: Float64
    """[D] x of the inner walls."""
    doors: Float64
    """[N, D] y of the middle of their doorways."""
    boxes: Float64
    """[N, B, 2] boxes to go around; `FAR` where there is none."""


def shortest(start: Float64, goal: Float64, ground: Ground) -> tuple[Float64, Float64]:
    """Lengths [N] in metres and corners [N, LEGS, 2] of the shortest ways from `start` to `goal` [N, 2].

    The last corner, the goal, repeats. Where no way is free the straight line is given with an infinite length.
    """
    points = np.concatenate([start[:, None], goal[:, None], _corners(ground)], 1)
    steps = _free(points, start, ground)
    left = np.where(np.arange(points.shape[1]) == 1, 0.0, np.inf)[None].repeat(len(points), 0)
    while True:
        nearer = np.minimum(left, (steps + left[:, None]).min(-1))
        if np.array_equal(nearer, left):
            break
        left = nearer
    then = np.where(np.isfinite(left), (steps + left[:, None]).argmin(-1), 1)
    then[:, 1] = 1
    rows, place, way = np.arange(len(points)), np.zeros(len(points), np.int64), []
    for _ in range(LEGS):
        place = then[rows, place]
        way.append(points[rows, place])
    return left[:, 0], np.stack(way, 1)


def _corners(ground: Ground) -> Float64:
    n = len(ground.doors)
    angle = np.arange(CORNERS) * 2 * np.pi / CORNERS
    ring = RING * np.stack([np.cos(angle), np.sin(angle)], -1)
    around = (ground.boxes[:, :, None] + ring).reshape(n, -1, 2)
    sides = np.array([(side * APPROACH, end * OPENING) for side in (-1, 1) for end in (-1, 1)])
    middles = np.stack([np.broadcast_to(ground.planes, ground.doors.shape), ground.doors], -1)
    return np.concatenate([around, (middles[:, :, None] + sides).reshape(n, -1, 2)], 1)


def _free(points: Float64, start: Float64, ground: Ground) -> Float64:
    """[N, K, K] lengths of the straight lines between points [N, K, 2], infinite where something is in the way."""
    a, b = points[:, :, None], points[:, None]
    inside = (np.abs(points[:, 2:]) <= ground.half - EDGE).all(-1)
    usable = np.concatenate([np.ones((len(points), 2), bool), inside], 1)
    free = usable[:, :, None] & usable[:, None] & ~np.eye(points.shape[1], dtype=bool)
    for box in np.moveaxis(ground.boxes, 1, 0):
        # a base that already stands nearer, as after a bump, may leave but not go nearer still
        near = np.minimum(CLEARANCE, 0.999 * np.linalg.norm(start - box, axis=-1))
        free &= _distance(a, b, box[:, None, None]) >= near[:, None, None]
    for plane, door in zip(ground.planes, ground.doors.T, strict=True):
        for face in (plane - APPROACH, plane + APPROACH):
            free &= through(a, b, face, door[:, None, None], OPENING)
    return np.where(free, np.linalg.norm(b - a, axis=-1), np.inf)


def _distance(a: Float64, b: Float64, centre: Float64) -> Float64:
    """Distances between `centre` [..., 2] and the straight lines from `a` to `b` [..., 2]."""
    line = b - a
    share = ((centre - a) * line).sum(-1) / np.maximum((line**2).sum(-1), 1e-12)
    nearest = a + np.clip(share, 0.0, 1.0)[..., None] * line
    gap: Float64 = np.linalg.norm(nearest - centre, axis=-1)
    return gap


def through(a: Float64, b: Float64, face: float, door: Float64, opening: float) -> BoolArray:
    """Whether lines from `a` to `b` [..., 2] that cross x = `face` do so within `opening` of y = `door` [...]."""
    before, after = a[..., 0] - face, b[..., 0] - face
    crosses = (np.minimum(before, after) < -1e-9) & (np.maximum(before, after) > 1e-9)
    share = before / np.where(crosses, before - after, 1.0)
    y = a[..., 1] + share * (b[..., 1] - a[..., 1])
    passed: BoolArray = ~crosses | (np.abs(y - door) <= opening + 1e-9)
    return passed
