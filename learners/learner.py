"""The remote learner: a policy's trainable parts under DeepSpeed, one Ray actor a rank.

RLlib's LearnerGroup is not used: it does not recover a dead learner and asks one learner only for its checkpoint, so
the ZeRO shards of the others would be missing.
"""

from __future__ import annotations

import math
from pathlib import Path

import torch

import envs
from learners.endpoint import Rendezvous, offer_tcp
from learners.engine import Engine, join
from learners.update import recipe, run_update
from rl_finetune.config.schema import TrainConfig
from rl_finetune.policy import QwenVLAPolicy
from rl_finetune.policy.adapter_files import Origin
from rl_finetune.policy.adapters import equip, restore_adapters, save_adapters, set_version, trained_state
from rl_finetune.policy.loading import load_policy
from rl_finetune.spec import shared_state
from rl_finetune.types import ScoredTrajectory, UpdateReport
from rl_finetune.weights import TrainedWeights

VALUE_PARTS = ("value_head", "privileged_critic")
"""Parameters that train at the critic's learning rate."""


class Learner:
    """Turns scored trajectories into new weights. Every rank calls every method in the same order."""

    def __init__(self, job: dict[str, object], rank: int, world: int, origin: Origin) -> None:
        """Build the policy.

        Args:
            job: `TrainConfig` as a mapping.
            rank, world: which learner this is, and of how many.
            origin: what the adapters are trained on; not looked up here, where the backbone's files may be missing.
        """
        self.job, self.origin = TrainConfig.model_validate(job), origin
        self.rank, self.world, self.version = rank, world, 0
        torch.set_num_threads(self.job.learner.threads)
        self.policy = self._build_policy()
        self.recipe = recipe(self.job)

    def offer(self) -> Rendezvous:
        """A meeting point on this machine, for a cluster."""
        return offer_tcp()

    def join(self, rendezvous: Rendezvous) -> None:
        """Meet the other ranks and put the trainable parts under ZeRO."""
        join(self.rank, self.world, rendezvous)
        groups: dict[str, list[torch.nn.Parameter]] = {}
        for name, parameter in self.policy.named_parameters():
            if parameter.requires_grad:
                groups.setdefault("value" if name.startswith(VALUE_PARTS) else "actor", []).append(parameter)
        micro, stage = self.job.objective.minibatch // self.world, self.job.learner.zero_stage
        self.engine = Engine(self.policy, groups, self.job.optimizer, zero_stage=stage, micro_batch=micro)

    def update(self, scored: list[ScoredTrajectory], progress: float) -> UpdateReport:
        """One update at `progress` 0..1 of the run (for the schedule); the weights' version goes up by one."""
        self.engine.set_lr(self.rates(progress))
        norms: list[float] = []

        def optimise(loss: torch.Tensor) -> None:
            self.engine.step(loss)
            norms.append(self.engine.grad_norm)

        report = run_update(
            self.policy, scored, self.recipe, optimise=optimise,
            seed=self.job.run.seed, version=self.version, rank=self.rank, world=self.world,
        )  # fmt: skip
        self.version = report.policy_version
        set_version(self.policy, self.job, self.version)
        extra = {"grad_norm": sum(norms) / len(norms), "actor_lr": self.rates(progress)["actor"]}
        return UpdateReport(
            report.policy_version, {**report.diagnostics, **extra}, report.first_ratio_error, report.seconds
        )

    def rates(self, progress: float) -> dict[str, float]:
        """Learning rates at that share of the run."""
        factor = 0.5 * (1 + math.cos(math.pi * progress)) if self.job.optimizer.schedule == "cosine" else 1.0
        return {"actor": self.job.optimizer.actor_lr * factor, "value": self.job.optimizer.value_lr}

    def weights(self) -> TrainedWeights:
        """What the actors need: adapters and heads, sealed."""
        return TrainedWeights.of(self.version, trained_state(self.policy))

    def save(self, folder: str) -> None:
        """Write this rank's optimizer shard; rank 0 also writes adapters and value head."""
        self.engine.save_shard(Path(folder) / shard_name(self.rank))
        if self.rank == 0:
            save_adapters(self.policy, Path(folder) / "adapter", self.origin)

    def restore(self, folder: str, version: int) -> None:
        """Take over what `save` wrote."""
        restore_adapters(self.policy, Path(folder) / "adapter", self.origin.base)
        self.engine.load_shard(Path(folder) / shard_name(self.rank))
        self.version = version
        set_version(self.policy, self.job, version)

    def _build_policy(self) -> QwenVLAPolicy:
        specs = [envs.spec(world.name, **world.options) for world in self.job.env.worlds()]
        encodes = "backbone" in self.job.lora.parts
        policy = load_policy(self.job.policy, specs, with_backbone=encodes, merge=True)
        return equip(policy, self.job, shared_state(specs))


def shard_name(rank: int) -> str:
    """File of one rank's optimizer state."""
    return f"optimizer-rank-{rank}.safetensors"
