"""`rl-finetune sft`: demonstrations, staged training, evaluation; leaves a policy folder."""

from __future__ import annotations

import json
import shutil
import time
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file

import envs
from actors.demonstrations import Demonstrations, collect
from actors.evaluator import run_episodes
from learners.grounding import GroundingHead
from learners.supervised import StepLog, SupervisedData, run_stage
from rl_finetune.config import SFTConfig, dump
from rl_finetune.metrics.intervals import wilson
from rl_finetune.policy import QwenVLAConfig, QwenVLAPolicy
from rl_finetune.policy.backbone import tiny_tokenizer
from rl_finetune.policy.normalisation import Quantiles
from rl_finetune.policy.prompt import body_sentence
from rl_finetune.spec import EnvSpec, handshake
from rl_finetune.types import SeedKeys

HEAD_FILE = "grounding_head.safetensors"
WORLD_BATCH = 100


def sft(config: SFTConfig) -> int:
    """Train, evaluate and save under `config.folder`; returns the exit code."""
    folder = Path(config.folder)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.yaml").write_text(dump(config))
    torch.set_num_threads(config.threads)
    torch.manual_seed(config.seed)
    began = time.monotonic()
    with envs.make(config.env.name, WORLD_BATCH, **config.env.options) as env:
        demonstrations = collect(
            env, config.demonstrations, seed=config.seed, noise=config.expert_noise, progress=_said
        )
        print(f"\n{len(demonstrations)} expert chunks in {time.monotonic() - began:.0f} s", flush=True)
        policy = _starting_policy(config, env.spec, demonstrations)
        names = demonstrations.observation.grounding.names if demonstrations.observation.grounding else ()
        head = GroundingHead(policy.config.decoder.context_width, len(names))
        data = SupervisedData.of(demonstrations.observation, demonstrations.actions, policy, env.spec.privileged)
        _train(config, folder, policy, head, data)
        _save(policy, head, folder / "policy")
        success = evaluate_here(
            policy, env, config.evaluation.episodes, config.evaluation.seed, config.evaluation.temperature
        )
    low, high = wilson(int(success.sum()), len(success))
    minutes = (time.monotonic() - began) / 60
    result = dict(success=float(success.mean()), interval=[low, high], episodes=len(success), minutes=minutes)
    (folder / "evaluation.json").write_text(json.dumps(result, indent=2) + "\n")
    print(
        f"success {success.mean():.1%} [{low:.1%}, {high:.1%}] on {len(success)} held-out episodes, "
        f"{minutes:.0f} min; policy in {folder / 'policy'}"
    )
    return 0


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


def _starting_policy(config: SFTConfig, spec: EnvSpec, demonstrations: Demonstrations) -> QwenVLAPolicy:
    if config.start is not None:
        policy = QwenVLAPolicy.from_pretrained(config.start)
        handshake(policy.config.embodiments, spec)
        return policy
    body = spec.embodiment
    corpus = [body_sentence(body, task) for task in spec.tasks]
    tiny = QwenVLAConfig.tiny()
    tokenizer = tiny_tokenizer(corpus, body.views, tiny.backbone["text_config"]["vocab_size"])
    return QwenVLAPolicy.build(tiny, tokenizer, {body.tag: Quantiles.fit(demonstrations.actions)})


def _train(config: SFTConfig, folder: Path, policy: QwenVLAPolicy, head: GroundingHead, data: SupervisedData) -> None:
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
                weight_decay=config.weight_decay, log=log,
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
