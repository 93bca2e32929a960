"""What an objective takes and gives: `LossInputs -> LossOutputs`, a pure function of tensors."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True, slots=True)
class LossInputs:
    """One minibatch of B chunk decisions."""

    log_prob: Tensor
    """[B] under the present weights, summed over valid channels of executed steps."""
    old_log_prob: Tensor
    """[B] the same under the weights that acted."""
    advantage: Tensor
    """[B] normalised if so configured."""
    value: Tensor
    """[B] present estimate."""
    old_value: Tensor
    """[B] estimate at rollout."""
    returns: Tensor
    """[B] value target."""


@dataclass(frozen=True, slots=True)
class LossOutputs:
    """A scalar to minimise and what to log beside it."""

    loss: Tensor
    """Scalar."""
    diagnostics: Mapping[str, Tensor]
    """Detached scalars by name."""
