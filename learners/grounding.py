"""Auxiliary 2-D grounding: where the named things appear in the picture (the paper co-trains on it).

Two reads of the backbone, both thrown away after supervised training:
- dense: each visual token says which thing lies within it and where in the token, straight after the vision tower;
- named: the prompt's last token says where every thing is, where the one named by the instruction is, and the metric
  displacement from the tool to it.

Without them the flow loss alone saw nothing in a thousand steps; with them the tower learns colours in a few hundred.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from rl_finetune.types import Observation

METRES = 0.1
"""Unit of the displacement target, so that it is of the order of the image coordinates."""
ROAM = 2.0
"""The same for bodies that drive through rooms."""


@dataclass(frozen=True, slots=True)
class GroundingLabels:
    """Labels of one batch."""

    points: Tensor
    """[N, P, 2] image coordinates, 0..1."""
    present: Tensor
    """[N, P] bool: in the scene and inside the picture."""
    named: Tensor
    """[N, 5] target u, v in -1..1 (at most twice that far outside), then displacement x, y, z from the tool in the
    body's unit; NaN where the world does not tell the two places."""

    @classmethod
    def of(cls, observation: Observation, privileged_names: tuple[str, ...], metres: float = METRES) -> GroundingLabels:
        """From an observation's `grounding`, and its privileged tool and target positions where it has them. `metres`
        is the unit of displacements."""
        g, state = observation.grounding, observation.privileged
        if g is None:
            raise ValueError("grounding labels: got an observation without them, expected a world that gives them")
        rows = np.arange(len(g.points))
        target = g.points[rows, g.target]
        column = {name: i for i, name in enumerate(privileged_names)}
        offset = np.full((len(rows), 3), np.nan)
        if state is not None and {f"{thing}_{axis}" for thing in ("target", "tool") for axis in "xyz"} <= column.keys():
            offset = np.stack([state[:, column[f"target_{a}"]] - state[:, column[f"tool_{a}"]] for a in "xyz"], axis=1)
        named = np.concatenate([np.clip(2 * target - 1, -2, 2), offset / metres], axis=1)
        inside = ((g.points >= 0) & (g.points < 1)).all(-1)
        return cls(*map(torch.from_numpy, (g.points, g.present & inside, named.astype(np.float32))))

    def rows(self, index: Tensor) -> GroundingLabels:
        """Some of the samples."""
        return GroundingLabels(self.points[index], self.present[index], self.named[index])


class GroundingHead(nn.Module):
    """Linear reads of visual tokens and of the last token."""

    def __init__(self, width: int, things: int) -> None:
        super().__init__()
        self.dense = nn.Linear(width, 3 * things)
        self.everything = nn.Linear(width, 2 * things)
        self.named = nn.Linear(width, 5)

    def dense_loss(self, visual: Tensor, labels: GroundingLabels) -> Tensor:
        """Which token holds each thing (cross-entropy over tokens) and where in it (L1, in token sides).

        Args:
            visual: [N, S, D] features of an s x s grid of visual tokens, row-major.
            labels: of the same batch.
        """
        side = round(visual.shape[1] ** 0.5)
        logits, offsets = self.dense(visual).unflatten(-1, (-1, 3)).split((1, 2), dim=-1)
        scaled = labels.points * side
        cell = scaled.floor().clamp(0, side - 1).long()
        index = cell[..., 1] * side + cell[..., 0]
        chosen = offsets.gather(1, index[:, None, :, None].expand(-1, 1, -1, 2))[:, 0]
        location = F.cross_entropy(logits[..., 0], index, reduction="none")
        place = (chosen - (scaled - cell - 0.5)).abs().sum(-1)
        weight = labels.present.float()
        return ((location + place) * weight).sum() / weight.sum().clamp(min=1)

    def named_loss(self, last: Tensor, labels: GroundingLabels) -> Tensor:
        """L1 error of the read-outs from the last token's state [N, D]: every thing present, and the named one."""
        everything = self.everything(last).unflatten(-1, (-1, 2))
        error = (everything - (2 * labels.points - 1)).abs().mean(-1)
        present = labels.present.float()
        known = ~labels.named.isnan()
        return (error * present).sum() / present.sum().clamp(min=1) + (
            self.named(last)[known] - labels.named[known]
        ).abs().mean()

    @torch.no_grad()
    def pixel_error(self, last: Tensor, labels: GroundingLabels) -> Tensor:
        """[N] distance between predicted and true target, in picture widths: what the log shows."""
        return (self.named(last)[:, :2] - labels.named[:, :2]).norm(dim=-1) / 2


def last_token(hidden: Tensor, mask: Tensor) -> Tensor:
    """State [N, D] of each prompt's last real token from [N, L, D] and [N, L]."""
    index = mask.sum(1) - 1
    return hidden[torch.arange(len(hidden)), index]
