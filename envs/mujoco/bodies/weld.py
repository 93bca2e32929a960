"""Control by a mocap body welded to the tool: displacements become a safe, speed-limited path of that body."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass

import numpy as np

from envs.mujoco import kinematics as kin
from envs.mujoco.bodies.base import Body, glide, hold
from envs.mujoco.task import Float64, Path

DOWN = kin.quaternion_from_vector(np.array([0.0, np.pi / 2, 0.0]))
"""[4] tool orientation of a gripper that points straight down and opens its fingers along y."""


@dataclass(frozen=True, slots=True)
class Limits:
    """How far and how fast the tool's target may go."""

    box: Float64
    """[3, 2] metres: where the target may stand."""
    travel: float
    """Metres in one control step, at most."""
    turn: float
    """Radians in one control step, at most."""
    tilt: float
    """Radians away from pointing straight down, at most."""


def aim_path(tool: Float64, turned: Float64, aim: Float64, actions: Float64, limits: Limits) -> Float64:
    """Where the targets of N tools go [N, H, 6]: actions count from the first frame's tool pose, within the limits.

    Args:
        tool: [N, 3] tool positions at the chunk's first frame, metres.
        turned: [N, 3] tool rotations away from `DOWN` then, axis-angle in the base frame.
        aim: [N, 6] where the targets stand then: position and rotation as above.
        actions: [N, H, >= 6] displacements: translation, then axis-angle.
        limits: of place, pace and tilt.
    """
    place = np.clip(tool[:, None] + actions[..., :3], limits.box[:, 0], limits.box[:, 1])
    turn = kin.quaternion_from_vector(kin.limit_length(actions[..., 3:6], np.pi))
    start = kin.quaternion_from_vector(turned)[:, None]
    tilt = kin.limit_length(kin.vector_from_quaternion(kin.multiply(turn, start)), limits.tilt)
    path = np.empty((*actions.shape[:2], 6))
    now = aim
    for step in range(actions.shape[1]):
        move = kin.limit_length(place[:, step] - now[:, :3], limits.travel)
        spin = kin.limit_length(tilt[:, step] - now[:, 3:], limits.turn)
        now = path[:, step] = now + np.concatenate([move, spin], -1)
    return path


def turned(quaternion: Float64) -> Float64:
    """Rotation [..., 3] away from `DOWN` (axis-angle in the base frame) of tool quaternions [..., 4]."""
    return kin.vector_from_quaternion(kin.multiply(quaternion, DOWN * [1, -1, -1, -1]))


def mocap_poses(aims: Float64) -> Float64:
    """Mocap poses [..., 7] of targets [..., 6]."""
    return np.concatenate([aims[..., :3], kin.multiply(kin.quaternion_from_vector(aims[..., 3:]), DOWN)], -1)


class WeldedArm(Body):
    """One arm without servos: its tool is tied to a mocap body, which the actions move."""

    hands, mocaps, readings, aims = 1, 1, 8, 6
    grippers = (6,)
    limits: Limits

    @abstractmethod
    def fingers(self, opening: Float64) -> Float64:
        """Actuator controls [..., nu] for gripper openings [...], -1..1."""

    def resting(self, tools: Float64) -> tuple[Float64, Float64]:
        """Aim [6] and mocap pose [1, 7] of a tool [1, 3] that rests on its target."""
        aim = np.concatenate([tools[0], np.zeros(3)])
        return aim, mocap_poses(aim[None])

    def drive(
        self, readings: Float64, aim: Float64, actions: Float64, substeps: int
    ) -> tuple[Float64, Float64, Float64]:
        """See `Body.drive`; the target glides through each control step."""
        aims = aim_path(readings[:, :3], turned(readings[:, 3:7]), aim, actions, self.limits)
        fingers = hold(self.fingers(np.clip(actions[..., 6], -1.0, 1.0)), substeps)
        return fingers, mocap_poses(glide(aim, aims, substeps))[:, :, None], aims

    def staying(self, readings: Float64, aim: Float64, last: Float64) -> Float64:
        """See `Body.staying`."""
        back = kin.quaternion_from_vector(-turned(readings[:, 3:7]))
        turn = kin.vector_from_quaternion(kin.multiply(kin.quaternion_from_vector(aim[:, 3:]), back))
        return np.concatenate([aim[:, :3] - readings[:, :3], turn, last[:, 6:]], -1)

    def command(self, readings: Float64, path: Path) -> Float64:
        """See `Body.command`."""
        move = path.tools[:, :, 0] - readings[:, None, :3]
        want = np.zeros_like(move)
        if path.yaw is not None:
            want[..., 2] = path.yaw[..., 0]
        back = kin.quaternion_from_vector(-turned(readings[:, 3:7]))[:, None]
        turn = kin.vector_from_quaternion(kin.multiply(kin.quaternion_from_vector(want), back))
        return np.concatenate([move, turn, path.opening], -1)
