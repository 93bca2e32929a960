"""The noise net of Flow-Noise: how much each entry of an action chunk is shaken at each denoising step."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from rl_finetune.policy.decoder import time_features

TIME_FEATURES = 16


class NoiseNet(nn.Module):
    """sigma = exp(0.5 [ln smin^2 + (ln smax^2 - ln smin^2)(tanh f + 1) / 2]) (flow_rl, Flow-Noise).

    A fresh net gives the geometric mean of both bounds everywhere. It is dropped at evaluation.
    """

    def __init__(self, context_width: int, action_width: int, std_min: float, std_max: float, hidden: int = 64) -> None:
        super().__init__()
        self.bounds = math.log(std_min), math.log(std_max)
        self.hidden = nn.Linear(context_width + action_width + TIME_FEATURES, hidden)
        self.out = nn.Linear(hidden, action_width)
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)

    def forward(self, pooled: Tensor, x: Tensor, tau: Tensor) -> Tensor:
        """Standard deviation [N, H, K] at chain state `x` [N, H, K], noise level `tau` [N], mean context [N, D]."""
        shared = torch.cat((pooled, time_features(tau, TIME_FEATURES)), -1)
        given = torch.cat((x, shared[:, None].expand(-1, x.shape[1], -1)), -1)
        low, high = self.bounds
        return (low + (high - low) * (torch.tanh(self.out(F.silu(self.hidden(given)))) + 1) / 2).exp()
