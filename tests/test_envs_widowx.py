"""The arm is the published one, and stays within its limits whatever it is told."""

from __future__ import annotations

import mujoco
import numpy as np
import pytest

from envs.mujoco import kinematics as kin
from envs.mujoco.physics import MAX_TRAVEL, Physics, aim_path
from envs.mujoco.reach import TOOL_BOX, draw_scene

# The manufacturer's kinematic model of the WidowX 250 S (screw axes and home pose of `interbotix_xs_modules`).
SCREWS = (
    (0, 0, 1, 0, 0, 0),
    (0, 1, 0, -0.11065, 0, 0),
    (0, 1, 0, -0.36065, 0, 0.04975),
    (1, 0, 0, 0, 0.36065, 0),
    (0, 1, 0, -0.36065, 0, 0.29975),
    (1, 0, 0, 0, 0.36065, 0),
)
HOME = (0.458325, 0.0, 0.36065)
LIMITS_IN_DEGREES = ((-180, 180), (-108, 114), (-123, 92), (-180, 180), (-100, 123), (-180, 180))


def published_tool(joints: np.ndarray) -> np.ndarray:
    """Tool pose [4, 4] by the product of exponentials, each as the power series of its twist."""
    pose = np.eye(4)
    for (wx, wy, wz, *v), angle in zip(SCREWS, joints, strict=True):
        twist = np.zeros((4, 4))
        twist[:3, :3] = [[0, -wz, wy], [wz, 0, -wx], [-wy, wx, 0]]
        twist[:3, 3] = v
        term, motion = np.eye(4), np.eye(4)
        for order in range(1, 30):
            term = term @ twist * angle / order
            motion = motion + term
        pose = pose @ motion
    home = np.eye(4)
    home[:3, 3] = HOME
    return pose @ home


def test_arm_has_the_published_kinematics() -> None:
    physics, rng = Physics(), np.random.default_rng(0)
    for _ in range(20):
        joints = rng.uniform(kin.JOINT_LIMITS[:, 0], kin.JOINT_LIMITS[:, 1])
        physics.data.qpos[:6] = joints
        mujoco.mj_kinematics(physics.model, physics.data)
        tool, want = physics.data.site("tool"), published_tool(joints)
        np.testing.assert_allclose(tool.xpos, want[:3, 3], atol=1e-9)
        np.testing.assert_allclose(tool.xmat.reshape(3, 3), want[:3, :3], atol=1e-9)


def test_joint_limits_are_the_published_ones() -> None:
    model = Physics().model
    ranges = np.array([model.joint(name).range for name in kin.JOINTS])
    np.testing.assert_allclose(ranges, np.deg2rad(LIMITS_IN_DEGREES), atol=0.006)


def test_inverse_kinematics_reaches_every_corner_of_the_tool_box() -> None:
    grid = np.stack(np.meshgrid(*(np.linspace(*side, 5) for side in TOOL_BOX)), -1).reshape(-1, 3)
    for position in grid:
        pose = published_tool(kin.downward_pose(position))
        np.testing.assert_allclose(pose[:3, 3], position, atol=1e-9)
        np.testing.assert_allclose(pose[:3, :3], kin.TOOL_DOWN, atol=1e-9)
    with pytest.raises(ValueError, match="out of reach"):
        kin.downward_pose(np.array([0.6, 0.0, 0.2]))


def test_rotation_vectors_and_quaternions_agree() -> None:
    quarter = kin.quaternion_from_vector(np.array([0.0, 0.0, np.pi / 2]))
    np.testing.assert_allclose(quarter, [2**-0.5, 0, 0, 2**-0.5], atol=1e-12)
    np.testing.assert_allclose(kin.vector_from_quaternion(kin.multiply(quarter, quarter)), [0, 0, np.pi], atol=1e-7)
    vectors = np.random.default_rng(0).normal(size=(20, 3)) * 0.8
    np.testing.assert_allclose(kin.vector_from_quaternion(kin.quaternion_from_vector(vectors)), vectors, atol=1e-12)
    assert kin.vector_from_quaternion(np.array([1.0, 0, 0, 0])).tolist() == [0, 0, 0]


def test_wild_actions_stay_in_the_box_and_below_the_speed_limit() -> None:
    physics = Physics()
    worlds = physics.empty(20)
    for env in range(20):
        physics.place(worlds, env, draw_scene(0, env, 0))
    path = aim_path(worlds, np.random.default_rng(0).normal(size=(20, 8, 7)) * 100)
    assert ((path[..., :3] >= TOOL_BOX[:, 0] - 1e-9) & (path[..., :3] <= TOOL_BOX[:, 1] + 1e-9)).all()
    steps = np.diff(np.concatenate([worlds.aim[:, None], path], 1), axis=1)
    assert np.linalg.norm(steps[..., :3], axis=-1).max() <= MAX_TRAVEL + 1e-9
    motion = physics.advance(worlds, np.random.default_rng(1).normal(size=(20, 8, 7)) * 100)
    assert np.isfinite(motion.states).all() and np.abs(motion.states).max() < 20
    physics.close()
