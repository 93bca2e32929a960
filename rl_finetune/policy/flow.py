"""Flow matching and its sampling laws as pure functions.

Convention (arXiv 2605.30280): tau = 1 is noise, tau = 0 is data; x_tau = (1 - tau) x0 + tau eps; velocity v = eps - x0.
Hence x0_hat = x - tau v and eps_hat = x + (1 - tau) v. A checkpoint of the other direction has s = 1 - tau, u = -v.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

LOG_2PI = math.log(2 * math.pi)


def euler_grid(num_steps: int) -> Tensor:
    """Times tau_k = 1 - k/N of the Euler chain, float32 [num_steps + 1], from 1 (noise) to 0 (data)."""
    if num_steps < 1:
        raise ValueError(f"num_steps: got {num_steps}, expected at least 1")
    return 1.0 - torch.arange(num_steps + 1, dtype=torch.float64).div(num_steps).float()


def interpolate(x0: Tensor, eps: Tensor, tau: Tensor) -> Tensor:
    """Point at time `tau` on the straight path from data `x0` to noise `eps`; shapes broadcast."""
    return (1 - tau) * x0 + tau * eps


def ode_step(x: Tensor, v: Tensor, tau: Tensor, tau_next: Tensor) -> Tensor:
    """One Euler step of the probability-flow ODE from `tau` to the smaller `tau_next`."""
    return x - (tau - tau_next) * v


def sde_sigma(tau: Tensor, tau_next: Tensor, noise_level: Tensor | float) -> Tensor:
    """Diffusion coefficient a sqrt(tau / (1 - tau)) of Flow-SDE.

    At tau = 1 the denominator takes tau_next in place of tau: clamping tau instead would blow the first step up.
    """
    denominator = torch.where(tau >= 1, 1 - tau_next, 1 - tau)
    return noise_level * torch.sqrt(tau / denominator)


def sde_step(x: Tensor, v: Tensor, tau: Tensor, tau_next: Tensor, noise_level: Tensor | float) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of the Flow-SDE transition from `tau` to `tau_next` (flow_rl, sampling laws).

    Args:
        x: chain state [..., H, K] at `tau`.
        v: velocity there, same shape.
        tau, tau_next: times that broadcast against `x`, tau > tau_next >= 0.
        noise_level: a >= 0; 0 gives the ODE step with zero standard deviation.

    Returns:
        Mean [..., H, K] and standard deviation (broadcastable against it).
    """
    delta = tau - tau_next
    sigma = sde_sigma(tau, tau_next, noise_level)
    x0_hat = x - tau * v
    eps_hat = x + (1 - tau) * v
    mean = x0_hat * (1 - tau_next) + eps_hat * (tau_next - sigma**2 * delta / (2 * tau))
    return mean, sigma * torch.sqrt(delta)


def gaussian_log_prob(
    x: Tensor, mean: Tensor, std: Tensor, mask: Tensor, *, dims: tuple[int, ...] = (-2, -1), correlation: float = 0.0
) -> Tensor:
    """Gaussian log-density of `x` in float32, summed over the valid entries of `dims`.

    Args:
        x, mean: [..., H, K].
        std: positive, broadcastable.
        mask: [..., H, K] bool; padded channels and steps that were not executed add nothing. Executed steps come first,
            so that what is left is the density of what was executed.
        dims: axes to sum over, steps and channels by default.
        correlation: between the noise of neighbouring steps, see `coloured`; each step's density is then the one given
            the steps before it.
    """
    x, mean, std = x.float(), mean.float(), std.float()
    density = -0.5 * (whitened((x - mean) / std, correlation) ** 2 + LOG_2PI) - torch.log(std)
    if correlation:
        density[..., 1:, :] -= 0.5 * math.log(1 - correlation**2)
    return torch.where(mask, density, torch.zeros_like(density)).sum(dims)


def coloured(white: Tensor, correlation: float) -> Tensor:
    """Noise whose neighbouring steps correlate, from independent draws [..., H, K]: the stationary autoregression
    y_0 = z_0, y_h = rho y_(h-1) + sqrt(1 - rho^2) z_h, of unit variance at every step. `whitened` undoes it."""
    if not correlation:
        return white
    steps = [white[..., 0, :]]
    for z in white.unbind(-2)[1:]:
        steps.append(correlation * steps[-1] + math.sqrt(1 - correlation**2) * z)
    return torch.stack(steps, -2)


def whitened(noise: Tensor, correlation: float) -> Tensor:
    """The independent draws [..., H, K] that `coloured` made `noise` of."""
    if not correlation:
        return noise
    innovations = (noise[..., 1:, :] - correlation * noise[..., :-1, :]) / math.sqrt(1 - correlation**2)
    return torch.cat([noise[..., :1, :], innovations], -2)


def flow_matching_loss(velocity: Tensor, x0: Tensor, eps: Tensor, mask: Tensor) -> Tensor:
    """Paper's loss: per channel the mean squared velocity error over valid steps, then the mean over valid channels.

    Args:
        velocity: predicted [N, H, K].
        x0, eps: clean actions and noise [N, H, K].
        mask: [N, H, K] valid steps and channels.

    Returns:
        Scalar, the mean over samples.
    """
    error = torch.where(mask, (velocity - (eps - x0)) ** 2, torch.zeros_like(velocity))
    steps = mask.sum(1)
    per_channel = error.sum(1) / steps.clamp(min=1)
    channels = (steps > 0).sum(1)
    return (per_channel.sum(1) / channels.clamp(min=1)).mean()
