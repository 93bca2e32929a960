"""The critic's loss, whatever the objective."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from rl_finetune.config.schema import CriticSection


def value_loss(value: Tensor, old_value: Tensor, returns: Tensor, config: CriticSection) -> Tensor:
    """Mean error over [B] values, clipped and Huber if so configured; small errors cost (v - R)^2 / 2."""
    plain = _error(value, returns, config.huber)
    if config.clip is None:
        return plain.mean()
    near = old_value + (value - old_value).clamp(-config.clip, config.clip)
    return torch.maximum(plain, _error(near, returns, config.huber)).mean()


def _error(value: Tensor, returns: Tensor, huber: float | None) -> Tensor:
    if huber is None:
        return (value - returns) ** 2 / 2
    return F.huber_loss(value, returns, reduction="none", delta=huber)
