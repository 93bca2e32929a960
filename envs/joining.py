"""What parts of a batch answered, put together as the answer of the whole."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from rl_finetune.types import ChunkOutcome, Failure, FloatArray, IntArray, Observation, concatenate


def join_observations(parts: Sequence[Observation], rows: Sequence[IntArray]) -> Observation:
    """Observations of parts as one; `rows` [n] of each part are the places of its environments in the whole."""
    return _arranged(concatenate(list(parts)), np.concatenate(rows))


def join_outcomes(parts: Sequence[ChunkOutcome], rows: Sequence[IntArray]) -> ChunkOutcome:
    """Outcomes of parts as one, with final observations and failures at their places in the whole.

    Args:
        parts: at least one; those that lack a reward term or a measure that another has get 0, or NaN.
        rows: [n] of each part, the places of its environments; together 0..N-1.
    """
    back = np.argsort(np.concatenate(rows))

    def joined(name: str) -> Any:
        return np.concatenate([getattr(part, name) for part in parts])[back]

    def columns(name: str, blank: Sequence[FloatArray]) -> dict[str, FloatArray]:
        names = dict.fromkeys(key for part in parts for key in getattr(part, name))
        return {
            key: np.concatenate([getattr(p, name).get(key, b) for p, b in zip(parts, blank, strict=True)])[back]
            for key in names
        }

    reward = joined("reward")
    placed = list(zip(parts, rows, strict=True))
    final_rows = np.concatenate([places[part.final_index] for part, places in placed])
    finals = [part.final_observation for part in parts if part.final_observation is not None]
    failures = [replace(each, row=int(places[each.row])) for part, places in placed for each in part.failures]
    return ChunkOutcome(
        reward=reward,
        steps_executed=joined("steps_executed"),
        terminated=joined("terminated"),
        truncated=joined("truncated"),
        success=joined("success"),
        observation=join_observations([part.observation for part in parts], rows),
        final_index=np.sort(final_rows),
        final_observation=_arranged(concatenate(finals), final_rows) if finals else None,
        reward_terms=columns("reward_terms", [np.zeros_like(p.reward) for p in parts]) or {"reward": reward.copy()},
        measures=columns("measures", [np.full(len(p.reward), np.nan, np.float32) for p in parts]),
        failures=tuple(sorted(failures, key=lambda failure: failure.row)),
    )


def abandoned(failures: Sequence[Failure], last: Observation, fresh: Observation, horizon: int) -> ChunkOutcome:
    """The outcome of n environments whose worlds broke down.

    Args:
        failures: what happened, one for each.
        last: their observations before the chunk: nobody knows what came after.
        fresh: the first ones of their next episodes.
        horizon: H.
    """
    n = len(failures)
    return ChunkOutcome(
        reward=np.zeros((n, horizon), np.float32),
        steps_executed=np.ones(n, np.int64),
        terminated=np.zeros(n, bool),
        truncated=np.ones(n, bool),
        success=np.zeros(n, bool),
        observation=fresh,
        final_index=np.arange(n),
        final_observation=last,
        reward_terms={},
        failures=tuple(replace(failure, row=row) for row, failure in enumerate(failures)),
    )


def _arranged(seen: Observation, rows: IntArray) -> Observation:
    """Ascending by `rows`; a copy only where the order changes."""
    return seen if (np.diff(rows) > 0).all() else seen.rows(np.argsort(rows))
