"""What an objective takes and gives: `LossInputs -> LossOutputs`, a pure function of tensors.

There are three kinds of inputs, one for each `view` that an objective's settings may ask for.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class DensityInputs:
    """View `density`: one minibatch of B chunk decisions and how likely each is."""

    log_prob: Tensor
    """[B] under the present weights, summed over scored transitions and valid channels of executed steps, and scaled
    where `ratio_length` says so."""
    old_log_prob: Tensor
    """[B] the same under the weights that acted."""
    start_log_prob: Tensor
    """[B] the same under the weights at the start of the update; equals `old_log_prob` where nothing is stale."""
    advantage: Tensor
    """[B] normalised if so configured."""


@dataclass(frozen=True, slots=True)
class TransitionInputs:
    """View `transitions`: where the solver went next, and where present and old velocity would have taken it."""

    mean: Tensor
    """[B, H, K] mean of the next state under the present weights."""
    old_mean: Tensor
    """[B, H, K] under the weights at the start of the update."""
    x_next: Tensor
    """[B, H, K] the next state that was sampled."""
    std: Tensor
    """[B, 1, 1] standard deviation of the transition."""
    mask: Tensor
    """[B, H, K] valid channels of executed steps."""
    advantage: Tensor
    """[B] normalised if so configured."""


@dataclass(frozen=True, slots=True)
class PairInputs:
    """View `pairs`: P points (tau, eps) on straight paths that end in the executed chunk."""

    velocity: Tensor
    """[B, P, H, K] under the present weights."""
    old_velocity: Tensor
    """[B, P, H, K] under the weights at the start of the update."""
    sample: Tensor
    """[B, H, K] executed chunk, normalised units."""
    eps: Tensor
    """[B, P, H, K] the other end of the paths."""
    tau: Tensor
    """[B, P] where on the path."""
    mask: Tensor
    """[B, H, K] valid channels of executed steps."""
    advantage: Tensor
    """[B] normalised if so configured."""

    @property
    def target(self) -> Tensor:
        """[B, P, H, K] velocity of the paths."""
        return self.eps - self.sample[:, None]

    @property
    def x(self) -> Tensor:
        """[B, P, H, K] the points."""
        tau = self.tau[..., None, None]
        return (1 - tau) * self.sample[:, None] + tau * self.eps


LossInputs = DensityInputs | TransitionInputs | PairInputs


@dataclass(frozen=True, slots=True)
class LossOutputs:
    """A scalar to minimise and what to log beside it."""

    loss: Tensor
    """Scalar."""
    diagnostics: Mapping[str, Tensor]
    """Detached scalars by name."""


def masked_mean(values: Tensor, mask: Tensor, keep: int = 1) -> Tensor:
    """Mean over valid entries of everything but the leading `keep` dimensions of `values`; `mask` is broadcast."""
    valid = mask.expand_as(values)
    kept = torch.where(valid, values, torch.zeros_like(values)).flatten(keep).sum(keep)
    return kept / valid.flatten(keep).sum(keep).clamp(min=1)
