"""From a round's records to one row of numbers. Pure."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, field, fields, replace

import numpy as np

from rl_finetune.checkpoint import RunState
from rl_finetune.metrics.intervals import wilson
from rl_finetune.metrics.rows import IterationRow
from rl_finetune.types import Trajectory, UpdateReport

KNOWN = {f.name for f in fields(IterationRow)} | {"ratio_error"}
"""Diagnostics that have a column of their own."""


@dataclass(slots=True)
class Clock:
    """Wall time of named parts of a round."""

    laps: dict[str, float] = field(default_factory=dict)
    _last: float = field(default_factory=time.monotonic)

    def lap(self, name: str) -> None:
        """Close the part that began at the last lap."""
        now = time.monotonic()
        self.laps[name], self._last = now - self._last, now


def iteration_row(
    state: RunState,
    trajectories: list[Trajectory],
    report: UpdateReport,
    clock: Clock,
    *,
    publish_bytes: int,
    recent: int,
    healthy: int,
    events: tuple[str, ...],
) -> tuple[RunState, IterationRow]:
    """The state after the round, and what to show of it; `recent` episodes are kept for the rolling success rate."""
    ended = [(t.terminated | t.truncated) for t in trajectories]
    successes = tuple(bool(s) for t, e in zip(trajectories, ended, strict=True) for s in t.success[e])
    rolling = (*state.recent, *successes)[-recent:]
    steps = sum(int(t.steps_executed.sum()) for t in trajectories)
    seconds = sum(clock.laps.values())
    after = replace(
        state,
        iteration=state.iteration + 1,
        version=report.policy_version,
        env_steps=state.env_steps + steps,
        minutes=state.minutes + seconds / 60,
        recent=rolling,
    )
    episodes = len(successes)
    rewards = sum(float(t.reward.sum()) for t in trajectories)
    d = report.diagnostics
    row = IterationRow(
        iteration=after.iteration,
        minutes=after.minutes,
        env_steps=after.env_steps,
        success=float(np.mean(rolling)) if rolling else math.nan,
        success_interval=wilson(sum(rolling), len(rolling)),
        mean_return=rewards / episodes if episodes else math.nan,
        episodes=episodes,
        clip_fraction=d.get("clip_fraction", math.nan),
        kl=d.get("kl", math.nan),
        first_ratio_error=report.first_ratio_error,
        explained_variance=d["explained_variance"],
        grad_norm=d["grad_norm"],
        executed_std=float(np.mean([t.executed_std for t in trajectories])),
        effective_samples=d.get("effective_samples", math.nan),
        staleness=state.version - min(t.policy_version for t in trajectories),
        value_loss=d.get("value_loss", math.nan),
        policy_loss=d["policy_loss"],
        actor_lr=d["actor_lr"],
        steps_per_second=steps / seconds,
        collect_seconds=clock.laps["collect"],
        update_seconds=clock.laps["update"],
        publish_bytes=publish_bytes,
        actors_healthy=healthy,
        actors_lost=state.actors_lost,
        policy_version=after.version,
        contribution=tuple(float(c) for c in np.mean([t.contribution for t in trajectories], axis=0)),
        terms={name: value for name, value in d.items() if name not in KNOWN},
        events=events,
    )
    return after, row
