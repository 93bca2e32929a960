"""Which channels count from a chunk's first frame, and what becomes of a command when a chunk begins. numpy only."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from envs.actions import matrices, vectors
from rl_finetune.promotion.serving.limiter import Float64, Motion
from rl_finetune.spec import EmbodimentSpec
from rl_finetune.types import BoolArray

TRANSLATION, ROTATION = 3, 6
"""Channels of an arm that are displacements: without and with an axis-angle rotation."""


def framed(body: EmbodimentSpec) -> BoolArray:
    """[c] whether a channel counts from the chunk's first frame; joints, grippers and fingers do not."""
    channels = body.action.channels
    if body.action.control == "waypoint":
        return np.ones(channels, bool)
    out = np.zeros(channels, bool)
    for first in arms(body):
        out[first : first + moved(body)] = True
    return out


def arms(body: EmbodimentSpec) -> range:
    """First channel of each arm of a `delta_ee` body; no other has arms in this sense."""
    if body.action.control != "delta_ee":
        return range(0)
    return range(0, body.action.channels, body.action.channels // (2 if body.arms == "dual arms" else 1))


def moved(body: EmbodimentSpec) -> int:
    """Displacement channels of an arm."""
    return TRANSLATION if body.action.rotation == "none" else ROTATION


def carried(motion: Motion, body: EmbodimentSpec) -> Motion:
    """The same motion, seen from a frame that begins where it stands.

    Displacements are along the base's axes and only begin again at zero. Waypoints turn with the base: speeds are
    given along its new axes. The speed of a rotation's axis-angle is taken for its angular velocity, of which it is an
    upper bound in length.
    """
    place = np.where(framed(body), 0.0, motion.place)
    if body.action.control != "waypoint":
        return replace(motion, place=place)
    back = _turn(-motion.place[2])
    speed, push = motion.speed.copy(), motion.push.copy()
    speed[:2], push[:2] = back @ speed[:2], back @ push[:2]
    return Motion(place, speed, push)


def since(steps: Float64, frame: Float64, body: EmbodimentSpec) -> Float64:
    """Commands [H, c] seen from a frame that stands at the command `frame` [c] in theirs.

    Translations subtract. Rotations: R_k = D_k F, so D_k = R_k F^T. Waypoints: rigid motions of the plane.
    """
    out = steps.copy()
    if body.action.control == "waypoint":
        out[:, :2] = (steps[:, :2] - frame[:2]) @ _turn(-frame[2]).T
        out[:, 2] = steps[:, 2] - frame[2]
    for first in arms(body):
        out[:, first : first + 3] -= frame[first : first + 3]
        if moved(body) == ROTATION:
            turn = slice(first + 3, first + 6)
            out[:, turn] = vectors(matrices(steps[:, turn]) @ matrices(frame[turn]).T)
    return out


def _turn(angle: float) -> Float64:
    c, s = np.cos(angle), np.sin(angle)
    return np.array([[c, -s], [s, c]])
