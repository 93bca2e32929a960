"""A learner in a process of its own, for `test_learner`: `python learner_process.py FOLDER ROLE RANK WORLD`.

FOLDER holds `policy/`; what happened is written to `ROLE-RANK.json` there, weights to safetensors beside it.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import deepspeed
from builders import origin, random_contexts, trajectory
from safetensors.numpy import save_file

from learners.advantages import score
from learners.endpoint import Rendezvous
from learners.learner import Learner
from rl_finetune.config.objectives import PPOSection
from rl_finetune.config.schema import (
    LearnerSection,
    LoraSection,
    OptimizerSection,
    PolicySection,
    RunSection,
    TrainConfig,
)
from rl_finetune.types import ScoredTrajectory


def job(folder: Path, world: int) -> TrainConfig:
    """Small, with every learning rate on."""
    return TrainConfig(
        policy=PolicySection(path=str(folder / "policy")),
        lora=LoraSection(rank=4),
        objective=PPOSection(epochs=2, minibatch=16),
        optimizer=OptimizerSection(actor_lr=1e-3, value_lr=1e-2),
        learner=LearnerSection(num_learners=world),
        run=RunSection(seed=5),
    )


def round_of(learner: Learner, number: int) -> list[ScoredTrajectory]:
    """The same for every learner with the same weights."""
    made = (trajectory(learner.policy, random_contexts(32, seed=s), chunks=2, seed=s) for s in (number, number + 100))
    return [score(t, gamma=0.99, lam=0.95) for t in made]


def straight(learner: Learner, folder: Path) -> dict[str, Any]:
    """Update, save, update."""
    before = {name: p.detach().clone() for name, p in learner.policy.named_parameters()}
    first = learner.update(round_of(learner, 0), progress=0.0)
    changed = [name for name, p in learner.policy.named_parameters() if not p.equal(before[name])]
    (folder / "checkpoint").mkdir()
    learner.save(str(folder / "checkpoint"))
    keep(learner, folder / "first.safetensors")
    second = learner.update(round_of(learner, 1), progress=0.5)
    return {
        "changed": changed,
        "trains": [name for name, p in learner.policy.named_parameters() if p.requires_grad],
        "versions": [first.policy_version, second.policy_version, learner.weights().version],
        "first ratio": [first.first_ratio_error, second.first_ratio_error],
        "diagnostics": dict(first.diagnostics),
        "rates": [first.diagnostics["actor_lr"], second.diagnostics["actor_lr"]],
    }


def resumed(learner: Learner, folder: Path) -> dict[str, Any]:
    """Take over what `straight` saved and make its second update; then one more with both learning rates zero."""
    learner.restore(str(folder / "checkpoint"), version=1)
    keep(learner, folder / "restored.safetensors")
    report = learner.update(round_of(learner, 1), progress=0.5)
    keep(learner, folder / "second.safetensors")
    learner.rates = lambda progress: {"actor": 0.0, "value": 0.0}  # type: ignore[method-assign]
    learner.update(round_of(learner, 2), progress=1.0)
    return {"versions": [report.policy_version, learner.weights().version]}


def once(learner: Learner, folder: Path) -> dict[str, Any]:
    """One update."""
    return {"diagnostics": dict(learner.update(round_of(learner, 0), progress=0.0).diagnostics)}


def keep(learner: Learner, path: Path) -> None:
    """The published weights, as they would arrive."""
    save_file(dict(learner.weights().verified().tensors), path)


def main(folder: Path, role: str, rank: int, world: int) -> None:
    """Play one role and write down what came of it."""
    learner = Learner(job(folder, world).model_dump(), rank, world, origin(folder / "policy"))
    keep(learner, folder / f"{role}-{rank}-begins.safetensors")
    learner.join(Rendezvous(f"file://{folder / f'{role}-meeting'}", interface="lo"))
    found = {"straight": straight, "resumed": resumed, "once": once}[role](learner, folder)
    keep(learner, folder / f"{role}-{rank}.safetensors")
    found["shared memory op"] = deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"]
    (folder / f"{role}-{rank}.json").write_text(json.dumps(found))


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]), int(sys.argv[4]))
