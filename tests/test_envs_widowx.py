"""The arm is the published one, and stays within its limits whatever it is told."""

from __future__ import annotations

import mujoco
import numpy as np
import pytest

import envs
from envs.mujoco import kinematics as kin
from envs.mujoco.bodies.weld import aim_path
from envs.mujoco.bodies.widowx import TOOL_BOX, WidowX
from envs.mujoco.task import EpisodeKey
from envs.mujoco.tasks.reach import Reach
from rl_finetune.types import ActionChunk, SeedKeys

TASK = Reach(WidowX(), "widowx_reach", image_size=64, tolerance=0.03, time_limit=32)

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
    rng = np.random.default_rng(0)
    model = mujoco.MjModel.from_xml_string(TASK.mjcf())
    data = mujoco.MjData(model)
    for _ in range(20):
        joints = rng.uniform(kin.JOINT_LIMITS[:, 0], kin.JOINT_LIMITS[:, 1])
        data.qpos[:6] = joints
        mujoco.mj_kinematics(model, data)
        tool, want = data.site("tool"), published_tool(joints)
        np.testing.assert_allclose(tool.xpos, want[:3, 3], atol=1e-9)
        np.testing.assert_allclose(tool.xmat.reshape(3, 3), want[:3, :3], atol=1e-9)


def test_joint_limits_are_the_published_ones() -> None:
    model = mujoco.MjModel.from_xml_string(TASK.mjcf())
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
    rng, limits = np.random.default_rng(0), WidowX.limits
    aim = np.stack([TASK.begin(EpisodeKey(0, env, 0)).aim for env in range(20)])
    path = aim_path(aim[:, :3], aim[:, 3:], aim, rng.normal(size=(20, 8, 7)) * 100, limits)
    assert ((path[..., :3] >= TOOL_BOX[:, 0] - 1e-9) & (path[..., :3] <= TOOL_BOX[:, 1] + 1e-9)).all()
    steps = np.diff(np.concatenate([aim[:, None], path], 1), axis=1)
    assert np.linalg.norm(steps[..., :3], axis=-1).max() <= limits.travel + 1e-9


def test_wild_actions_break_no_world() -> None:
    with envs.make("widowx_reach", 20) as env:
        keys = SeedKeys(0, np.arange(20), np.zeros(20, np.int64))
        env.reset(keys)
        wild = (np.random.default_rng(1).normal(size=(20, 8, 7)) * 100).astype(np.float32)
        out = env.step_chunk(ActionChunk(wild, np.ones(wild.shape, bool)))
    assert not out.failures
    assert out.observation.privileged is not None and np.abs(out.observation.privileged).max() < 20
