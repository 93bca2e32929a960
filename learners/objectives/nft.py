"""Negative-aware fine-tuning: likelihood-free, good and bad chunks pull the velocity to opposite sides of the old one.

    D = v - v_old,  v+- = v_old +- beta D,  loss = r E(v+) + (1 - r) E(v-),  r = (1 + clip(A / c, -1, 1)) / 2

DiffusionNFT (Zheng et al. 2025): E is the squared error of the predicted clean chunk x0 = x - tau v. With the adaptive
weight of the published code it is divided by the mean absolute error of the same pair and sign, without gradient. As
errors of x0 grow with tau, the gradient in v then goes with tau in place of tau^2.
StepNFT: E is the squared error of the next solver state over its variance.
Where r = 1/2 the gradient at v = v_old is zero.
"""

from __future__ import annotations

from torch import Tensor

from learners.objectives.base import LossOutputs, PairInputs, TransitionInputs, masked_mean
from rl_finetune.config.objectives import DiffusionNFTSection, StepNFTSection

LEAST_ERROR = 1e-5
"""Smallest mean absolute error that the adaptive weight divides by, as published."""


def diffusion_nft_loss(inputs: PairInputs, config: DiffusionNFTSection) -> LossOutputs:
    """Loss over (tau, eps) pairs: errors of predicted chunks."""
    tau, step = inputs.tau[..., None, None], config.beta * (inputs.velocity - inputs.old_velocity)
    wanted, mask = inputs.sample[:, None], inputs.mask[:, None]
    errors = [inputs.x - tau * (inputs.old_velocity + sign * step) - wanted for sign in (1, -1)]
    squares = [masked_mean(error**2, mask, keep=2) for error in errors]
    if config.adaptive_weight:
        sizes = [masked_mean(error.detach().abs(), mask, keep=2) for error in errors]
        squares = [square / size.clamp(min=LEAST_ERROR) for square, size in zip(squares, sizes, strict=True)]
    plus, minus = (square.mean(1) for square in squares)
    return _nft(plus, minus, inputs.advantage, config.advantage_clip, inputs.velocity - inputs.old_velocity, mask)


def step_nft_loss(inputs: TransitionInputs, config: StepNFTSection) -> LossOutputs:
    """Loss over sampled transitions: errors of the next state, in standard deviations. The mean is affine in v, so its
    old value +- beta times its change is the mean at v+-."""
    step = config.beta * (inputs.mean - inputs.old_mean)
    errors = [(inputs.old_mean + sign * step - inputs.x_next) / inputs.std for sign in (1, -1)]
    plus, minus = (masked_mean(error**2, inputs.mask) for error in errors)
    return _nft(plus, minus, inputs.advantage, config.advantage_clip, inputs.mean - inputs.old_mean, inputs.mask)


def goodness(advantage: Tensor, clip: float) -> Tensor:
    """r in [0, 1] from advantages [B]; 1/2 where a chunk was as good as its group."""
    return (1 + (advantage / clip).clamp(-1, 1)) / 2


def _nft(plus: Tensor, minus: Tensor, advantage: Tensor, clip: float, moved: Tensor, mask: Tensor) -> LossOutputs:
    """Blend both errors [B]; `moved` [B, ..., H, K] is for the log."""
    r = goodness(advantage, clip)
    loss = (r * plus + (1 - r) * minus).mean()
    drift = masked_mean(moved.detach() ** 2, mask).mean().sqrt()
    return LossOutputs(loss, {"goodness": r.mean().detach(), "velocity_drift": drift})
