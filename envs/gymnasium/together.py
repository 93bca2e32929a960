"""A gymnasium vector environment that can only step as a whole.

A chunk needs an environment that has finished to wait until the boundary; here it cannot. What it does meanwhile counts
for nothing:

    restarts one by one (mask)   steps on, and is restarted with its key's seed at the boundary: exact, keyed
    NEXT_STEP, SAME_STEP alone   is given zero actions in its new episode; nothing but its number is known of that

Where NEXT_STEP ends an episode on the last step of a chunk, the new one can only begin with one more step of all. Those
that are still playing hold still in it (last action again, or no displacement); its reward counts with the last step's.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
from gymnasium.vector import AsyncVectorEnv, AutoresetMode, SyncVectorEnv
from gymnasium.vector import VectorEnv as GymnasiumVectorEnv

from envs.base import VectorEnv, check_keys, used_actions
from envs.gymnasium.making import whites
from envs.gymnasium.options import NAME, RENDER, GymnasiumOptions
from envs.gymnasium.reading import episode_seed, reported, sight, to_world, told
from envs.gymnasium.rows import Row, row_of
from envs.tally import Sight, Tally, gather
from rl_finetune.arrays import flags, per_env
from rl_finetune.errors import NotFiniteError, SimulatorError, UserError, simulator
from rl_finetune.keys import Stream, generator
from rl_finetune.spec import EnvSpec
from rl_finetune.types import ActionChunk, BoolArray, ChunkOutcome, Failure, FloatArray, Observation, SeedKeys


class TogetherWorld(VectorEnv):
    """N environments of one gymnasium vector environment, in any of its three autoreset modes."""

    def __init__(self, vector: GymnasiumVectorEnv[Any, Any, Any], options: GymnasiumOptions, spec: EnvSpec) -> None:
        """Take over a vector environment.

        Raises:
            UserError: it does not say how it restarts, or restarts before its last picture can be drawn.
        """
        self.spec, self.num_envs = spec, vector.num_envs
        self._vector, self._options = vector, options
        self._mode = _mode(vector, options)
        by_mask = isinstance(vector.unwrapped, SyncVectorEnv | AsyncVectorEnv)
        self.keyed = by_mask or self._mode is AutoresetMode.DISABLED
        self._space: Any = vector.single_action_space
        self._whites = whites(vector.single_observation_space, options)
        self._steps = np.zeros(self.num_envs, np.int64)
        self._told = [""] * self.num_envs
        self._now: list[Sight] = []
        self._keys: SeedKeys | None = None
        self._obs: Any = None
        self._info: list[Mapping[str, Any]] = []
        self._waits = np.zeros(self.num_envs, bool)
        """[N] ended, and not restarted yet."""

    def reset(self, keys: SeedKeys) -> Observation:
        """See `VectorEnv.reset`. A world that is not keyed gets one seed, from the first key."""
        check_keys(keys, self.num_envs)
        self._keys = replace(keys, env=np.array(keys.env), episode=np.array(keys.episode))
        seeds = [self._seed(row) for row in range(self.num_envs)]
        vector: Any = self._vector  # typed for one seed; environments that restart one by one take a list
        with simulator():
            self._obs, infos = vector.reset(seed=seeds if self.keyed else seeds[0])
        self._info = self._rows(infos)
        self._waits[:] = False
        for row in range(self.num_envs):
            self._tell(row)
        self._now = self._look(np.ones(self.num_envs, bool))
        return gather(self._now, self.spec.embodiment.tag)

    def step_chunk(self, chunk: ActionChunk) -> ChunkOutcome:
        """See `VectorEnv.step_chunk`.

        Raises:
            SimulatorError: the environment raised, or left the finite numbers and cannot be restarted alone.
        """
        if self._keys is None:
            raise RuntimeError("step_chunk before reset: call reset(keys) first")
        used = used_actions(chunk, self.spec, self.num_envs)
        actions = to_world(self._options, used, self._space.low.ravel(), self._space.high.ravel())
        tally = Tally(self.num_envs, actions.shape[1])
        for number in range(actions.shape[1]):
            if tally.running.any():
                self._move(actions[:, number], tally, counted=True)
        if self.keyed:
            self._settle(tally)
        else:
            while self._waits.any():
                self._move(self._still(actions[:, -1]), tally, counted=False)
            self._now = self._look(np.ones(self.num_envs, bool))
        return tally.outcome(self._now, self.spec.embodiment.tag)

    def close(self) -> None:
        """See `VectorEnv.close`."""
        if not self._vector.closed:
            self._vector.close()

    def _move(self, actions: FloatArray, tally: Tally, *, counted: bool) -> None:
        """One step of all; `actions` [N, c] are the running ones', the others get zeros."""
        if self._mode is AutoresetMode.DISABLED and self._waits.any():
            self._restart(self._waits.copy())
        began = self._waits.copy()
        given = np.where(tally.running[:, None], actions, np.clip(0, self._space.low.ravel(), self._space.high.ravel()))
        shaped = given.reshape(self.num_envs, *self._space.shape).astype(self._space.dtype)
        with simulator():
            self._obs, reward, terminated, truncated, infos = self._vector.step(shaped)
        reward = per_env(reward, f"{NAME} reward", self.num_envs)
        terminated = flags(terminated, f"{NAME} terminated", self.num_envs)
        truncated = flags(truncated, f"{NAME} truncated", self.num_envs)
        done = terminated | truncated
        last = self._last(infos, done)
        self._info = self._rows(infos)
        for row in np.flatnonzero(tally.running):
            if counted:
                tally.executed[row] += 1
                self._steps[row] += 1
            self._judge(int(row), float(reward[row]), bool(terminated[row]), bool(truncated[row]), last, tally)
        if self._mode is AutoresetMode.SAME_STEP:
            began = done
        else:
            self._waits = done & ~began
        if not self.keyed:
            for row in np.flatnonzero(began):
                self._tell(int(row))

    def _judge(
        self, row: int, reward: float, terminated: bool, truncated: bool, last: Mapping[int, Any], tally: Tally
    ) -> None:
        """Take down what a step did to a row that was running, and whether its episode is over."""
        assert self._keys is not None
        obs, info = last.get(row) or (self._obs_of(row), self._info[row])
        try:
            tally.add(row, reward)
            success = reported(self._options, info, terminated=terminated, over=terminated or truncated)
            if self._over(row, terminated or truncated, success):
                shown = self._sight(row, obs, info, self._frames())
                tally.end(row, terminated=terminated or success, success=success)
                tally.last[row] = shown
                self._keys.episode[row] += 1
                self._steps[row] = 0
        except NotFiniteError as error:
            self._broke(row, error, tally)

    def _over(self, row: int, ended: bool, success: bool) -> bool:
        """Whether an episode ends with this step.

        Raises:
            UserError: it is past its time limit, and cannot be ended from outside.
        """
        spent = bool(self._steps[row] >= self.spec.time_limit)
        over = ended or (self.keyed and (success or spent))
        if spent and not over:
            raise UserError(
                f"{NAME} environment outlived its time limit", got=f"{self._steps[row]} steps",
                expected="an end by the environment, which cannot be restarted from outside",
                do="set time_limit to its own limit",
            )  # fmt: skip
        return over

    def _settle(self, tally: Tally) -> None:
        """At the boundary of a keyed world: see who broke down, restart who is over, look at all."""
        frames = self._frames()
        for row in map(int, np.flatnonzero(tally.running)):
            try:
                self._now[row] = self._sight(row, self._obs_of(row), self._info[row], frames)
            except NotFiniteError as error:
                self._broke(row, error, tally)
        over = ~tally.running
        if over.any():
            self._restart(over)
            self._now = [new or old for new, old in zip(self._look(over), self._now, strict=True)]

    def _restart(self, rows: BoolArray) -> None:
        """Begin the present episodes of some environments [N], with their seeds."""
        seeds = [self._seed(row) if rows[row] else None for row in range(self.num_envs)]
        vector: Any = self._vector
        with simulator():
            self._obs, infos = vector.reset(seed=seeds, options={"reset_mask": rows})
        self._waits[rows] = False
        for row in np.flatnonzero(rows):
            self._info[row] = Row(infos, int(row), self.num_envs, "info")
            self._tell(int(row))

    def _broke(self, row: int, error: NotFiniteError, tally: Tally) -> None:
        assert self._keys is not None
        env, episode = int(self._keys.env[row]), int(self._keys.episode[row])
        failure = Failure(row, self.spec.name, self._keys.seed, env, episode, str(error))
        if not self.keyed:
            raise SimulatorError(f"{failure}; it cannot be restarted without the others") from error
        tally.fail(failure, self._now[row])
        self._keys.episode[row] += 1
        self._steps[row] = 0

    def _seed(self, row: int) -> int:
        keys = self._keys
        assert keys is not None
        return episode_seed(generator(keys.seed, Stream.SCENE, int(keys.scene[row]), int(keys.episode[row])))

    def _tell(self, row: int) -> None:
        self._told[row] = told(self._options, self._obs_of(row), self._info[row])
        self._steps[row] = 0

    def _still(self, last: FloatArray) -> FloatArray:
        """Actions [N, c] of one more step in which nothing shall happen."""
        if self._options.actions == "as_is":
            return last
        width = self._options.arm_width + (self._options.gripper != "none")
        moves = np.arange(last.shape[1]) % width < self._options.arm_width
        return np.where(moves, np.float32(0), last)

    def _last(self, infos: Mapping[str, Any], done: BoolArray) -> dict[int, tuple[Any, Mapping[str, Any]]]:
        """Row -> last observation and info of episodes that ended, where they are not simply the present ones."""
        if self._mode is not AutoresetMode.SAME_STEP or not done.any():
            return {}
        if "final_obs" not in infos:
            raise UserError(
                f"{NAME} environment restarts in the same step and keeps no last observation",
                got=f"infos with {sorted(infos)}", expected="final_obs and final_info",
                do="use another autoreset mode, or add them",
            )  # fmt: skip
        final = infos.get("final_info", {})
        rows = [int(row) for row in np.flatnonzero(done)]
        return {
            row: (row_of(infos["final_obs"], row, self.num_envs, "final_obs"),
                  row_of(final, row, self.num_envs, "final_info"))
            for row in rows
        }  # fmt: skip

    def _look(self, rows: BoolArray) -> list[Any]:
        """What some environments [N] show now; None for the others."""
        frames = self._frames()
        try:
            return [
                self._sight(row, self._obs_of(row), self._info[row], frames) if rows[row] else None
                for row in range(self.num_envs)
            ]
        except NotFiniteError as error:
            raise SimulatorError(f"{NAME} environment {self._options.id or self._options.factory}: {error}") from error

    def _sight(self, row: int, obs: Any, info: Mapping[str, Any], frames: Any) -> Sight:
        frame = None if frames is None else row_of(frames, row, self.num_envs, "render()")
        return sight(self._options, self._whites, self._told[row], obs, info, frame)

    def _frames(self) -> Any:
        with simulator():
            return self._vector.render() if RENDER in self._options.views.values() else None

    def _rows(self, infos: Mapping[str, Any]) -> list[Mapping[str, Any]]:
        return [Row(infos, row, self.num_envs, "info") for row in range(self.num_envs)]

    def _obs_of(self, row: int) -> Any:
        return row_of(self._obs, row, self.num_envs, "obs")


def _mode(vector: GymnasiumVectorEnv[Any, Any, Any], options: GymnasiumOptions) -> AutoresetMode:
    mode = vector.metadata.get("autoreset_mode")
    if not isinstance(mode, AutoresetMode):
        raise UserError(
            f"{NAME} vector environment does not say how it restarts", got=f"autoreset_mode={mode!r} in its metadata",
            expected=f"one of {[str(m) for m in AutoresetMode]}", do="add it to its metadata",
        )  # fmt: skip
    if mode is AutoresetMode.SAME_STEP and RENDER in options.views.values():
        raise UserError(
            f"{NAME} vector environment restarts before its last picture can be drawn",
            got="view `render` in SAME_STEP",
            expected="pictures in the observation, or another autoreset mode", do="change views or the environment",
        )  # fmt: skip
    return mode
