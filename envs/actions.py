"""From displacements since the chunk's first frame to the displacement of each step, which simulators with relative
end-effector control apply to the present pose. numpy only."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from rl_finetune.types import FloatArray

Float64 = NDArray[np.float64]


def per_step(actions: FloatArray, width: int, gripper: bool, scale: float) -> FloatArray:
    """Displacement of each step [N, H, c] from displacements since the first frame [N, H, c].

    Translations subtract. Rotations are axis-angle in radians, left-multiplied (turns about the base's axes):
    R_k = D_k R_{k-1}, so D_k = R_k R_{k-1}^T.

    Args:
        actions: for each arm, `width` channels (3 metres, then 3 radians where width is 6), and a gripper command.
        width: channels of an arm without its gripper, 3 or 6.
        gripper: whether a gripper channel follows each arm; it is handed over as it is.
        scale: what the simulator multiplies the arm's channels by.
    """
    out = actions.astype(np.float32)
    for start in range(0, actions.shape[-1], width + gripper):
        out[..., start : start + 3] = np.diff(actions[..., start : start + 3], axis=1, prepend=0.0) / scale
        if width == 6:
            rotations = matrices(actions[..., start + 3 : start + 6].astype(np.float64))
            before = np.concatenate([np.broadcast_to(np.eye(3), rotations[:, :1].shape), rotations[:, :-1]], axis=1)
            out[..., start + 3 : start + 6] = vectors(rotations @ before.swapaxes(-1, -2)) / scale
    return out


def matrices(vector: Float64) -> Float64:
    """Rotation matrices [..., 3, 3] of axis-angle vectors [..., 3] (Rodrigues)."""
    angle = np.linalg.norm(vector, axis=-1, keepdims=True)[..., None]
    x, y, z = np.moveaxis(vector, -1, 0)
    zero = np.zeros_like(x)
    cross = np.stack([zero, -z, y, z, zero, -x, -y, x, zero], axis=-1).reshape(*vector.shape, 3)
    return np.eye(3) + np.sinc(angle / np.pi) * cross + 0.5 * np.sinc(angle / (2 * np.pi)) ** 2 * (cross @ cross)


def vectors(matrix: Float64) -> Float64:
    """Axis-angle vectors [..., 3] of rotation matrices [..., 3, 3], for angles below pi."""
    m = matrix
    double = np.stack([m[..., 2, 1] - m[..., 1, 2], m[..., 0, 2] - m[..., 2, 0], m[..., 1, 0] - m[..., 0, 1]], axis=-1)
    sine = np.linalg.norm(double, axis=-1, keepdims=True) / 2
    angle = np.arctan2(sine, (np.trace(m, axis1=-2, axis2=-1)[..., None] - 1) / 2)
    return double / (2 * np.sinc(angle / np.pi))
