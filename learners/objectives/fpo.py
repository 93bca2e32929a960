"""Flow policy optimisation: the flow-matching loss of an executed chunk stands for its log-likelihood.

    l(tau, eps) = mean over valid channels of executed steps of (v(x_tau) - (eps - a))^2, on P stored pairs a decision

FPO (McAllister et al. 2025): rho = exp(mean_i(l_old,i - l_i)), PPO's clip.
FPO++: rho_i = exp(clip(l_old,i - l_i, +-3)) a pair; A >= 0 PPO's clip, A < 0 gains rho A - |A| / (2 e) (rho - 1)^2,
whose gradient pulls a ratio back where a clip would let go of it (SPO, Xie et al. 2024).

The loss is a mean, as where the clip of .05 comes from: so one clip serves bodies of 7 and of 304 numbers a chunk.
"""

from __future__ import annotations

import torch
from torch import Tensor

from learners.objectives.base import LossOutputs, PairInputs, masked_mean
from learners.objectives.ratios import clip_acts, clipped_loss, ratio_diagnostics
from rl_finetune.config.objectives import FPOPlusSection, FPOSection


def fpo_loss(inputs: PairInputs, config: FPOSection) -> LossOutputs:
    """One ratio a decision."""
    change = pair_losses(inputs, inputs.old_velocity) - pair_losses(inputs, inputs.velocity)
    log_ratio = change.mean(1).clamp(-config.log_ratio_clamp, config.log_ratio_clamp)
    terms = log_ratio.exp(), inputs.advantage, config.clip, None
    return LossOutputs(clipped_loss(*terms), ratio_diagnostics(log_ratio, clip_acts(*terms)))


def fpo_plus_loss(inputs: PairInputs, config: FPOPlusSection) -> LossOutputs:
    """One ratio a pair."""
    change = pair_losses(inputs, inputs.old_velocity) - pair_losses(inputs, inputs.velocity)
    log_ratio = change.clamp(-config.log_ratio_clamp, config.log_ratio_clamp)
    ratio = log_ratio.exp()
    advantage = inputs.advantage[:, None].expand_as(ratio)
    clipped = torch.minimum(ratio * advantage, ratio.clamp(1 - config.clip, 1 + config.clip) * advantage)
    pulled = ratio * advantage - advantage.abs() / (2 * config.clip) * (ratio - 1) ** 2
    loss = -torch.where(advantage >= 0, clipped, pulled).mean()
    acts = clip_acts(ratio, advantage.clamp(min=0), config.clip, None)
    return LossOutputs(loss, ratio_diagnostics(log_ratio, acts))


def pair_losses(inputs: PairInputs, velocity: Tensor) -> Tensor:
    """l [B, P] of velocities [B, P, H, K]."""
    return masked_mean((velocity - inputs.target) ** 2, inputs.mask[:, None], keep=2)
