"""Objectives by name. Adding one is a file, a config class (`rl_finetune.config.objectives`) and a line here."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from learners.objectives.base import LossOutputs
from learners.objectives.decoupled_ppo import decoupled_ppo_loss
from learners.objectives.fpo import fpo_loss, fpo_plus_loss
from learners.objectives.grpo import group_loss
from learners.objectives.nft import diffusion_nft_loss, step_nft_loss
from learners.objectives.ppo import ppo_loss
from learners.objectives.recap import recap_loss

Objective = Callable[[Any, Any], LossOutputs]
"""(inputs of the view that the settings name, settings) -> loss."""

OBJECTIVES: dict[str, Objective] = {
    "ppo": ppo_loss,
    "decoupled_ppo": decoupled_ppo_loss,
    "grpo": group_loss,
    "rloo": group_loss,
    "diffusion_nft": diffusion_nft_loss,
    "step_nft": step_nft_loss,
    "fpo": fpo_loss,
    "fpo_plus": fpo_plus_loss,
    "recap": recap_loss,
}
