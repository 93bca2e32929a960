"""How long a round is: as long as an episode unless something else is said, and what is said of shorter ones."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import envs
from rl_finetune.algorithm.preflight import short_rounds, with_chunks
from rl_finetune.config import TrainConfig, load
from rl_finetune.errors import UserError

MIX = "env.mix=[{name: widowx_reach}, {name: gr1_transfer}, {name: rover_navigate, chunks: 5}]"


@pytest.mark.parametrize(("name", "chunks"), [("widowx_reach", 4), ("widowx_pick", 5), ("gr1_transfer", 10)])
def test_a_round_is_as_long_as_the_longest_episode(name: str, chunks: int) -> None:
    job = with_chunks(load(TrainConfig, None, [f"env.name={name}"]))
    assert job.rollout.chunks == chunks and short_rounds(job) == []
    assert with_chunks(job) == job


def test_each_world_of_a_mix_has_its_own_length() -> None:
    job = with_chunks(load(TrainConfig, None, [MIX]))
    assert [entry.chunks for entry in job.env.mix] == [4, 10, 5]
    (note,) = short_rounds(job)
    assert note.startswith("rover_navigate: a round of 40 steps (rollout.chunks=5) is shorter than an episode of 64")


def test_a_round_in_which_the_expert_could_not_finish_is_told() -> None:
    (note,) = short_rounds(load(TrainConfig, None, ["env.name=gr1_transfer", "rollout.chunks=4"]))
    assert "64 steps" in note and "its expert takes 84 on average, an episode may take 160" in note


def test_a_minibatch_beyond_the_round_is_refused() -> None:
    job = load(TrainConfig, None, ["env.num_envs=16", "objective.minibatch=128"])
    with pytest.raises(UserError, match=r"'objective.minibatch': got 128; expected at most .* = 64"):
        with_chunks(job)


def test_the_experts_steps_are_those_that_were_measured() -> None:
    measured: dict[str, list[float]] = {}
    for row in json.loads((Path(__file__).parent.parent / "benchmarks/results/experts.json").read_text()):
        measured.setdefault(row["world"], []).append(row["expert"]["steps"])
    assert len(measured) == 16
    for name, steps in measured.items():
        assert min(steps) - 1 < envs.expert_steps(name) < max(steps) + 1, name
