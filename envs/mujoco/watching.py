"""Watch a body as it moves: where its tools are, whether a joint is beyond its range, whether it touches itself.

No world lets its robot touch itself: contacts between a robot's own links would cost time in every step. So a watcher
has a twin of the model in which the robot's shapes meet one another and nothing else, and looks at the state after each
control step in it. Left out are links at most `NEAR` joints apart, whose round shapes overlap where the joint bends,
the fingers of one gripper, whom a block that they push pushes into one another, and what overlaps while the body is at
rest (as MoveIt's setup assistant does): these were modelled to overlap.
"""

from __future__ import annotations

import mujoco
import numpy as np

from envs.base import BodyMotion
from envs.mujoco.cpu import STATE
from envs.mujoco.engine import Motion
from envs.mujoco.task import EpisodeKey, Float64, Now, Task
from envs.mujoco.tasks.tabletop import Tabletop
from envs.mujoco.varied import Varied
from envs.mujoco.wardrobe import robot_geoms
from rl_finetune.types import BoolArray, FloatArray, IntArray

GIVE = 0.01
"""Radians by which a hinge may be beyond its range: limits are soft in simulation."""
NEAR = 2
"""Joints between links that are neighbours: shoulders and wrists have two or three in one place."""
REST = EpisodeKey(0, 0, 0)
"""Episode whose beginning shows the body at rest; every one of a task begins in the same posture or nearly so."""


class Watcher:
    """Looks at the worlds of one task."""

    def __init__(self, task: Task) -> None:
        """Compile the twin."""
        self._task = task
        self._table = task.inner if isinstance(task, Varied) else task
        self._model = twin(task.mjcf())
        self._data = mujoco.MjData(self._model)
        self._joints = _limited(self._model)
        self._linked = len(np.unique(self._model.geom_bodyid[self._model.geom_contype > 0])) > 1
        self._expected = _neighbours(self._model) | _fingers(self._model)
        self._data.qpos[:] = task.begin(REST).qpos
        self._expected |= self._meeting()

    def look(self, now: Now, motion: Motion, states: Float64 | None, executed: IntArray) -> list[BodyMotion]:
        """What each body did in its executed steps.

        Args:
            now: the worlds at the chunk's first frame.
            motion: what came of the chunk.
            states: [N, H, S] after each control step, if the engine tells.
            executed: [N] control steps.
        """
        held = self._held(now)
        tools = self._table.tools(motion.readings) if isinstance(self._table, Tabletop) else None
        seen = []
        for row, steps in enumerate(executed):
            beyond, touching = None, None
            if states is not None and not motion.broken[row]:
                beyond, touching = self._inside(states[row, :steps])
            place = None if tools is None else tools[row, :steps].astype(np.float32)
            seen.append(BodyMotion(held[row], place, beyond, touching))
        return seen

    def _held(self, now: Now) -> FloatArray:
        unknown = np.full((len(now.steps), self._task.spec.embodiment.action.channels), np.nan)
        held = self._task.staying(now, unknown)
        return (unknown if held is None else held).astype(np.float32)

    def _inside(self, states: Float64) -> tuple[BoolArray | None, BoolArray | None]:
        """[F] whether a joint is beyond its range, and whether the body touches itself, in states [F, S].

        None of a body without such joints, and of one without links.
        """
        model, data = self._model, self._data
        beyond, touching = np.zeros(len(states), bool), np.zeros(len(states), bool)
        address, low, high = self._joints
        for step, state in enumerate(states):
            mujoco.mj_setState(model, data, state, STATE)
            angles = data.qpos[address]
            beyond[step] = ((angles < low) | (angles > high)).any()
            touching[step] = bool(self._meeting())
        return beyond if len(address) else None, touching if self._linked else None

    def _meeting(self) -> set[tuple[int, int]]:
        """Pairs of bodies that touch and should not, in the present state."""
        mujoco.mj_kinematics(self._model, self._data)
        mujoco.mj_collision(self._model, self._data)
        contacts, body = self._data.contact, self._model.geom_bodyid
        pairs = np.sort(body[contacts.geom[contacts.dist < 0]], axis=-1)
        return {(int(a), int(b)) for a, b in pairs} - self._expected


def twin(xml: str) -> mujoco.MjModel:
    """The model with every shape of the robot meeting every other one of it, and nothing else."""
    spec = mujoco.MjSpec.from_string(xml)
    robot = robot_geoms(spec.compile())
    # Not by writing into the model: its compiler works out beforehand which bodies may collide at all.
    for geom in spec.geoms:
        geom.contype = geom.conaffinity = int(robot[geom.id])
        geom.margin = 0.0
    return spec.compile()


def _neighbours(model: mujoco.MjModel) -> set[tuple[int, int]]:
    """Pairs of bodies (lower number first) that at most `NEAR` joints in a row connect."""
    pairs = set()
    for body in range(1, model.nbody):
        above, joints = body, int(model.body_jntnum[body])
        while joints <= NEAR and above:
            above = int(model.body_parentid[above])
            pairs.add((above, body))
            joints += int(model.body_jntnum[above])
    return pairs


def _fingers(model: mujoco.MjModel) -> set[tuple[int, int]]:
    """Pairs of bodies (lower number first) that slide on the same link."""
    slides = model.jnt_bodyid[model.jnt_type == mujoco.mjtJoint.mjJNT_SLIDE]
    parent = model.body_parentid
    return {(int(a), int(b)) for a in slides for b in slides if a < b and parent[a] == parent[b]}


def _limited(model: mujoco.MjModel) -> tuple[IntArray, Float64, Float64]:
    """Addresses in qpos of the hinges that have a range, and how far each may go, radians.

    Not of sliding fingers: nobody commands where they are, and what they push against pushes them.
    """
    joints = np.flatnonzero(model.jnt_limited & (model.jnt_type == mujoco.mjtJoint.mjJNT_HINGE))
    reach = model.jnt_range[joints]
    return model.jnt_qposadr[joints], reach[:, 0] - GIVE, reach[:, 1] + GIVE
