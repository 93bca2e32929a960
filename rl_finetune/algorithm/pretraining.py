"""`rl-finetune sft`: demonstrations, staged training, evaluation; leaves a policy folder."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
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
from rl_finetune.config import SFTConfig, dump
from rl_finetune.config.worlds import World
from rl_finetune.errors import UserError
from rl_finetune.metrics.intervals import wilson
from rl_finetune.policy import QwenVLAConfig, QwenVLAPolicy
from rl_finetune.policy.backbone import tiny_tokenizer
from rl_finetune.policy.extension import extend
from rl_finetune.policy.normalisation import Quantiles
from rl_finetune.policy.prompt import body_sentence
from rl_finetune.spec import EmbodimentSpec, EnvSpec
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


def sft(config: SFTConfig) -> int:
    """Train, evaluate and save under `config.folder`; returns the exit code."""
    folder = Path(config.folder)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.yaml").write_text(dump(config))
    torch.set_num_threads(config.threads)
    torch.manual_seed(config.seed)
    began = time.monotonic()
    worlds = [_shown(config, world) for world in config.env.worlds()]
    policy = _starting_policy(config, worlds)
    head = GroundingHead(policy.config.decoder.context_width, len(_things(worlds)))
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


def _things(worlds: list[_World]) -> tuple[str, ...]:
    """Names of the grounding labels, which all worlds must share: one head reads them.

    Raises:
        UserError: they differ.
    """
    names = [w.shown.observation.grounding.names if w.shown.observation.grounding else () for w in worlds]
    if len(set(names)) > 1:
        raise UserError(
            "worlds of one supervised run name different things", got=", ".join(map(str, dict.fromkeys(names))),
            expected="the same grounding names in all", do="train on the others in a run of their own",
        )  # fmt: skip
    return names[0]


def _starting_policy(config: SFTConfig, worlds: list[_World]) -> QwenVLAPolicy:
    """The policy that knows all bodies; those that several worlds share are normalised over all of them."""
    bodies = {w.spec.embodiment.tag: w.spec.embodiment for w in worlds}
    tasks = {tag: [t for w in worlds if w.spec.embodiment.tag == tag for t in w.spec.tasks] for tag in bodies}
    actions = {tag: [w.shown.actions for w in worlds if w.spec.embodiment.tag == tag] for tag in bodies}
    quantiles = {tag: Quantiles.fit(np.concatenate(parts)) for tag, parts in actions.items()}
    if config.start is not None:
        policy = QwenVLAPolicy.from_pretrained(config.start)
    else:
        policy = _fresh(bodies, tasks, quantiles)
        if len(bodies) == 1 and config.decoder_depth is None:
            return policy
    pixels = {w.spec.embodiment.tag: w.spec.image_size for w in worlds}
    taught = [(body, policy.eyes.visual_tokens(pixels[tag]), tasks[tag]) for tag, body in bodies.items()]
    return extend(policy, taught, quantiles, decoder_depth=config.decoder_depth)


def _fresh(
    bodies: dict[str, EmbodimentSpec], tasks: dict[str, list[str]], quantiles: dict[str, Quantiles]
) -> QwenVLAPolicy:
    corpus = [body_sentence(body, task) for tag, body in bodies.items() for task in tasks[tag]]
    tiny = replace(QwenVLAConfig.tiny(), embodiments=tuple(bodies.values()))
    views = tuple(dict.fromkeys(view for body in bodies.values() for view in body.views))
    tokenizer = tiny_tokenizer(corpus, views, tiny.backbone["text_config"]["vocab_size"])
    return QwenVLAPolicy.build(tiny, tokenizer, quantiles)


def _train(
    config: SFTConfig, folder: Path, policy: QwenVLAPolicy, head: GroundingHead, data: list[SupervisedData]
) -> None:
    with (folder / "metrics.jsonl").open("a") as journal:

        def log(line: StepLog) -> None:
            journal.write(json.dumps(asdict(line)) + "\n")
            journal.flush()
            print(
                f"{line.stage:>10} {line.step:6d}  loss {line.loss:.4f}  target error {line.pixel_error:.3f} widths  "
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
