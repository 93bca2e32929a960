"""Stored rounds: what is read is what was written, to the bit, and damage is named."""

from __future__ import annotations

from dataclasses import fields, is_dataclass
from pathlib import Path

import numpy as np
import pytest
from builders import observations, random_contexts, tiny_policy, trajectory

from rl_finetune.errors import UserError
from rl_finetune.store import load_round, rounds, save_round
from rl_finetune.types import Observation


def same(one: object, other: object) -> bool:
    """Equal to the bit, whatever the record."""
    if isinstance(one, np.ndarray):
        return isinstance(other, np.ndarray) and one.dtype == other.dtype and np.array_equal(one, other)
    if isinstance(one, Observation):
        words = isinstance(other, Observation) and one.instruction == other.instruction
        return isinstance(other, Observation) and words and same(one.images, other.images)
    if is_dataclass(one):
        return type(one) is type(other) and all(same(getattr(one, f.name), getattr(other, f.name)) for f in fields(one))
    if isinstance(one, dict):
        return isinstance(other, dict) and one.keys() == other.keys() and all(same(one[k], other[k]) for k in one)
    if isinstance(one, tuple):
        return isinstance(other, tuple) and len(one) == len(other) and all(map(same, one, other))
    return one == other


def test_a_round_comes_back_as_it_was(tmp_path: Path) -> None:
    policy = tiny_policy()
    contexts = random_contexts(6)
    spoken = tuple(random_contexts(6, seed=s).numpy() for s in (1, 2))
    state = np.random.default_rng(0).normal(size=(2, 3, 5)).astype(np.float32)
    cached = trajectory(policy, contexts, chunks=2, advised=spoken, privileged=state)
    seen = trajectory(policy, observations(4), chunks=2, seed=1)
    found = load_round(save_round(tmp_path, 3, [cached, seen]))
    assert same(tuple(found), (cached, seen))


def test_rounds_are_in_their_order_and_half_written_ones_are_not_seen(tmp_path: Path) -> None:
    made = trajectory(tiny_policy(), random_contexts(2))
    for number in (10, 2):
        save_round(tmp_path, number, [made])
    (tmp_path / "000011.safetensors.part").write_bytes(b"half")
    assert [path.name for path in rounds(tmp_path)] == ["000002.safetensors", "000010.safetensors"]


def test_damage_and_absence_are_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no stored rounds"):
        rounds(tmp_path)
    path = save_round(tmp_path, 0, [trajectory(tiny_policy(), random_contexts(2))])
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(UserError, match=r"stored round cannot be read.*000000"):
        load_round(path)
