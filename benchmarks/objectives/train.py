"""One training in one process on one thread: the job's own parts, without Ray and DeepSpeed.

    collect (actors.rollout) -> credit (learners.advantages) -> run_update (learners.update) with torch's AdamW

What is left out is transport alone: collection, credit, loss, schedule and gradient clipping are those of `rl-finetune
train` with one actor and one learner.
"""

from __future__ import annotations

import hashlib
import math
import time
from collections import deque
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

import envs
from actors import rollout
from actors.calibration import measured_with, unmeasured
from actors.evaluator import run_episodes
from benchmarks.objectives import state_policy
from benchmarks.objectives.records import CurvePoint, RunRecord
from learners.advantages import credit
from learners.update import recipe, run_update
from rl_finetune.config import TrainConfig, dump
from rl_finetune.metrics.intervals import wilson
from rl_finetune.policy import QwenVLAPolicy
from rl_finetune.policy.adapters import equip, load_trained_state, set_version, trained_state
from rl_finetune.policy.laws import law_of
from rl_finetune.spec import EmbodimentSpec, handshake
from rl_finetune.types import FloatArray, ScoredTrajectory, SeedKeys, Trajectory

FINAL, GLIMPSE = 500, 128
"""Held-out episodes at the end, and at each point of the curve."""
EVERY = {"objectives": 3, "tuning": 3, "laws": 1, "grid": 1000}
"""Rounds between points; the grid is judged by its end alone."""
_before: dict[str, np.ndarray] = {}
"""Successes of starting policies that this process has judged already."""
VALUE_PARTS = ("value_head", "privileged_critic")


@dataclass(slots=True)
class Seat:
    """A policy and its world."""

    policy: QwenVLAPolicy
    env: envs.VectorEnv
    body: EmbodimentSpec

    @classmethod
    def of(cls, job: TrainConfig) -> Seat:
        """The job's, with the eyes that the policy's folder asks for."""
        folder = Path(job.policy.path)
        policy = state_policy.load(folder) if state_policy.made(folder) else QwenVLAPolicy.from_pretrained(folder)
        env = envs.make(job.env.name, job.env.num_envs, **job.env.options)
        return cls(policy, env, handshake(policy.config.embodiments, env.spec))


@dataclass(slots=True)
class Training:
    """A run in progress."""

    job: TrainConfig
    player: Seat
    adam: torch.optim.AdamW
    published: deque[dict[str, FloatArray]]
    """Trained weights of the last versions, oldest first: what actors that lag behind would hold."""
    recent: deque[list[ScoredTrajectory]]
    """Rounds that an update learns from."""


def train(job: TrainConfig, budget: int, *, study: str, name: str, settings: dict[str, object]) -> RunRecord:
    """Train from the job's policy and judge it on held-out episodes.

    Args:
        job: what `rl-finetune train` would be given; actors, learners and numbers of rounds and episodes are not used.
        budget: environment steps after which no round begins.
        study, name, settings: for the record.
    """
    torch.set_num_threads(1)
    key = fingerprint(job, budget)
    player = Seat.of(job)
    if unmeasured(job):
        job, _ = measured_with(player, job)
    player.policy = equip(player.policy, job, len(player.env.spec.privileged)).eval()
    run = Training(
        job, player, _adam(player, job), deque(maxlen=job.rollout.lag + 1), deque(maxlen=job.objective.replay)
    )
    judge = envs.make(job.env.name, GLIMPSE, **job.env.options)
    if job.policy.path not in _before or run.player.policy.guidance is not None:
        _before[job.policy.path] = success(run, judge, FINAL)
    before = _before[job.policy.path]
    curve = [CurvePoint(0, 0.0, float(before[:GLIMPSE].mean()))]
    number, steps, decisions, seconds, noise = 0, 0, 0, 0.0, []
    while steps < budget:
        began = time.process_time()
        made = one_round(run, number, steps / budget)
        number += 1
        seconds += time.process_time() - began
        steps, decisions = steps + int(made.steps_executed.sum()), decisions + made.transitions
        noise.append(made.executed_std)
        if number % EVERY[study] == 0 or steps >= budget:
            curve.append(CurvePoint(steps, seconds, float(success(run, judge, GLIMPSE).mean())))
    after = success(run, judge, FINAL)
    judge.close()
    player.env.close()
    return RunRecord(
        study=study, name=name, settings=dict(settings), seed=job.run.seed, fingerprint=key,
        before=float(before.mean()), success=float(after.mean()), successes=int(after.sum()), episodes=FINAL,
        env_steps=steps, decisions=decisions, seconds=seconds, executed_std=float(np.mean(noise)), curve=curve,
    )  # fmt: skip


