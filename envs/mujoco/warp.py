"""mujoco_warp as the engine: thousands of worlds on a GPU, or a few on a CPU to test the same code.

    controls -> [device: load state -> (command, step, record, tick) x T] -> readings, broken -> host
                                                        |
                                       states stay -> keep -> draw

On a GPU one physics step is captured as a graph and replayed; which step it is stands in a counter on the device. It
computes in float32, so it follows `CpuEngine` within a tolerance, not to the bit.
"""

from __future__ import annotations

from collections.abc import Sequence

import mujoco
import mujoco_warp as mjw
import numpy as np
import warp as wp

from envs.mujoco import warp_kernels as kernels
from envs.mujoco.engine import Engine, Motion
from envs.mujoco.task import Float64, Start, Task
from envs.mujoco.warp_drawing import Painter
from rl_finetune.errors import UserError
from rl_finetune.types import BoolArray, ImageArray, IntArray

FASTEST = 1e4
"""Metres or radians a second that no honest world reaches."""
CONTACTS = 64
"""Contacts of a world for which there is room."""
LEAST_ROOM = 512
"""Contacts for which there is room in all, however few the worlds: they share one list."""
TIES = (mujoco.mjtEq.mjEQ_CONNECT, mujoco.mjtEq.mjEQ_WELD)
CROWDED_WORLD = mjw.OverflowType.NEFC | mjw.OverflowType.NJMAX_NNZ
CROWDED_LIST = mjw.OverflowType.BROADPHASE | mjw.OverflowType.NARROWPHASE | mjw.OverflowType.CCD


