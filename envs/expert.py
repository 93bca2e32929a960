"""Chunks of a scripted expert, for any environment that has one."""

from __future__ import annotations

import numpy as np

from envs.base import Disturbance, VectorEnv
from rl_finetune.keys import Stream, generator
from rl_finetune.types import ActionChunk, Observation, SeedKeys


def expert_chunk(
    env: VectorEnv,
    observation: Observation,
    *,
    keys: SeedKeys | None = None,
    chunk: int = 0,
    noise: float = 0.0,
    channels_padded: int | None = None,
) -> ActionChunk:
    """The expert's next chunk [N, H, K] for every environment.

    Args:
        env: an environment with an expert.
        observation: what it shows now.
        keys: episodes of the N environments; needed when `noise` > 0.
        chunk: number of this chunk within the run, part of the noise's key.
        noise: standard deviation in metres of the point it aims at, and its speed varies too (70..100 %); where nobody
            knows what it aims at, of what is added to its actions, in their units.
        channels_padded: K, at least the convention's channels (the default).

    Raises:
        ValueError: noise without keys.
        UserError: the environment has no expert.
    """
    if noise > 0 and keys is None:
        raise ValueError("the expert needs keys when noise > 0")
    convention = env.spec.embodiment.action
    disturbed = None if keys is None or noise <= 0 else disturbance(keys, chunk, noise, convention.channels)
    found = env.expert(observation, disturbed)
    actions = np.zeros((*found.shape[:2], channels_padded or convention.channels), np.float32)
    actions[..., : convention.channels] = found
    mask = np.zeros(actions.shape, bool)
    mask[..., : convention.channels] = True
    return ActionChunk(actions, mask)


def disturbance(keys: SeedKeys, chunk: int, noise: float, channels: int) -> Disturbance:
    """What disturbs the chunk of each environment: a function of its key."""
    offset, pace, shift = np.empty((len(keys), 3)), np.empty(len(keys)), np.empty((len(keys), channels))
    for row in range(len(keys)):
        rng = generator(keys.seed, Stream.EXPERT, int(keys.env[row]), int(keys.episode[row]), chunk)
        offset[row] = noise * rng.standard_normal(3).clip(-2, 2)
        pace[row] = rng.uniform(0.7, 1.0)
        shift[row] = noise * rng.standard_normal(channels).clip(-2, 2)
    return Disturbance(offset, pace, shift)
