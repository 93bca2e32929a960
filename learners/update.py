"""One update: passes over minibatches of scored trajectories. A pure loop over an `Optimise` callback, so it is tested
without DeepSpeed or Ray."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from learners.objectives.base import LossInputs, LossOutputs
from rl_finetune.config.schema import PPOSection
from rl_finetune.policy import FlowSDE, QwenVLAPolicy, TorchContext
from rl_finetune.types import (
    Context,
    FloatArray,
    IntArray,
    Observation,
    ScoredTrajectory,
    UpdateReport,
    concatenate,
    concatenate_contexts,
)

Objective = Callable[[LossInputs, PPOSection], LossOutputs]
Optimise = Callable[[Tensor], None]


@dataclass(frozen=True, slots=True)
class Batch:
    """M chunk decisions from all trajectories of a round, time and environment flattened."""

    inputs: TorchContext | Observation
    x: Tensor
    x_next: Tensor
    step: Tensor
    mask: Tensor
    old_log_prob: Tensor
    advantage: Tensor
    old_value: Tensor
    returns: Tensor

    def __len__(self) -> int:
        return len(self.step)


def flatten(scored: list[ScoredTrajectory], *, normalise: bool) -> Batch:
    """Join trajectories; `old_log_prob` is summed over executed steps, advantages are normalised over all of them."""
    trajectories = [s.trajectory for s in scored]

    def flat(arrays: list[np.ndarray]) -> Tensor:
        return torch.from_numpy(np.concatenate([a.reshape(-1, *a.shape[2:]) for a in arrays]))

    advantage = flat([s.advantage for s in scored])
    if normalise:
        advantage = (advantage - advantage.mean()) / (advantage.std() + 1e-8)
    mask = flat([t.action_mask for t in trajectories])
    log_prob = flat([t.log_prob for t in trajectories])
    return Batch(
        inputs=_inputs([t.inputs for t in trajectories]),
        x=flat([t.x for t in trajectories]),
        x_next=flat([t.x_next for t in trajectories]),
        step=flat([t.step for t in trajectories]),
        mask=mask,
        old_log_prob=(log_prob * mask.any(-1)).sum(-1),
        advantage=advantage,
        old_value=flat([t.value for t in trajectories]),
        returns=flat([s.returns for s in scored]),
    )


def minibatches(
    samples: int, size: int, *, seed: int, update: int, epoch: int, rank: int, world: int
) -> Iterator[IntArray]:
    """This rank's share of each minibatch of one epoch; all ranks draw the same permutation.

    A last incomplete minibatch is left out, unless it is the only one. With fewer samples than ranks (actors were lost)
    some are used twice: a rank without any would leave the others waiting.
    """
    rng = np.random.default_rng((seed, update, epoch))
    order = np.resize(rng.permutation(samples), max(samples, world))
    size = min(size, len(order) - len(order) % world)
    for first in range(0, len(order) - size + 1, size):
        yield order[first : first + size][rank::world]


def run_update(
    policy: QwenVLAPolicy,
    scored: list[ScoredTrajectory],
    *,
    objective: Objective,
    optimise: Optimise,
    config: PPOSection,
    law: FlowSDE,
    seed: int,
    version: int,
    rank: int = 0,
    world: int = 1,
) -> UpdateReport:
    """Pass `config.epochs` times over the round's decisions.

    Args:
        policy: scored and, through `optimise`, changed.
        scored: all trajectories of the round.
        objective: `LossInputs -> LossOutputs`.
        optimise: applies the gradient of a scalar loss.
        config: settings of the objective.
        law: the sampler's law; scorer and sampler share its grid.
        seed, version: key of the minibatch order; the report carries `version + 1`.
        rank, world: this learner's place.
    """
    start = time.monotonic()
    batch = flatten(scored, normalise=config.normalise_advantages)
    logged: dict[str, list[float]] = defaultdict(list)
    first_error = 0.0
    for epoch in range(config.epochs):
        for index in minibatches(
            len(batch), config.minibatch, seed=seed, update=version, epoch=epoch, rank=rank, world=world
        ):
            out = objective(loss_inputs(policy, batch, index, law), config)
            if not logged:
                first_error = float(out.diagnostics["ratio_error"])
            optimise(out.loss)
            for name, value in out.diagnostics.items():
                logged[name].append(float(value))
    diagnostics = {name: float(np.mean(values)) for name, values in logged.items()}
    diagnostics["explained_variance"] = explained_variance(batch.old_value.numpy(), batch.returns.numpy())
    return UpdateReport(version + 1, diagnostics, first_error, time.monotonic() - start)


def loss_inputs(policy: QwenVLAPolicy, batch: Batch, index: IntArray, law: FlowSDE) -> LossInputs:
    """Score one minibatch under the present weights; observations are encoded again where contexts were not cached."""
    rows, inputs = torch.from_numpy(index), batch.inputs

    def here(tensor: Tensor) -> Tensor:
        return tensor[rows].to(policy.device)

    context = inputs.rows(rows) if isinstance(inputs, TorchContext) else policy.encode(inputs.rows(index))
    context = context.to(policy.device)
    log_prob = policy.log_prob(context, here(batch.x), here(batch.x_next), here(batch.step), law, here(batch.mask))
    return LossInputs(
        log_prob=log_prob.sum(-1),
        old_log_prob=here(batch.old_log_prob),
        advantage=here(batch.advantage),
        value=policy.value(context),
        old_value=here(batch.old_value),
        returns=here(batch.returns),
    )


def explained_variance(value: FloatArray, returns: FloatArray) -> float:
    """1 - Var(returns - value) / Var(returns); NaN where the returns do not vary."""
    spread = returns.var()
    return float(1 - (returns - value).var() / spread) if spread > 0 else float("nan")


def _inputs(parts: list[Context | Observation]) -> TorchContext | Observation:
    contexts = [p for p in parts if isinstance(p, Context)]
    if len(contexts) == len(parts):
        return TorchContext.from_numpy(concatenate_contexts(contexts))
    return concatenate([p for p in parts if isinstance(p, Observation)])
