"""What one round of training reports: to the screen, to metrics.jsonl, to wandb and to the report page."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any


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
    value_loss: float
    """Loss of the value head."""
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
    events: tuple[str, ...] = ()
    """What happened besides: losses, restarts, checkpoints."""

    @property
    def seconds(self) -> float:
        """Seconds that the round took."""
        return self.collect_seconds + self.update_seconds

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON and wandb; the interval becomes `success_low` and `success_high`."""
        record = {field.name: getattr(self, field.name) for field in fields(self)}
        low, high = record.pop("success_interval")
        return {**record, "success_low": low, "success_high": high, "events": list(self.events)}

    @classmethod
    def from_dict(cls, record: Mapping[str, Any]) -> IterationRow:
        """The row that `to_dict` wrote. Names it does not know are ignored, null is NaN."""
        values: dict[str, Any] = {name: math.nan if value is None else value for name, value in record.items()}
        values["success_interval"] = (values["success_low"], values["success_high"])
        values["events"] = tuple(record.get("events", ()))
        return cls(**{field.name: values[field.name] for field in fields(cls)})
