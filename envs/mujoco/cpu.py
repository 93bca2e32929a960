"""MuJoCo itself as the engine: a chunk of all worlds is one call into C, pictures come from one OpenGL context."""

from __future__ import annotations

from collections.abc import Sequence

import mujoco
import numpy as np
from mujoco import rollout

from envs.mujoco.engine import Engine, Motion
from envs.mujoco.rendering import Renderer
from envs.mujoco.task import Float64, Start, Task
from envs.mujoco.variation import Property
from envs.mujoco.wardrobe import Wardrobe
from rl_finetune.types import BoolArray, ImageArray, IntArray

STATE = mujoco.mjtState.mjSTATE_FULLPHYSICS
CONTROL = mujoco.mjtState.mjSTATE_CTRL | mujoco.mjtState.mjSTATE_MOCAP_POS | mujoco.mjtState.mjSTATE_MOCAP_QUAT
FASTEST = 1e4
"""Metres or radians a second that no honest world reaches: MuJoCo calls its own state unstable far above."""


class CpuEngine(Engine):
    """N worlds in this process, one thread."""

    varies: frozenset[Property] = frozenset({"looks", "shapes", "dynamics"})

    def __init__(self, task: Task, num_envs: int, image_size: int) -> None:
        """Compile the model and open the renderer.

        Raises:
            UserError: this machine cannot draw offscreen.
        """
        self._task = task
        xml = task.mjcf()
        self._model = mujoco.MjModel.from_xml_string(xml)
        self._model.opt.timestep = task.timestep
        self._data = mujoco.MjData(self._model)
        self._renderer = Renderer(self._model, image_size)
        self._wardrobe = Wardrobe(xml, self._model, num_envs)
        self._rollout = rollout.Rollout(nthread=0)
        size = mujoco.mj_stateSize(self._model, STATE)
        self._state = np.zeros((num_envs, size))
        self._states = np.zeros((num_envs, 0, size))
        self._sensed = np.zeros((num_envs, self._model.nsensordata))
        self._seen = np.zeros((num_envs, 0, self._model.nsensordata))

    def place(self, rows: IntArray, starts: Sequence[Start]) -> None:
        """See `Engine.place`."""
        for row, start in zip(rows, starts, strict=True):
            state = np.zeros(self._state.shape[1])
            state[1 : 1 + self._model.nq] = start.qpos  # layout: time, positions, velocities, activations
            self._state[row] = state
            self._wardrobe.dress(int(row), start.variation)
            self._pose(row, state, start.mocap)
            mujoco.mj_forward(self._wardrobe.models[row], self._data)
            self._sensed[row] = self._data.sensordata

    def readings(self, rows: IntArray) -> Float64:
        """See `Engine.readings`."""
        return self._sensed[rows]

    def advance(self, controls: Float64) -> Motion:
        """See `Engine.advance`."""
        n, steps = controls.shape[:2]
        states = np.empty((n, steps, self._state.shape[1]))
        sensors = np.empty((n, steps, self._model.nsensordata))
        self._rollout.rollout(
            self._wardrobe.models, [self._data], self._state, controls, control_spec=CONTROL, skip_checks=True,
            nstep=steps, state=states, sensordata=sensors,
        )  # fmt: skip
        every = self._task.substeps
        # A sensor shows the state in which its step began: after control step j is in physics step (j + 1) * substeps.
        self._states, self._seen = states[:, every - 1 : -1 : every], sensors[:, every::every]
        return Motion(self._seen, _broken(self._states, self._seen))

    def keep(self, executed: IntArray) -> None:
        """See `Engine.keep`."""
        rows = np.arange(len(executed))
        self._state, self._sensed = self._states[rows, executed - 1], self._seen[rows, executed - 1]

    def draw(self, rows: IntArray, mocap: Float64, step: int | None = None) -> dict[str, ImageArray]:
        """See `Engine.draw`."""
        size, views = self._renderer.size, self._task.views if step is None else self._task.views[:1]
        pictures = {view.tag: np.empty((len(rows), size, size, 3), np.uint8) for view in views}
        for place, row in enumerate(rows):
            self._pose(row, self._state[row] if step is None else self._states[row, step], mocap[place])
            model = self._wardrobe.models[row]
            mujoco.mj_kinematics(model, self._data)
            for view in views:
                self._renderer.draw(self._data, view.camera, pictures[view.tag][place], model)
        return pictures

    def states(self) -> Float64:
        """See `Engine.states`."""
        return self._states

    def close(self) -> None:
        """See `Engine.close`."""
        self._renderer.close()
        self._rollout.close()

    def _pose(self, row: int, state: Float64, mocap: Float64) -> None:
        mujoco.mj_setState(self._wardrobe.models[row], self._data, state, STATE)
        self._data.mocap_pos[:], self._data.mocap_quat[:] = mocap[:, :3], mocap[:, 3:]


def _broken(states: Float64, readings: Float64) -> BoolArray:
    """[N] whether any state or reading is not finite or absurdly large, or the clock went back: MuJoCo sets a world
    that it finds unstable to its beginning and goes on."""
    worst = np.maximum(np.abs(states).max((1, 2)), np.abs(readings).max((1, 2)))
    restarted = (np.diff(states[..., 0], axis=1) <= 0).any(1)
    broken: BoolArray = ~(worst < FASTEST) | restarted  # NaN compares false
    return broken
