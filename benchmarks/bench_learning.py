"""What caching contexts and sending adapters only are worth, side by side in one run on one thread.

    python -m benchmarks.bench_learning out.json [--policy FOLDER] [--envs 64] [--repeats 3]

Two things are measured:

    epoch  one PPO epoch on the contexts that were encoded at rollout, against one that encodes the observations again:
           the same decisions, minibatches and starting weights, through `learners.update.run_update` with torch's Adam.
           The backbone is frozen in both, so the second pays for its forward pass only. They take turns; medians count.
    sync   bytes of one `TrainedWeights` with the default adapters, against those of the whole policy.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

import envs
from actors import rollout
from learners.advantages import score
from learners.update import Recipe, recipe, run_update
from rl_finetune.config import TrainConfig
from rl_finetune.policy import QwenVLAPolicy
from rl_finetune.policy.adapters import add_adapters, load_trained_state, trained_state
from rl_finetune.policy.laws import law_of
from rl_finetune.spec import handshake
from rl_finetune.types import FloatArray, ScoredTrajectory, SeedKeys, UpdateReport
from rl_finetune.weights import TrainedWeights

SHIPPED = Path("checkpoints/qwen-vla-tiny")
FASTEST_RATIO = 3.0
"""Bar: an epoch on cached contexts is at least this many times as fast."""
LARGEST_SHARE = 0.05
"""Bar: a weight sync carries at most this share of the policy's bytes."""


@dataclass(frozen=True, slots=True)
class Epochs:
    """Seconds of one epoch over the same decisions, measured in turns."""

    decisions: int
    """Chunk decisions in the epoch."""
    minibatch: int
    """Decisions in one optimizer step."""
    cached: tuple[float, ...]
    """On stored contexts."""
    encoded: tuple[float, ...]
    """Encoding the observations again."""
    first_ratio_error: float
    """Worst of all epochs: both ways score what was sampled."""

    @property
    def ratio(self) -> float:
        """How many times as fast the cached epoch is."""
        return statistics.median(self.encoded) / statistics.median(self.cached)


def main() -> None:
    """Measure both, print a table, write the JSON."""
    parser = argparse.ArgumentParser(description="cached contexts and adapter-only weights, side by side")
    parser.add_argument("out", type=Path, help="JSON file to write")
    parser.add_argument("--policy", type=Path, default=SHIPPED, help=f"policy folder (default {SHIPPED})")
    parser.add_argument("--envs", type=int, default=64, help="environments that are collected from (default 64)")
    parser.add_argument("--repeats", type=int, default=3, help="epochs of each kind (default 3)")
    args = parser.parse_args()
    torch.set_num_threads(1)
    policy = QwenVLAPolicy.from_pretrained(args.policy)
    whole = sum(p.numel() * p.element_size() for p in policy.parameters())
    job = TrainConfig()
    policy = add_adapters(policy, job.lora, seed=0).eval()
    sent = TrainedWeights.of(0, trained_state(policy)).nbytes
    epochs = measure(policy, job, args.envs, args.repeats)
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(json.dumps(report(epochs, sent, whole, str(args.policy)), indent=2) + "\n")
    print(table(epochs, sent, whole))


def measure(policy: QwenVLAPolicy, job: TrainConfig, num_envs: int, repeats: int) -> Epochs:
    """Collect the same chunks with contexts and with observations, and take turns in learning from them."""
    cached, encoded = (_collect(policy, job, num_envs, cache) for cache in (True, False))
    np.testing.assert_array_equal(cached.trajectory.states, encoded.trajectory.states)
    start = trained_state(policy)
    seconds: dict[bool, list[float]] = {True: [], False: []}
    worst = 0.0
    for _ in range(repeats):
        for cache, scored in ((True, cached), (False, encoded)):
            spent, done = _epoch(policy, job, scored, start)
            seconds[cache].append(spent)
            worst = max(worst, done.first_ratio_error)
    decisions = cached.trajectory.transitions
    minibatch = min(job.objective.minibatch, decisions)
    return Epochs(decisions, minibatch, tuple(seconds[True]), tuple(seconds[False]), worst)


def report(epochs: Epochs, sent: int, whole: int, policy: str) -> dict[str, Any]:
    """What is written: every number of the table and the bars they are held against."""
    return {
        "machine": {"cpus": os.cpu_count(), "platform": platform.machine(), "load": os.getloadavg()[0]},
        "policy": policy,
        "epoch": {
            "unit": "seconds",
            **asdict(epochs),
            "ratio": epochs.ratio,
            "bar": FASTEST_RATIO,
            "met": epochs.ratio >= FASTEST_RATIO,
        },
        "sync": {
            "unit": "bytes",
            "sent": sent,
            "whole": whole,
            "ratio": sent / whole,
            "bar": LARGEST_SHARE,
            "met": sent / whole <= LARGEST_SHARE,
        },
    }


def table(epochs: Epochs, sent: int, whole: int) -> str:
    """The same for a reader."""
    cached, encoded = statistics.median(epochs.cached), statistics.median(epochs.encoded)
    return "\n".join(
        (
            f"one epoch over {epochs.decisions} decisions in minibatches of {epochs.minibatch}, one thread",
            f"  {encoded:9.2f} s   observations encoded again",
            f"  {cached:9.2f} s   contexts from the rollout: {epochs.ratio:.1f} times as fast (bar {FASTEST_RATIO:g})",
            "one weight sync",
            f"  {whole / 1e6:9.2f} MB  whole policy",
            f"  {sent / 1e6:9.2f} MB  what trains: {sent / whole:.1%} (bar {LARGEST_SHARE:.0%})",
        )
    )


def _collect(policy: QwenVLAPolicy, job: TrainConfig, num_envs: int, cache: bool) -> ScoredTrajectory:
    keys = SeedKeys(0, np.arange(num_envs), np.zeros(num_envs, np.int64))
    with envs.make(job.env.name, num_envs) as env:
        trajectory = rollout.collect(
            policy, env, keys, chunks=env.spec.episode_chunks, body=handshake(policy.config.embodiments, env.spec),
            law=law_of(job), cache_contexts=cache, policy_version=0,
        )  # fmt: skip
    return score(trajectory, gamma=job.objective.gamma, lam=job.objective.lam)


def _epoch(
    policy: QwenVLAPolicy, job: TrainConfig, scored: ScoredTrajectory, start: dict[str, FloatArray]
) -> tuple[float, UpdateReport]:
    """Seconds of one epoch from the weights `start`, and what it reports."""
    load_trained_state(policy, start)
    adam = torch.optim.Adam([p for p in policy.parameters() if p.requires_grad], lr=job.optimizer.actor_lr)

    def optimise(loss: torch.Tensor) -> None:
        adam.zero_grad()
        loss.backward()
        adam.step()

    begun = time.perf_counter()
    done = run_update(policy, [scored], _one_epoch(job), optimise=optimise, seed=0, version=0)
    return time.perf_counter() - begun, done


def _one_epoch(job: TrainConfig) -> Recipe:
    once = job.objective.model_copy(update={"epochs": 1})
    return recipe(job.model_copy(update={"objective": once}))


if __name__ == "__main__":
    main()
