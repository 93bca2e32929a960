"""The policy that every training of the comparison starts from: the shipped eyes with a cheap, unfinished hand.

    python -m benchmarks.objectives.policy FOLDER

Backbone and action quantiles are the shipped ones. The decoder is one joint block of width 64, trained by flow matching
on expert chunks and stopped where it succeeds on 37 % of 1000 held-out episodes. With `--steps 4000` on the same chunks
it succeeds on 96 % of them, so what the comparison can gain is not bounded by the architecture.
"""

from __future__ import annotations

import argparse
import json
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch

import envs
from actors.demonstrations import collect
from learners.grounding import GroundingHead
from learners.supervised import StepLog, SupervisedData, run_stage
from rl_finetune.config.schema import StageSection
from rl_finetune.policy import QwenVLAPolicy
from rl_finetune.policy.config import DecoderConfig

SHIPPED = Path("checkpoints/qwen-vla-tiny")
ENVIRONMENT = "widowx_reach"
WORLD_BATCH = 100
EXPERT_NOISE = 0.05
BATCH = 128
WEIGHT_DECAY = 0.01
RECIPE_FILE = "recipe.json"

CHEAP = DecoderConfig(
    width=64, depth=1, heads=4, head_dim=16, mlp=128, time_features=32, context_width=128, action_width=16,
    context_attention="joint", rope_fraction=0.5, rope_sections=(2, 1, 1),
)  # fmt: skip
"""In a joint decoder's only block the context gives keys and values alone, which makes it cheaper than a prefix one."""


@dataclass(frozen=True, slots=True)
class Recipe:
    """All that decides the weights."""

    architecture: DecoderConfig = CHEAP
    """The decoder."""
    demos: int = 2000
    """Expert chunks."""
    steps: int = 1200
    """Optimizer steps, chosen for the success that they lead to."""
    lr: float = 1e-3
    """Peak learning rate."""
    seed: int = 0
    """Of initialisation, scenes, disturbances, batches and noise."""

    def dump(self) -> str:
        """JSON as written beside the policy."""
        return json.dumps(asdict(self), indent=2) + "\n"


def main() -> None:
    """Build into a folder."""
    parser = argparse.ArgumentParser(description="build the policy that the comparison starts from")
    parser.add_argument("folder", type=Path, help="policy folder to write")
    usual = Recipe()
    parser.add_argument("--demos", type=int, default=usual.demos, help=f"expert chunks (default {usual.demos})")
    parser.add_argument("--steps", type=int, default=usual.steps, help=f"optimizer steps (default {usual.steps})")
    args = parser.parse_args()
    build(args.folder, Recipe(demos=args.demos, steps=args.steps))


def build(folder: Path, recipe: Recipe | None = None) -> None:
    """Train by the recipe and save, unless `folder` already holds a policy of the same recipe."""
    recipe = recipe or Recipe()
    if built(folder, recipe):
        print(f"policy taken from {folder}")
        return
    begun = time.monotonic()
    with _reproducible():
        policy = _fresh(recipe)
        _train(policy, recipe)
    _save(policy, recipe, folder)
    print(f"policy built in {time.monotonic() - begun:.0f} s: {folder}", flush=True)


def built(folder: Path, recipe: Recipe) -> bool:
    """Whether `folder` holds a policy of that recipe."""
    path = folder / RECIPE_FILE
    return path.is_file() and path.read_text() == recipe.dump()


def _fresh(recipe: Recipe) -> QwenVLAPolicy:
    shipped = QwenVLAPolicy.from_pretrained(SHIPPED)
    torch.manual_seed(recipe.seed)
    return QwenVLAPolicy(replace(shipped.config, decoder=recipe.architecture), shipped.backbone, shipped.quantiles)


def _train(policy: QwenVLAPolicy, recipe: Recipe) -> None:
    with envs.make(ENVIRONMENT, WORLD_BATCH) as env:
        chunks = collect(env, recipe.demos, seed=recipe.seed, noise=EXPERT_NOISE)
        data = SupervisedData.of(chunks.observation, chunks.actions, policy, env.spec.privileged)
    stage = StageSection(name="act", train="decoder", steps=recipe.steps, batch=BATCH, lr=recipe.lr)
    unused = GroundingHead(recipe.architecture.context_width, things=1)
    run_stage(
        stage, policy, unused, data, seed=recipe.seed, grounding_weight=0.0, weight_decay=WEIGHT_DECAY,
        log=_said(stage), log_every=200,
    )  # fmt: skip
    policy.eval()


def _said(stage: StageSection) -> Callable[[StepLog], None]:
    def say(line: StepLog) -> None:
        print(f"flow matching {line.step}/{stage.steps}  loss {line.loss:.4f}  {line.left:.0f} s left", flush=True)

    return say


def _save(policy: QwenVLAPolicy, recipe: Recipe, folder: Path) -> None:
    beside = folder.with_name(folder.name + ".part")
    shutil.rmtree(beside, ignore_errors=True)
    policy.save_pretrained(beside)
    (beside / RECIPE_FILE).write_text(recipe.dump())
    shutil.rmtree(folder, ignore_errors=True)
    beside.rename(folder)


@contextmanager
def _reproducible() -> Iterator[None]:
    """One thread (their number changes rounding); that and the global generator are put back afterwards."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with torch.random.fork_rng(devices=[]):
            yield
    finally:
        torch.set_num_threads(threads)


if __name__ == "__main__":
    main()
