"""Is what will be served what was trained? The same observations and the same noise, through both.

trained   base policy, its adapter beside it, as it left training
exported  the bundle, or the adapter folded in, written to the disk and read again
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from rl_finetune.config.schema import PolicySection
from rl_finetune.policy import QwenVLAPolicy
from rl_finetune.policy.adapters import merge_adapters
from rl_finetune.policy.loading import load_policy
from rl_finetune.promotion.evidence.policies import Weights
from rl_finetune.promotion.records import ParityRecord
from rl_finetune.spec import EmbodimentSpec, EnvSpec
from rl_finetune.types import FloatArray, IntArray, Observation, SeedKeys


@dataclass(frozen=True, slots=True)
class Question:
    """What both policies are asked: N observations of one body, and the noise that belongs to them."""

    observation: Observation
    """N rows."""
    keys: SeedKeys
    """Their episodes."""
    chunk: IntArray
    """[N] number of the chunk within the episode."""


@torch.no_grad()
def compared(
    trained: QwenVLAPolicy,
    exported: QwenVLAPolicy,
    body: EmbodimentSpec,
    questions: Sequence[Question],
    temperature: float,
) -> ParityRecord:
    """Both policies' answers, action by action; what is no number anywhere is infinitely far off.

    Raises:
        ValueError: nothing was asked.
    """
    if not questions:
        raise ValueError("parity needs at least one observation")
    one, two = ([_answer(policy, body, q, temperature) for q in questions] for policy in (trained, exported))
    mine, other = np.concatenate(one).astype(np.float64), np.concatenate(two).astype(np.float64)
    worst = np.abs(mine - other).max((0, 1))
    scale = mine.reshape(-1, mine.shape[-1]).std(0)
    return ParityRecord(
        embodiment=body.tag, chunks=len(mine), worst=_finite(worst), scale=_finite(scale)
    )  # fmt: skip


def exported(weights: Weights, specs: Sequence[EnvSpec] = ()) -> QwenVLAPolicy:
    """What would be served: a bundle as it is read, anything else folded, written and read again.

    Args:
        weights: whose.
        specs: environments that it will act in, see `load_policy`.

    Raises:
        UserError: it cannot be loaded.
    """
    if weights.bundle is not None:
        return weights.load(specs)
    policy = merge_adapters(weights.load())
    with tempfile.TemporaryDirectory() as folder:
        policy.save_pretrained(Path(folder))
        # guidance is no weight: bundles keep it in their record
        return load_policy(PolicySection(path=folder, guidance=policy.guidance), specs)


def _answer(policy: QwenVLAPolicy, body: EmbodimentSpec, asked: Question, temperature: float) -> FloatArray:
    """[N, H, c] action units."""
    seen = policy.look(asked.observation)
    chunk = policy.act(seen, asked.keys, asked.chunk, body, temperature)
    answer: FloatArray = chunk.actions[..., : body.action.channels]
    return answer


def _finite(values: FloatArray) -> tuple[float, ...]:
    """As numbers that JSON knows: what is not finite is as large as can be."""
    top = float(np.finfo(np.float32).max)
    return tuple(np.nan_to_num(values, nan=top, posinf=top, neginf=top).tolist())
