"""Sampling laws: where on the way from noise to actions a chain is random, and by how much.

    ODE          nowhere but in the initial noise: evaluation, and objectives that need no likelihood
    FlowSDE      one step a sample, sigma = a sqrt(tau / (1 - tau)); with a level and a probability for each step it is
                 the calibrated law (`rl_finetune.policy.calibration` measures them)
    FlowNoise    every step, by a learned standard deviation

A law is a small immutable record; sampler and scorer are given the same one and so share its grid.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from rl_finetune.config.exploration import ExplorationSection
from rl_finetune.config.schema import TrainConfig
from rl_finetune.policy.flow import euler_grid


@dataclass(frozen=True, slots=True)
class ODE:
    """The probability-flow ODE: nothing is scored."""

    num_steps: int = 4
    """N Euler steps."""
    temperature: float = 1.0
    """Scale of the initial noise."""

    transitions = 0
    correlation = 0.0


@dataclass(frozen=True, slots=True)
class FlowSDE:
    """The exploration law (flow_rl, Flow-SDE, hybrid): one stochastic Euler step a sample, the ODE elsewhere."""

    num_steps: int = 4
    """N Euler steps."""
    noise_level: float = 0.5
    """a of sigma = a sqrt(tau / (1 - tau)), at every step that `levels` does not set."""
    step: int | None = None
    """Index of the stochastic step for every sample; None draws it per sample."""
    levels: tuple[float, ...] | None = None
    """[num_steps] a of each step in place of `noise_level`."""
    odds: tuple[float, ...] | None = None
    """[num_steps] probability of each step where it is drawn; None is uniform."""
    correlation: float = 0.0
    """Between the noise of neighbouring action steps; see `flow.coloured`."""
    temperature: float = 1.0
    """Scale of the initial noise."""

    transitions = 1

    def level(self, step: Tensor) -> Tensor | float:
        """a at the steps [...] given; a plain number where all steps share it."""
        if self.levels is None:
            return self.noise_level
        return torch.tensor(self.levels, device=step.device)[step]

    def draw_step(self, rng: np.random.Generator) -> int:
        """Index of one sample's stochastic step."""
        if self.step is not None:
            return self.step
        if self.odds is None:
            return int(rng.integers(self.num_steps))
        return int(rng.choice(self.num_steps, p=np.asarray(self.odds) / np.sum(self.odds)))


@dataclass(frozen=True, slots=True)
class FlowNoise:
    """Learned noise at every step (flow_rl, Flow-Noise): x' = x - delta v + sigma_phi(x, tau, context) z."""

    num_steps: int = 4
    """N Euler steps, all of them stochastic."""
    temperature: float = 1.0
    """Scale of the initial noise."""

    correlation = 0.0

    @property
    def transitions(self) -> int:
        """J: the joint density of the whole chain is scored."""
        return self.num_steps


Law = ODE | FlowSDE | FlowNoise


def law_of(job: TrainConfig) -> Law:
    """The sampling law of a job.

    Raises:
        ValueError: a calibrated law that nobody has measured; `rl_finetune.policy.calibration` does.
    """
    steps, chosen = job.rollout.denoising_steps, job.exploration
    if chosen.law == "ode":
        return ODE(steps, chosen.temperature)
    if chosen.law == "flow_noise":
        return FlowNoise(steps, chosen.temperature)
    if (chosen.law == "calibrated" and chosen.levels is None) or chosen.odds == "contribution":
        raise ValueError("exploration.levels or odds: not measured yet; `actors.calibration` does")
    levels, odds = (tuple(v) if isinstance(v, list) else None for v in (chosen.levels, chosen.odds))
    return FlowSDE(steps, chosen.noise_level, chosen.sde_step, levels, odds, temperature=chosen.temperature)


def law_for(tag: str, law: Law, chosen: ExplorationSection) -> Law:
    """The law as it is in the worlds of one body: its levels scaled and its noise correlated as `chosen` says.

    Raises:
        ValueError: either is asked of another law than Flow-SDE.
    """
    factor, correlation = chosen.scale.get(tag, 1.0), chosen.correlation.get(tag, 0.0)
    if factor == 1 and not correlation:
        return law
    if not isinstance(law, FlowSDE):
        raise ValueError(f"{law} has neither levels to scale nor noise to correlate")
    levels = None if law.levels is None else tuple(level * factor for level in law.levels)
    return replace(law, noise_level=law.noise_level * factor, levels=levels, correlation=correlation)


def times(law: Law, step: Tensor) -> tuple[Tensor, Tensor]:
    """tau and tau_next [N, J] of the scored transitions that begin at `step` [N]."""
    grid = euler_grid(law.num_steps).to(step.device)
    index = step[:, None] + torch.arange(law.transitions, device=step.device)
    return grid[index], grid[index + 1]
