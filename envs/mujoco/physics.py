"""Open-loop chunks for many worlds in one call into MuJoCo.

    actions -> clamped, speed-limited path of the tool's target -> rollout (C, one thread) -> tool poses, states

Within a chunk nothing is decided in Python, so the whole of it is one `mujoco.rollout`; steps after the end of an
episode are simulated too and thrown away, which costs less than stopping.
"""

from __future__ import annotations

from dataclasses import dataclass

import mujoco
import numpy as np
from mujoco import rollout
from numpy.typing import NDArray

from envs.mujoco import kinematics as kin
from envs.mujoco.reach import HORIZON, RATE, TOOL_BOX, Scene
from envs.mujoco.table import TIMESTEP, scene_xml
from envs.mujoco.widowx import FINGER_CLOSED, FINGER_OPEN

Float64 = NDArray[np.float64]

SUBSTEPS = round(1 / (RATE * TIMESTEP))
MAX_TRAVEL = 0.06
"""Metres that the tool's target moves in one control step, at most."""
MAX_TURN = 0.25
"""Radians that it turns in one control step, at most."""
MAX_TILT = 0.6
"""Radians away from pointing straight down, at most."""
MOCAPS = 6
"""Four blocks, the tool's target, the tool's shadow."""
PARKED = np.array([0.0, 0.0, -1.0])
CONTROL = mujoco.mjtState.mjSTATE_CTRL | mujoco.mjtState.mjSTATE_MOCAP_POS | mujoco.mjtState.mjSTATE_MOCAP_QUAT
STATE = mujoco.mjtState.mjSTATE_FULLPHYSICS
DOWN = kin.quaternion_from_vector(np.array([0.0, np.pi / 2, 0.0]))


@dataclass(slots=True)
class Worlds:
    """Complete state of N worlds: nothing else is carried from one chunk to the next."""

    state: Float64
    """[N, S] MuJoCo's full physics state."""
    tool: Float64
    """[N, 3] tool position, metres."""
    turn: Float64
    """[N, 3] tool rotation away from pointing down, axis-angle in the base frame."""
    aim: Float64
    """[N, 6] where the tool's target stands: position and rotation as above."""
    block_pos: Float64
    """[N, 4, 3] block centres."""
    block_quat: Float64
    """[N, 4, 4] block orientations."""


@dataclass(frozen=True, slots=True)
class Motion:
    """What a chunk did, had no episode ended in it."""

    states: Float64
    """[N, H, S] after each control step."""
    tools: Float64
    """[N, H, 3] tool position after each control step."""
    turns: Float64
    """[N, H, 3] tool rotation after each control step."""
    aims: Float64
    """[N, H, 6] target after each control step."""


