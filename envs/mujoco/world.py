"""One vector environment for every task and every engine: chunks in, outcomes out, episodes that follow one another."""

from __future__ import annotations

from dataclasses import fields, replace
from typing import TYPE_CHECKING

import numpy as np

from envs.base import BodyMotion, Disturbance, VectorEnv, check_keys, used_actions
from envs.mujoco.engine import Engine, Motion
from envs.mujoco.task import EpisodeKey, Float64, Judged, Now, Start, Task
from rl_finetune.types import (
    ActionChunk,
    BoolArray,
    ChunkOutcome,
    Failure,
    FloatArray,
    Grounding,
    ImageArray,
    IntArray,
    Observation,
    SeedKeys,
)

if TYPE_CHECKING:
    from envs.mujoco.watching import Watcher


class World(VectorEnv):
    """N worlds of one task."""

    def __init__(self, task: Task, engine: Engine, num_envs: int) -> None:
        """Take over the engine, which must hold `num_envs` worlds of the same task; `close` releases it."""
        self.spec, self.num_envs, self.task = task.spec, num_envs, task
        self._engine = engine
        self._watcher: Watcher | None = None
        self._keys: SeedKeys | None = None
        self._starts: list[Start] = []
        self._now: Now

    def reset(self, keys: SeedKeys) -> Observation:
        """See `VectorEnv.reset`."""
        check_keys(keys, self.num_envs)
        self._keys = replace(keys, env=np.array(keys.env), episode=np.array(keys.episode))
        everyone = np.arange(self.num_envs)
        self._starts = [self._begun(int(env)) for env in everyone]
        self._now = self._first(everyone)
        return self._observe(everyone)

    def step_chunk(self, chunk: ActionChunk) -> ChunkOutcome:
        """See `VectorEnv.step_chunk`."""
        if self._keys is None:
            raise RuntimeError("step_chunk before reset: call reset(keys) first")
        actions = used_actions(chunk, self.spec, self.num_envs).astype(np.float64)
        drive = self.task.drive(self._now, actions)
        motion = self._engine.advance(drive.controls)
        judged = self.task.judge(self._now, _sane(motion))
        before = self.task.left(self._now) if self.task.progress else None
        executed, ended, success = ends(judged, self.spec.time_limit - self._now.steps, motion.broken)
        if self.filming:
            self.filmed = self._film(motion, drive.controls, executed)
        if self.watching:
            self.watched = self._watch(motion, executed)
        self._keep(motion, drive.controls, drive.aim, judged, executed)
        terms = {"success": at_last_step(success, executed, actions.shape[1])}
        if before is not None:
            nearer = np.where(motion.broken, 0.0, before - self.task.left(self._now))
            terms["progress"] = at_last_step(self.task.progress * nearer, executed, actions.shape[1])
        truncated = ~ended & (self._now.steps >= self.spec.time_limit) | motion.broken
        over = np.flatnonzero(ended | truncated)
        measures = self._measures(np.flatnonzero((ended | truncated) & ~motion.broken), success)
        broken = np.flatnonzero(motion.broken)
        failures = tuple(self._failure(int(row)) for row in broken)
        if failures:
            self._rewind(broken)
        final = self._observe(over) if len(over) else None
        self._restart(over)
        return ChunkOutcome(
            reward=np.stack(list(terms.values())).sum(0),
            steps_executed=executed,
            terminated=ended,
            truncated=truncated,
            success=success,
            observation=self._observe(np.arange(self.num_envs)),
            final_index=over,
            final_observation=final,
            reward_terms=terms,
            measures=measures,
            failures=failures,
        )

    def expert(self, seen: Observation, disturbed: Disturbance | None = None) -> Float64:
        """See `VectorEnv.expert`; it reads the privileged state alone, of as many worlds as there are rows."""
        assert seen.privileged is not None
        return self.task.expert(seen.privileged, disturbed)

    def close(self) -> None:
        """See `VectorEnv.close`."""
        self._engine.close()

    def _keep(self, motion: Motion, controls: np.ndarray, aim: np.ndarray, judged: Judged, executed: IntArray) -> None:
        """Make the state after each world's last executed step the present one."""
        rows, last, now = np.arange(self.num_envs), executed - 1, self._now
        self._engine.keep(executed)
        now.readings, now.aim = motion.readings[rows, last], aim[rows, last]
        now.mocap = self._mocap(controls[rows, executed * self.task.substeps - 1])
        now.memory, now.steps = judged.memory[rows, last], now.steps + executed

    def _mocap(self, controls: np.ndarray) -> np.ndarray:
        """Mocap poses [n, B, 7] in rows of controls [n, nu + 7 B]."""
        n, bodies = len(controls), self._now.mocap.shape[1]
        tail = controls[:, controls.shape[1] - 7 * bodies :]
        places, turns = np.split(tail, [3 * bodies], axis=1)
        return np.concatenate([places.reshape(n, bodies, 3), turns.reshape(n, bodies, 4)], -1)

    def _film(self, motion: Motion, controls: np.ndarray, executed: IntArray) -> list[ImageArray]:
        """Pictures [F, h, w, 3] of every executed step of each world, from the first view."""
        view = self.task.views[0].tag
        films: list[list[ImageArray]] = [[] for _ in executed]
        for step in range(int(executed.max())):
            mocap = self._mocap(controls[:, (step + 1) * self.task.substeps - 1])
            then = replace(self._now, readings=motion.readings[:, step], mocap=mocap)
            shown = np.flatnonzero(executed > step)
            pictures = self._engine.draw(shown, self.task.drawn(then)[shown], step)[view]
            for row, picture in zip(shown, pictures, strict=True):
                films[row].append(picture)
        return [np.stack(film) for film in films]

    def _watch(self, motion: Motion, executed: IntArray) -> list[BodyMotion]:
        if self._watcher is None:
            from envs.mujoco.watching import Watcher

            self._watcher = Watcher(self.task)
        return self._watcher.look(self._now, motion, self._engine.states(), executed)

    def _measures(self, over: IntArray, success: BoolArray) -> dict[str, FloatArray]:
        """Name -> [N], NaN but for the episodes `over`, which ended in a whole world."""
        found = self.task.measures(self._now.rows(over), success[over]) if len(over) else {}
        measures = {name: np.full(self.num_envs, np.nan, np.float32) for name in self.task.measured}
        for name, values in found.items():
            measures[name][over] = values
        return measures

    def _failure(self, row: int) -> Failure:
        assert self._keys is not None
        env, episode = int(self._keys.env[row]), int(self._keys.episode[row])
        cause = "the simulation left the finite numbers"
        return Failure(int(row), self.spec.name, self._keys.seed, env, episode, cause)

    def _rewind(self, rows: IntArray) -> None:
        """Put broken worlds back to the beginning of their episodes: a last observation must be one of a whole one."""
        self._put(rows, self._first(rows))

    def _restart(self, over: IntArray) -> None:
        assert self._keys is not None
        self._keys.episode[over] += 1
        for env in over:
            self._starts[env] = self._begun(int(env))
        if len(over):
            self._put(over, self._first(over))

    def _begun(self, env: int) -> Start:
        assert self._keys is not None
        return self.task.begin(EpisodeKey(self._keys.seed, int(self._keys.scene[env]), int(self._keys.episode[env])))

    def _first(self, rows: IntArray) -> Now:
        """The worlds `rows` placed at the beginnings of their episodes."""
        starts = [self._starts[env] for env in rows]
        self._engine.place(rows, starts)
        mocap, aim, facts = (np.stack([getattr(start, name) for start in starts]) for name in ("mocap", "aim", "facts"))
        memory, steps = np.zeros((len(rows), self.task.memory)), np.zeros(len(rows), np.int64)
        return Now(self._engine.readings(rows), mocap, aim, facts, memory, steps)

    def _put(self, rows: IntArray, now: Now) -> None:
        for field in fields(Now):
            getattr(self._now, field.name)[rows] = getattr(now, field.name)

    def _observe(self, rows: IntArray) -> Observation:
        now = self._now.rows(rows)
        return Observation(
            images=self._engine.draw(rows, self.task.drawn(now)),
            instruction=tuple(self._starts[env].instruction for env in rows),
            embodiment=self.spec.embodiment.tag,
            privileged=self.task.describe(now),
            grounding=self._ground(now),
        )

    def _ground(self, now: Now) -> Grounding | None:
        things = self.task.things(now)
        if things is None:
            return None
        points = np.where(things.present[..., None], self.task.seen_at(now, things.points), 0.0).astype(np.float32)
        return Grounding(things.names, points, things.present, things.target)


