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


def clip_acts(ratio: Tensor, advantage: Tensor, clip: float, dual_clip: float | None) -> Tensor:
    """[...] where the bound is chosen in `clipped_loss`, so that the decision has no gradient: the ratio left the clip
    in the direction that the advantage rewards, or a bad action's ratio is above the dual clip."""
    acts = (advantage > 0) & (ratio > 1 + clip) | (advantage < 0) & (ratio < 1 - clip)
    return acts if dual_clip is None else acts | (advantage < 0) & (ratio > dual_clip)


@torch.no_grad()
def ratio_diagnostics(log_ratio: Tensor, clipped: Tensor) -> dict[str, Tensor]:
    """Of log-ratios [...] and where the clip acts on them [...]: clip fraction, KL (the k3 estimate, Schulman 2020),
    worst ratio, effective share of samples."""
    ratio = log_ratio.exp()
    return {
        "clip_fraction": clipped.float().mean(),
        "kl": (ratio - 1 - log_ratio).mean(),
        "ratio_error": (ratio - 1).abs().max(),
        "effective_samples": ratio.sum() ** 2 / (ratio**2).sum() / ratio.numel(),
    }
