"""What is compared: each study is a list of trainings from the same policy with the same number of environment steps.

tuning      every objective over the same number of candidates, one seed that no table shows
objectives  the best candidate of each, five seeds
grid        PPO: which denoising step is stochastic x how much noise, five seeds
laws        sampling laws under PPO: candidates tuned with equal effort, then five seeds
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from benchmarks.objectives.records import RunRecord

Settings = Mapping[str, Any]

TUNING_SEED = 100
SEEDS = (0, 1, 2, 3, 4)
BUDGET = 30_000
"""Environment steps of one training."""
BASE: dict[str, Any] = {
    "env.num_envs": 64,
    "env.options.tolerance": 0.02,
    "objective.gamma": 0.99**5,
    "critic.clip": 0.2,
    "rollout.num_actors": 1,
    "rollout.chunks": 4,
    "learner.num_learners": 1,
    "objective.minibatch": 64,
    "exploration.sde_step": 2,
    "run.iterations": 1000,
}
"""Settings that every training shares unless a candidate says otherwise; gamma is .99 a step at 5 Hz."""


@dataclass(frozen=True, slots=True)
class Plan:
    """One training to be had."""

    study: str
    name: str
    settings: Settings
    """On top of `BASE`."""
    seed: int


def _product(name: str, own: str, values: tuple[Any, ...], noise: list[Settings], **more: Any) -> list[Settings]:
    """Two learning rates x two kinds of noise x two values of the objective's own most telling setting."""
    fixed = {"objective.name": name, **more}
    return [
        {**fixed, "optimizer.actor_lr": rate, **shaken, own: value}
        for rate in (5e-4, 1.5e-3)
        for shaken in noise
        for value in values
    ]


def _more(name: str, noise: Settings, own: str, value: float) -> Settings:
    return {"objective.name": name, "optimizer.actor_lr": 1.5e-3, **noise, own: value}


QUIET: Settings = {"exploration.noise_level": 0.5}
LOUD: Settings = {"exploration.noise_level": 1.0}
STILL: Settings = {"exploration.law": "ode"}
STALE: Settings = {"rollout.lag": 2}
CANDIDATES: dict[str, list[Settings]] = {
    "ppo": _product("ppo", "objective.epochs", (2, 4), [QUIET, LOUD]),
    "decoupled_ppo": _product("decoupled_ppo", "objective.epochs", (2, 4), [QUIET, LOUD]),
    "grpo": _product("grpo", "objective.epochs", (2, 4), [QUIET, LOUD]),
    "rloo": _product("rloo", "objective.epochs", (2, 4), [QUIET, LOUD]),
    "diffusion_nft": _product("diffusion_nft", "objective.beta", (0.3, 1.0), [STILL, LOUD]),
    "step_nft": _product("step_nft", "objective.beta", (0.3, 1.0), [QUIET, LOUD]),
    "fpo": _product("fpo", "objective.clip", (0.01, 0.05), [STILL, LOUD]),
    "fpo_plus": _product("fpo_plus", "objective.clip", (0.01, 0.05), [STILL, LOUD]),
    "recap": _product("recap", "objective.guidance", (1.0, 2.0), [STILL, LOUD]),
}
"""Eight for each objective; ten for two of them, whose first range proved to end on the wrong side."""
CANDIDATES["diffusion_nft"] += [_more("diffusion_nft", LOUD, "objective.beta", value) for value in (3.0, 10.0)]
CANDIDATES["fpo"] += [_more("fpo", LOUD, "objective.clip", value) for value in (0.02, 0.2)]
CANDIDATES["fpo_plus"] += [_more("fpo_plus", LOUD, "objective.clip", value) for value in (0.02, 0.2)]
VARIANTS: dict[str, tuple[str, Settings]] = {
    "ppo, 2 updates old": ("ppo", STALE),
    "decoupled_ppo, 2 updates old": ("decoupled_ppo", STALE),
    "ppo, privileged critic": ("ppo", {"critic.kind": "privileged"}),
    "ppo, no critic": ("ppo", {"critic.kind": "none"}),
    "ppo, learning rate 0": ("ppo", {"optimizer.actor_lr": 0.0}),
    "diffusion_nft, no adaptive weight": ("diffusion_nft", {"objective.adaptive_weight": False}),
}
"""Tuned objectives with one thing changed: stale data, other critics, the control, and an error left as it is."""

STEPS: dict[str, Settings] = {
    **{str(k): {"exploration.sde_step": k} for k in range(4)},
    "random": {"exploration.sde_step": None},
    "contribution": {"exploration.sde_step": None, "exploration.odds": "contribution"},
}
LEVELS = (0.25, 0.5, 1.0, 2.0)
LAWS: dict[str, list[Settings]] = {
    "flow_sde": [{"exploration.sde_step": None, "exploration.noise_level": a} for a in (0.5, 1.0, 1.5, 2.0)],
    "calibrated": [
        {
            "exploration.law": "calibrated",
            "exploration.sde_step": None,
            "exploration.max_level": 4.0,
            "exploration.executed_std": std,
        }
        for std in (0.02, 0.03, 0.045, 0.06)
    ],
    "flow_noise": [
        {"exploration.law": "flow_noise", "exploration.std_min": low, "exploration.std_max": 2 * low}
        for low in (0.04, 0.08, 0.16, 0.32)
    ],
}
"""Four dials for each law."""


def tuning() -> list[Plan]:
    """Every candidate of every objective."""
    return [
        Plan("tuning", f"{name} {number}", settings, TUNING_SEED)
        for name, candidates in CANDIDATES.items()
        for number, settings in enumerate(candidates)
    ]


def objectives(known: list[RunRecord]) -> list[Plan]:
    """The best candidate of each objective, and the variants."""
    named = {name: best(known, name) for name in CANDIDATES}
    named |= {name: {**best(known, base), **change} for name, (base, change) in VARIANTS.items()}
    return [Plan("objectives", name, settings, seed) for seed in SEEDS for name, settings in named.items()]


def grid(known: list[RunRecord]) -> list[Plan]:
    """Every cell, with PPO's best learning rate and number of epochs."""
    tuned = best(known, "ppo")
    return [
        Plan("grid", f"k={step} a={level:g}", {**tuned, **place, "exploration.noise_level": level}, seed)
        for seed in SEEDS
        for step, place in STEPS.items()
        for level in LEVELS
    ]


def laws_tuning(known: list[RunRecord]) -> list[Plan]:
    """Every dial of every law."""
    tuned = best(known, "ppo")
    return [
        Plan("tuning", f"{name} {number}", {**tuned, **dial}, TUNING_SEED)
        for name, dials in LAWS.items()
        for number, dial in enumerate(dials)
    ]


def laws(known: list[RunRecord]) -> list[Plan]:
    """The best dial of each law."""
    return [Plan("laws", name, best(known, name), seed) for seed in SEEDS for name in LAWS]


def best(known: list[RunRecord], name: str) -> Settings:
    """Settings of the candidate with the highest mean success over the second half of its training and at its end.

    Raises:
        ValueError: nothing was tuned under that name.
    """
    found = [r for r in known if r.study == "tuning" and r.name.rsplit(" ", 1)[0] == name]
    if not found:
        raise ValueError(f"{name}: no candidate has been tried; run the tuning study first")
    return max(found, key=merit).settings


def merit(record: RunRecord) -> float:
    """What candidates are chosen by: less at the mercy of one evaluation than the last success alone."""
    late = [point.success for point in record.curve[len(record.curve) // 2 :]]
    return (sum(late) / len(late) + record.success) / 2
