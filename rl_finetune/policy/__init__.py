"""The mind: Qwen-VLA policies, their sampler and their adapters."""

from __future__ import annotations

from rl_finetune.policy.config import QwenVLAConfig
from rl_finetune.policy.policy import QwenVLAPolicy, TorchContext
from rl_finetune.policy.sampler import FlowSDE

__all__ = ["FlowSDE", "QwenVLAConfig", "QwenVLAPolicy", "TorchContext"]
