"""What one round of training reports: to the screen, to metrics.jsonl, to wandb and to the report page."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

TERM, STEP, WORLD = "terms/", "contribution/", "world/"
"""Prefixes under which a row's mappings are flattened."""


@dataclass(frozen=True, slots=True)
class WorldRow:
    """What one of several worlds saw in a round."""

    success: float
    """Share of successes among its latest training episodes that began a round, with exploration noise."""
    success_interval: tuple[float, float]
    """95 % Wilson interval of `success`."""
    mean_return: float
    """Mean undiscounted return of its episodes that began this round."""
    episodes: int
    """Its episodes that ended in this round."""
    steps: int
    """Its environment steps of this round."""
    transitions: int
    """Its chunk decisions of this round."""
    failures: int
    """Its environments that broke down in this round."""
    executed_std: float
    """Standard deviation that exploration gives to its executed actions, in its action units."""

    def to_dict(self) -> dict[str, float]:
        """Plain values; the interval becomes `success_low` and `success_high`."""
        record = {f.name: getattr(self, f.name) for f in fields(self)}
        low, high = record.pop("success_interval")
        return {**record, "success_low": low, "success_high": high}

    @classmethod
    def from_dict(cls, record: Mapping[str, Any]) -> WorldRow:
        """What `to_dict` wrote."""
        values = {**record, "success_interval": (record["success_low"], record["success_high"])}
        return cls(**{f.name: values[f.name] for f in fields(cls)})


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
    """Share of successes among the latest training episodes that began a round (an environment's later ones are seen
    only if they end quickly), with exploration noise; of several worlds the mean."""
    success_interval: tuple[float, float]
    """95 % interval of `success`: Wilson's; of several worlds `intervals.mean_over`."""
    mean_return: float
    """Mean undiscounted return of the episodes that began this round."""
    episodes: int
    """Episodes that ended in this round."""
    clip_fraction: float
    """Share of decisions, or of their (tau, eps) pairs, that a clip leaves without gradient."""
    kl: float
    """Estimated KL divergence between the policies before and after the update."""
    first_ratio_error: float
    """max |ratio - 1| over the first minibatch, before its step: sampler and scorer agree when it is ~0."""
    explained_variance: float
    """Share of the variance of the returns that the value head explains."""
    grad_norm: float
    """Gradient norm before clipping."""
    executed_std: float
    """Standard deviation that exploration gives to the executed actions, in action units; NaN where bodies differ in
    them."""
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
    failures: int = 0
    """Environments that broke down in this round; their episodes count for nothing."""
    worlds: Mapping[str, WorldRow] = field(default_factory=dict)
    """The same by world, where there are several."""
    terms: Mapping[str, float] = field(default_factory=dict)
    """What the objective and the regularisers log beyond the above, by name."""
    events: tuple[str, ...] = ()
    """What happened besides: losses, restarts, checkpoints."""

    @property
    def seconds(self) -> float:
        """Seconds that the round took."""
        return self.collect_seconds + self.update_seconds

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON and wandb; the interval becomes `success_low` and `success_high`, and what a world saw
        `world/<label>/<name>`."""
        record = {f.name: getattr(self, f.name) for f in fields(self)}
        low, high = record.pop("success_interval")
        terms = {TERM + name: value for name, value in record.pop("terms").items()}
        steps = {f"{STEP}{k}": value for k, value in enumerate(record.pop("contribution"))}
        worlds = {
            f"{WORLD}{label}/{name}": value
            for label, world in record.pop("worlds").items()
            for name, value in world.to_dict().items()
        }
        interval = {"success_low": low, "success_high": high}
        return {**record, **steps, **terms, **worlds, **interval, "events": list(self.events)}

    @classmethod
    def from_dict(cls, record: Mapping[str, Any]) -> IterationRow:
        """The row that `to_dict` wrote. Names it does not know are ignored, null is NaN."""
        values: dict[str, Any] = {name: math.nan if value is None else value for name, value in record.items()}
        values["success_interval"] = (values["success_low"], values["success_high"])
        values["events"] = tuple(record.get("events", ()))
        values["terms"] = {name.removeprefix(TERM): v for name, v in values.items() if name.startswith(TERM)}
        values["contribution"] = tuple(v for name, v in values.items() if name.startswith(STEP))
        seen: dict[str, dict[str, Any]] = {}
        for key in (key for key in record if key.startswith(WORLD)):
            label, name = key.removeprefix(WORLD).rsplit("/", 1)
            seen.setdefault(label, {})[name] = values[key]
        values["worlds"] = {label: WorldRow.from_dict(found) for label, found in seen.items()}
        return cls(**{f.name: values[f.name] for f in fields(cls) if f.name in values})
