"""What objectives with a ratio share: the clipped surrogate and what is logged of ratios."""

from __future__ import annotations

import torch
from torch import Tensor


def clipped_loss(ratio: Tensor, advantage: Tensor, clip: float, dual_clip: float | None) -> Tensor:
    """Mean of -min(rho A, clip(rho, 1 - c, 1 + c) A) over [B], for A < 0 not above dual_clip |A| (Ye et al. 2020)."""
    clipped = ratio.clamp(1 - clip, 1 + clip)
    gain = torch.minimum(ratio * advantage, clipped * advantage)
    if dual_clip is not None:
        gain = torch.where(advantage < 0, torch.maximum(gain, dual_clip * advantage), gain)
    return -gain.mean()


@torch.no_grad()
def ratio_diagnostics(log_ratio: Tensor, clip: float) -> dict[str, Tensor]:
    """Of log-ratios [...]: clip fraction, KL (the k3 estimate, Schulman 2020), worst ratio, effective share of
    samples."""
    ratio = log_ratio.exp()
    return {
        "clip_fraction": ((ratio - 1).abs() > clip).float().mean(),
        "kl": (ratio - 1 - log_ratio).mean(),
        "ratio_error": (ratio - 1).abs().max(),
        "effective_samples": ratio.sum() ** 2 / (ratio**2).sum() / ratio.numel(),
    }
