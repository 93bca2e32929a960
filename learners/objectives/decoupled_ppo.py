"""Decoupled PPO for stale data (Hilton et al. 2022; Fu et al. 2025, AReaL).

Three policies: the one that acted (behaviour), the one at the start of the update (proximal), the present one.

    weight w = pi_prox / pi_behaviour, decisions with w above `max_weight` are dropped
    loss     -mean(w min(r A, clip(r) A)),  r = pi / pi_prox

At zero lag w = 1 and it is PPO.
"""

from __future__ import annotations

import torch

from learners.objectives.base import DensityInputs, LossOutputs
from learners.objectives.ratios import clip_acts, clipped_loss, ratio_diagnostics
from rl_finetune.config.objectives import DecoupledPPOSection


def decoupled_ppo_loss(inputs: DensityInputs, config: DecoupledPPOSection) -> LossOutputs:
    """Policy loss of one minibatch."""
    bound = config.log_ratio_clamp
    log_ratio = (inputs.log_prob - inputs.start_log_prob).clamp(-bound, bound)
    weight = (inputs.start_log_prob - inputs.old_log_prob).clamp(-bound, bound).exp()
    kept = weight <= config.max_weight
    weight = torch.where(kept, weight, torch.zeros_like(weight))
    terms = log_ratio.exp(), weight * inputs.advantage, config.clip, config.dual_clip
    return LossOutputs(
        clipped_loss(*terms),
        ratio_diagnostics(log_ratio, clip_acts(*terms))
        | {
            "stale_weight": weight.mean(),
            "stale_dropped": 1 - kept.float().mean(),
            "effective_samples": weight.sum() ** 2 / (weight**2).sum().clamp(min=1e-12) / len(weight),
        },
    )
