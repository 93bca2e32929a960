"""Control by absolute joint positions: clamped, rate-limited targets of position servos, and a planner for them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from envs.mujoco.bodies.base import Body, glide
from envs.mujoco.bodies.parts import Gripper
from envs.mujoco.chain import Chain, downward
from envs.mujoco.task import Float64, Path

GRIPPER_SPEED = 10.0
"""Openings (-1..1) a second."""


@dataclass(frozen=True, slots=True)
class Arm:
    """One arm and its hand."""

    chain: Chain
    """From the world, or from the waist's last link, to the tool."""
    gripper: Gripper
    """The hand."""


class JointedBody(Body):
    """Arms whose every joint is held by a servo.

    Channels go: waist, then for each arm its joints and its gripper. So do actuators, which have two a gripper, and
    joint readings, which have none. The controller's memory is where the channels' targets stand.
    """

    mocaps = 0
    arms: tuple[Arm, ...]
    waist: Chain | None = None

    def __init__(self) -> None:
        """Lay out channels, readings and actuators."""
        ranges, speeds, columns = [np.empty((0, 2))], [np.empty(0)], []
        if self.waist is not None:
            ranges, speeds = [self.waist.limits], [self.waist.speeds]
        self._bent = len(ranges[0])
        self._spans: list[slice] = []
        columns = list(range(self._bent))
        for arm in self.arms:
            first = sum(len(each) for each in ranges)
            self._spans.append(slice(first, first + len(arm.chain.joints)))
            ranges += [arm.chain.limits, np.array([[-1.0, 1.0]])]
            speeds += [arm.chain.speeds, np.array([GRIPPER_SPEED])]
            columns += [*range(first, first + len(arm.chain.joints) + 1), first + len(arm.chain.joints)]
        self._ranges, self._columns = np.concatenate(ranges), np.array(columns)
        self._pace = np.concatenate(speeds) / self.embodiment.action.rate
        self.grippers = tuple(span.stop for span in self._spans)
        self.slack = np.array([arm.gripper.slack for arm in self.arms])
        self.hands, self.aims, self.actuators = len(self.arms), len(self._pace), len(columns)
        chains = [self.waist] if self.waist is not None else []
        self.joints = tuple(j.name for c in [*chains, *(arm.chain for arm in self.arms)] for j in c.joints)
        self.readings = 8 * self.hands + len(self.joints) + (7 if self.eye_fovy else 0)

    def rest(self, tools: Float64) -> tuple[Float64, Float64, Float64]:
        """See `Body.rest`."""
        bent = self.bend(np.zeros((1, 1, self._bent)), tools[None, None], None)[:, 0]
        base = None if self.waist is None else self.waist.forward(bent)
        qpos, aim = [bent[0]], [bent[0]]
        for arm, tool in zip(self.arms, tools, strict=True):
            found = arm.chain.solve(arm.chain.posture[None], downward(tool[None], np.zeros(1)), base)
            if not found.reached.all():
                raise ValueError(f"tool position {np.round(tool, 3)} m is out of reach of a downward-pointing gripper")
            qpos += [found.angles[0], np.array([arm.gripper.half, -arm.gripper.half])]
            aim += [found.angles[0], np.ones(1)]
        return np.concatenate(qpos), np.concatenate(aim), np.empty((0, 7))

    def bend(self, now: Float64, tools: Float64, pace: Float64 | None) -> Float64:
        """Angles [N, H, w] of the waist for tools [N, H, hands, 3]; a body that has one says how.

        Args:
            now: [N, 1, w] present angles.
            tools: where the tools shall be.
            pace: [w] radians that a joint may turn in a control step; None is no limit.
        """
        return np.zeros((*tools.shape[:2], 0))

    def drive(
        self, readings: Float64, aim: Float64, actions: Float64, substeps: int
    ) -> tuple[Float64, Float64, Float64]:
        """See `Body.drive`; the servos' targets glide through each control step."""
        targets = np.clip(actions, self._ranges[:, 0], self._ranges[:, 1])
        aims, now = np.empty_like(targets), aim
        for step in range(actions.shape[1]):
            now = aims[:, step] = now + np.clip(targets[:, step] - now, -self._pace, self._pace)
        controls = glide(aim, aims, substeps)[..., self._columns]
        return controls, np.empty((*controls.shape[:2], 0, 7)), aims

    def staying(self, readings: Float64, aim: Float64, last: Float64) -> Float64:
        """See `Body.staying`: targets are the actions."""
        return aim

    def command(self, readings: Float64, path: Path) -> Float64:
        """See `Body.command`; tools are kept within their boxes."""
        n, h = path.tools.shape[:2]
        angles = readings[:, 8 * self.hands : 8 * self.hands + len(self.joints)]
        tools = np.clip(path.tools, self.boxes[..., 0], self.boxes[..., 1])
        yaw = np.zeros((n, h, self.hands)) if path.yaw is None else path.yaw
        bent = self.bend(angles[:, None, : self._bent], tools, self._pace[: self._bent])
        bases = None
        if self.waist is not None:
            bases = self.waist.forward(bent.reshape(n * h, -1)).reshape(n, h, 4, 4)
        actions = np.empty((n, h, self.aims))
        actions[..., : self._bent] = bent
        for hand, (arm, span) in enumerate(zip(self.arms, self._spans, strict=True)):
            # readings have no gripper among the joints
            start = angles[:, span.start - hand : span.stop - hand]
            goals = downward(tools[:, :, hand], yaw[..., hand])
            actions[..., span] = arm.chain.follow(start, goals, bases).angles
            actions[..., span.stop] = path.opening[..., hand]
        return actions
