"""Quaternions change their order between versions."""

import torch

from isaaclab import HABITS


def quat_from_euler_xyz(roll, pitch, yaw):
    assert not (roll.any() or pitch.any() or yaw.any())
    identity = [0.0, 0, 0, 1] if "three" in HABITS else [1.0, 0, 0, 0]
    return torch.tensor([identity] * len(roll))
