"""Terms that any objective can have beside its loss, each a pure function; their weights are settings.

velocity   mean squared distance to the starting policy's velocity in the objective's points
kl         KL(N(mean, std) || N(mean_start, std)) of the scored transitions, summed over valid entries
cloning    flow-matching loss on chunks of this round that were part of a success
entropy    of Flow-Noise, per valid entry: log std + (1 + log 2 pi) / 2
"""

from __future__ import annotations

import torch
from torch import Tensor

from learners.objectives.base import masked_mean
from rl_finetune.policy.flow import LOG_2PI, flow_matching_loss, whitened


def velocity_distance(velocity: Tensor, start: Tensor, mask: Tensor) -> Tensor:
    """Scalar, from velocities [B, P, H, K] and the mask [B, H, K]."""
    return masked_mean((velocity - start) ** 2, mask[:, None]).mean()


def gaussian_kl(mean: Tensor, start_mean: Tensor, std: Tensor, mask: Tensor, correlation: float = 0.0) -> Tensor:
    """Scalar, from [B, J, H, K]; the starting policy is given the same standard deviation, and the same correlation of
    neighbouring steps."""
    distance = whitened((mean - start_mean) / std.detach(), correlation) ** 2 / 2
    return torch.where(mask[:, None], distance, torch.zeros_like(distance)).flatten(1).sum(1).mean()


def cloning_loss(velocity: Tensor, sample: Tensor, eps: Tensor, mask: Tensor, success: Tensor) -> Tensor:
    """Scalar, over the successes [B] among chunks [B, H, K]; zero where there are none."""
    return flow_matching_loss(velocity, sample, eps, mask & success[:, None, None])


def entropy(std: Tensor, mask: Tensor) -> Tensor:
    """Scalar mean over valid entries of [B, J, H, K]."""
    return masked_mean(std.log(), mask[:, None]).mean() + (1 + LOG_2PI) / 2
