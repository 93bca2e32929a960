"""The shipped checkpoint: it acts, and it needs both its eyes and its ears."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import envs
from actors.evaluator import Shuffle, run_episodes
from rl_finetune.errors import UserError
from rl_finetune.metrics.intervals import wilson
from rl_finetune.policy import QwenVLAPolicy
from rl_finetune.types import SeedKeys

FOLDER = Path(__file__).parent.parent / "checkpoints" / "qwen-vla-tiny"
EPISODES, SEED = 128, 1_000_003


@pytest.fixture(scope="module")
def successes() -> dict[Shuffle, int]:
    """Successes among the same held-out episodes: as they are, with others' pictures, with others' instructions."""
    policy = QwenVLAPolicy.from_pretrained(FOLDER)
    found: dict[Shuffle, int] = {"none": 0, "images": 0, "instructions": 0}
    keys = SeedKeys(SEED, np.arange(EPISODES), np.zeros(EPISODES, np.int64))
    with envs.make("widowx_reach", EPISODES) as env:
        for shuffle in found:
            found[shuffle] = int(run_episodes(policy, env, keys, temperature=0.6, shuffle=shuffle).success.sum())
    return found


def test_it_starts_where_reinforcement_learning_has_something_to_do(successes: dict[Shuffle, int]) -> None:
    low, high = wilson(successes["none"], EPISODES)
    assert high > 0.35 and low < 0.60


def test_without_its_pictures_it_is_lost(successes: dict[Shuffle, int]) -> None:
    """A success zone is about a fiftieth of the workspace: blind reaching finds the right one by accident."""
    assert wilson(successes["images"], EPISODES)[1] < 0.12
    assert wilson(successes["images"], EPISODES)[1] < wilson(successes["none"], EPISODES)[0]


def test_without_its_instruction_it_is_at_chance(successes: dict[Shuffle, int]) -> None:
    """Another episode's colour is this one's in a quarter of cases: chance is that share of what it can do."""
    can = successes["none"] / EPISODES
    low, high = wilson(successes["instructions"], EPISODES)
    assert low < can / 3 and high < can / 1.5


def test_it_is_small_and_complete() -> None:
    files = [p for p in FOLDER.rglob("*") if p.is_file()]
    assert sum(p.stat().st_size for p in files) <= 16 * 1024**2
    assert {"config.json", "model.safetensors", "normalisation.json", "README.md"} <= {p.name for p in files}


@pytest.mark.parametrize("name", ["widowx_reach", "aloha_reach", "rover_navigate"])
def test_it_understands_requests_that_are_longer_than_any_it_was_trained_on(name: str) -> None:
    """A reworded task needs more tokens than the checkpoint's contexts have."""
    policy = QwenVLAPolicy.from_pretrained(FOLDER.with_name("qwen-vla-tiny-everyone"))
    with envs.make(name, 1, perturb="paraphrase") as env:
        task = max(env.spec.tasks, key=len)
        asked = replace(env.reset(SeedKeys(0, np.zeros(1, np.int64), np.zeros(1, np.int64))), instruction=(task,))
        with pytest.raises(UserError, match="prompt is longer"):
            policy.encode(asked)
        policy.make_room_for(env.spec)
        assert policy.encode(asked).mask.sum() > policy.config.context_tokens[env.spec.embodiment.tag]