class Physics:
    """Model and workspace shared by all worlds of a process."""

    def __init__(self) -> None:
        self.model = mujoco.MjModel.from_xml_string(scene_xml())
        self.data = mujoco.MjData(self.model)
        self._rollout = rollout.Rollout(nthread=0)

    def close(self) -> None:
        """Release the rollout's workspace."""
        self._rollout.close()

    def empty(self, num_envs: int) -> Worlds:
        """Room for the state of `num_envs` worlds; fill it with `place`."""
        size = mujoco.mj_stateSize(self.model, STATE)
        state, tool, turn, aim = (np.zeros((num_envs, width)) for width in (size, 3, 3, 6))
        return Worlds(state, tool, turn, aim, np.zeros((num_envs, 4, 3)), np.zeros((num_envs, 4, 4)))

    def place(self, worlds: Worlds, env: int, scene: Scene) -> None:
        """Set world `env` to the start of `scene`, at rest."""
        m = self.model
        state = np.zeros(worlds.state.shape[1])
        # layout: time, joint positions (arm then fingers), velocities
        state[1 : 1 + m.nq] = [*kin.downward_pose(scene.tool), FINGER_OPEN, -FINGER_OPEN]
        worlds.state[env] = state
        worlds.tool[env], worlds.turn[env] = scene.tool, 0.0
        worlds.aim[env] = [*scene.tool, 0.0, 0.0, 0.0]
        sunk = scene.tops - [0.0, 0.0, scene.tops[:, 2].max() / 2]
        worlds.block_pos[env] = np.where(scene.present[:, None], sunk, PARKED)
        worlds.block_quat[env] = kin.quaternion_from_vector(scene.yaw[:, None] * [0.0, 0.0, 1.0])

    def advance(self, worlds: Worlds, actions: Float64) -> Motion:
        """Run a chunk [N, H, 7] from `worlds`, which stays as it is."""
        aims = aim_path(worlds, actions)
        share = (np.clip(actions[..., 6], -1.0, 1.0) + 1) / 2
        fingers = FINGER_CLOSED + (FINGER_OPEN - FINGER_CLOSED) * share
        states, sensors = self._simulate(worlds, self._controls(worlds, aims, fingers))
        # A sensor shows the state in which its step began: the tool after control step j is in step j*SUBSTEPS.
        seen = sensors[:, SUBSTEPS::SUBSTEPS]
        turns = kin.vector_from_quaternion(kin.multiply(seen[..., 3:], DOWN * [1, -1, -1, -1]))
        return Motion(states[:, SUBSTEPS - 1 : -1 : SUBSTEPS], seen[..., :3], turns, aims)

    def _controls(self, worlds: Worlds, aims: Float64, fingers: Float64) -> Float64:
        """Control vectors [N, H*SUBSTEPS + 1, C]; the target glides through each control step."""
        n = len(aims)
        steps = HORIZON * SUBSTEPS + 1
        corners = np.concatenate([worlds.aim[:, None], aims], 1)
        share = (np.arange(1, SUBSTEPS + 1) / SUBSTEPS)[:, None]
        glide = (corners[:, :-1, None] + np.diff(corners, axis=1)[:, :, None] * share).reshape(n, -1, 6)
        out = np.empty((n, steps, 2 + MOCAPS * 7))
        out[:, :-1, 0] = np.repeat(fingers, SUBSTEPS, axis=1)
        out[:, :-1, 1] = -out[:, :-1, 0]
        out[:, :, 2:14] = worlds.block_pos.reshape(n, 1, 12)
        out[:, :-1, 14:17] = glide[..., :3]
        out[:, :, 17:20] = PARKED  # the shadow matters to pictures only
        out[:, :, 20:36] = worlds.block_quat.reshape(n, 1, 16)
        out[:, :, 40:] = [1.0, 0.0, 0.0, 0.0]
        out[:, :-1, 36:40] = kin.multiply(kin.quaternion_from_vector(glide[..., 3:]), DOWN)
        out[:, -1] = out[:, -2]
        return out

    def _simulate(self, worlds: Worlds, controls: Float64) -> tuple[Float64, Float64]:
        n, steps = controls.shape[:2]
        states = np.empty((n, steps, worlds.state.shape[1]))
        sensors = np.empty((n, steps, self.model.nsensordata))
        self._rollout.rollout(
            [self.model] * n,
            [self.data],
            worlds.state,
            controls,
            control_spec=CONTROL,
            skip_checks=True,
            nstep=steps,
            state=states,
            sensordata=sensors,
        )
        return states, sensors


def aim_path(worlds: Worlds, actions: Float64) -> Float64:
    """Where the tool's target goes [N, H, 6]: actions count from the first frame's tool pose, within safe limits."""
    place = np.clip(worlds.tool[:, None] + actions[..., :3], TOOL_BOX[:, 0], TOOL_BOX[:, 1])
    turn = kin.quaternion_from_vector(kin.limit_length(actions[..., 3:6], np.pi))
    start = kin.quaternion_from_vector(worlds.turn)[:, None]
    tilt = kin.limit_length(kin.vector_from_quaternion(kin.multiply(turn, start)), MAX_TILT)
    path = np.empty((*actions.shape[:2], 6))
    now = worlds.aim
    for step in range(actions.shape[1]):
        move = kin.limit_length(place[:, step] - now[:, :3], MAX_TRAVEL)
        spin = kin.limit_length(tilt[:, step] - now[:, 3:], MAX_TURN)
        now = path[:, step] = now + np.concatenate([move, spin], -1)
    return path
