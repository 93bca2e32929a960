"""Numbers that are not finite, found before anything learns from them."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from rl_finetune.types import ChunkOutcome, FloatArray, IntArray, Observation


def flaws(answer: Observation | ChunkOutcome) -> dict[int, str]:
    """Row -> name of the first array in which it is not finite; empty for a sound answer.

    Rewards, their terms, proprioception, privileged state and grounding labels are looked at, also those of final
    observations. `measures` are not: they are NaN where no episode ended.
    """
    found: dict[int, str] = {}
    for name, array, rows in _arrays(answer):
        sound = np.isfinite(array)
        if not sound.all():
            for place in np.flatnonzero(~sound.reshape(len(array), -1).all(-1)):
                found.setdefault(int(rows[place]), name)
    return found


def _arrays(answer: Observation | ChunkOutcome) -> Iterator[tuple[str, FloatArray, IntArray]]:
    """Name, array [M, ...] and the row [M] that each of its entries belongs to."""
    if isinstance(answer, Observation):
        yield from _seen(answer, np.arange(len(answer)), "")
        return
    everyone = np.arange(len(answer.reward))
    yield "reward", answer.reward, everyone
    for name, term in answer.reward_terms.items():
        yield f"reward term {name!r}", term, everyone
    yield from _seen(answer.observation, everyone, "")
    if answer.final_observation is not None:
        yield from _seen(answer.final_observation, answer.final_index, "final ")


def _seen(seen: Observation, rows: IntArray, when: str) -> Iterator[tuple[str, FloatArray, IntArray]]:
    if seen.proprioception is not None:
        yield f"{when}proprioception", seen.proprioception, rows
    if seen.privileged is not None:
        yield f"{when}privileged state", seen.privileged, rows
    if seen.grounding is not None:
        yield f"{when}grounding points", seen.grounding.points, rows
