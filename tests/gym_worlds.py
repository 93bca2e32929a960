"""Gymnasium environments that say in every picture who they are: what they drew at reset, and the step."""

from __future__ import annotations

from typing import Any, ClassVar

import gymnasium
import numpy as np
import torch
from gymnasium import spaces
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from gymnasium.vector.utils import concatenate, create_empty_array
from gymnasium.wrappers.vector import RecordEpisodeStatistics

LIMIT = 6
BREAKS, SICK = -1.0, -0.5
"""Values of the second action channel that make an environment raise, or show NaN."""


class Counting(gymnasium.Env):
    """Done when the sum of the first channel reaches 1; the reward is that channel."""

    metadata: ClassVar[dict[str, Any]] = {"render_modes": ["rgb_array"], "render_fps": 10}
    made = 0

    def __init__(self, render_mode: str | None = None, words: str = "count") -> None:
        Counting.made += 1
        self.render_mode, self.words = render_mode, words
        self.action_space = spaces.Box(-1.0, 1.0, (2,), np.float32)
        picture, state = spaces.Box(0, 255, (8, 8, 3), np.uint8), spaces.Box(-np.inf, np.inf, (2,), np.float32)
        self.observation_space = spaces.Dict({"seen": spaces.Dict({"top": picture}), "state": state})
        self.who, self.at, self.total, self.sick, self.drawn, self.closed = 0, 0, 0.0, False, 0, False

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
        super().reset(seed=seed)
        if self.closed:
            raise RuntimeError("it is closed")
        self.who = int(self.np_random.integers(1, 200))
        self.at, self.total, self.sick = 0, 0.0, False
        return self._obs(), {"task": self.task, "is_success": False}

    def step(self, action: np.ndarray) -> Any:
        if action[1] == np.float32(BREAKS):
            raise ValueError("the arm fell off")
        self.sick = bool(action[1] == np.float32(SICK))
        self.at, self.total = self.at + 1, self.total + float(action[0])
        done = self.total >= 0.999
        return self._obs(), float(action[0]), done, False, {"is_success": done}

    @property
    def task(self) -> Any:
        """What its info tells at a reset."""
        return f"{self.words} from {self.who}"

    def render(self) -> np.ndarray:
        self.drawn += 1
        return self._picture()

    def close(self) -> None:
        self.closed = True

    def _picture(self) -> np.ndarray:
        picture = np.zeros((8, 8, 3), np.uint8)
        picture[:, 1:] = self.who, 255 - self.who, self.at
        return picture

    def _obs(self) -> dict[str, Any]:
        state = np.array([self.who, np.nan if self.sick else self.at], np.float32)
        return {"seen": {"top": self._picture()}, "state": state}


class OnItsOwn(gymnasium.vector.VectorEnv):
    """A vector environment that nobody can reach into, and that restarts in its own way only."""

    def __init__(self, num_envs: int, mode: AutoresetMode) -> None:
        self._inner = sync(num_envs, mode)
        self.metadata, self.render_mode = self._inner.metadata, self._inner.render_mode
        self.num_envs, self.single_action_space = num_envs, self._inner.single_action_space
        self.single_observation_space = self._inner.single_observation_space

    def reset(self, *, seed: Any = None, options: dict[str, Any] | None = None) -> Any:
        assert options is None or self.metadata["autoreset_mode"] is AutoresetMode.DISABLED
        return self._inner.reset(seed=seed, options=options)

    def step(self, actions: Any) -> Any:
        return self._inner.step(actions)

    def render(self) -> Any:
        return self._inner.render()


class Tensors(OnItsOwn):
    """The same as simulators on a GPU do it: everything a tensor, no masks, and the same memory at every step."""

    def __init__(self, num_envs: int, mode: AutoresetMode) -> None:
        super().__init__(num_envs, mode)
        self._buffers: dict[str, torch.Tensor] = {}

    def reset(self, *, seed: Any = None, options: dict[str, Any] | None = None) -> Any:
        obs, infos = super().reset(seed=seed, options=options)
        return self._tensors(obs, "obs"), self._tensors(infos, "info")

    def step(self, actions: Any) -> Any:
        *told, infos = super().step(actions)
        return *(self._tensors(value, str(place)) for place, value in enumerate(told)), self._tensors(infos, "info")

    def _tensors(self, value: Any, name: str) -> Any:
        if isinstance(value, dict):
            return {key: self._tensors(part, f"{name}.{key}") for key, part in value.items() if key[0] != "_"}
        if value.dtype != object:
            buffer = self._buffers.setdefault(name, torch.tensor(value))
            return buffer.copy_(torch.tensor(value))
        ended = [part for part in value if isinstance(part, dict)]
        if not ended:
            return value  # texts
        whole = [ended[0] if part is None else part for part in value]
        return self._tensors(concatenate(self._inner.single_observation_space, whole, self._empty()), name)

    def _empty(self) -> Any:
        return create_empty_array(self._inner.single_observation_space, self.num_envs)


def sync(num_envs: int, mode: AutoresetMode = AutoresetMode.NEXT_STEP) -> SyncVectorEnv:
    """Plain environments side by side."""

    def one() -> gymnasium.Env:
        return gymnasium.make("Counting-v0", render_mode="rgb_array")

    return SyncVectorEnv([one] * num_envs, autoreset_mode=mode)


def wrapped(num_envs: int) -> RecordEpisodeStatistics:
    """The same in a wrapper: to be stepped together."""
    return RecordEpisodeStatistics(sync(num_envs))


def alone(num_envs: int, mode: str) -> OnItsOwn:
    """The same, out of reach."""
    return OnItsOwn(num_envs, AutoresetMode[mode])


def tensors(num_envs: int, mode: str) -> Tensors:
    """The same in tensors."""
    return Tensors(num_envs, AutoresetMode[mode])


def no_vector(num_envs: int) -> gymnasium.Env:
    """What a factory must not return."""
    return gymnasium.make("Counting-v0")


if "Counting-v0" not in gymnasium.registry:
    gymnasium.register("Counting-v0", entry_point="gym_worlds:Counting", max_episode_steps=LIMIT)
    gymnasium.register("Endless-v0", entry_point="gym_worlds:Counting")
