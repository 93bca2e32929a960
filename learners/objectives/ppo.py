"""Clipped PPO at chunk level (arXiv 2605.30280, RL stage): one ratio and one advantage a chunk decision.

-min(rho A, clip(rho, 1 - c, 1 + c) A), for A < 0 not above dual_clip |A| (Ye et al. 2020)
"""

from __future__ import annotations

from learners.objectives.base import DensityInputs, LossOutputs
from learners.objectives.ratios import clip_acts, clipped_loss, ratio_diagnostics
from rl_finetune.config.objectives import ClippedSection


def ppo_loss(inputs: DensityInputs, config: ClippedSection) -> LossOutputs:
    """Policy loss of one minibatch."""
    log_ratio = (inputs.log_prob - inputs.old_log_prob).clamp(-config.log_ratio_clamp, config.log_ratio_clamp)
    terms = log_ratio.exp(), inputs.advantage, config.clip, config.dual_clip
    return LossOutputs(clipped_loss(*terms), ratio_diagnostics(log_ratio, clip_acts(*terms)))
