"""What a simulated task is made of, and nothing of the engine that simulates it. numpy only.

    key -> begin -> Start --> [engine] --> readings --> describe, points          what is seen and known
                                 ^             |
                                 |             v
             controls <- drive <- actions   judge -> success, failure, memory     what came of it

A chunk is open-loop: `drive` turns it into one array of controls, the engine runs it without coming back to Python, and
`judge` looks at the sensor readings after every control step. One `Task` serves every engine.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field, fields

import numpy as np
from numpy.typing import NDArray

from envs.base import Disturbance
from envs.mujoco.variation import Variable, Variation
from rl_finetune.spec import EnvSpec
from rl_finetune.types import BoolArray, FloatArray, IntArray

Float64 = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class EpisodeKey:
    """Names one initial state; everything random in it follows from these numbers."""

    seed: int
    scene: int
    episode: int


@dataclass(frozen=True, slots=True)
class Start:
    """How one episode begins."""

    qpos: Float64
    """[nq] joint positions, at rest."""
    mocap: Float64
    """[B, 7] position and quaternion (w, x, y, z) of each mocap body, in the order of the model."""
    aim: Float64
    """[A] where the controller's targets stand; what `Task.drive` glides from."""
    facts: Float64
    """[F] what is true of this episode alone and stays so (which block is meant, where the goal is)."""
    instruction: str
    """The task in words."""
    variation: Variation | None = None
    """How the episode differs from the model as it is written."""


@dataclass(slots=True)
class Now:
    """N worlds at a chunk boundary: with the engine's states, all there is to know of them."""

    readings: Float64
    """[N, R] the model's sensors, in its order."""
    mocap: Float64
    """[N, B, 7] mocap bodies."""
    aim: Float64
    """[N, A] the controller's targets."""
    facts: Float64
    """[N, F] facts of the running episodes."""
    memory: Float64
    """[N, M] what the judge remembers of the running episodes; zero at their beginning."""
    steps: IntArray
    """[N] control steps of the running episodes so far."""

    def rows(self, index: IntArray) -> Now:
        """Some of the worlds."""
        return Now(*(getattr(self, each.name)[index] for each in fields(Now)))


@dataclass(frozen=True, slots=True)
class Drive:
    """What a chunk makes the actuators and the mocap bodies do."""

    controls: Float64
    """[N, H * substeps + 1, nu + 7 B]: actuators, then positions (3 B), then quaternions (4 B) of the mocap bodies, for
    every physics step. The last row is one step more, in which the sensors show the end of the chunk."""
    aim: Float64
    """[N, H, A] the targets after each control step."""


@dataclass(frozen=True, slots=True)
class Judged:
    """What the judge says after every control step; the first success or failure ends the episode."""

    success: BoolArray
    """[N, H] the task is done."""
    failure: BoolArray
    """[N, H] it can no longer be done."""
    memory: Float64
    """[N, H, M] what is to be remembered after each step."""


@dataclass(frozen=True, slots=True)
class Things:
    """Where the named things are in the world: labels of the auxiliary grounding loss."""

    names: tuple[str, ...]
    """P names, the same in every episode of the task; the last one is the robot's own tool or base."""
    points: Float64
    """[N, P, 3] metres."""
    present: BoolArray
    """[N, P]."""
    target: IntArray
    """[N] index of the thing that the instruction names."""


@dataclass(frozen=True, slots=True)
class View:
    """One camera."""

    tag: str
    """View tag of the embodiment."""
    camera: str
    """Camera of the model, fixed or carried by a body."""


class Task(Variable, ABC):
    """One task for one body: the model and every rule of the episode."""

    spec: EnvSpec
    timestep: float
    """Seconds of one physics step."""
    substeps: int
    """Physics steps of one control step."""
    views: tuple[View, ...]
    """Cameras in the order of the embodiment's views."""
    memory: int = 0
    """M, numbers that the judge remembers."""
    measured: tuple[str, ...] = ()
    """Names that `measures` gives."""
    progress: float = 0.0
    """Reward for each metre by which a chunk brings the tool nearer to the target, beside that for success."""

    @abstractmethod
    def mjcf(self) -> str:
        """The whole model as text."""

    @abstractmethod
    def begin(self, key: EpisodeKey) -> Start:
        """The initial state of one episode: a pure function of its key."""

    @abstractmethod
    def drive(self, now: Now, actions: Float64) -> Drive:
        """What the actions [N, H, c], counted from the states `now`, make the actuators do."""

    @abstractmethod
    def judge(self, now: Now, readings: Float64) -> Judged:
        """Judge the readings [N, H, R] after each control step of a chunk that began at `now`."""

    @abstractmethod
    def describe(self, now: Now) -> FloatArray:
        """Privileged state [N, S], in the order of `spec.privileged`."""

    @abstractmethod
    def expert(self, privileged: FloatArray, disturbed: Disturbance | None = None) -> Float64:
        """A scripted expert's chunk [N, H, c] from privileged state [N, S] alone; see `VectorEnv.expert`."""

    def left(self, now: Now) -> Float64:
        """[N] metres between tool and target, where `spec.privileged` begins with the two."""
        state = self.describe(now).astype(np.float64)
        return np.linalg.norm(state[:, :3] - state[:, 3:6], axis=-1)

    def things(self, now: Now) -> Things | None:
        """Labels of the grounding loss; None where there are none."""
        return None

    def measures(self, now: Now, success: BoolArray) -> Mapping[str, FloatArray]:
        """Name -> [N] further numbers of episodes that end in the states `now` (path length, displacement error)."""
        return {}

    def seen_at(self, now: Now, points: Float64) -> Float64:
        """Where points [N, P, 3] (metres) appear in the first view: [N, P, 2] (u right, v down), 0..1 across it.

        Only for tasks with `things`.
        """
        raise NotImplementedError

    def drawn(self, now: Now) -> Float64:
        """Mocap bodies [N, B, 7] as they are drawn; they may follow the robot (a shadow below the tool)."""
        return now.mocap


@dataclass(frozen=True, slots=True)
class Path:
    """Where an expert wants its hands to be, whatever the body: `Body.command` turns it into actions."""

    tools: Float64
    """[N, H, hands, 3] tool positions in metres, gripper pointing down."""
    opening: Float64
    """[N, H, hands] gripper, +1 open, -1 closed."""
    yaw: Float64 | None = field(default=None)
    """[N, H, hands] rotation about the vertical in radians; None is zero."""
