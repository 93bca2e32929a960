"""From a round's records to one row of numbers. Pure."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace

import numpy as np

from learners.advantages import first_episodes
from rl_finetune.checkpoint import RunState
from rl_finetune.metrics.intervals import mean_over, wilson
from rl_finetune.metrics.rows import IterationRow, WorldRow
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
    after, seconds = _advanced(state, trajectories, report, clock, recent), sum(clock.laps.values())
    worlds = {label: _world_row(own, after.recent_by_world[label]) for label, own in _by_world(trajectories)}
    success, interval = mean_over([(w.success, w.success_interval) for w in worlds.values()] or [_rate(after.recent)])
    one_body = len({t.embodiment for t in trajectories}) == 1
    d = report.diagnostics
    row = IterationRow(
        iteration=after.iteration,
        minutes=after.minutes,
        env_steps=after.env_steps,
        success=success,
        success_interval=interval,
        mean_return=_mean_return(trajectories),
        episodes=_ended(trajectories),
        clip_fraction=d.get("clip_fraction", math.nan),
        kl=d.get("kl", math.nan),
        first_ratio_error=report.first_ratio_error,
        explained_variance=d["explained_variance"],
        grad_norm=d["grad_norm"],
        executed_std=_executed_std(trajectories) if one_body else math.nan,
        effective_samples=d.get("effective_samples", math.nan),
        staleness=state.version - min(t.policy_version for t in trajectories),
        value_loss=d.get("value_loss", math.nan),
        policy_loss=d["policy_loss"],
        actor_lr=d["actor_lr"],
        steps_per_second=_steps(trajectories) / seconds,
        collect_seconds=clock.laps["collect"],
        update_seconds=clock.laps["update"],
        publish_bytes=publish_bytes,
        actors_healthy=healthy,
        actors_lost=state.actors_lost,
        policy_version=after.version,
        contribution=tuple(map(float, np.mean([t.contribution for t in trajectories], axis=0))) if one_body else (),
        failures=sum(len(t.failures) for t in trajectories),
        worlds=worlds,
        terms={name: value for name, value in d.items() if name not in KNOWN},
        events=(*events, *(str(failure) for t in trajectories for failure in t.failures), *_undecided(d)),
    )
    return after, row


def _undecided(diagnostics: Mapping[str, float]) -> tuple[str, ...]:
    """The event of an update without a decision that counts."""
    if diagnostics.get("decisions_used") != 0:
        return ()
    return ("nothing to learn from: the returns of every group are all equal, or all worlds broke down",)


def _advanced(
    state: RunState, trajectories: list[Trajectory], report: UpdateReport, clock: Clock, recent: int
) -> RunState:
    by_world = {
        label: (*state.recent_by_world.get(label, ()), *_successes(own))[-recent:]
        for label, own in _by_world(trajectories)
    }
    return replace(
        state,
        iteration=state.iteration + 1,
        version=report.policy_version,
        env_steps=state.env_steps + _steps(trajectories),
        minutes=state.minutes + sum(clock.laps.values()) / 60,
        recent=(*state.recent, *_successes(trajectories))[-recent:],
        recent_by_world={**state.recent_by_world, **by_world},
    )


def _steps(trajectories: list[Trajectory]) -> int:
    return sum(int(t.steps_executed.sum()) for t in trajectories)


def _by_world(trajectories: list[Trajectory]) -> list[tuple[str, list[Trajectory]]]:
    """Each world's, where there are several."""
    labels = list(dict.fromkeys(t.world for t in trajectories))
    return [(label, [t for t in trajectories if t.world == label]) for label in labels if len(labels) > 1]


def _world_row(trajectories: list[Trajectory], rolling: tuple[bool, ...]) -> WorldRow:
    success, interval = _rate(rolling)
    return WorldRow(
        success=success,
        success_interval=interval,
        mean_return=_mean_return(trajectories),
        episodes=_ended(trajectories),
        steps=_steps(trajectories),
        transitions=sum(t.transitions for t in trajectories),
        failures=sum(len(t.failures) for t in trajectories),
        executed_std=_executed_std(trajectories),
    )


def _ended(trajectories: list[Trajectory]) -> int:
    """Episodes that ended by themselves."""
    return sum(int(((t.terminated | t.truncated) & ~t.failed).sum()) for t in trajectories)


def _successes(trajectories: list[Trajectory]) -> tuple[bool, ...]:
    return tuple(bool(s) for t in trajectories for s in first_episodes(t).success)


def _rate(successes: tuple[bool, ...]) -> tuple[float, tuple[float, float]]:
    share = float(np.mean(successes)) if successes else math.nan
    return share, wilson(sum(successes), len(successes))


def _mean_return(trajectories: list[Trajectory]) -> float:
    returns = np.concatenate([first_episodes(t).returns for t in trajectories])
    return float(returns.mean()) if returns.size else math.nan


def _executed_std(trajectories: list[Trajectory]) -> float:
    return float(np.mean([t.executed_std for t in trajectories]))
