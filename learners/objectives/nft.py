"""Negative-aware fine-tuning: likelihood-free, good and bad chunks pull the velocity to opposite sides of the old one.

    D = v - v_old,  v+- = v_old +- beta D,  loss = r E(v+) + (1 - r) E(v-),  r = (1 + clip(A / c, -1, 1)) / 2

DiffusionNFT (Zheng et al. 2025): E is the squared error of the predicted clean chunk x0 = x - tau v.
StepNFT: E is the squared error of the next solver state over its variance.
Where r = 1/2 the gradient at v = v_old is zero.
"""

from __future__ import annotations

import torch
from torch import Tensor

from learners.objectives.base import LossOutputs, PairInputs, TransitionInputs
from rl_finetune.config.objectives import DiffusionNFTSection, StepNFTSection


def diffusion_nft_loss(inputs: PairInputs, config: DiffusionNFTSection) -> LossOutputs:
    """Loss over (tau, eps) pairs: errors of predicted chunks."""
    tau, step = inputs.tau[..., None, None], config.beta * (inputs.velocity - inputs.old_velocity)
    wanted = inputs.sample[:, None]
    errors = [(inputs.x - tau * (inputs.old_velocity + sign * step) - wanted) ** 2 for sign in (1, -1)]
    mask = inputs.mask[:, None].expand_as(errors[0])
    return _nft(errors, mask, inputs.advantage, config.advantage_clip, inputs.velocity - inputs.old_velocity)


def step_nft_loss(inputs: TransitionInputs, config: StepNFTSection) -> LossOutputs:
    """Loss over sampled transitions: errors of the next state, in standard deviations. The mean is affine in v, so its
    old value +- beta times its change is the mean at v+-."""
    step = config.beta * (inputs.mean - inputs.old_mean)
    errors = [((inputs.old_mean + sign * step - inputs.x_next) / inputs.std) ** 2 for sign in (1, -1)]
    return _nft(errors, inputs.mask, inputs.advantage, config.advantage_clip, (inputs.mean - inputs.old_mean))


def goodness(advantage: Tensor, clip: float) -> Tensor:
    """r in [0, 1] from advantages [B]; 1/2 where a chunk was as good as its group."""
    return (1 + (advantage / clip).clamp(-1, 1)) / 2


def _nft(errors: list[Tensor], mask: Tensor, advantage: Tensor, clip: float, moved: Tensor) -> LossOutputs:
    """Blend both errors [B, ..., H, K], each a mean over valid entries of its sample."""
    r = goodness(advantage, clip)
    plus, minus = (masked_mean(error, mask) for error in errors)
    loss = (r * plus + (1 - r) * minus).mean()
    with torch.no_grad():
        drift = masked_mean(moved**2, mask.expand_as(moved)).mean().sqrt()
    return LossOutputs(loss, {"goodness": r.mean().detach(), "velocity_drift": drift})


def masked_mean(values: Tensor, mask: Tensor) -> Tensor:
    """[B] mean of each sample's valid entries."""
    kept = torch.where(mask, values, torch.zeros_like(values)).flatten(1).sum(1)
    return kept / mask.flatten(1).sum(1).clamp(min=1)
