"""Made-up runs for tests of what people see."""

from __future__ import annotations

import math

import numpy as np

from rl_finetune.metrics.evaluation import Comparison, Evaluation
from rl_finetune.metrics.intervals import student, wilson
from rl_finetune.metrics.report_data import Clip, ReportData
from rl_finetune.metrics.rows import IterationRow
from rl_finetune.types import EvalReport


def row(iteration: int, **changes: object) -> IterationRow:
    """One iteration of five seconds; `changes` replace fields."""
    values: dict[str, object] = {
        "iteration": iteration,
        "minutes": iteration / 12,
        "env_steps": 4096 * iteration,
        "success": 0.5,
        "success_interval": wilson(50, 100),
        "mean_return": 1.25,
        "episodes": 128,
        "clip_fraction": 0.08,
        "effective_samples": 0.97,
        "staleness": 0,
        "kl": 0.01,
        "first_ratio_error": 2e-6,
        "explained_variance": math.nan if iteration == 1 else 0.4,
        "grad_norm": 0.7,
        "executed_std": 0.012,
        "value_loss": 0.2 / iteration,
        "policy_loss": -0.01,
        "actor_lr": 5e-4,
        "steps_per_second": 1900.0,
        "collect_seconds": 2.0,
        "update_seconds": 3.0,
        "publish_bytes": 540_000,
        "actors_healthy": 2,
        "actors_lost": 0,
        "policy_version": iteration,
        "contribution": (0.01, 0.02, 0.012, 0.03),
        "terms": {"stale_weight": 0.9},
    }
    return IterationRow(**(values | changes))  # type: ignore[arg-type]


def evaluation(successes: list[bool], version: int) -> EvalReport:
    """A report on these episodes."""
    n, done = len(successes), sum(successes)
    returns = tuple(map(float, successes))
    return EvalReport(tuple(successes), 7, done / n, wilson(done, n), returns, *student(returns), 30.5, version)


def compared(before: list[bool], after: list[bool]) -> Comparison:
    """Before and after in one world."""
    parts = (evaluation(before, 0), evaluation(after, 12))
    return Comparison(*(Evaluation({"widowx_reach": part}) for part in parts))


def clip(episode: int, success: bool, frames: int = 5, side: int = 16) -> Clip:
    """A film whose frames differ."""
    shades = np.linspace(20, 230, frames).astype(np.uint8)
    pictures = np.broadcast_to(shades[:, None, None, None], (frames, side, side, 3)).copy()
    return Clip(pictures, f"reach the <red> cube {episode}", success, episode)


def report_data(**changes: object) -> ReportData:
    """A run of 12 iterations that lost an actor and gained 40 points."""
    before, after = [False] * 6 + [True] * 4, [True] * 5 + [False] + [True] * 3 + [False]
    events = {3: ("actor 2 lost; restarting",), 5: ("actor 2 is back",)}
    values: dict[str, object] = {
        "title": "widowx_reach, seed 0",
        "compared": compared(before, after),
        "rows": tuple(row(i, events=events.get(i, ())) for i in range(1, 13)),
        "minutes": 1.0,
        "checkpoint": "runs/train/adapter",
        "config": "run:\n  seed: 0\n  folder: '<b>&'\n",
        "clips_before": (clip(0, False), clip(1, True)),
        "clips_after": (clip(1, True), clip(0, True), clip(2, False)),
        "provenance": {"code version": "0.1.0", "command": "rl-finetune train"},
    }
    return ReportData(**(values | changes))  # type: ignore[arg-type]
