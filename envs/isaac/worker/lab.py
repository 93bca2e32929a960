"""Chunks on Isaac Lab, whose step resets finished environments at once and has no end of an episode to look at.

begin of chunk: every episode in it began at a chunk boundary
  step 1 .. H-1   not drawn. An environment whose episode ends is reset by Isaac there and then; it stands still for
                  the rest of the chunk, and what happens to it meanwhile counts for nothing
  step H          drawn
boundary: read; cut episodes at the time limit; reset all that ended, so that the next episode begins here; read again
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .api import Env, computes_observations, is_managed, keeps_last, tensor
from .job import Job, Refused
from .launch import has_success_term
from .reading import VIEW, Arrays, Reader, Tensors, column, truths
from .shutter import Shutter

Bools = NDArray[np.bool_]


@dataclass
class Played:
    """What a chunk did, row by row; filled step by step."""

    reward: NDArray[np.float32]
    """[N, H]."""
    steps: NDArray[np.int64]
    """[N] executed."""
    terminated: Bools
    truncated: Bools
    success: Bools
    broken: Bools
    """[N] left the finite numbers."""
    final: dict[int, Arrays] = field(default_factory=dict)
    """Row -> its last observation, one row each."""
    now: Arrays = field(default_factory=dict)
    """Observation at the boundary."""

    @classmethod
    def fresh(cls, n: int, horizon: int) -> Played:
        """Nothing played yet."""
        a, b, c, d = np.zeros((4, n), bool)
        return cls(np.zeros((n, horizon), np.float32), np.zeros(n, np.int64), a, b, c, d)

    @property
    def over(self) -> Bools:
        """[N] whose episode ended."""
        return self.terminated | self.truncated


class Lab:
    """N Isaac environments, a chunk at a time."""

    def __init__(self, env: Env, job: Job, reader: Reader) -> None:
        """Take over a made environment; nothing is reset yet."""
        self._env, self._job, self._reader = env, job, reader
        self._shutter = Shutter(env)
        self._rows = np.arange(job.num_envs)
        self._age = np.zeros(job.num_envs, np.int64)
        self._hold = np.zeros((job.num_envs, job.channels), np.float32)
        self._held = np.isin(np.arange(job.channels), job.held)
        self._before: Tensors = {}
        self._last: Arrays = {}
        self._begun = False
        self.keeps_last = keeps_last(env.cfg)

    def begin(self, seed: int) -> Arrays:
        """Begin new episodes everywhere from Isaac's one global seed; a full reset only the first time."""
        self._env.seed(seed)
        self._age[:], self._hold[:] = 0, 0
        self._shutter.open_for_reset()
        if self._begun:
            obs = self._restart(self._rows)
        else:
            obs, _ = self._env.reset()  # type: ignore[attr-defined]
            self._begun = True
        self._last = self._boundary(obs)
        return self._last

    def chunk(self, actions: NDArray[np.float32]) -> Played:
        """Play actions [N, H, c] and end at a boundary. Raises `RuntimeError` where a reset does not mend a world."""
        n, horizon = actions.shape[:2]
        played, first = Played.fresh(n, horizon), self._last
        for step in range(horizon):
            self._shutter.set(drawn=step == horizon - 1)
            obs = self._step(actions[:, step], step, played)
        played.now = self._boundary(obs)
        self._age += horizon
        self._break(played, ~played.over & ~_finite(played.now), horizon)
        due = ~played.over & (self._age >= self._job.time_limit)
        played.truncated |= due
        for rows, seen in ((due, played.now), (played.broken, first)):
            self._keep(played, rows, {name: value[rows] for name, value in seen.items()})
        self._begin_next(played)
        self._last = played.now
        return played

    def _step(self, actions: NDArray[np.float32], step: int, played: Played) -> Mapping[str, Any]:
        """One step of all environments; those that are over stand still."""
        alive = ~played.over
        self._hold[alive] = np.where(self._held, actions, 0)[alive]
        given = np.where(alive[:, None], actions, self._hold)
        numbers = tensor(self._env.episode_length_buf).float()
        obs, reward, terminated, truncated, extras = self._env.step(numbers.new_tensor(given))
        n = len(alive)
        ended, cut = truths(terminated, "terminated", n), truths(truncated, "truncated", n)
        gain = column(reward, "reward", n)
        won = self._won(ended, extras) & alive
        played.steps += alive
        played.reward[alive, step] = gain[alive]
        played.success |= won
        played.terminated |= alive & (ended | won)
        played.truncated |= alive & cut & ~ended & ~won
        self._break(played, alive & ~np.isfinite(gain), step + 1)
        over = alive & played.over
        if over.any():
            self._keep_last(played, over, ended | cut, extras)
        self._before |= self._reader.observed(obs)
        return obs

    def _won(self, ended: Bools, extras: Mapping[str, Any]) -> Bools:
        """[N] whose task was done in this step."""
        env, term = self._env, self._job.success_term
        if is_managed(env) and has_success_term(env, self._job):  # type: ignore[arg-type]
            return truths(env.termination_manager.get_term(term), f"termination term {term!r}", len(ended))
        if self._job.without_success_term == "terminated":
            return ended
        if self._job.without_success_term == "never":
            return np.zeros_like(ended)
        if term not in extras:
            raise Refused("no success in extras", got=sorted(extras), expected=term, do="set success_term")
        return truths(extras[term], f"extras[{term!r}]", len(ended))

    def _keep_last(self, played: Played, over: Bools, reset: Bools, extras: Mapping[str, Any]) -> None:
        """Keep the last observation of episodes that end now: Isaac's own where it keeps one, else the one before.

        `extras` keeps an old `final_obs` for ever; only rows that were reset in this very step are valid.
        """
        self._keep(played, over, self._some(self._before, over))
        kept = over & reset
        if self.keeps_last and kept.any() and "final_obs" in extras:
            self._keep(played, kept, self._some(self._reader.observed(extras["final_obs"]), kept))

    def _some(self, tensors: Tensors, rows: Bools) -> Arrays:
        """Some rows as numpy; chosen on the device, for pictures are large."""
        ids = tensor(self._env.episode_length_buf).new_tensor(np.flatnonzero(rows))
        return self._reader.arrays({name: value[ids] for name, value in tensors.items()})

    def _keep(self, played: Played, rows: Bools, arrays: Arrays) -> None:
        """Keep arrays, one row for each of `rows`, as last observations."""
        for place, row in enumerate(np.flatnonzero(rows)):
            kept = played.final.setdefault(int(row), {})
            kept.update({name: value[place : place + 1].copy() for name, value in arrays.items()})

    def _break(self, played: Played, rows: Bools, steps: int) -> None:
        """Mark worlds that left the finite numbers: their episode counts for nothing."""
        played.broken |= rows
        played.truncated |= rows
        played.terminated &= ~rows
        played.success &= ~rows
        played.reward[rows] = 0
        played.steps[rows] = steps

    def _begin_next(self, played: Played) -> None:
        rows = np.flatnonzero(played.over)
        if not len(rows):
            return
        self._age[rows], self._hold[rows] = 0, 0
        fresh = self._boundary(self._restart(rows))
        for name, value in fresh.items():
            played.now[name][rows] = value[rows]
        if not _finite(played.now).all():
            sick = np.flatnonzero(~_finite(played.now)).tolist()
            raise RuntimeError(f"environments {sick} are not finite even after a reset")

    def _restart(self, rows: NDArray[np.int64]) -> Mapping[str, Any]:
        """Reset some environments in place and draw them: through the front door where Isaac has one."""
        env = self._env
        ids = tensor(env.episode_length_buf).new_tensor(rows)
        self._shutter.open_for_reset()
        if is_managed(env) and resets_rows(env):
            return env.reset(env_ids=ids)[0]
        env._reset_idx(ids)
        env.scene.write_data_to_sim()
        env.sim.forward()
        self._shutter.draw()
        return env._compute_observations() if computes_observations(env) else env._get_observations()  # type: ignore

    def _boundary(self, obs: Mapping[str, Any]) -> Arrays:
        self._before = self._reader.observed(obs) | self._reader.seen()
        return self._reader.arrays(self._before)


def resets_rows(env: Any) -> bool:
    """Whether `reset` takes the environments to reset."""
    return "env_ids" in inspect.signature(env.reset).parameters


def _finite(arrays: Arrays) -> Bools:
    """[N] whether every number of a row's states is finite."""
    states = [np.isfinite(value).all(axis=1) for name, value in arrays.items() if not name.startswith(VIEW)]
    rows = len(next(iter(arrays.values())))
    return np.logical_and.reduce(states) if states else np.ones(rows, bool)
