"""Success of a policy on held-out episodes: a fixed allotment per environment, lest quick episodes weigh more."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch

from envs import VectorEnv
from rl_finetune.keys import Stream, generator
from rl_finetune.policy import QwenVLAPolicy
from rl_finetune.spec import handshake
from rl_finetune.types import BoolArray, IntArray, Observation, SeedKeys

Shuffle = Literal["none", "images", "instructions"]


@dataclass(frozen=True, slots=True)
class EpisodeResults:
    """Outcome of each allotted episode, in the order of environments."""

    success: BoolArray
    """[N]."""
    steps: IntArray
    """[N] environment steps."""


@torch.no_grad()
def run_episodes(
    policy: QwenVLAPolicy, env: VectorEnv, keys: SeedKeys, *, temperature: float, shuffle: Shuffle = "none"
) -> EpisodeResults:
    """Play the episodes that `keys` names, one per environment, with the ODE sampler.

    Args:
        policy: acts; its weights are not changed.
        env: `len(keys)` environments of an embodiment that the policy knows.
        keys: held-out episodes.
        temperature: scale of the initial noise.
        shuffle: give each environment another one's pictures or instruction (a fixed permutation without fixed points).
    """
    body = handshake(policy.config.embodiments, env.spec)
    observation = env.reset(keys)
    success, steps = np.zeros(len(keys), bool), np.zeros(len(keys), np.int64)
    running = np.ones(len(keys), bool)
    chunk = np.zeros(len(keys), np.int64)
    while running.any():
        context = policy.look(_shuffled(observation, shuffle, keys.seed))
        outcome = env.step_chunk(policy.act(context, keys, chunk, body, temperature))
        steps += outcome.steps_executed * running
        success |= outcome.success & running
        running &= ~(outcome.terminated | outcome.truncated)
        chunk += 1
        observation = outcome.observation
    return EpisodeResults(success, steps)


def _shuffled(observation: Observation, shuffle: Shuffle, seed: int) -> Observation:
    if shuffle == "none":
        return observation
    n = len(observation)
    order = generator(seed, Stream.NOISE, n, 0).permutation(n)
    other = np.empty(n, np.int64)
    other[order] = np.roll(order, 1)
    mixed = observation.rows(other)
    if shuffle == "images":
        return Observation(mixed.images, observation.instruction, observation.embodiment)
    return Observation(observation.images, mixed.instruction, observation.embodiment)
