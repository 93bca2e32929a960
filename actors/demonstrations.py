"""Expert demonstrations: pairs of an observation at a chunk boundary and the chunk that the expert would play there.

The executed chunk is disturbed while the label stays the expert's own, so that the data show how to recover from a miss
(disturbances for augmenting robot trajectories, Laskey et al. 2017).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from envs import VectorEnv
from envs.expert import expert_chunk
from rl_finetune.types import FloatArray, Observation, SeedKeys, concatenate


@dataclass(frozen=True, slots=True)
class Demonstrations:
    """M labelled chunk boundaries of one embodiment."""

    observation: Observation
    """M rows."""
    actions: FloatArray
    """[M, H, c] in the environment's units."""

    def __len__(self) -> int:
        return len(self.actions)


def collect(
    env: VectorEnv, chunks: int, *, seed: int, noise: float, progress: Callable[[int], None] | None = None
) -> Demonstrations:
    """At least `chunks` expert chunks, cut to that number.

    Args:
        env: any environment with privileged tool and target positions.
        chunks: M.
        seed: of scenes and disturbances.
        noise: metres by which the executed aim is disturbed (standard deviation).
        progress: called with the number collected so far.
    """
    ids = np.arange(env.num_envs)
    keys = SeedKeys(seed, ids, np.zeros_like(ids))
    seen, labels = env.reset(keys), []
    observations: list[Observation] = []
    for round_ in range(-(-chunks // env.num_envs)):
        observations.append(seen)
        labels.append(expert_chunk(env, seen).actions)
        seen = env.step_chunk(expert_chunk(env, seen, keys=keys, chunk=round_, noise=noise)).observation
        if progress is not None:
            progress(min(chunks, (round_ + 1) * env.num_envs))
    merged = concatenate(observations).rows(np.arange(chunks))
    return Demonstrations(merged, np.concatenate(labels)[:chunks])