class WarpEngine(Engine):
    """N worlds on one device."""

    _graph: wp.Graph | None

    def __init__(
        self,
        task: Task,
        num_envs: int,
        image_size: int,
        *,
        device: str | None = None,
        contacts: int = CONTACTS,
        deterministic: bool = True,
    ) -> None:
        """Put the model on the device; the first chunk compiles what it needs, which warp keeps in its cache folder.

        Args:
            task: what to simulate.
            num_envs: N.
            image_size: side of the pictures in pixels.
            device: warp's name of it, `cpu` or `cuda:0`; None takes the first GPU, or the CPU where there is none.
            contacts: contacts of a world for which there is room.
            deterministic: on a GPU, fix the order of contacts, constraints and sums, so that a run can be repeated to
                the bit; a CPU keeps an order anyway.

        Raises:
            UserError: no such device, or the model needs what mujoco_warp cannot do.
        """
        self._task, self._num_envs = task, num_envs
        self._device = _device(device)
        host = mujoco.MjModel.from_xml_string(task.mjcf())
        host.opt.timestep = task.timestep
        self._tied = bool(np.isin(host.eq_type, TIES).any())
        self._read = np.zeros((num_envs, 0, host.nsensordata))
        self._sensed = np.zeros((num_envs, host.nsensordata))
        with wp.ScopedDevice(self._device):
            self._model = _put_model(task, host)
            if deterministic and self._device.is_cuda:
                self._model.opt.deterministic = mjw.DeterminismType.ALL
            self._data = _put_data(host, self._model, num_envs, contacts)
            self._painter = Painter(host, task.views, num_envs, image_size)
            size = 1 + host.nq + host.nv + host.na
            self._present = wp.zeros((num_envs, size), dtype=float)
            self._count, self._broken = wp.zeros(1, dtype=int), wp.zeros(num_envs, dtype=wp.bool)
            self._make_room((num_envs, task.substeps + 1, host.nu + 7 * host.nmocap))

    def place(self, rows: IntArray, starts: Sequence[Start]) -> None:
        """See `Engine.place`."""
        size = self._present.shape[1]
        states = np.zeros((len(rows), size), np.float32)
        for state, start in zip(states, starts, strict=True):
            state[1 : 1 + len(start.qpos)] = start.qpos
        mocap = np.stack([start.mocap for start in starts]).astype(np.float32)
        data = self._data
        with wp.ScopedDevice(self._device):
            which = wp.array(rows.astype(np.int32), dtype=int)
            wp.launch(
                kernels.scatter_states, dim=states.shape, inputs=[wp.array(states), which], outputs=[self._present]
            )
            self._load()
            poses = wp.array(mocap, dtype=float, ndim=3)
            wp.launch(
                kernels.pose, dim=mocap.shape[:2], inputs=[poses, which], outputs=[data.mocap_pos, data.mocap_quat]
            )
            data.ctrl.zero_()
            self._refresh()
            mjw.forward(self._model, data)
            self._sensed[rows] = data.sensordata.numpy()[rows]

    def readings(self, rows: IntArray) -> Float64:
        """See `Engine.readings`."""
        return self._sensed[rows]

    def advance(self, controls: Float64) -> Motion:
        """See `Engine.advance`.

        Raises:
            UserError: the worlds have more contacts than there is room for, so none of their states can be trusted.
        """
        with wp.ScopedDevice(self._device):
            if self._controls.shape != controls.shape:
                self._make_room(controls.shape)
            self._controls.assign(controls.astype(np.float32))
            self._prepare()
            self._load()
            self._count.zero_()
            self._broken.zero_()
            for _ in range(controls.shape[1]):
                if self._graph is None:
                    self._step()
                else:
                    wp.capture_launch(self._graph)
            self._read = self._seen.numpy().astype(np.float64)
            broken = self._broken.numpy() | self._crowded()
        return Motion(self._read, broken)

    def keep(self, executed: IntArray) -> None:
        """See `Engine.keep`."""
        self._sensed = self._read[np.arange(self._num_envs), executed - 1]
        with wp.ScopedDevice(self._device):
            last = wp.array((executed - 1).astype(np.int32), dtype=int)
            shape = self._present.shape
            wp.launch(kernels.keep_states, dim=shape, inputs=[self._states, last], outputs=[self._present])

    def draw(self, rows: IntArray, mocap: Float64, step: int | None = None) -> dict[str, ImageArray]:
        """See `Engine.draw`."""
        drawn = self.draw_on_device(rows, mocap, step)
        return {tag: np.array(picture.numpy()) for tag, picture in drawn.items()}

    def draw_on_device(self, rows: IntArray, mocap: Float64, step: int | None = None) -> dict[str, wp.array]:
        """As `draw`, without leaving the device: a policy there takes a picture with `torch.from_dlpack(picture)`.

        The next drawing overwrites the pictures.
        """
        with wp.ScopedDevice(self._device):
            states = self._present if step is None else self._states[:, step]
            return self._painter.draw(states, rows, mocap)

    def close(self) -> None:
        """See `Engine.close`. Device memory goes with the object."""
        self._graph = None

    def _make_room(self, shape: tuple[int, ...]) -> None:
        """Buffers for chunks of controls of this shape [N, T, C]."""
        n, steps = shape[0], (shape[1] - 1) // self._task.substeps
        self._controls = wp.zeros(shape, dtype=float)
        self._states = wp.zeros((n, steps, self._present.shape[1]), dtype=float)
        self._seen = wp.zeros((n, steps, self._sensed.shape[1]), dtype=float)
        self._graph = None

    def _prepare(self) -> None:
        """On a GPU, record one physics step as a graph."""
        if self._graph is not None or not self._device.is_cuda:
            return
        self._count.zero_()
        self._step()  # what is loaded or compiled at first use must not fall into the recording
        with wp.ScopedCapture() as capture:
            self._step()
        self._graph = capture.graph

    def _load(self) -> None:
        data = self._data
        outputs = [data.time, data.qpos, data.qvel, data.act, data.qacc_warmstart, data.overflow]
        wp.launch(kernels.load_states, dim=self._num_envs, inputs=[self._present], outputs=outputs)

    def _step(self) -> None:
        """One physics step of all worlds."""
        data, n = self._data, self._num_envs
        moved = [data.ctrl, data.mocap_pos, data.mocap_quat]
        wp.launch(kernels.command, dim=n, inputs=[self._count, self._controls], outputs=moved)
        self._refresh()
        mjw.step(self._model, data)
        found = [data.time, data.qpos, data.qvel, data.act, data.sensordata]
        wp.launch(
            kernels.record,
            dim=n,
            inputs=[self._count, self._task.substeps, FASTEST, *found],
            outputs=[self._states, self._seen, self._broken],
        )
        wp.launch(kernels.tick, dim=1, outputs=[self._count])

    def _refresh(self) -> None:
        """Bring body velocities up to date where a constraint reads them.

        mujoco_warp 4.0.0 builds constraints before it computes velocities, so that connect and weld (their term J' v)
        see those of whatever was computed last, and a world would depend on what others did before.
        """
        if self._tied:
            mjw.kinematics(self._model, self._data)
            mjw.com_pos(self._model, self._data)
            mjw.com_vel(self._model, self._data)

    def _crowded(self) -> BoolArray:
        """Worlds [N] that had more constraints than there is room for.

        Raises:
            UserError: the list of contacts, which all share, was too short.
        """
        overflow = self._data.overflow.numpy()
        if (overflow & CROWDED_LIST).any():
            raise UserError(
                f"the {self._num_envs} worlds of {self._task.spec.name!r} touch in more places than there is room for",
                got=", ".join(mjw.OverflowType(int(np.bitwise_or.reduce(overflow)) & CROWDED_LIST).name.split("|")),
                expected=f"at most {self._data.naconmax} contacts in all",
                do="give the engine more room (`contacts`)",
            )
        crowded: BoolArray = (overflow & CROWDED_WORLD) != 0
        return crowded


