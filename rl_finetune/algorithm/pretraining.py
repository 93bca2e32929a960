"""`rl-finetune sft`: demonstrations, staged training, evaluation; leaves a policy folder."""

from __future__ import annotations

import json
import math
import shutil
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file

import envs
from actors.demonstrations import Demonstrations, collect
from actors.evaluator import run_episodes
from learners.grounding import GroundingHead
from learners.supervised import StepLog, SupervisedData, run_stage
from rl_finetune.algorithm.lessons import bodies_of, check_lessons, things_of
from rl_finetune.config import SFTConfig, dump
from rl_finetune.config.worlds import World
from rl_finetune.metrics.intervals import wilson
from rl_finetune.policy import QwenVLAConfig, QwenVLAPolicy
from rl_finetune.policy.extension import extend, fresh
from rl_finetune.policy.normalisation import Quantiles
from rl_finetune.spec import EnvSpec
from rl_finetune.types import SeedKeys

HEAD_FILE = "grounding_head.safetensors"
WORLD_BATCH = 100


@dataclass(frozen=True, slots=True)
class _World:
    """One world of the run, with what its expert showed."""

    label: str
    spec: EnvSpec
    open: Callable[[], envs.VectorEnv]
    shown: Demonstrations

    @property
    def tasks(self) -> list[str]:
        """In words: those that the spec names, and whatever else the expert was asked."""
        return list(dict.fromkeys((*self.spec.tasks, *self.shown.observation.instruction)))


def sft(config: SFTConfig) -> int:
    """Train, evaluate and save under `config.folder`; returns the exit code.

    Raises:
        UserError: the input cannot be used; nothing has been built or written then.
    """
    asked = config.env.worlds()
    specs = [envs.spec(world.name, **world.options) for world in asked]
    check_lessons(config, specs)
    folder = Path(config.folder)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.yaml").write_text(dump(config))
    torch.set_num_threads(config.threads)
    torch.manual_seed(config.seed)
    began = time.monotonic()
    worlds = [_shown(config, world) for world in asked]
    policy = _starting_policy(config, worlds)
    # Without labels there is nothing to read, but a linear layer has at least one output.
    head = GroundingHead(policy.config.decoder.context_width, max(1, len(things_of(specs))))
    data = [SupervisedData.of(w.shown.observation, w.shown.actions, policy, w.spec.privileged) for w in worlds]
    _train(config, folder, policy, head, data)
    _save(policy, head, folder / "policy")
    results = {world.label: _judged(policy, world, config) for world in worlds}
    minutes = (time.monotonic() - began) / 60
    payload = results | {"minutes": minutes} if len(results) > 1 else {**results[worlds[0].label], "minutes": minutes}
    (folder / "evaluation.json").write_text(json.dumps(payload, indent=2) + "\n")
    print(f"{minutes:.0f} min; policy in {folder / 'policy'}")
    return 0


def _shown(config: SFTConfig, world: World) -> _World:
    """Let the expert of one world play."""
    began = time.monotonic()

    def build() -> envs.VectorEnv:
        return envs.make(world.name, WORLD_BATCH, **world.options)

    with build() as env:
        shown = collect(env, config.demonstrations, seed=config.seed, noise=config.expert_noise, progress=_said)
        spec = env.spec
    print(f"\n{world.label}: {len(shown)} expert chunks in {time.monotonic() - began:.0f} s", flush=True)
    return _World(world.label, spec, build, shown)


def _judged(policy: QwenVLAPolicy, world: _World, config: SFTConfig) -> dict[str, Any]:
    """Success in one world, said and returned."""
    settings = config.evaluation
    with world.open() as env:
        success = evaluate_here(policy, env, settings.episodes, settings.seed, settings.temperature)
    low, high = wilson(int(success.sum()), len(success))
    print(f"{world.label}: success {success.mean():.1%} [{low:.1%}, {high:.1%}] on {len(success)} held-out episodes")
    return {"success": float(success.mean()), "interval": [low, high], "episodes": len(success)}


def evaluate_here(
    policy: QwenVLAPolicy, env: envs.VectorEnv, episodes: int, seed: int, temperature: float
) -> np.ndarray:
    """Successes [episodes] in this process, in rounds of `env.num_envs`; the last may play more than it counts."""
    policy.eval()
    rounds = []
    for first in range(0, episodes, env.num_envs):
        ids = np.arange(first, first + env.num_envs)
        rounds.append(
            run_episodes(policy, env, SeedKeys(seed, ids, np.zeros_like(ids)), temperature=temperature).success
        )
    return np.concatenate(rounds)[:episodes]


def _starting_policy(config: SFTConfig, worlds: list[_World]) -> QwenVLAPolicy:
    """The policy that knows all bodies; those that several worlds share are normalised over all of them."""
    bodies = bodies_of([world.spec for world in worlds])
    mine = {tag: [world for world in worlds if world.spec.embodiment.tag == tag] for tag in bodies}
    quantiles = {tag: Quantiles.fit(np.concatenate([w.shown.actions for w in own])) for tag, own in mine.items()}
    start = None if config.start is None else QwenVLAPolicy.from_pretrained(config.start)
    unit = (QwenVLAConfig.tiny() if start is None else start.config).picture_unit
    taught = [
        (body, max(w.spec.image_size // unit for w in mine[tag]) ** 2, [task for w in mine[tag] for task in w.tasks])
        for tag, body in bodies.items()
    ]
    if start is None:
        return fresh(taught, quantiles, decoder_depth=config.decoder_depth)
    return extend(start, taught, quantiles, decoder_depth=config.decoder_depth)


def _train(
    config: SFTConfig, folder: Path, policy: QwenVLAPolicy, head: GroundingHead, data: list[SupervisedData]
) -> None:
    with (folder / "metrics.jsonl").open("a") as journal:

        def log(line: StepLog) -> None:
            journal.write(json.dumps(asdict(line)) + "\n")
            journal.flush()
            error = "" if math.isnan(line.pixel_error) else f"  target error {line.pixel_error:.3f} widths"
            print(
                f"{line.stage:>10} {line.step:6d}  loss {line.loss:.4f}{error}  "
                f"{line.seconds / 60:5.1f} min, {line.left / 60:5.1f} left",
                flush=True,
            )

        for number, stage in enumerate(config.stages):
            done = folder / f"stage-{number}-{stage.name}"
            if config.resume and done.is_dir():
                _restore(policy, head, done)
                print(f"{stage.name}: taken from {done}")
                continue
            policy.train()
            run_stage(
                stage, policy, head, data, seed=config.seed + number, grounding_weight=config.grounding_weight,
                weight_decay=config.weight_decay, log=log, shares=config.env.shares,
            )  # fmt: skip
            _save(policy, head, done)


def _save(policy: QwenVLAPolicy, head: GroundingHead, folder: Path) -> None:
    beside = folder.with_name(folder.name + ".part")
    shutil.rmtree(beside, ignore_errors=True)
    policy.save_pretrained(beside)
    save_file(head.state_dict(), beside / HEAD_FILE)
    shutil.rmtree(folder, ignore_errors=True)
    beside.rename(folder)


def _restore(policy: QwenVLAPolicy, head: GroundingHead, folder: Path) -> None:
    policy.load_state_dict(QwenVLAPolicy.from_pretrained(folder).state_dict())
    head.load_state_dict(load_file(folder / HEAD_FILE))


def _said(collected: int) -> None:
    print(f"\rcollecting demonstrations: {collected}", end="", flush=True)
