"""The worlds that MuJoCo simulates, by name. numpy only: a task is described without an engine."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from envs.mujoco.bodies.aloha import Aloha
from envs.mujoco.bodies.base import Body
from envs.mujoco.bodies.franka import FrankaEE, FrankaJoint
from envs.mujoco.bodies.upper_body import UpperBody
from envs.mujoco.bodies.widowx import WidowX
from envs.mujoco.options import (
    Controls,
    FrankaOptions,
    FrankaReachOptions,
    MovingOptions,
    ReachOptions,
    TraceOptions,
    WorldOptions,
)
from envs.mujoco.task import Task
from envs.mujoco.tasks.insertion import Insertion
from envs.mujoco.tasks.navigate import Navigate, NavigateOptions
from envs.mujoco.tasks.objects import Objects
from envs.mujoco.tasks.pick import Pick
from envs.mujoco.tasks.place import PutOn, Stack
from envs.mujoco.tasks.reach import PACE, Reach
from envs.mujoco.tasks.trace import Trace
from envs.mujoco.tasks.transfer import Transfer


@dataclass(frozen=True, slots=True)
class World:
    """One named world."""

    options: type[WorldOptions]
    """Frozen dataclass of its options."""
    task: Callable[[Any], Task]
    """Options -> task."""
    expert_steps: int
    """Steps that the expert takes on average (benchmarks/results/experts.md)."""


def _reach(name: str, body: Callable[[], Body], time_limit: int, expert_steps: int, pace: float = PACE) -> World:
    def task(chosen: ReachOptions) -> Task:
        return Reach(
            body(), name, image_size=chosen.image_size, tolerance=chosen.tolerance, time_limit=time_limit, pace=pace,
            progress=chosen.progress,
        )  # fmt: skip

    return World(ReachOptions, task, expert_steps)


def _franka_reach(chosen: FrankaReachOptions) -> Task:
    return Reach(
        franka(chosen.control), "franka_reach", image_size=chosen.image_size, tolerance=chosen.tolerance, time_limit=64,
        progress=chosen.progress,
    )  # fmt: skip


def _widowx_moving(chosen: MovingOptions) -> Task:
    return Reach(
        WidowX(), "widowx_moving", image_size=chosen.image_size, tolerance=chosen.tolerance, time_limit=32,
        block_speed=chosen.block_speed, progress=chosen.progress,
    )  # fmt: skip


def _widowx(name: str, task: type[Objects], time_limit: int, expert_steps: int) -> World:
    """A task with free objects for the WidowX."""
    return World(
        WorldOptions,
        lambda chosen: task(WidowX(grasping=True), name, image_size=chosen.image_size, time_limit=time_limit),
        expert_steps,
    )


def _two_hands(name: str, body: Callable[[], Body], task: type[Objects], time_limit: int, expert_steps: int) -> World:
    """And for bodies with two hands."""
    return World(
        WorldOptions,
        lambda chosen: task(body(), name, image_size=chosen.image_size, time_limit=time_limit, pace=0.3),
        expert_steps,
    )


def _franka(name: str, task: type[Objects], time_limit: int, expert_steps: int) -> World:
    """And for the Franka-like arm."""
    return World(
        FrankaOptions,
        lambda chosen: task(franka(chosen.control), name, image_size=chosen.image_size, time_limit=time_limit),
        expert_steps,
    )


def _widowx_trace(chosen: TraceOptions) -> Task:
    return Trace(WidowX(), "widowx_trace", image_size=chosen.image_size, tolerance=chosen.tolerance)


def franka(control: Controls) -> Body:
    """The Franka-like arm in one of its control modes."""
    return FrankaEE() if control == "delta_ee" else FrankaJoint()


WORLDS: dict[str, World] = {
    "widowx_reach": _reach("widowx_reach", WidowX, 32, 6),
    "widowx_pick": _widowx("widowx_pick", Pick, 40, 11),
    "widowx_put_on": _widowx("widowx_put_on", PutOn, 64, 23),
    "widowx_stack": _widowx("widowx_stack", Stack, 64, 22),
    "widowx_moving": World(MovingOptions, _widowx_moving, 6),
    "franka_reach": World(FrankaReachOptions, _franka_reach, 10),
    "franka_pick": _franka("franka_pick", Pick, 48, 22),
    "franka_put_on": _franka("franka_put_on", PutOn, 96, 46),
    "franka_stack": _franka("franka_stack", Stack, 96, 44),
    "aloha_reach": _reach("aloha_reach", Aloha, 96, 19, pace=0.45),
    "aloha_transfer": _two_hands("aloha_transfer", Aloha, Transfer, 400, 201),
    "aloha_insertion": _two_hands("aloha_insertion", Aloha, Insertion, 400, 186),
    "gr1_reach": _reach("gr1_reach", UpperBody, 64, 11, pace=0.3),
    "widowx_trace": World(TraceOptions, _widowx_trace, 8),
    "gr1_transfer": _two_hands("gr1_transfer", UpperBody, Transfer, 160, 84),
    "rover_navigate": World(NavigateOptions, Navigate, 13),
}
"""Name -> world. A new one is a line here."""