def _device(name: str | None) -> wp.Device:
    if name is None:
        return wp.get_device("cuda:0" if wp.is_cuda_available() else "cpu")
    try:
        return wp.get_device(name)
    except (ValueError, RuntimeError) as error:
        known = [str(device) for device in wp.get_devices()]
        raise UserError(
            "no such device", got=repr(name), expected=f"one of {known}", do="choose one of them"
        ) from error


def _put_model(task: Task, host: mujoco.MjModel) -> mjw.Model:
    """The model on the current device.

    Raises:
        UserError: it needs what mujoco_warp, or this engine, cannot do.
    """
    try:
        model = mjw.put_model(host)
    except (NotImplementedError, ValueError) as error:
        raise _unsupported(task, str(error)) from error
    if mujoco.mj_stateSize(host, mujoco.mjtState.mjSTATE_FULLPHYSICS) != 1 + host.nq + host.nv + host.na:
        raise _unsupported(task, "plugins, delays or plasticity")
    model.opt.warn_overflow = 0  # a kernel would print it, once a world and step; `_crowded` says it once
    return model


def _unsupported(task: Task, got: str) -> UserError:
    return UserError(
        f"mujoco_warp cannot simulate {task.spec.name!r}",
        got=got,
        expected="a model within its features",
        do="use the backend 'mujoco', or change the model",
    )


def _put_data(host: mujoco.MjModel, model: mjw.Model, num_envs: int, contacts: int) -> mjw.Data:
    """Room for `num_envs` worlds with `contacts` contacts each; a world's constraints have room for all of them."""
    widest = max(1, int(host.geom_condim.max(initial=1)))
    rows = 6 * host.neq + host.njnt + host.nv + host.ntendon + contacts * max(1, 2 * (widest - 1))
    in_all = max(num_envs * contacts, LEAST_ROOM)
    # Convex pairs have large workspaces on the device: never more of them than there are pairs that may touch.
    pairs = max(1, len(model.nxn_geom_pair_filtered))
    return mjw.put_data(
        host,
        mujoco.MjData(host),
        nworld=num_envs,
        njmax=rows,
        naconmax=in_all,
        naccdmax=min(in_all, num_envs * pairs),
    )
