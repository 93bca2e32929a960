"""Measures a sampling law in the world that a job will train in."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np
import torch

from actors.player import Player
from envs import VectorEnv
from rl_finetune.config.schema import TrainConfig
from rl_finetune.policy import QwenVLAPolicy
from rl_finetune.policy.calibration import Calibration, calibrate, contributions
from rl_finetune.policy.laws import FlowSDE
from rl_finetune.spec import EmbodimentSpec
from rl_finetune.types import SeedKeys

SAMPLE = 64
"""First observations that are measured on."""


def unmeasured(job: TrainConfig) -> bool:
    """Whether the job's law still has numbers to be measured."""
    law = job.exploration
    return (law.law == "calibrated" and law.levels is None) or law.odds == "contribution"


def measured(job: TrainConfig) -> tuple[TrainConfig, Calibration]:
    """The job with measured levels and odds in its settings, and the measurement.

    Raises:
        UserError: policy or environment cannot be used, or the law cannot be made that wide.
    """
    (world,) = job.env.worlds()  # settings of several worlds that nobody measured are refused
    player = Player(job.policy, [replace(world, env_ids=world.env_ids[:SAMPLE])], job.evaluation)
    try:
        return measured_with(_Placed(player.policy, player.seats[0].env, player.seats[0].body), job)
    finally:
        player.close()


class Seated(Protocol):
    """A policy in its world."""

    policy: QwenVLAPolicy
    env: VectorEnv
    body: EmbodimentSpec


@dataclass(slots=True)
class _Placed:
    policy: QwenVLAPolicy
    env: VectorEnv
    body: EmbodimentSpec


@torch.no_grad()
def measured_with(player: Seated, job: TrainConfig) -> tuple[TrainConfig, Calibration]:
    """The same with a player that is there already, on the first observations of its environments.

    What is measured is the law as it acts, `exploration.scale` of this body included.
    """
    ids, law, steps = np.arange(player.env.num_envs), job.exploration, job.rollout.denoising_steps
    keys = SeedKeys(job.run.seed, ids, np.zeros_like(ids), job.objective.group_size)
    seen = player.policy.look(player.env.reset(keys))
    correlation, scale = law.correlation.get(player.body.tag, 0.0), law.scale.get(player.body.tag, 1.0)
    if law.law == "calibrated":
        found = calibrate(
            player.policy, seen, keys, player.body, num_steps=steps, executed_std=law.executed_std,
            max_level=law.max_level, temperature=law.temperature, correlation=correlation,
        )  # fmt: skip
    else:
        levels = tuple(scale * level for level in law.levels or [law.noise_level] * steps)
        like = FlowSDE(steps, levels=levels, temperature=law.temperature, correlation=correlation)
        reached = contributions(player.policy, seen, keys, player.body, like)
        odds = reached / reached.sum()
        overall = float(np.sqrt((odds * reached**2).sum()))
        found = Calibration(levels, tuple(odds.tolist()), tuple(reached.tolist()), overall)
    unscaled = [level / scale for level in found.levels]  # the actors scale them again
    settled = law.model_copy(update={"levels": unscaled, "odds": list(found.odds)})
    return job.model_copy(update={"exploration": settled}), found
