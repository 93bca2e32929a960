"""Settings: typed sections, YAML files that extend one another, overrides, and errors in one line."""

from __future__ import annotations

from rl_finetune.config.describe import describe
from rl_finetune.config.files import find
from rl_finetune.config.loader import dump, load
from rl_finetune.config.schema import EvaluateConfig, Section, SFTConfig, TrainConfig

__all__ = ["EvaluateConfig", "SFTConfig", "Section", "TrainConfig", "describe", "dump", "find", "load"]
