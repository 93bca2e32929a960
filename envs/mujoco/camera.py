"""Where points of the world appear in a picture. numpy only."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from envs.mujoco import kinematics as kin

Float64 = NDArray[np.float64]
NEAR = 0.02
"""Metres before the lens; what lies nearer or behind has no place in the picture."""
OUTSIDE = -1.0
"""Image coordinate of a point that has no place in the picture."""


def project(place: Float64, frame: Float64, fovy: float, points: Float64) -> Float64:
    """Image coordinates [N, P, 2] (u right, v down, 0..1 across the square picture).

    Args:
        place: [N, 3] camera position, metres.
        frame: [N, 3, 3] whose rows are the camera's right, up and backward directions.
        fovy: vertical field of view, degrees.
        points: [N, P, 3] metres.
    """
    seen = np.einsum("nij,npj->npi", frame, points - place[:, None])
    depth = -seen[..., 2]
    scale = 0.5 / np.tan(np.deg2rad(fovy) / 2) / np.maximum(depth, NEAR)
    image = np.stack([0.5 + scale * seen[..., 0], 0.5 - scale * seen[..., 1]], -1)
    return np.where(depth[..., None] > NEAR, image, OUTSIDE)


def frame_of(quaternion: Float64) -> Float64:
    """Rows right, up, backward [N, 3, 3] of cameras whose orientation is `quaternion` [N, 4] (w, x, y, z)."""
    rotation = kin.matrix_from_quaternion(quaternion)
    return rotation.swapaxes(-1, -2)
