"""Geometry of the WidowX 250 S arm: closed-form inverse kinematics and small rotation helpers.

Link lengths are the joint origins of the robot's published description (Interbotix `wx250s.urdf`), in metres.
"""

from __future__ import annotations

from math import acos, atan2, cos, hypot, pi, sin

import numpy as np
from numpy.typing import NDArray

Float64 = NDArray[np.float64]

WAIST_Z = 0.072
SHOULDER_Z = 0.03865
ELBOW = (0.04975, 0.0, 0.25)
FOREARM_X = 0.175
WRIST_ANGLE_X = 0.075
WRIST_ROTATE_X = 0.065
GRIPPER_X = 0.043
TOOL_X = 0.050575
"""From the gripper's origin to the tool centre point between the fingertips."""

JOINTS = ("waist", "shoulder", "elbow", "forearm_roll", "wrist_angle", "wrist_rotate")
JOINT_LIMITS = np.array([(-pi, pi), (-1.88, 1.99), (-2.15, 1.61), (-pi, pi), (-1.75, 2.15), (-pi, pi)])
"""[6, 2] radians."""

SHOULDER_HEIGHT = WAIST_Z + SHOULDER_Z
UPPER_ARM = hypot(ELBOW[0], ELBOW[2])
UPPER_ARM_TILT = atan2(ELBOW[0], ELBOW[2])
FOREARM = FOREARM_X + WRIST_ANGLE_X
WRIST_TO_TOOL = WRIST_ROTATE_X + GRIPPER_X + TOOL_X

TOOL_DOWN = np.array([[0.0, 0.0, 1.0], [0.0, 1.0, 0.0], [-1.0, 0.0, 0.0]])
"""[3, 3] tool frame in the base frame when the gripper points straight down and its fingers open along y."""


def downward_pose(position: Float64) -> Float64:
    """Joint angles [6] (radians) that hold the tool at `position` [3] (metres, base frame), pointing down.

    The elbow stays up and the fingers open along the base's y axis.

    Raises:
        ValueError: the position is out of the arm's reach or needs a joint beyond its limit.
    """
    x, y, z = (float(value) for value in position)
    radius, height = hypot(x, y), z + WRIST_TO_TOOL - SHOULDER_HEIGHT
    distance = hypot(radius, height)
    inner = (UPPER_ARM**2 + distance**2 - FOREARM**2) / (2 * UPPER_ARM * distance)
    if abs(inner) > 1.0:
        raise ValueError(f"tool position {np.round(position, 3)} m is out of reach of a downward-pointing gripper")
    upper = atan2(height, radius) + acos(inner)
    forearm_down = atan2(UPPER_ARM * sin(upper) - height, radius - UPPER_ARM * cos(upper))
    waist, shoulder = atan2(y, x), pi / 2 - upper - UPPER_ARM_TILT
    joints = np.array([waist, shoulder, forearm_down - shoulder, 0.0, pi / 2 - forearm_down, waist])
    if np.any(joints < JOINT_LIMITS[:, 0]) or np.any(joints > JOINT_LIMITS[:, 1]):
        raise ValueError(f"tool position {np.round(position, 3)} m needs joints beyond their limits: {joints.round(3)}")
    return joints


def limit_length(vectors: Float64, longest: float) -> Float64:
    """Shorten vectors [..., 3] that are longer than `longest`, keeping their direction."""
    length = np.sqrt((vectors**2).sum(-1, keepdims=True))
    shortened: Float64 = vectors * (longest / np.maximum(length, longest))
    return shortened


def quaternion_from_vector(rotation: Float64) -> Float64:
    """Unit quaternions [..., 4] (w, x, y, z) of axis-angle vectors [..., 3] in radians."""
    angle = np.sqrt((rotation**2).sum(-1, keepdims=True))
    # sinc keeps the small-angle limit exact: sin(a/2)/a = sinc(a/2pi)/2
    return np.concatenate([np.cos(angle / 2), 0.5 * np.sinc(angle / (2 * pi)) * rotation], -1)


def vector_from_quaternion(quaternion: Float64) -> Float64:
    """Axis-angle vectors [..., 3] (radians, length at most pi) of unit quaternions [..., 4]."""
    signed = np.where(quaternion[..., :1] < 0, -quaternion, quaternion)
    sine = np.sqrt((signed[..., 1:] ** 2).sum(-1, keepdims=True))
    angle = 2 * np.arctan2(sine, signed[..., :1])
    return signed[..., 1:] * np.where(sine > 1e-9, angle / np.maximum(sine, 1e-9), 2.0)


def multiply(left: Float64, right: Float64) -> Float64:
    """Hamilton product of quaternions [..., 4]: rotate by `right`, then by `left`."""
    a, b, c, d = np.moveaxis(left, -1, 0)
    w, x, y, z = np.moveaxis(right, -1, 0)
    return np.stack(
        [
            a * w - b * x - c * y - d * z,
            a * x + b * w + c * z - d * y,
            a * y - b * z + c * w + d * x,
            a * z + b * y - c * x + d * w,
        ],
        -1,
    )


def matrix_from_quaternion(quaternion: Float64) -> Float64:
    """Rotation matrices [..., 3, 3] of unit quaternions [..., 4]; their columns are the turned axes."""
    w, x, y, z = np.moveaxis(quaternion, -1, 0)
    rows = [
        [1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)],
        [2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)],
        [2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)],
    ]
    return np.stack([np.stack(row, -1) for row in rows], -2)
