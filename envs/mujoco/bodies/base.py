"""What a robot is to a task: MJCF fragments, a controller, and the way from an expert's path to actions. numpy only."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

import numpy as np

from envs.mujoco.task import Float64, Path, View
from rl_finetune.spec import EmbodimentSpec


@dataclass(frozen=True, slots=True)
class Fragments:
    """A body's part of the model."""

    defaults: str
    """Inside `<default>`; classes named after the body."""
    assets: str
    """Inside `<asset>`; empty for most."""
    tree: str
    """Inside `<worldbody>`, before anything else that has joints, so that the body's joints come first in qpos. Mocap
    bodies of the body (weld targets) come first among the mocaps."""
    actuators: str
    """Inside `<actuator>`."""
    equality: str
    """Inside `<equality>`."""
    sensors: str
    """Inside `<sensor>`, first in the model: see `Body.readings`."""
    contacts: str = ""
    """Inside `<contact>`: excluded pairs."""


class Body(ABC):
    """One robot that works above a table, in one control mode."""

    embodiment: EmbodimentSpec
    hands: int
    """Tools, each with a gripper."""
    mocaps: int
    """Mocap bodies among the fragments: one weld target a hand in `delta_ee`, none in `joint`."""
    actuators: int
    """nu."""
    readings: int
    """Leading sensors: for each hand tool position (3), tool quaternion (4) and position of one finger's joint (1);
    then the joint positions that `command` and `drive` need, if any; then the pose of the body's own first camera, if
    any."""
    aims: int
    """A, width of the controller's memory."""
    boxes: Float64
    """[hands, 3, 2] metres: where each tool works; together they cover the table's workspace."""
    slack: Float64
    """[hands] metres between the middle of each gripper and a finger's inner face where its joint reads zero."""
    grippers: tuple[int, ...]
    """Channels of the grippers, one a hand."""
    timestep: float
    """Seconds of one physics step, as coarse as the body stays accurate with."""
    joints: tuple[str, ...] = ()
    """Names of the joint readings (after the hands' eight each) that `command` and `drive` need."""
    cameras: tuple[View, ...] = ()
    """Cameras that the fragments bring. Where the first view of the embodiment is among them, the last seven readings
    are the `framepos` and `framequat` of that camera, and `eye_fovy` its field of view."""
    eye_fovy: float = 0.0
    """Degrees; of the body's own first view."""

    @abstractmethod
    def fragments(self) -> Fragments:
        """MJCF text."""

    @abstractmethod
    def rest(self, tools: Float64) -> tuple[Float64, Float64, Float64]:
        """Joint positions, aim [A] and mocap poses [mocaps, 7] of the body at rest, grippers open and pointing down.

        Args:
            tools: [hands, 3] tool positions in metres, world frame.

        Raises:
            ValueError: out of reach.
        """

    @abstractmethod
    def drive(
        self, readings: Float64, aim: Float64, actions: Float64, substeps: int
    ) -> tuple[Float64, Float64, Float64]:
        """Turn a chunk into safe, speed-limited controls.

        Args:
            readings: [N, >= readings] sensors at the chunk's first frame.
            aim: [N, A] the targets then.
            actions: [N, H, c] in the convention's units.
            substeps: physics steps of one control step.

        Returns:
            Actuator controls [N, H * substeps, nu], mocap poses [N, H * substeps, mocaps, 7], and the targets after
            each control step [N, H, A].
        """

    @abstractmethod
    def staying(self, readings: Float64, aim: Float64, last: Float64) -> Float64:
        """Action [N, c] that leaves the targets `aim` [N, A] where they stand at the first frame whose readings are
        given, after the action `last` [N, c]."""

    @abstractmethod
    def command(self, readings: Float64, path: Path) -> Float64:
        """Actions [N, H, c] that bring the tools along `path`, counted from the frame whose readings are given."""


def glide(start: Float64, corners: Float64, substeps: int) -> Float64:
    """Straight lines from `start` [N, ...] through `corners` [N, H, ...], `substeps` points each:
    [N, H * substeps, ...]."""
    whole = np.concatenate([start[:, None], corners], 1)
    share = (np.arange(1, substeps + 1) / substeps).reshape(1, 1, substeps, *[1] * (corners.ndim - 2))
    points = whole[:, :-1, None] + np.diff(whole, axis=1)[:, :, None] * share
    return points.reshape(len(corners), -1, *corners.shape[2:])


def hold(corners: Float64, substeps: int) -> Float64:
    """Each of `corners` [N, H, ...] for `substeps` steps: [N, H * substeps, ...]."""
    return np.repeat(corners, substeps, axis=1)
