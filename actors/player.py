"""Plays held-out episodes: a policy, its share of the environments, and nothing of Ray."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

import envs
from actors.evaluator import EpisodeResults, Shuffle, run_episodes
from actors.film import Film, film_episodes
from rl_finetune.config.schema import EnvSection, EvaluationSection, PolicySection
from rl_finetune.errors import UserError
from rl_finetune.policy import QwenVLAPolicy
from rl_finetune.policy.adapters import guide, load_adapters, merge_adapters
from rl_finetune.spec import handshake
from rl_finetune.types import IntArray, SeedKeys


class Player:
    """Success and clips of one policy."""

    def __init__(
        self, policy: PolicySection, env: EnvSection, evaluation: EvaluationSection, num_envs: int, *, gpus: float = 0
    ) -> None:
        """Load the policy (a starting adapter is folded in) and build `num_envs` environments in this process.

        With `gpus` > 0, as granted by Ray, the policy runs on the GPU.

        Raises:
            UserError: policy, adapter or environment cannot be used, or they do not fit each other.
        """
        torch.set_num_threads(1)
        self.settings, self._world = evaluation, env
        self.env = envs.make(env.name, num_envs, **env.options)
        self.policy = QwenVLAPolicy.from_pretrained(policy.path, policy.backbone)
        if policy.adapter is not None:
            self.policy = merge_adapters(load_adapters(self.policy, Path(policy.adapter)))
        if policy.guidance is not None:
            guide(self.policy, policy.guidance)
        self.policy.to(device_for(gpus))
        self.body = handshake(self.policy.config.embodiments, self.env.spec)

    def play(self, episodes: IntArray, shuffle: Shuffle = "none") -> EpisodeResults:
        """Held-out episodes by number [M], in rounds of this player's environments; what pads the last is dropped."""
        size = self.env.num_envs
        padded = np.resize(episodes, -(-len(episodes) // size) * size)
        parts = [
            run_episodes(self.policy, self.env, self._keys(ids), temperature=self.settings.temperature, shuffle=shuffle)
            for ids in padded.reshape(-1, size)
        ]
        success, steps = (np.concatenate([getattr(p, f) for p in parts])[: len(episodes)] for f in ("success", "steps"))
        return EpisodeResults(success, steps)

    def film(self, episodes: IntArray) -> list[Film]:
        """The same held-out episodes, frame by frame."""
        with envs.make(self._world.name, len(episodes), **self._world.options) as env:
            return film_episodes(self.policy, env, self._keys(episodes), temperature=self.settings.temperature)

    def close(self) -> None:
        """Release the renderer."""
        self.env.close()

    def _keys(self, episodes: IntArray) -> SeedKeys:
        return SeedKeys(self.settings.seed, episodes, np.zeros_like(episodes))


def device_for(gpus: float) -> torch.device:
    """The first GPU that Ray shows this process, if it was granted any; else the CPU.

    Raises:
        UserError: one was granted, but torch cannot use it.
    """
    if gpus <= 0:
        return torch.device("cpu")
    if not torch.cuda.is_available():
        raise UserError(
            "a GPU was asked for", got=f"torch {torch.__version__} without CUDA", expected="a CUDA build and a GPU",
            do="install torch's CUDA build, or set gpus to 0",
        )  # fmt: skip
    return torch.device("cuda")
