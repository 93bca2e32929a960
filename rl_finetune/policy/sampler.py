"""From noise to actions: the ODE for evaluation, hybrid Flow-SDE for exploration, and the score of what was sampled.

Noise is a function of (seed, environment, episode, chunk) alone, so a rollout does not depend on how environments are
spread over actors.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor

from rl_finetune.keys import Stream, generator
from rl_finetune.policy.flow import euler_grid, gaussian_log_prob, ode_step, sde_step
from rl_finetune.types import IntArray, SeedKeys

Velocity = Callable[[Tensor, Tensor], Tensor]
"""(chain state [N, H, K], tau [N]) -> velocity [N, H, K]."""


@dataclass(frozen=True, slots=True)
class FlowSDE:
    """The exploration law (flow_rl, Flow-SDE, hybrid): one stochastic Euler step a sample, the ODE elsewhere."""

    num_steps: int = 4
    """N Euler steps."""
    noise_level: float = 0.5
    """a of sigma = a sqrt(tau / (1 - tau))."""
    step: int | None = None
    """Index of the stochastic step for every sample; None draws it uniformly per sample."""


@dataclass(frozen=True, slots=True)
class Noise:
    """Everything random in one chunk's sampling."""

    start: Tensor
    """[N, H, K] standard normal, the chain's first state."""
    transition: Tensor
    """[N, H, K] standard normal of the stochastic step."""
    step: Tensor
    """[N] int64 index of the stochastic step."""

    def to(self, device: torch.device) -> Noise:
        """On another device; it is always drawn on the CPU, so that every device explores alike."""
        return Noise(self.start.to(device), self.transition.to(device), self.step.to(device))


@dataclass(frozen=True, slots=True)
class Transition:
    """A batch of scored transitions, torch side of `FlowTrace`."""

    x: Tensor
    """[N, H, K]."""
    x_next: Tensor
    """[N, H, K]."""
    step: Tensor
    """[N] int64."""
    log_prob: Tensor
    """[N, H] summed over valid channels."""


def draw_noise(keys: SeedKeys, chunk: IntArray, horizon: int, width: int, law: FlowSDE) -> Noise:
    """Float32 noise for chunk number `chunk` [N] of the episodes `keys`."""
    start = np.empty((len(keys), horizon, width), np.float32)
    transition = np.empty_like(start)
    step = np.empty(len(keys), np.int64)
    for i, (env, episode, number) in enumerate(zip(keys.env, keys.episode, chunk, strict=True)):
        rng = generator(keys.seed, Stream.NOISE, int(env), int(episode), int(number))
        start[i] = rng.standard_normal((horizon, width), dtype=np.float32)
        transition[i] = rng.standard_normal((horizon, width), dtype=np.float32)
        step[i] = rng.integers(law.num_steps) if law.step is None else law.step
    return Noise(torch.from_numpy(start), torch.from_numpy(transition), torch.from_numpy(step))


def sample_ode(velocity: Velocity, start: Tensor, num_steps: int) -> Tensor:
    """Integrate from noise [N, H, K] to actions with Euler steps."""
    x, grid = start, euler_grid(num_steps).to(start.device)
    for tau, tau_next in pairwise(grid):
        x = ode_step(x, velocity(x, tau.expand(len(x))), tau, tau_next)
    return x


def sample_flow_sde(velocity: Velocity, noise: Noise, law: FlowSDE, mask: Tensor) -> tuple[Tensor, Transition]:
    """Hybrid chain: the SDE at each sample's own step, the ODE elsewhere.

    Args:
        velocity: of the policy.
        noise: float32 draws.
        law: sampling law.
        mask: [N, H, K] valid channels, for the log-density only; the whole padded chain enters the network.

    Returns:
        Actions [N, H, K] (normalised) and the transition that objectives score.
    """
    x, grid = noise.start, euler_grid(law.num_steps).to(noise.start.device)
    kept_x, kept_next = torch.zeros_like(x), torch.zeros_like(x)
    log_prob = x.new_zeros(x.shape[:2])
    for k, (tau, tau_next) in enumerate(pairwise(grid)):
        v = velocity(x, tau.expand(len(x)))
        mean, std = sde_step(x, v, tau, tau_next, law.noise_level)
        here = (noise.step == k)[:, None, None]
        x_next = torch.where(here, mean + std * noise.transition, ode_step(x, v, tau, tau_next))
        kept_x, kept_next = torch.where(here, x, kept_x), torch.where(here, x_next, kept_next)
        scored = gaussian_log_prob(x_next, mean, std, mask, dims=(-1,))
        log_prob = torch.where(here[..., 0], scored, log_prob)
        x = x_next
    return x, Transition(kept_x, kept_next, noise.step, log_prob)


def score(velocity: Velocity, x: Tensor, x_next: Tensor, step: Tensor, law: FlowSDE, mask: Tensor) -> Tensor:
    """Log-density [N, H] of stored transitions under the present policy: one decoder pass, same grid as the sampler."""
    grid = euler_grid(law.num_steps).to(x.device)
    tau, tau_next = grid[step], grid[step + 1]
    v = velocity(x, tau)
    mean, std = sde_step(x, v, tau[:, None, None], tau_next[:, None, None], law.noise_level)
    return gaussian_log_prob(x_next, mean, std, mask, dims=(-1,))
