"""From noise to actions under a sampling law, and the score of what was sampled.

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
from rl_finetune.policy.flow import coloured, euler_grid, gaussian_log_prob, ode_step, sde_step
from rl_finetune.policy.laws import ODE, FlowNoise, FlowSDE, Law
from rl_finetune.types import IntArray, SeedKeys

Velocity = Callable[[Tensor, Tensor], Tensor]
"""(chain state [N, H, K], tau [N]) -> velocity [N, H, K]."""
Spread = Callable[[Tensor, Tensor], Tensor]
"""(chain state [N, H, K], tau [N]) -> standard deviation [N, H, K] of Flow-Noise."""


@dataclass(frozen=True, slots=True)
class Noise:
    """Everything random in one chunk's sampling."""

    start: Tensor
    """[N, H, K] the chain's first state: standard normal times the law's temperature."""
    transition: Tensor
    """[N, J, H, K] standard normal of the stochastic steps; neighbours along H correlate where the law says so."""
    step: Tensor
    """[N] int64 index of the first stochastic step."""

    def to(self, device: torch.device) -> Noise:
        """On another device; it is always drawn on the CPU, so that every device explores alike."""
        return Noise(self.start.to(device), self.transition.to(device), self.step.to(device))


@dataclass(frozen=True, slots=True)
class Transition:
    """What objectives score of a batch of chains, and where the chains ended."""

    states: Tensor
    """[N, J + 1, H, K] before, between and after the scored transitions."""
    step: Tensor
    """[N] int64 index of the first of them."""
    log_prob: Tensor
    """[N, H] summed over valid channels and transitions."""
    sample: Tensor
    """[N, H, K] the chain's last state."""


def draw_noise(keys: SeedKeys, chunk: IntArray, horizon: int, width: int, law: Law) -> Noise:
    """Float32 noise for chunk number `chunk` [N] of the episodes `keys`."""
    start = np.empty((len(keys), horizon, width), np.float32)
    transition = np.empty((len(keys), law.transitions, horizon, width), np.float32)
    step = np.zeros(len(keys), np.int64)
    for i, (env, episode, number) in enumerate(zip(keys.env, keys.episode, chunk, strict=True)):
        rng = generator(keys.seed, Stream.NOISE, int(env), int(episode), int(number))
        start[i] = law.temperature * rng.standard_normal((horizon, width), dtype=np.float32)
        transition[i] = rng.standard_normal(transition.shape[1:], dtype=np.float32)
        if isinstance(law, FlowSDE):
            step[i] = law.draw_step(rng)
    correlation = law.correlation if isinstance(law, FlowSDE) else 0.0
    return Noise(torch.from_numpy(start), coloured(torch.from_numpy(transition), correlation), torch.from_numpy(step))


def sample(velocity: Velocity, noise: Noise, law: Law, mask: Tensor, spread: Spread | None = None) -> Transition:
    """A chain under any law.

    Args:
        velocity: of the policy.
        noise: float32 draws for that law.
        law: sampling law.
        mask: [N, H, K] valid channels, for the log-density only; the whole padded chain enters the network.
        spread: standard deviations, for Flow-Noise.

    Raises:
        ValueError: Flow-Noise without its noise net.
    """
    if isinstance(law, ODE):
        end = sample_ode(velocity, noise.start, law.num_steps)
        return Transition(noise.start[:, None], noise.step, end.new_zeros(end.shape[:2]), end)
    if isinstance(law, FlowSDE):
        return sample_flow_sde(velocity, noise, law, mask)
    if spread is None:
        raise ValueError("Flow-Noise needs the policy's noise net; build it with `equip`")
    return sample_flow_noise(velocity, spread, noise, law, mask)


def sample_ode(velocity: Velocity, start: Tensor, num_steps: int) -> Tensor:
    """Integrate from noise [N, H, K] to actions with Euler steps."""
    x, grid = start, euler_grid(num_steps).to(start.device)
    for tau, tau_next in pairwise(grid):
        x = ode_step(x, velocity(x, tau.expand(len(x))), tau, tau_next)
    return x


def sample_flow_sde(velocity: Velocity, noise: Noise, law: FlowSDE, mask: Tensor) -> Transition:
    """Hybrid chain: the SDE at each sample's own step, the ODE elsewhere; see `sample`."""
    x, grid = noise.start, euler_grid(law.num_steps).to(noise.start.device)
    kept_x, kept_next = torch.zeros_like(x), torch.zeros_like(x)
    log_prob = x.new_zeros(x.shape[:2])
    for k, (tau, tau_next) in enumerate(pairwise(grid)):
        v = velocity(x, tau.expand(len(x)))
        mean, std = sde_step(x, v, tau, tau_next, law.level(torch.tensor(k, device=x.device)))
        here = (noise.step == k)[:, None, None]
        x_next = torch.where(here, mean + std * noise.transition[:, 0], ode_step(x, v, tau, tau_next))
        kept_x, kept_next = torch.where(here, x, kept_x), torch.where(here, x_next, kept_next)
        scored = gaussian_log_prob(x_next, mean, std, mask, dims=(-1,), correlation=law.correlation)
        log_prob = torch.where(here[..., 0], scored, log_prob)
        x = x_next
    return Transition(torch.stack((kept_x, kept_next), 1), noise.step, log_prob, x)


def sample_flow_noise(velocity: Velocity, spread: Spread, noise: Noise, law: FlowNoise, mask: Tensor) -> Transition:
    """Chain with learned noise at every step; the density of its start cancels in ratios and is left out."""
    x, grid = noise.start, euler_grid(law.num_steps).to(noise.start.device)
    states, log_prob = [x], x.new_zeros(x.shape[:2])
    for k, (tau, tau_next) in enumerate(pairwise(grid)):
        times = tau.expand(len(x))
        mean, std = ode_step(x, velocity(x, times), tau, tau_next), spread(x, times)
        x = mean + std * noise.transition[:, k]
        states.append(x)
        log_prob = log_prob + gaussian_log_prob(x, mean, std, mask, dims=(-1,))
    return Transition(torch.stack(states, 1), noise.step, log_prob, x)


def transition_mean(
    v: Tensor, x: Tensor, tau: Tensor, tau_next: Tensor, step: Tensor, law: FlowSDE | FlowNoise
) -> tuple[Tensor, Tensor | None]:
    """Mean [N, J, H, K] of stored transitions given the velocity there, and their standard deviation where the law
    itself fixes it (Flow-SDE): the same arithmetic as the sampler's.

    Args:
        v, x: velocities and chain states [N, J, H, K].
        tau, tau_next: [N, J] from `laws.times`.
        step: [N] index of the first transition.
        law: the sampler's.
    """
    tau, tau_next = tau[..., None, None], tau_next[..., None, None]
    if isinstance(law, FlowNoise):
        return ode_step(x, v, tau, tau_next), None
    level = law.level(step)
    return sde_step(x, v, tau, tau_next, level[:, None, None, None] if isinstance(level, Tensor) else level)


def score(velocity: Velocity, states: Tensor, step: Tensor, law: FlowSDE, mask: Tensor) -> Tensor:
    """Log-density [N, H] of stored transitions under the present policy: one decoder pass, same grid as the sampler."""
    grid = euler_grid(law.num_steps).to(states.device)
    tau, tau_next = grid[step], grid[step + 1]
    v = velocity(states[:, 0], tau)
    mean, std = transition_mean(v[:, None], states[:, :1], tau[:, None], tau_next[:, None], step, law)
    assert std is not None
    return gaussian_log_prob(states[:, 1], mean[:, 0], std[:, 0], mask, dims=(-1,), correlation=law.correlation)
