"""What one round of training reports: to the screen, to metrics.jsonl, to wandb and to the report page."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

TERM, STEP = "terms/", "contribution/"
"""Prefixes under which a row's mappings are flattened."""


@dataclass(frozen=True, slots=True)
class IterationRow:
    """One round of collecting and updating. A number that could not be had this round is NaN."""

    iteration: int
    """Number of the round, from 1."""
    minutes: float
    """Training time since the run began, without the evaluations."""
    env_steps: int
    """Environment steps since the run began."""
    success: float
    """Share of successes among the latest training episodes, with exploration noise."""
    success_interval: tuple[float, float]
    """95 % Wilson interval of `success`."""
    mean_return: float
    """Mean undiscounted return of the episodes of this round."""
    episodes: int
    """Episodes that ended in this round."""
    clip_fraction: float
    """Share of decisions whose ratio was clipped."""
    kl: float
    """Estimated KL divergence between the policies before and after the update."""
    first_ratio_error: float
    """max |ratio - 1| before the first step: sampler and scorer agree when it is ~0."""
    explained_variance: float
    """Share of the variance of the returns that the value head explains."""
    grad_norm: float
    """Gradient norm before clipping."""
    executed_std: float
    """Standard deviation that exploration gives to the executed actions, in action units."""
    effective_samples: float
    """Share of the decisions that the ratios leave to count: 1 where all weigh the same."""
    staleness: int
    """Updates between the weights that acted and those that learned."""
    value_loss: float
    """Loss of the critic."""
    policy_loss: float
    """Loss of the policy."""
    actor_lr: float
    """Learning rate of the adapters."""
    steps_per_second: float
    """Environment steps per second of this round, update included."""
    collect_seconds: float
    """Seconds of collecting."""
    update_seconds: float
    """Seconds of updating."""
    publish_bytes: int
    """Bytes of weights that one actor got."""
    actors_healthy: int
    """Actors alive at the end of the round."""
    actors_lost: int
    """Actors lost and restarted since the run began."""
    policy_version: int
    """Version of the weights that the round produced."""
    contribution: tuple[float, ...] = ()
    """What the law's noise at each denoising step alone would add to executed actions, in action units."""
    terms: Mapping[str, float] = field(default_factory=dict)
    """What the objective and the regularisers log beyond the above, by name."""
    events: tuple[str, ...] = ()
    """What happened besides: losses, restarts, checkpoints."""

    @property
    def seconds(self) -> float:
        """Seconds that the round took."""
        return self.collect_seconds + self.update_seconds

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON and wandb; the interval becomes `success_low` and `success_high`."""
        record = {f.name: getattr(self, f.name) for f in fields(self)}
        low, high = record.pop("success_interval")
        terms = {TERM + name: value for name, value in record.pop("terms").items()}
        steps = {f"{STEP}{k}": value for k, value in enumerate(record.pop("contribution"))}
        return {**record, **steps, **terms, "success_low": low, "success_high": high, "events": list(self.events)}

    @classmethod
    def from_dict(cls, record: Mapping[str, Any]) -> IterationRow:
        """The row that `to_dict` wrote. Names it does not know are ignored, null is NaN."""
        values: dict[str, Any] = {name: math.nan if value is None else value for name, value in record.items()}
        values["success_interval"] = (values["success_low"], values["success_high"])
        values["events"] = tuple(record.get("events", ()))
        values["terms"] = {name.removeprefix(TERM): v for name, v in values.items() if name.startswith(TERM)}
        values["contribution"] = tuple(v for name, v in values.items() if name.startswith(STEP))
        return cls(**{f.name: values[f.name] for f in fields(cls)})
