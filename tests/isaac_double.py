"""How tests get at the double of Isaac Lab in `tests/isaac_double/`: in this process, or in a worker's."""

from __future__ import annotations

import sys
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest

from envs.isaac.client import job
from envs.isaac.options import IsaacOptions
from envs.isaac.worker.job import Job
from envs.isaac.worker.lab import Lab
from envs.isaac.worker.launch import scalar_first, start
from envs.isaac.worker.reading import Reader

FOLDER = Path(__file__).parent / "isaac_double"
TASK = "Isaac-Double-v0"
HORIZON, LIMIT = 8, 16
NAMES = (*(f"{thing}_{axis}" for thing in ("tool", "goal") for axis in "xyz"), "qw", "qx", "qy", "qz")


def options(**changed: Any) -> IsaacOptions:
    """Options that fit the double's task."""
    told: dict[str, Any] = {
        "task": TASK, "device": "cpu", "channels": 3, "horizon": HORIZON, "rotation": "none", "gripper": "none",
        "rate": 10.0, "image_size": 64, "proprioception": "obs:parts/position", "privileged": "obs:policy",
        "privileged_names": NAMES, "quaternions": (6,), "instructions": ["touch the goal"], "time_limit": LIMIT,
    }  # fmt: skip
    return IsaacOptions(**told | changed)


@dataclass
class Rig:
    """A lab on the double, and the double itself."""

    lab: Lab
    env: Any
    state: dict[str, Any]
    running: ExitStack

    def step(self, *moves: tuple[int, int, float, float]) -> Any:
        """Play a chunk that is still but for (row, step, channel, displacement in that step)."""
        actions = np.zeros((self.env.num_envs, HORIZON, 3), np.float32)
        for row, step, channel, value in moves:
            actions[row, step, int(channel)] = value
        return self.lab.chunk(actions)


Make = Callable[..., Rig]


@pytest.fixture
def rig(monkeypatch: pytest.MonkeyPatch) -> Make:
    """Habits, options -> a lab in this process."""

    def make(habits: str = "", num_envs: int = 3, **changed: Any) -> Rig:
        for name in [name for name in sys.modules if name.split(".")[0] in ("isaaclab", "isaaclab_tasks")]:
            monkeypatch.delitem(sys.modules, name)
        monkeypatch.delitem(gymnasium.registry, TASK, raising=False)
        monkeypatch.setenv("ISAAC_DOUBLE", habits)
        monkeypatch.syspath_prepend(FOLDER)
        asked, running = Job(**job(num_envs, options(**changed))), ExitStack()
        env = start(asked, running)
        lab = Lab(env, asked, Reader(env, asked, scalar_first(env)))
        lab.begin(asked.seed)
        return Rig(lab, env, sys.modules["isaaclab"].STATE, running)

    return make


@pytest.fixture
def remote(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Habits of the double that worker processes find; what Isaac's interpreter lacks is missing there too."""

    def set_habits(habits: str) -> None:
        monkeypatch.setenv("ISAAC_DOUBLE", habits)
        monkeypatch.setenv("PYTHONPATH", f"{FOLDER}:{FOLDER / 'forbidden'}")

    return set_habits
