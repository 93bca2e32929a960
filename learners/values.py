"""The critic's loss, whatever the objective."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from rl_finetune.config.schema import CriticSection


def value_loss(value: Tensor, old_value: Tensor, returns: Tensor, config: CriticSection, scale: float) -> Tensor:
    """Mean error over [B] values, clipped and Huber if so configured; small errors cost (v - R)^2 / 2.

    Args:
        value, old_value, returns: [B] present and collected values, and their targets.
        config: `clip` and `huber` are in units of `scale`.
        scale: `return_scale` of the round.
    """
    huber = None if config.huber is None else config.huber * scale
    plain = _error(value, returns, huber)
    if config.clip is None:
        return plain.mean()
    near = old_value + (value - old_value).clamp(-config.clip * scale, config.clip * scale)
    return torch.maximum(plain, _error(near, returns, huber)).mean()


def return_scale(old_value: Tensor, returns: Tensor) -> float:
    """Root mean square of the returns [M], or of the values where those are larger: it never vanishes while there is
    anything to learn, and rewards that are all multiplied by a number multiply it too."""
    largest = torch.maximum(returns.square().mean(), old_value.square().mean()).sqrt()
    return max(float(largest), torch.finfo(torch.float32).tiny)


def _error(value: Tensor, returns: Tensor, huber: float | None) -> Tensor:
    if huber is None:
        return (value - returns) ** 2 / 2
    return F.huber_loss(value, returns, reduction="none", delta=huber)