def ends(judged: Judged, left: IntArray, broken: BoolArray) -> tuple[IntArray, BoolArray, BoolArray]:
    """How a chunk ends in each world.

    Args:
        judged: what the judge says of each of H steps.
        left: [N] steps until the time limit.
        broken: [N] worlds that decide nothing any more.

    Returns:
        Steps executed [N], whether the task itself ended the episode [N], and whether it succeeded [N].
    """
    n, horizon = judged.success.shape
    left = np.minimum(left, horizon)
    decided = (judged.success | judged.failure) & (np.arange(horizon) < left[:, None]) & ~broken[:, None]
    ended: BoolArray = np.asarray(decided.any(-1))
    executed: IntArray = np.where(ended, decided.argmax(-1) + 1, left)
    return executed, ended, ended & judged.success[np.arange(n), executed - 1]


def at_last_step(earned: BoolArray | Float64, executed: IntArray, horizon: int) -> FloatArray:
    """Reward [N, H]: what a chunk earned [N], at the last step that it executed."""
    reward: FloatArray = np.where(np.arange(horizon) == executed[:, None] - 1, earned[:, None], 0).astype(np.float32)
    return reward


def _sane(motion: Motion) -> np.ndarray:
    """Readings for the judge, zero where the world is broken: a NaN must not reach arithmetic that others share."""
    readings: np.ndarray = np.where(motion.broken[:, None, None], 0.0, motion.readings)
    return readings
