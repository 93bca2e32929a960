"""The worlds that MuJoCo simulates, by name. numpy only: a task is described without an engine."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from envs.mujoco.bodies.widowx import WidowX
from envs.mujoco.options import ReachOptions, WorldOptions
from envs.mujoco.task import Task
from envs.mujoco.tasks.reach import Reach


@dataclass(frozen=True, slots=True)
class World:
    """One named world."""

    options: type[WorldOptions]
    """Frozen dataclass of its options."""
    task: Callable[[Any], Task]
    """Options -> task."""


def _widowx_reach(chosen: ReachOptions) -> Task:
    return Reach(WidowX(), "widowx_reach", image_size=chosen.image_size, tolerance=chosen.tolerance, time_limit=32)


WORLDS: dict[str, World] = {"widowx_reach": World(ReachOptions, _widowx_reach)}
"""Name -> world. A new one is a line here."""
