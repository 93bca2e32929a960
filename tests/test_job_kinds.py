"""Whole runs of other kinds than the main job's: stored rounds, resumed and offline, and rounds played ahead."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from builders import tiny_policy
from jobs import Job, numbers, rows

from rl_finetune.config import TrainConfig, load
from rl_finetune.policy.normalisation import Quantiles
from rl_finetune.store import load_round

SMALL = (
    "train", "--config", "smoke", "run.iterations=4", "run.checkpoint_every=2", "env.num_envs=8", "rollout.chunks=2",
    "objective.minibatch=16", "objective.epochs=1", "evaluation.episodes=8", "evaluation.clips=0",
    "env.options.tolerance=0.044", "rollout.num_actors=1", "learner.num_learners=1",
)  # fmt: skip
RECAP = (
    "objective.name=recap", "objective.replay=3", "objective.warmup=2",
    "exploration.law=calibrated", "exploration.sde_step=null", "exploration.executed_std=0.01",
)  # fmt: skip

Start = Callable[..., Job]


@pytest.fixture(scope="module")
def start(tmp_path_factory: pytest.TempPathFactory) -> Start:
    """Runs a small job to its end."""
    folder = tmp_path_factory.mktemp("kinds")
    built = tiny_policy()  # untrained, but its actions lead downwards: some episodes succeed, so there is credit
    built.quantiles = {"widowx": Quantiles((-0.2,) * 6 + (-1.0,), (0.2, 0.2, 0.02, 0.2, 0.2, 0.2, 1.0))}
    built.save_pretrained(folder / "policy")

    def run(name: str, *words: str) -> Job:
        job = Job(folder / name, *SMALL, *words, f"policy.path={folder / 'policy'}", f"run.folder={folder / name}")
        assert job.wait() == 0, job.log()
        return job

    return run


@pytest.fixture(scope="module")
def recap(start: Start) -> Job:
    """Advantage-conditioned, learning from three rounds at a time, under a law that is measured first."""
    return start("recap", *RECAP)


def test_rounds_are_stored_and_the_policy_acts_on_advice_after_its_warm_up(recap: Job) -> None:
    assert [p.name for p in sorted((recap.folder / "rollouts").iterdir())] == [f"{n:06d}.safetensors" for n in range(4)]
    assert json.loads((recap.folder / "adapter" / "adapter.json").read_text())["guidance"] == 1.5
    for row in rows(recap.folder):
        assert row["first_ratio_error"] is None and row["clip_fraction"] is None and row["terms/flow_loss"] > 0


def test_the_law_is_measured_before_the_first_round(recap: Job) -> None:
    settled = load(TrainConfig, recap.folder / "config.yaml").exploration
    assert settled.levels is not None and isinstance(settled.odds, list)
    assert rows(recap.folder)[0]["executed_std"] == pytest.approx(0.01, rel=0.5)
    assert "measured exploration: executed std 0.0" in recap.log()


def test_a_resumed_run_remembers_the_rounds_that_it_learns_from(recap: Job, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    shutil.copytree(recap.folder, folder)
    for name in ("checkpoints/000004", "adapter"):
        shutil.rmtree(folder / name)
    (folder / "evaluation.json").unlink()
    (folder / "config.yaml").write_text((folder / "config.yaml").read_text().replace(str(recap.folder), str(folder)))
    job = Job(folder, "train", "--resume", str(folder))
    assert job.wait() == 0, job.log()
    assert [numbers(row) for row in rows(folder)] == [numbers(row) for row in rows(recap.folder)]
    assert (folder / "evaluation.json").read_bytes() == (recap.folder / "evaluation.json").read_bytes()


def test_stored_rounds_are_learned_from_offline(recap: Job, start: Start) -> None:
    job = start("offline", *RECAP, f"rollout.source={recap.folder / 'rollouts'}")
    assert not (job.folder / "rollouts").exists()
    mine, theirs = rows(job.folder), rows(recap.folder)
    assert [row["env_steps"] for row in mine] == [row["env_steps"] for row in theirs]
    assert mine[0]["terms/flow_loss"] == theirs[0]["terms/flow_loss"]


@pytest.fixture(scope="module")
def ahead(start: Start) -> Job:
    """Two worlds, their rounds played up to two ahead and stored."""
    mix = "env.mix=[{name: widowx_reach, options: {tolerance: 0.044}}, {name: widowx_reach, share: 3, chunks: 4}]"
    words = ("objective.name=decoupled_ppo", "rollout.lag=2", "critic.kind=privileged", "optimizer.actor_lr=0.002")
    return start("ahead", mix, *words, "rollout.store=true")


def test_rounds_played_ahead_are_stale_by_the_lag(ahead: Job) -> None:
    found = rows(ahead.folder)
    assert [row["staleness"] for row in found] == [0, 1, 2, 2]
    assert all(row["first_ratio_error"] < 1e-4 for row in found), "the clip is around the weights at the update's start"
    assert [row["terms/stale_weight"] == pytest.approx(1, abs=1e-4) for row in found] == [True, False, False, False]


def test_worlds_are_played_side_by_side_and_stored(ahead: Job) -> None:
    worlds = ["world/widowx_reach", "world/widowx_reach#2"]
    assert [[row[f"{world}/transitions"] for world in worlds] for row in rows(ahead.folder)] == [[2 * 2, 6 * 4]] * 4
    stored = load_round(ahead.folder / "rollouts" / "000002.safetensors")
    assert [t.world for t in stored] == ["widowx_reach", "widowx_reach#2"]
    assert [t.keys.env.tolist() for t in stored] == [[0, 1], [2, 3, 4, 5, 6, 7]]
    judged = json.loads((ahead.folder / "evaluation.json").read_text())
    assert [world["episodes"] for world in judged["worlds"].values()] == [8, 8] and judged["episodes"] == 16
    assert "widowx_reach + widowx_reach#2, seed 0" in ahead.log() and "mean of 2 worlds" in ahead.log()
