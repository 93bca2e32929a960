"""GRPO and leave-one-out (RLOO): PPO's clipped ratio with an advantage relative to episodes of the same beginning.

GRPO  A = (R - mean_g) / (std_g + 1e-6)          (Shao et al. 2024)
RLOO  A = R - mean of the others of the group    (Ahmadian et al. 2024)

Which of the two follows from the settings' `credit`; `learners.advantages.group_scores` computes it. No critic.
"""

from __future__ import annotations

from learners.objectives.base import DensityInputs, LossOutputs
from learners.objectives.ppo import ppo_loss
from rl_finetune.config.objectives import ClippedSection


def group_loss(inputs: DensityInputs, config: ClippedSection) -> LossOutputs:
    """Policy loss of one minibatch."""
    return ppo_loss(inputs, config)
