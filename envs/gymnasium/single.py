"""One gymnasium environment as an `Episode`: stepped alone, stopped where it ends, reset with its key's seed."""

from __future__ import annotations

from typing import Any

import numpy as np

from envs.gymnasium.making import make_one, whites
from envs.gymnasium.options import NAME, RENDER, GymnasiumOptions
from envs.gymnasium.reading import episode_seed, numbers, picture, reported, to_world, told
from envs.simple import Episode, Step
from rl_finetune.arrays import flag, number
from rl_finetune.types import FloatArray, ImageArray


class GymnasiumEpisode(Episode):
    """One environment of `sync` vectorization."""

    def __init__(self, options: GymnasiumOptions) -> None:
        self._options, self._env = options, make_one(options)
        self._space: Any = self._env.action_space
        self._whites = whites(self._env.observation_space, options)
        self._obs: Any = None
        self._info: dict[str, Any] = {}

    def begin(self, rng: np.random.Generator) -> str:
        """See `Episode.begin`."""
        self._obs, self._info = self._env.reset(seed=episode_seed(rng))
        return told(self._options, self._obs, self._info)

    def prepare(self, actions: FloatArray) -> FloatArray:
        """See `Episode.prepare`: from the convention's units to the environment's."""
        bounds = self._space.low.ravel(), self._space.high.ravel()
        return to_world(self._options, actions[None], *bounds)[0]

    def step(self, action: FloatArray) -> Step:
        """See `Episode.step`."""
        own = action.reshape(self._space.shape).astype(self._space.dtype)
        self._obs, reward, terminated, truncated, self._info = self._env.step(own)
        ended, cut = flag(terminated, f"{NAME} terminated"), flag(truncated, f"{NAME} truncated")
        success = reported(self._options, self._info, terminated=ended, over=ended or cut)
        return Step(number(reward, f"{NAME} reward"), ended, success, cut)

    def picture(self, view: str) -> ImageArray:
        """See `Episode.picture`."""
        source = self._options.views[view]
        frame = self._env.render() if source == RENDER else None
        white = self._whites.get(source)
        return picture(source, self._obs, self._info, frame, self._options.image_size, white)

    def proprioception(self) -> FloatArray | None:
        """See `Episode.proprioception`."""
        return numbers(self._options.proprioception, self._obs)

    def privileged(self) -> FloatArray | None:
        """See `Episode.privileged`."""
        return numbers(self._options.privileged, self._obs)

    def close(self) -> None:
        """See `Episode.close`."""
        self._env.close()