def one_round(run: Training, number: int, progress: float) -> Trajectory:
    """Collect under the oldest published weights, learn, publish; `progress` 0..1 is for the learning rate."""
    job, policy = run.job, run.player.policy
    now = trained_state(policy)
    run.published.append(now)
    load_trained_state(policy, run.published[0])
    ids = np.arange(job.env.num_envs)
    keys = SeedKeys(job.run.seed, ids, np.full_like(ids, number * job.rollout.chunks), job.objective.group_size)
    made = rollout.collect(
        policy, run.player.env, keys, chunks=job.rollout.chunks, body=run.player.body, law=law_of(job),
        cache_contexts=True, policy_version=max(0, number - job.rollout.lag),
    )  # fmt: skip
    load_trained_state(policy, now)
    set_version(policy, job, number + 1)
    run.recent.append(credit([made], job.objective))
    _set_rates(run, progress)

    def optimise(loss: Tensor) -> None:
        run.adam.zero_grad()
        loss.backward()
        trained = [p for group in run.adam.param_groups for p in group["params"]]
        torch.nn.utils.clip_grad_norm_(trained, job.optimizer.grad_clip)
        run.adam.step()

    scored = [part for round_ in run.recent for part in round_]
    run_update(policy, scored, recipe(job), optimise=optimise, seed=job.run.seed, version=number)
    return made


def success(run: Training, judge: envs.VectorEnv, episodes: int) -> np.ndarray:
    """[episodes] of the held-out episodes, as `rl-finetune evaluate` plays them."""
    size = judge.num_envs
    numbers = np.resize(np.arange(episodes), -(-episodes // size) * size).reshape(-1, size)
    seed, temperature = run.job.evaluation.seed, run.job.evaluation.temperature
    parts = [
        run_episodes(run.player.policy, judge, SeedKeys(seed, ids, np.zeros_like(ids)), temperature=temperature)
        for ids in numbers
    ]
    return np.concatenate([p.success for p in parts])[:episodes]


def describe(record: RunRecord) -> str:
    """One line of progress."""
    low, high = wilson(record.successes, record.episodes)
    return (
        f"{record.study:10} {record.name:28} seed {record.seed}: {record.before:5.1%} -> {record.success:5.1%} "
        f"[{low:.1%}, {high:.1%}]  {record.seconds:4.0f} s  executed std {1000 * record.executed_std:.0f} mm"
    )


def fingerprint(job: TrainConfig, budget: int) -> str:
    """SHA-256 over the resolved settings, the budget and the policy's files."""
    digest = hashlib.sha256(f"{budget}\n{dump(job)}".encode())
    for file in sorted(p for p in Path(job.policy.path).rglob("*") if p.is_file()):
        digest.update(file.read_bytes())
    return digest.hexdigest()[:16]


def _adam(player: Seat, job: TrainConfig) -> torch.optim.AdamW:
    groups: dict[str, list[torch.nn.Parameter]] = {"actor": [], "value": []}
    for name, parameter in player.policy.named_parameters():
        if parameter.requires_grad:
            groups["value" if name.startswith(VALUE_PARTS) else "actor"].append(parameter)
    named = [{"params": parameters, "name": name} for name, parameters in groups.items() if parameters]
    return torch.optim.AdamW(named, lr=0.0, betas=job.optimizer.betas, weight_decay=job.optimizer.weight_decay)


def _set_rates(run: Training, progress: float) -> None:
    optimizer = run.job.optimizer
    factor = 0.5 * (1 + math.cos(math.pi * progress)) if optimizer.schedule == "cosine" else 1.0
    for group in run.adam.param_groups:
        group["lr"] = optimizer.value_lr if group["name"] == "value" else optimizer.actor_lr * factor
