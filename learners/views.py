"""What an objective sees of a minibatch.

Every objective looks at velocities in points (x, tau) that are fixed for the whole update, so that one pass of the
decoder a minibatch serves objective and regularisers alike, and what the weights said at the start is worked out once:

    density      the sampled transitions; how likely they are            PPO, decoupled PPO, GRPO, RLOO
    transitions  the sampled transitions; where the solver goes          StepNFT
    pairs        fresh points on straight paths to the executed chunk    DiffusionNFT, FPO, FPO++, RECAP
"""

from __future__ import annotations

from abc import ABC, abstractmethod

import numpy as np
import torch
from torch import Tensor

from learners.batch import Batch
from learners.objectives.base import DensityInputs, LossInputs, PairInputs, TransitionInputs
from rl_finetune.config.objectives import ObjectiveSection, RECAPSection
from rl_finetune.keys import Stream, generator
from rl_finetune.policy import QwenVLAPolicy, TorchContext
from rl_finetune.policy.flow import gaussian_log_prob, interpolate
from rl_finetune.policy.laws import ODE, Law, times
from rl_finetune.policy.sampler import transition_mean


class View(ABC):
    """Points of a batch, and what an objective makes of the velocities there."""

    x: Tensor
    """[M, P, H, K]."""
    tau: Tensor
    """[M, P]."""

    def __init__(self, batch: Batch) -> None:
        self.batch = batch

    def context(self, rows: Tensor) -> TorchContext:
        """What the decoder is conditioned on, where contexts were cached."""
        assert isinstance(self.batch.inputs, TorchContext)
        return self.batch.inputs.rows(rows)

    def reference(self, policy: QwenVLAPolicy, context: TorchContext, rows: Tensor, velocity: Tensor) -> Tensor:
        """What `inputs` will want to know of the weights at the start of the update: velocities, unless overridden."""
        return velocity

    @abstractmethod
    def inputs(
        self, policy: QwenVLAPolicy, context: TorchContext, rows: Tensor, velocity: Tensor, reference: Tensor | None
    ) -> LossInputs:
        """The objective's inputs.

        Args:
            policy: present weights.
            context: of the minibatch.
            rows: [B] its decisions.
            velocity: [B, P, H, K] in the points, with gradient.
            reference: [B, ...] as `reference` made it, for objectives that ask for it.
        """


