"""Forward and inverse kinematics of a row of hinges, for N arms at once. numpy only.

MuJoCo's `mink` solves one configuration at a time, about a millisecond each; an expert that plans 16 steps for 100
environments needs batches, and an arm without obstacles needs no quadratic program. So: damped least squares
(Wampler 1986; Nakamura and Hanafusa 1986), with the freedom of a seventh joint pulled towards a posture.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from envs.mujoco.task import Float64
from rl_finetune.types import BoolArray

STEPS, FAR_STEPS = 4, 60
"""Iterations a step of a path, and from a seed that may be far away."""
DAMPING = 1e-6
STRIDE = 0.4
"""Radians by which an iteration may turn a joint."""
PULL = 0.1
"""Share of the way back to the posture, an iteration, in directions that leave the tool where it is."""
MARGIN = 0.02
"""Radians that solutions keep from the joint limits."""
CLOSE = 1e-3
"""Metres and radians within which a pose counts as reached."""


@dataclass(frozen=True, slots=True)
class Joint:
    """A hinge and the link that it turns."""

    name: str
    origin: tuple[float, float, float]
    """Metres, in the frame of the link before."""
    axis: tuple[float, float, float]
    """Unit vector in its own frame."""
    low: float
    """Radians."""
    high: float
    """Radians."""
    speed: float
    """Radians a second, at most."""
    quat: tuple[float, float, float, float] = (1.0, 0.0, 0.0, 0.0)
    """Orientation (w, x, y, z) in the frame of the link before."""


@dataclass(frozen=True, slots=True)
class Solution:
    """Joint angles, and how well they hold the tool."""

    angles: Float64
    """[..., n] radians, within the limits."""
    distance: Float64
    """[...] metres between the tool and where it should be."""
    angle: Float64
    """[...] radians between its orientation and what it should be."""

    @property
    def reached(self) -> BoolArray:
        """[...] whether both are within `CLOSE`."""
        return (self.distance < CLOSE) & (self.angle < CLOSE)


def pose(origin: Sequence[float], quat: Sequence[float] = (1.0, 0.0, 0.0, 0.0)) -> Float64:
    """[4, 4] transform of a position in metres and a unit quaternion (w, x, y, z)."""
    w, x, y, z = np.asarray(quat, np.float64) / np.linalg.norm(quat)
    cross = np.array([[0, -z, y], [z, 0, -x], [-y, x, 0]])
    out = np.eye(4)
    out[:3, :3] += 2 * (w * cross + cross @ cross)
    out[:3, 3] = origin
    return out


def downward(tools: Float64, yaw: Float64) -> Float64:
    """Tool poses [..., 4, 4] at `tools` [..., 3] that point straight down, turned by `yaw` [...] about the vertical."""
    c, s = np.cos(yaw), np.sin(yaw)
    out = np.zeros((*np.shape(yaw), 4, 4))
    out[..., 2, 0], out[..., 3, 3] = -1.0, 1.0
    out[..., 0, 1], out[..., 1, 1] = -s, c
    out[..., 0, 2], out[..., 1, 2] = c, s
    out[..., :3, 3] = tools
    return out


@dataclass(frozen=True)
class Chain:
    """Hinges from a base to a tool."""

    joints: tuple[Joint, ...]
    """n hinges."""
    base: Float64
    """[4, 4] pose of the base; in the world unless another `base` is passed."""
    tool: Float64
    """[4, 4] pose of the tool in the last link's frame."""
    posture: Float64
    """[n] radians: where solutions start and what a redundant arm is pulled to."""
    pull: tuple[float, ...] = ()
    """[n] how strongly, if not `PULL` for each: joints with short ways want more."""

    @cached_property
    def limits(self) -> Float64:
        """[n, 2] radians."""
        return np.array([(joint.low, joint.high) for joint in self.joints])

    @cached_property
    def speeds(self) -> Float64:
        """[n] radians a second."""
        return np.array([joint.speed for joint in self.joints])

    @cached_property
    def _pulls(self) -> Float64:
        return np.array(self.pull or [PULL] * len(self.joints))

    @cached_property
    def _waves(self) -> Float64:
        """[3, n, 4, 4]: link transforms are the first + sin(angle) the second + cos(angle) the third (Rodrigues)."""
        still, sine, cosine = (np.zeros((len(self.joints), 4, 4)) for _ in range(3))
        for row, joint in enumerate(self.joints):
            x, y, z = joint.axis
            cross = np.array([[0, -z, y, 0], [z, 0, -x, 0], [-y, x, 0, 0], [0, 0, 0, 0]])
            origin = pose(joint.origin, joint.quat)
            still[row], sine[row] = origin @ (np.eye(4) + cross @ cross), origin @ cross
            cosine[row] = -origin @ cross @ cross
        return np.stack([still, sine, cosine])

    @cached_property
    def _axes(self) -> Float64:
        return np.array([joint.axis for joint in self.joints])[..., None]

    def links(self, angles: Float64, base: Float64 | None = None) -> Float64:
        """Poses [N, n + 1, 4, 4] of the links and, last, the tool at `angles` [N, n] radians.

        Args:
            angles: joint angles.
            base: [4, 4] or [N, 4, 4] pose of the base, if it moves.
        """
        still, sine, cosine = self._waves
        wave = angles[..., None, None]
        local = still + np.sin(wave) * sine + np.cos(wave) * cosine
        out = np.empty((len(angles), len(self.joints) + 1, 4, 4))
        now = self.base if base is None else base
        for row in range(len(self.joints)):
            now = out[:, row] = now @ local[:, row]
        out[:, -1] = now @ self.tool
        return out

    def forward(self, angles: Float64, base: Float64 | None = None) -> Float64:
        """Tool poses [N, 4, 4] at `angles` [N, n] radians; `base` as in `links`."""
        return self.links(angles, base)[:, -1]

    def solve(
        self, start: Float64, goal: Float64, base: Float64 | None = None, iterations: int = FAR_STEPS
    ) -> Solution:
        """Angles that bring the tool to `goal`, searched from `start`.

        Args:
            start: [N, n] radians.
            goal: [N, 4, 4] tool poses.
            base: as in `links`.
            iterations: a fixed number, so that the result does not depend on the rest of the batch.
        """
        angles = start
        low, high = self.limits[:, 0] + MARGIN, self.limits[:, 1] - MARGIN
        for _ in range(iterations):
            jacobian, error = self._linear(angles, goal, base)
            rest = self._pulls * (self.posture - angles)
            step = _least(jacobian, jacobian, error, rest)
            stuck = ((angles <= low) & (step < 0)) | ((angles >= high) & (step > 0))
            held = stuck.any(-1)
            if held.any():  # what joints at their limits cannot do, the others must
                rest, free = np.where(stuck, 0.0, rest), jacobian * ~stuck[:, None]
                step[held] = _least(jacobian[held], free[held], error[held], rest[held])
            longest = np.abs(step).max(-1, keepdims=True)
            angles = np.clip(angles + step * (STRIDE / np.maximum(longest, STRIDE)), low, high)
        error = _difference(self.forward(angles, base), goal)
        return Solution(angles, np.linalg.norm(error[:, :3], axis=-1), np.linalg.norm(error[:, 3:], axis=-1))

    def follow(self, start: Float64, goals: Float64, bases: Float64 | None = None) -> Solution:
        """Angles [N, H, n] along `goals` [N, H, 4, 4], each step searched from the one before; the first from `start`.

        Args:
            start: [N, n] radians.
            goals: tool poses.
            bases: [N, H, 4, 4] poses of a base that moves.
        """
        steps, now = [], start
        for step in range(goals.shape[1]):
            found = self.solve(now, goals[:, step], None if bases is None else bases[:, step], STEPS)
            now = found.angles
            steps.append(found)
        return Solution(*(np.stack([getattr(s, name) for s in steps], 1) for name in ("angles", "distance", "angle")))

    def _linear(self, angles: Float64, goal: Float64, base: Float64 | None) -> tuple[Float64, Float64]:
        """Jacobian [N, 6, n] and what is missing [N, 6] (metres, then radians), world frame."""
        links = self.links(angles, base)
        axes = (links[:, :-1, :3, :3] @ self._axes)[..., 0]
        arms = links[:, -1:, :3, 3] - links[:, :-1, :3, 3]
        jacobian = np.concatenate([_cross(axes, arms), axes], -1).mT
        return jacobian, _difference(links[:, -1], goal)


def _least(jacobian: Float64, free: Float64, error: Float64, rest: Float64) -> Float64:
    """The step [N, n] nearest to `rest` [N, n] that removes `error` [N, 6] by the joints that are `free`, damped."""
    square = free @ free.mT + DAMPING * np.eye(6)
    left = error - (jacobian @ rest[..., None])[..., 0]
    step: Float64 = rest + (free.mT @ np.linalg.solve(square, left[..., None]))[..., 0]
    return step


def _difference(have: Float64, want: Float64) -> Float64:
    """[N, 6] translation and rotation (axis times the angle's sine, exact for small ones) from one pose to another."""
    turn = 0.5 * _cross(have[:, :3, :3].mT, want[:, :3, :3].mT).sum(1)
    return np.concatenate([want[:, :3, 3] - have[:, :3, 3], turn], -1)


def _cross(left: Float64, right: Float64) -> Float64:
    # numpy's own takes three times as long
    a, b, c = left[..., 0], left[..., 1], left[..., 2]
    x, y, z = right[..., 0], right[..., 1], right[..., 2]
    return np.stack([b * z - c * y, c * x - a * z, a * y - b * x], -1)
