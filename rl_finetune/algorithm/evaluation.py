"""`rl-finetune evaluate`: success of one policy on held-out episodes, spread over processes."""

from __future__ import annotations

import time
from dataclasses import asdict
from pathlib import Path

import numpy as np

from actors.evaluator import EpisodeResults
from rl_finetune.algorithm import cluster, preflight
from rl_finetune.algorithm.job import evaluation_report
from rl_finetune.algorithm.run_folder import write_json
from rl_finetune.config import EvaluateConfig


def evaluate(config: EvaluateConfig) -> int:
    """Play, print one line, and write the evaluation file if one is asked for; returns the exit code."""
    preflight.check(config.policy, config.env)
    cluster.connect(config.num_actors)
    began = time.monotonic()
    report = evaluation_report(_play(config), config.evaluation.seed, version=0)
    low, high = report.interval
    asked = "" if config.shuffle == "none" else f" with shuffled {config.shuffle}"
    print(
        f"success {report.success:.1%} [{low:.1%}, {high:.1%}]{asked} on {len(report.successes)} held-out episodes of "
        f"{config.env.name}, {time.monotonic() - began:.0f} s"
    )
    if config.output is not None:
        path = Path(config.output)
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(
            path,
            {
                "policy": config.policy.path,
                "adapter": config.policy.adapter,
                "shuffle": config.shuffle,
                **asdict(report),
            },
        )
    return 0


def _play(config: EvaluateConfig) -> EpisodeResults:
    import ray

    from actors.player import Player

    episodes = np.array_split(np.arange(config.evaluation.episodes), config.num_actors)
    size = max(1, config.env.num_envs // config.num_actors)
    remote = ray.remote(num_cpus=0.5, num_gpus=config.gpus)(Player)
    players = [remote.remote(config.policy, config.env, config.evaluation, size, gpus=config.gpus) for _ in episodes]
    parts = ray.get([p.play.remote(e, config.shuffle) for p, e in zip(players, episodes, strict=True) if e.size])
    return EpisodeResults(np.concatenate([p.success for p in parts]), np.concatenate([p.steps for p in parts]))
