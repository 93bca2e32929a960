"""Clipped PPO at chunk level (arXiv 2605.30280, RL stage): one ratio, advantage and value a chunk decision.

policy  -min(rho A, clip(rho, 1 - c, 1 + c) A), for A < 0 not above dual_clip |A| (Ye et al. 2020)
value   max of the plain and the clipped error, Huber beyond a bound
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from learners.objectives.base import LossInputs, LossOutputs
from rl_finetune.config.schema import PPOSection


def ppo_loss(inputs: LossInputs, config: PPOSection) -> LossOutputs:
    """Policy and value loss of one minibatch."""
    log_ratio = (inputs.log_prob - inputs.old_log_prob).clamp(-config.log_ratio_clamp, config.log_ratio_clamp)
    ratio = log_ratio.exp()
    policy = policy_loss(ratio, inputs.advantage, config)
    value = value_loss(inputs.value, inputs.old_value, inputs.returns, config)
    with torch.no_grad():
        diagnostics = {
            "policy_loss": policy,
            "value_loss": value,
            "clip_fraction": ((ratio - 1).abs() > config.clip).float().mean(),
            "kl": (ratio - 1 - log_ratio).mean(),
            "ratio_error": (ratio - 1).abs().max(),
            "effective_samples": ratio.sum() ** 2 / (ratio**2).sum() / len(ratio),
        }
    return LossOutputs(policy + config.value_coefficient * value, {k: v.detach() for k, v in diagnostics.items()})


def policy_loss(ratio: Tensor, advantage: Tensor, config: PPOSection) -> Tensor:
    """Mean clipped surrogate over [B] ratios and advantages."""
    clipped = ratio.clamp(1 - config.clip, 1 + config.clip)
    gain = torch.minimum(ratio * advantage, clipped * advantage)
    if config.dual_clip is not None:
        gain = torch.where(advantage < 0, torch.maximum(gain, config.dual_clip * advantage), gain)
    return -gain.mean()


def value_loss(value: Tensor, old_value: Tensor, returns: Tensor, config: PPOSection) -> Tensor:
    """Mean clipped Huber error over [B] values; the constant makes small errors cost (v - R)^2 / 2."""
    near = old_value + (value - old_value).clamp(-config.value_clip, config.value_clip)
    errors = (F.huber_loss(v, returns, reduction="none", delta=config.huber) for v in (value, near))
    return torch.maximum(*errors).mean()