class Transitions(View):
    """Points of the sampled transitions; for an objective, the one transition of Flow-SDE."""

    def __init__(self, batch: Batch, law: Law) -> None:
        super().__init__(batch)
        if isinstance(law, ODE):
            raise ValueError("the ODE has no transition to score; choose another exploration.law")
        self.law = law
        self.x, self.x_next = batch.states[:, :-1], batch.states[:, 1:]
        self.tau, self.tau_next = times(law, batch.step)

    def moments(
        self, policy: QwenVLAPolicy, context: TorchContext, rows: Tensor, velocity: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation [B, J, H, K] (or broadcastable) of the transitions, given the velocity."""
        x, tau = self.x[rows], self.tau[rows]
        mean, std = transition_mean(velocity, x, tau, self.tau_next[rows], self.batch.step[rows], self.law)
        if std is None:
            spread = policy.spread(context)
            assert spread is not None
            std = torch.stack([spread(x[:, j], tau[:, j]) for j in range(x.shape[1])], 1)
        return mean, std

    def inputs(
        self, policy: QwenVLAPolicy, context: TorchContext, rows: Tensor, velocity: Tensor, reference: Tensor | None
    ) -> LossInputs:
        """See `View`."""
        assert reference is not None
        mean, std = self.moments(policy, context, rows, velocity)
        old_mean, _ = self.moments(policy, context, rows, reference)
        batch = self.batch
        return TransitionInputs(
            mean[:, 0], old_mean[:, 0], self.x_next[rows, 0], std[:, 0], batch.mask[rows], batch.advantage[rows]
        )


class Densities(Transitions):
    """Log-densities of the sampled transitions; those of more than `length` numbers are scaled down to as many."""

    def __init__(self, batch: Batch, law: Law, length: int | None = None) -> None:
        super().__init__(batch, law)
        numbers = batch.mask.sum((1, 2)) * self.tau.shape[1]
        self.weight = torch.ones_like(batch.advantage) if length is None else (length / numbers).clamp(max=1)

    def reference(self, policy: QwenVLAPolicy, context: TorchContext, rows: Tensor, velocity: Tensor) -> Tensor:
        """Log-density [B] under the weights at the start."""
        return self._log_prob(policy, context, rows, velocity)

    def inputs(
        self, policy: QwenVLAPolicy, context: TorchContext, rows: Tensor, velocity: Tensor, reference: Tensor | None
    ) -> LossInputs:
        """See `View`."""
        old = self.weight[rows] * self.batch.old_log_prob[rows]
        log_prob = self._log_prob(policy, context, rows, velocity)
        return DensityInputs(log_prob, old, old if reference is None else reference, self.batch.advantage[rows])

    def _log_prob(self, policy: QwenVLAPolicy, context: TorchContext, rows: Tensor, velocity: Tensor) -> Tensor:
        mean, std = self.moments(policy, context, rows, velocity)
        mask = self.batch.mask[rows][:, None].expand_as(mean)
        correlation = self.law.correlation
        steps = gaussian_log_prob(self.x_next[rows], mean, std, mask, dims=(-1,), correlation=correlation)
        return self.weight[rows] * steps.sum((1, 2))


class Pairs(View):
    """Fresh points around the executed chunk; the same whatever the number of learners."""

    def __init__(self, batch: Batch, pairs: int, seed: tuple[int, int, int]) -> None:
        super().__init__(batch)
        shape, device = (len(batch), pairs, *batch.sample.shape[1:]), batch.sample.device
        rng = generator(seed[0], Stream.POINTS, *seed[1:])
        self.eps = torch.from_numpy(rng.standard_normal(shape, dtype=np.float32)).to(device)
        offsets = torch.from_numpy(rng.random(shape[:2], dtype=np.float32))
        self.tau = ((torch.arange(pairs) + offsets) / pairs).clamp(min=1e-3).to(device)
        self.x = interpolate(batch.sample[:, None], self.eps, self.tau[..., None, None])

    def inputs(
        self, policy: QwenVLAPolicy, context: TorchContext, rows: Tensor, velocity: Tensor, reference: Tensor | None
    ) -> LossInputs:
        """See `View`."""
        batch = self.batch
        return PairInputs(
            velocity=velocity,
            old_velocity=velocity.detach() if reference is None else reference,
            sample=batch.sample[rows],
            eps=self.eps[rows],
            tau=self.tau[rows],
            mask=batch.mask[rows],
            advantage=batch.advantage[rows],
        )


class AdvisedPairs(Pairs):
    """The same, each decision under the advice that its advantage earns; some without, to keep the plain policy."""

    def __init__(
        self, batch: Batch, pairs: int, seed: tuple[int, int, int], *, quantile: float, dropout: float
    ) -> None:
        super().__init__(batch, pairs, seed)
        self.good = positive(batch.advantage, quantile)
        rng = generator(seed[0], Stream.ADVICE, *seed[1:])
        silent = torch.from_numpy(rng.random(len(batch)) < dropout).to(self.good.device)
        self.plain = silent if self.good.any() else torch.ones_like(silent)

    def context(self, rows: Tensor) -> TorchContext:
        """See `View`: plain, good or bad by row."""
        assert isinstance(self.batch.inputs, TorchContext) and self.batch.advised is not None
        here = rows.cpu()
        plain, good, bad = (c.rows(here) for c in (self.batch.inputs, *self.batch.advised))
        return _choose(self.plain[rows].cpu(), plain, _choose(self.good[rows].cpu(), good, bad))


def positive(advantage: Tensor, quantile: float) -> Tensor:
    """[M] which of the advantages [M] are called positive: those above the quantile, or with those that are equal to
    it, whichever share is nearer to 1 - quantile. Never all of them; none only where all are equal."""
    threshold = advantage.quantile(quantile)
    above, least = advantage > threshold, advantage >= threshold
    excess, surplus = ((share.float().mean() + quantile - 1).abs() for share in (above, least))
    return above if least.all() or (above.any() and excess <= surplus) else least


def view_of(batch: Batch, objective: ObjectiveSection, law: Law, seed: tuple[int, int, int]) -> View:
    """The view that the objective's settings name; `seed` (run, version, body's number) keys fresh points."""
    if objective.view == "transitions":
        return Transitions(batch, law)
    if objective.view == "density":
        return Densities(batch, law, getattr(objective, "ratio_length", None))
    pairs = getattr(objective, "pairs", 1)
    if isinstance(objective, RECAPSection):
        return AdvisedPairs(batch, pairs, seed, quantile=objective.quantile, dropout=objective.dropout)
    return Pairs(batch, pairs, seed)


def _choose(first: Tensor, one: TorchContext, other: TorchContext) -> TorchContext:
    """Rows of `one` where `first` [B], else of `other`."""
    return TorchContext(
        torch.where(first[:, None, None], one.hidden, other.hidden),
        torch.where(first[:, None], one.mask, other.mask),
        torch.where(first[None, :, None], one.positions, other.positions),
    )
