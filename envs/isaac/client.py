"""`IsaacEnv`: the contract on this side of the socket."""

from __future__ import annotations

import logging
import zlib
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from envs.actions import per_step
from envs.base import VectorEnv, check_keys, used_actions
from envs.isaac.gpu import check_can_draw, claim
from envs.isaac.options import IsaacOptions, arm_width, held_channels, spec
from envs.isaac.process import IsaacProcess
from envs.isaac.worker.wire import Array
from rl_finetune.errors import UserError
from rl_finetune.types import ActionChunk, ChunkOutcome, Failure, FloatArray, IntArray, Observation, SeedKeys

logger = logging.getLogger(__name__)
VIEW = "view:"


class IsaacEnv(VectorEnv):
    """N environments of one Isaac Lab task, in a process of their own.

    Isaac has one generator for all environments, so an episode cannot be named: `reset(keys)` seeds that generator with
    what the keys say, and the same keys in the same places give the same beginnings as far as Isaac is deterministic;
    later episodes are whatever comes. Hence `keyed = False`, and groups are refused.
    """

    keyed = False

    def __init__(self, num_envs: int, options: IsaacOptions) -> None:
        """Start Isaac and make the task; takes minutes the first time.

        Raises:
            UserError: the GPU cannot draw or is taken, or the task does not fit the options.
            IsaacError: Isaac's process died or did not start in time; shows the end of its log.
        """
        check_can_draw(options)
        self.spec, self.num_envs, self._options = spec(options), num_envs, options
        self._keys: SeedKeys | None = None
        self._lock = claim(options.device)
        self._process = IsaacProcess(options.python)
        try:
            ready = self._process.ask(job(num_envs, options), seconds=options.start_seconds)
        except BaseException:
            self.close()
            raise
        self.found: dict[str, Any] = ready.head["found"]
        """What Isaac turned out to have: `keeps_last`, `success`, `reset`, `widths`."""
        if not self.found["keeps_last"]:
            logger.warning(
                "this Isaac Lab keeps no last observation: where the task itself truncates an episode before its time "
                "limit, the value is bootstrapped from the observation before that step"
            )

    def reset(self, keys: SeedKeys) -> Observation:
        """See `VectorEnv.reset`; raises a `UserError` for groups."""
        check_keys(keys, self.num_envs)
        if keys.group > 1:
            raise UserError(
                "Isaac cannot begin the environments of a group alike",
                got=f"groups of {keys.group}",
                expected="group 1: it has one generator for all environments",
                do="use an objective without groups (ppo, fpo, recap)",
            )
        self._keys = replace(keys, env=np.array(keys.env), episode=np.array(keys.episode))
        answer = self._process.ask({"ask": "reset", "seed": named(keys)}, seconds=self._options.step_seconds)
        return self._observation(answer.arrays, "", self._texts(self._keys))

    def step_chunk(self, chunk: ActionChunk) -> ChunkOutcome:
        """See `VectorEnv.step_chunk`. Raises `IsaacError` where Isaac died or hangs."""
        actions = used_actions(chunk, self.spec, self.num_envs)
        if self._keys is None:
            raise RuntimeError("step_chunk before reset: call reset(keys) first")
        given = {"actions": self._converted(actions)}
        got = self._process.ask({"ask": "chunk"}, given, seconds=self._options.step_seconds).arrays
        over = np.flatnonzero(got["terminated"] | got["truncated"])
        failures = tuple(self._failure(row) for row in np.flatnonzero(got["broken"]).tolist())
        texts = self._texts(self._keys)
        self._keys.episode[over] += 1
        final = self._observation(got, "final/", tuple(texts[i] for i in over)) if len(over) else None
        reward = self._reward(got)
        return ChunkOutcome(
            reward=reward,
            steps_executed=got["steps"],
            terminated=got["terminated"],
            truncated=got["truncated"],
            success=got["success"],
            observation=self._observation(got, "now/", self._texts(self._keys)),
            final_index=over,
            final_observation=final,
            reward_terms={self._options.reward: reward.copy()},
            failures=failures,
        )

    def close(self) -> None:
        """See `VectorEnv.close`."""
        self._process.close()
        if self._lock is not None:
            self._lock.close()

    def _converted(self, actions: FloatArray) -> FloatArray:
        options = self._options
        if options.control != "delta_ee" or options.actions == "as_is":
            return actions
        return per_step(actions, arm_width(options), options.gripper != "none", options.action_scale)

    def _reward(self, got: Mapping[str, Array]) -> FloatArray:
        if self._options.reward == "task":
            return got["reward"]
        reward = np.zeros_like(got["reward"])
        won = np.flatnonzero(got["success"])
        reward[won, got["steps"][won] - 1] = 1
        return reward

    def _texts(self, keys: SeedKeys) -> tuple[str, ...]:
        """[N] instructions: the episodes of an environment take turns, and so do the environments."""
        texts = self._options.instructions
        return tuple(texts[number % len(texts)] for number in (keys.env + keys.episode).tolist())

    def _failure(self, row: int) -> Failure:
        assert self._keys is not None
        env, episode = int(self._keys.env[row]), int(self._keys.episode[row])
        cause = f"{self._options.task} left the finite numbers"
        return Failure(row, self.spec.name, self._keys.seed, env, episode, cause)

    def _observation(self, arrays: Mapping[str, Array], prefix: str, texts: tuple[str, ...]) -> Observation:
        views = {tag: arrays[f"{prefix}{VIEW}{tag}"] for tag in self._options.views}
        return Observation(
            images=views,
            instruction=texts,
            embodiment=self._options.tag,
            proprioception=arrays.get(f"{prefix}proprioception"),
            privileged=arrays.get(f"{prefix}privileged"),
        )


def job(num_envs: int, options: IsaacOptions) -> dict[str, Any]:
    """The options as the worker's `Job` takes them."""
    same = ("task", "device", "horizon", "channels", "rate", "image_size", "success_term", "without_success_term")
    states = {name: getattr(options, name) for name in ("proprioception", "privileged")}
    return {name: getattr(options, name) for name in (*same, "time_limit", "seed")} | {
        "num_envs": num_envs,
        "modules": list(options.modules),
        "overrides": list(options.overrides),
        "held": list(held_channels(options)),
        "views": dict(options.views),
        "states": {name: source for name, source in states.items() if source is not None},
        "widths": {"privileged": len(options.privileged_names)} if options.privileged_names else {},
        "quaternions": list(options.quaternions),
    }


def named(keys: SeedKeys) -> int:
    """One seed from all keys, below 2^31 as Isaac wants it."""
    numbers: IntArray = np.concatenate([[keys.seed], keys.env, keys.episode]).astype(np.int64)
    return zlib.crc32(numbers.tobytes()) >> 1
