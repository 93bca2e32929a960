"""A small world of numbers that breaks down on demand, for tests of those who must cope with it. numpy only."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from envs.base import VectorEnv, check_keys, used_actions
from rl_finetune.keys import Stream, generator
from rl_finetune.spec import ActionConvention, EmbodimentSpec, EnvSpec
from rl_finetune.types import ActionChunk, ChunkOutcome, Failure, Observation, SeedKeys

HORIZON, CHANNELS, TIME_LIMIT = 4, 2, 12
LINE = 1.0
"""A world whose first number passes it has succeeded."""
SPEC = EnvSpec(
    "breaking",
    EmbodimentSpec("dot", "", ("ego",), ActionConvention(CHANNELS, HORIZON, "waypoint", "none", "none", 5.0)),
    image_size=8,
    time_limit=TIME_LIMIT,
    privileged=("x", "y"),
)


@dataclass(frozen=True)
class Fault:
    """What goes wrong, where."""

    kind: Literal["raise", "hang", "nan", "die", "report"]
    env: int | None
    """Global number of the environment; None is each."""
    episode: int | None
    """Number of the episode; None is each."""
    chunk: int = 0
    """Chunk of the episode; -1 is its beginning."""
    flag: Path | None = None
    """Happens once in all: not where this file is."""


@dataclass(frozen=True)
class Breaking:
    """Builds worlds with faults; pickles."""

    faults: Sequence[Fault] = ()
    keyed: bool = True

    def __call__(self, num_envs: int) -> VectorEnv:
        return BreakingWorld(num_envs, self.faults, self.keyed)


class BreakingWorld(VectorEnv):
    """N points that are pushed about; every number of an episode follows from its key and the actions."""

    def __init__(self, num_envs: int, faults: Sequence[Fault], keyed: bool) -> None:
        self.spec, self.num_envs, self.keyed, self.faults = SPEC, num_envs, keyed, faults
        self.point, self.wind = np.zeros((num_envs, 2)), np.zeros((num_envs, 2))
        self.steps = np.zeros(num_envs, np.int64)
        self.keys: SeedKeys

    def reset(self, keys: SeedKeys) -> Observation:
        check_keys(keys, self.num_envs)
        self.keys = keys.at(keys.episode.copy())
        for row in range(self.num_envs):
            self.begin(row)
        return self.look()

    def step_chunk(self, chunk: ActionChunk) -> ChunkOutcome:
        actions = used_actions(chunk, SPEC, self.num_envs)
        number = self.steps // HORIZON
        executed, success = np.full(self.num_envs, HORIZON), np.zeros(self.num_envs, bool)
        failures = []
        for row in range(self.num_envs):
            kind = self.fault(row, int(number[row]))
            if kind == "report":
                env, episode = int(self.keys.env[row]), int(self.keys.episode[row])
                failures.append(Failure(row, SPEC.name, self.keys.seed, env, episode, "it said so"))
                continue
            for step in range(HORIZON):
                self.point[row] = np.sin(1.5 * self.point[row]) + self.wind[row] + actions[row, step]
                if self.point[row, 0] > LINE:
                    executed[row], success[row] = step + 1, True
                    break
            if kind == "nan":
                self.point[row, 1] = np.nan
        self.steps += executed
        broken = np.zeros(self.num_envs, bool)
        broken[[failure.row for failure in failures]] = True
        truncated = ~success & (self.steps >= TIME_LIMIT) | broken
        over = np.flatnonzero(success | truncated)
        final = self.look().rows(over) if over.size else None
        self.keys.episode[over] += 1
        for row in over:
            self.begin(int(row))
        reward = (success[:, None] & (np.arange(HORIZON) == executed[:, None] - 1)).astype(np.float32)
        seen, terms = self.look(), {"success": reward.copy()}
        return ChunkOutcome(
            reward, executed, success, truncated, success.copy(), seen, over, final, terms, {}, tuple(failures)
        )

    def close(self) -> None:
        pass

    def begin(self, row: int) -> None:
        rng = generator(self.keys.seed, Stream.SCENE, int(self.keys.scene[row]), int(self.keys.episode[row]))
        self.point[row], self.wind[row] = rng.normal(size=2) * 0.1, rng.normal(size=2) * 0.05
        self.steps[row] = 0
        self.fault(row, -1)

    def look(self) -> Observation:
        picture = np.zeros((self.num_envs, 8, 8, 3), np.uint8)
        picture[:, 0, :, 0] = 255
        picture[:, 4, 0, :2] = 100 * np.clip(np.nan_to_num(self.point), -1, 1) + 128
        told = tuple(f"push {row}" for row in self.keys.env)
        return Observation({"ego": picture}, told, "dot", privileged=self.point.astype(np.float32))

    def fault(self, row: int, chunk: int) -> str | None:
        """Do what is due now, or say what the caller must do."""
        for fault in self.faults:
            here = fault.env in (None, self.keys.env[row]) and fault.episode in (None, self.keys.episode[row])
            if not here or fault.chunk != chunk or (fault.flag is not None and fault.flag.exists()):
                continue
            if fault.flag is not None:
                fault.flag.touch()
            if fault.kind == "raise":
                raise ZeroDivisionError("the dot fell off")
            if fault.kind == "hang":
                time.sleep(3600)
            if fault.kind == "die":
                os.kill(os.getpid(), signal.SIGKILL)
            return fault.kind
        return None
