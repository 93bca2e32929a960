"""Eyes that need no pictures: what a frozen backbone would tell, straight from the simulator's state.

In every training of the comparison the backbone is frozen and the same, and it takes most of the time. Here three
tokens of fixed random features (Rahimi and Recht 2007) of where the tool and the named block are take its place; a
fourth token says which advice the prompt gives. What is compared - law, objective, critic, adapters of the decoder - is
untouched.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from rl_finetune.spec import EmbodimentSpec
from rl_finetune.types import Observation

TOKENS = 4
SCALES = (3.0, 12.0)
"""Radians per metre of slow and fast features: a table is a third of a metre across."""


@dataclass(frozen=True, slots=True)
class StateInputs:
    """One batch, as `Backbone.tokenise` would give it."""

    state: Tensor
    """[N, 3, 3] tool, target, and the way from one to the other; metres."""
    advice: Tensor
    """[N] 0 none, 1 positive, 2 negative."""
    mask: Tensor
    """[N, L] all true."""
    positions: Tensor
    """[3, N, L]."""


class StateEyes(nn.Module):
    """Has what a policy asks of its backbone; nothing in it trains."""

    def __init__(self, width: int, seed: int = 0) -> None:
        super().__init__()
        rng = np.random.default_rng(seed)
        half = width // 4
        directions = np.concatenate([scale * rng.standard_normal((3, half)) for scale in SCALES], axis=1)
        self.register_buffer("directions", torch.from_numpy(directions.astype(np.float32)))
        self.register_buffer("words", torch.from_numpy(rng.standard_normal((3, width)).astype(np.float32)))
        self.max_tokens = TOKENS

    def tokenise(self, observation: Observation, body: EmbodimentSpec) -> StateInputs:
        """Positions and advice; pictures are not looked at.

        Raises:
            ValueError: the environment exposes no state.
        """
        if observation.privileged is None:
            raise ValueError("state eyes need Observation.privileged: got none")
        tool, target = np.split(observation.privileged[:, :6].astype(np.float32), 2, axis=1)
        state = torch.from_numpy(np.stack([tool, target, target - tool], axis=1))
        n = len(observation)
        advice = [1 + text.endswith("negative") if "Advantage:" in text else 0 for text in observation.instruction]
        positions = torch.arange(TOKENS).expand(3, n, -1).contiguous()
        return StateInputs(state, torch.tensor(advice), torch.ones(n, TOKENS, dtype=torch.bool), positions)

    def forward(self, inputs: StateInputs) -> Tensor:
        """[N, L, D]."""
        phase = inputs.state @ self.directions
        return torch.cat((torch.cat((phase.sin(), phase.cos()), -1), self.words[inputs.advice][:, None]), 1)
