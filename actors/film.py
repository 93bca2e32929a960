"""Film whole episodes step by step, for people to look at."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from actors.guarding import Guard
from envs import VectorEnv
from rl_finetune.policy import QwenVLAPolicy
from rl_finetune.spec import EmbodimentSpec, handshake
from rl_finetune.types import ImageArray, SeedKeys


@dataclass(frozen=True, slots=True)
class Film:
    """One episode in pictures."""

    frames: ImageArray
    """[F, h, w, 3] uint8: the first observation, then one after each environment step."""
    instruction: str
    """Task in words."""
    success: bool
    """Whether it was done."""
    episode: int
    """Number of the held-out episode."""
    world: str
    """Label of the world."""


@torch.no_grad()
def film_episodes(
    policy: QwenVLAPolicy, env: VectorEnv, keys: SeedKeys, *, temperature: float, guard: Guard | None = None
) -> list[Film]:
    """Play the episodes `keys` [N] with the ODE sampler and keep every step's picture of the first view.

    Environments that cannot film (`VectorEnv.filming`) give the pictures of chunk boundaries only.
    """
    body = handshake(policy.config.embodiments, env.spec)
    env.filming = True
    try:
        return _filmed(policy, env, keys, body, temperature, guard)
    finally:
        env.filming = False


def _filmed(
    policy: QwenVLAPolicy, env: VectorEnv, keys: SeedKeys, body: EmbodimentSpec, temperature: float, guard: Guard | None
) -> list[Film]:
    observation = env.reset(keys)
    view = env.spec.embodiment.views[0]
    frames = [[picture[None]] for picture in observation.images[view]]
    instructions, success = observation.instruction, np.zeros(len(keys), bool)
    running, chunk = np.ones(len(keys), bool), np.zeros(len(keys), np.int64)
    if guard is not None:
        guard.begin(len(keys))
    while running.any():
        asked = policy.act(policy.look(observation), keys, chunk, body, temperature)
        outcome = env.step_chunk(asked if guard is None else guard(asked, running))
        for i in np.flatnonzero(running).tolist():
            frames[i].append(env.filmed[i] if env.filmed else outcome.observation.images[view][i][None])
        success |= outcome.success & running
        running &= ~(outcome.terminated | outcome.truncated | outcome.failed)
        chunk, observation = chunk + 1, outcome.observation
    return [
        Film(np.concatenate(parts), text, bool(done), int(number), env.spec.name)
        for parts, text, done, number in zip(frames, instructions, success, keys.env, strict=True)
    ]
