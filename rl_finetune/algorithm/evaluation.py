"""`rl-finetune evaluate`: success of one policy on held-out episodes, spread over processes."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

import numpy as np

from actors import cluster
from actors.evaluator import EpisodeResults
from rl_finetune.algorithm import preflight
from rl_finetune.algorithm.run_folder import write_json
from rl_finetune.config import EvaluateConfig
from rl_finetune.metrics.evaluation import Evaluation, describe
from rl_finetune.metrics.intervals import student, wilson
from rl_finetune.types import EvalReport, Failure


def evaluate(config: EvaluateConfig) -> int:
    """Play, print one line a world and for several their mean, under each suite too, and write the evaluation file if
    one is asked for.

    Returns the exit code.
    """
    suites = {name: config.model_copy(update={"env": config.env.perturbed(name)}) for name in config.suites}
    preflight.check_alone(config.env, config.num_actors, config.gpus)
    preflight.check_room(config)
    for asked in (config, *suites.values()):
        preflight.check(asked.policy, asked.env)
    preflight.check_prompt(config)
    cluster.connect(config.num_actors)
    found = _told(config)
    perturbed = {name: _told(asked, f"{name}: ") for name, asked in suites.items()}
    if config.output is not None:
        path = Path(config.output)
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, evaluation_file(config, found, perturbed))
    return 0


def _told(config: EvaluateConfig, head: str = "") -> Evaluation:
    """Play and say what came of it, each line behind `head`."""
    began = time.monotonic()
    found, failures = evaluation_of(_play(config), config.evaluation.seed, version=0)
    for failure in failures:
        print(f"  * {failure}")
    for line in _lines(config, found, time.monotonic() - began):
        print(f"{head}{line}")
    return found


def evaluation_of(
    results: Mapping[str, EpisodeResults], seed: int, version: int
) -> tuple[Evaluation, tuple[Failure, ...]]:
    """Successes with their intervals, by world, and whatever broke down."""
    failures = tuple(f for found in results.values() for f in found.failures if f is not None)
    return Evaluation({label: _report(found, seed, version) for label, found in results.items()}), failures


def evaluation_file(
    config: EvaluateConfig, found: Evaluation, perturbed: Mapping[str, Evaluation]
) -> dict[str, object]:
    """What was asked, the mean over worlds, and each world; the same by suite."""
    asked = {
        "policy": config.policy.path, "adapter": config.policy.adapter, "shuffle": config.shuffle,
        "prompt_as": config.prompt_as,
    }  # fmt: skip
    suites = {name: {**asdict(each.overall), "worlds": each.to_dict()} for name, each in perturbed.items()}
    return {**asked, **asdict(found.overall), "worlds": found.to_dict(), "suites": suites}


def _report(results: EpisodeResults, seed: int, version: int) -> EvalReport:
    successes, returns = tuple(bool(s) for s in results.success), tuple(map(float, results.returns))
    mean_return, return_interval = student(returns)
    measures = {
        name: float(np.nanmean(values)) for name, values in results.measures.items() if not np.isnan(values).all()
    }
    return EvalReport(
        successes=successes, seed=seed, success=sum(successes) / len(successes),
        interval=wilson(sum(successes), len(successes)), returns=returns, mean_return=mean_return,
        return_interval=return_interval, mean_steps=float(results.steps.mean()), policy_version=version,
        failed=sum(f is not None for f in results.failures), measures=measures,
    )  # fmt: skip


def _lines(config: EvaluateConfig, found: Evaluation, seconds: float) -> list[str]:
    shuffled = "" if config.shuffle == "none" else f" with shuffled {config.shuffle}"
    episodes = config.evaluation.episodes

    def one(label: str) -> str:
        told = config.told(label)
        asked = shuffled + ("" if told is None else f" told to be {told}")
        return f"{describe(found.worlds[label])}{asked} on {episodes} held-out episodes of {label}"

    *worlds, last = [one(label) for label in found.worlds]
    if not worlds:
        return [f"{last}, {seconds:.0f} s"]
    mean = f"{describe(found.overall)}{shuffled}, mean of {len(found.worlds)} worlds, {seconds:.0f} s"
    return [*worlds, last, mean]


def _play(config: EvaluateConfig) -> dict[str, EpisodeResults]:
    from actors.playing import evaluate as play  # torch

    return play(
        config.policy, config.env.worlds(), config.evaluation, players=config.num_actors, gpus=config.gpus,
        shuffle=config.shuffle, told=config.told,
    )  # fmt: skip
