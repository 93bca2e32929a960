"""Success of a policy on held-out episodes: a fixed allotment per environment, lest quick episodes weigh more."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch

from actors.guarding import Guard
from envs import VectorEnv
from rl_finetune.keys import Stream, generator
from rl_finetune.policy import QwenVLAPolicy
from rl_finetune.spec import handshake
from rl_finetune.types import BoolArray, Failure, FloatArray, IntArray, Observation, SeedKeys

Shuffle = Literal["none", "images", "instructions"]


@dataclass(frozen=True, slots=True)
class EpisodeResults:
    """Outcome of each allotted episode of one world, in the order of environments."""

    success: BoolArray
    """[N]; False where the world broke down."""
    returns: FloatArray
    """[N] undiscounted return, up to where the world broke down."""
    steps: IntArray
    """[N] environment steps."""
    failures: tuple[Failure | None, ...]
    """[N] who broke down and why, None where nobody did."""
    measures: Mapping[str, FloatArray]
    """Name -> [N] what else the task reports; NaN where it reports nothing."""

    def first(self, n: int) -> EpisodeResults:
        """The first `n` episodes."""
        measures = {name: values[:n] for name, values in self.measures.items()}
        return EpisodeResults(self.success[:n], self.returns[:n], self.steps[:n], self.failures[:n], measures)


def together(parts: Sequence[EpisodeResults]) -> EpisodeResults:
    """Episodes of one world, part after part; a part in which every world broke down at once reports nothing."""
    names = dict.fromkeys(name for p in parts for name in p.measures)
    unknown = [np.full(len(p.success), np.nan, np.float32) for p in parts]
    return EpisodeResults(
        np.concatenate([p.success for p in parts]),
        np.concatenate([p.returns for p in parts]),
        np.concatenate([p.steps for p in parts]),
        tuple(failure for p in parts for failure in p.failures),
        {
            name: np.concatenate([p.measures.get(name, blank) for p, blank in zip(parts, unknown, strict=True)])
            for name in names
        },
    )


@torch.no_grad()
def run_episodes(
    policy: QwenVLAPolicy,
    env: VectorEnv,
    keys: SeedKeys,
    *,
    temperature: float,
    shuffle: Shuffle = "none",
    prompt_as: str | None = None,
    guard: Guard | None = None,
) -> EpisodeResults:
    """Play the episodes that `keys` names, one per environment, with the ODE sampler.

    Args:
        policy: acts; its weights are not changed.
        env: `len(keys)` environments of an embodiment that the policy knows.
        keys: held-out episodes.
        temperature: scale of the initial noise.
        shuffle: give each environment another one's pictures or instruction (a fixed permutation without fixed points).
        prompt_as: robot tag that the prompt names in place of the true one; actions stay the true body's.
        guard: stands between policy and bodies, for this embodiment; None lets every action through.
    """
    body = handshake(policy.config.embodiments, env.spec)
    observation = env.reset(keys)
    success, steps = np.zeros(len(keys), bool), np.zeros(len(keys), np.int64)
    returns = np.zeros(len(keys), np.float32)
    failures: list[Failure | None] = [None] * len(keys)
    measures: dict[str, FloatArray] = {}
    running = np.ones(len(keys), bool)
    chunk = np.zeros(len(keys), np.int64)
    if guard is not None:
        guard.begin(len(keys))
    while running.any():
        context = policy.look(_shuffled(observation, shuffle, keys.seed), prompt_as)
        asked = policy.act(context, keys, chunk, body, temperature)
        outcome = env.step_chunk(asked if guard is None else guard(asked, running))
        steps += outcome.steps_executed * running
        returns += outcome.reward.sum(-1) * running
        success |= outcome.success & running
        for failure in outcome.failures:
            if running[failure.row]:
                failures[failure.row] = failure
        ended = running & (outcome.terminated | outcome.truncated | outcome.failed)
        for name, values in outcome.measures.items():
            measures.setdefault(name, np.full(len(keys), np.nan, np.float32))[ended] = values[ended]
        running &= ~ended
        chunk += 1
        observation = outcome.observation
    success &= np.array([failure is None for failure in failures])
    return EpisodeResults(success, returns, steps, tuple(failures), measures)


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
