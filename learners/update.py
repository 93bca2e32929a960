"""One update: passes over minibatches of scored trajectories. A pure loop over an `Optimise` callback, so it is tested
without DeepSpeed or Ray.

    by_body -> view (points) -> [references under the weights at the start] -> epochs of minibatches:
        context -> velocity in the points -> objective + critic + regularisers -> optimise

A minibatch is drawn from the decisions of all bodies and passes the decoder body by body: horizons and contexts differ,
and padding one to the other would change, through joint attention, what the sampler saw. The losses are means over
decisions, so that their mean weighted by rows is the loss of the whole minibatch.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from learners import regularisers as terms
from learners.batch import Batch, by_body, minibatches
from learners.objectives import OBJECTIVES, Objective
from learners.objectives.base import LossInputs
from learners.values import return_scale, value_loss
from learners.views import Transitions, View, view_of
from rl_finetune.config.objectives import ObjectiveSection
from rl_finetune.config.schema import CriticSection, ExplorationSection, RegularisersSection, TrainConfig
from rl_finetune.keys import Stream, generator
from rl_finetune.policy import QwenVLAPolicy, TorchContext
from rl_finetune.policy.adapters import without_adapters
from rl_finetune.policy.flow import interpolate
from rl_finetune.policy.laws import Law, law_for, law_of
from rl_finetune.types import FloatArray, IntArray, ScoredTrajectory, UpdateReport

Optimise = Callable[[Tensor], None]
Diagnostics = dict[str, Tensor]
PER_BODY = ("policy_loss", "value_loss", "clip_fraction", "kl", "ratio_error")
"""What is logged of each body of several, as `name/robot tag`, beside the whole."""


@dataclass(frozen=True, slots=True)
class Recipe:
    """Everything that makes up a loss."""

    objective: ObjectiveSection
    """Its settings; they also name its view of the data."""
    loss: Objective
    """Its function, from `OBJECTIVES`."""
    law: Law
    """The sampler's law; scorer and sampler share its grid."""
    critic: CriticSection = field(default_factory=CriticSection)
    """Value loss, where the policy has a critic."""
    regularisers: RegularisersSection = field(default_factory=RegularisersSection)
    """Further terms."""
    exploration: ExplorationSection = field(default_factory=ExplorationSection)
    """What the law is for each body; see `laws.law_for`."""


def recipe(job: TrainConfig) -> Recipe:
    """The loss of a job."""
    loss = OBJECTIVES[job.objective.name]
    return Recipe(job.objective, loss, law_of(job), job.critic, job.regularisers, job.exploration)


@dataclass(frozen=True, slots=True)
class Prepared:
    """A batch ready for minibatches."""

    batch: Batch
    """On the policy's device, but for contexts."""
    view: View
    """The objective's points."""
    reference: Tensor | None
    """[M, ...] what the weights at the start said, where the objective asks."""
    start_velocity: Tensor | None
    """[M, P, H, K] of the policy without its adapters, where a regulariser asks."""
    value_scale: float
    """What the critic's clip is measured in."""
    cloning: tuple[Tensor, ...] | None
    """Noise [M, H, K] and times [M] of the cloning term, where there is one."""


def run_update(
    policy: QwenVLAPolicy,
    scored: list[ScoredTrajectory],
    recipe: Recipe,
    *,
    optimise: Optimise,
    seed: int,
    version: int,
    rank: int = 0,
    world: int = 1,
) -> UpdateReport:
    """Pass `epochs` times over the round's decisions.

    Args:
        policy: scored and, through `optimise`, changed.
        scored: all trajectories of the round.
        recipe: the loss.
        optimise: applies the gradient of a scalar loss.
        seed, version: key of the minibatch order and of fresh points; the report carries `version + 1`.
        rank, world: this learner's place.
    """
    start, config = time.monotonic(), recipe.objective
    batches = by_body(scored, normalise=config.normalise_advantages)
    ready = [prepare(policy, batch, recipe, (seed, version), part) for part, batch in enumerate(batches)]
    samples, logged = sum(map(len, batches)), defaultdict[str, list[float]](list)
    for epoch in range(config.epochs):
        for index in minibatches(
            samples, config.minibatch, seed=seed, update=version, epoch=epoch, rank=rank, world=world
        ):
            loss, diagnostics = mixed_loss(policy, ready, index, recipe)
            optimise(loss)
            for name, value in diagnostics.items():
                logged[name].append(float(value))
    means = {name: float(np.mean(values)) for name, values in logged.items()}
    means |= _explained(batches) | {"decisions_used": float(sum(part.used.sum() for part in scored))}
    first_error = logged["ratio_error"][0] if "ratio_error" in logged else float("nan")
    return UpdateReport(version + 1, means, first_error, time.monotonic() - start)


def prepare(policy: QwenVLAPolicy, batch: Batch, recipe: Recipe, seed: tuple[int, int], part: int = 0) -> Prepared:
    """Lay out the points, and work out once what does not change during the update.

    Args:
        policy: at the start of the update.
        batch: one body's decisions.
        recipe: the loss.
        seed: (run, version), key of fresh points.
        part: which of several bodies' batches it is; each has points of its own.
    """
    batch = batch.to(policy.device)
    law = law_for(batch.embodiment, recipe.law, recipe.exploration)
    view = view_of(batch, recipe.objective, law, (*seed, part))
    reference = start = cloning = None
    if recipe.objective.needs_old:
        reference = _once(policy, view, recipe.objective.minibatch, view.reference)
    if recipe.regularisers.velocity or recipe.regularisers.kl:
        with without_adapters(policy):
            start = _once(policy, view, recipe.objective.minibatch, lambda policy, context, rows, velocity: velocity)
    if recipe.regularisers.cloning:
        rng, shape = generator(seed[0], Stream.CLONING, seed[1], part), tuple(batch.sample.shape)
        draws = rng.standard_normal(shape, dtype=np.float32), rng.random(shape[:1], dtype=np.float32)
        cloning = tuple(torch.from_numpy(draw).to(policy.device) for draw in draws)
    return Prepared(batch, view, reference, start, return_scale(batch.old_value, batch.returns), cloning)


def mixed_loss(
    policy: QwenVLAPolicy, ready: Sequence[Prepared], index: IntArray, recipe: Recipe
) -> tuple[Tensor, Diagnostics]:
    """Loss of one minibatch of several bodies under the present weights, and what to log.

    Args:
        policy: present weights.
        ready: one for each body.
        index: [B] rows, counted through all of `ready`.
        recipe: the loss.

    Returns:
        The mean of the bodies' losses, weighted by their rows: with losses that are means over decisions, the mean over
        the B decisions. Of diagnostics the same, but the largest `ratio_error`.
    """
    if len(ready) == 1:
        return minibatch_loss(policy, ready[0], index, recipe)
    found = [
        (part.batch.embodiment, len(rows) / len(index), *minibatch_loss(policy, part, rows, recipe))
        for part, rows in _split(ready, index)
    ]
    loss = torch.stack([weight * own for _, weight, own, _ in found]).sum()
    return loss, _merged([(tag, weight, logged) for tag, weight, _, logged in found])


def _split(ready: Sequence[Prepared], index: IntArray) -> Iterator[tuple[Prepared, IntArray]]:
    """Each body that has rows among `index`, with them counted within the body."""
    first = 0
    for part in ready:
        rows = index[(index >= first) & (index < first + len(part.batch))] - first
        first += len(part.batch)
        if rows.size:
            yield part, rows


def _merged(found: list[tuple[str, float, Diagnostics]]) -> Diagnostics:
    """(robot tag, weight, diagnostics) of each body -> over all, and `name/tag` of each."""

    def mean(name: str, parts: list[tuple[str, float, Diagnostics]]) -> Tensor:
        values = torch.stack([logged[name] for _, _, logged in parts])
        if name == "ratio_error":
            return values.max()
        weights = values.new_tensor([weight for _, weight, _ in parts])
        return (weights * values).sum() / weights.sum()

    merged = {name: mean(name, found) for name in found[0][2]}
    for tag in dict.fromkeys(tag for tag, _, _ in found):
        own = [part for part in found if part[0] == tag]
        merged |= {f"{name}/{tag}": mean(name, own) for name in PER_BODY if name in merged}
    return merged


def minibatch_loss(
    policy: QwenVLAPolicy, ready: Prepared, index: IntArray, recipe: Recipe
) -> tuple[Tensor, Diagnostics]:
    """Loss of one body's share of a minibatch under the present weights, and what to log."""
    rows = torch.from_numpy(index)
    context = _context(policy, ready.view, rows)
    rows = rows.to(policy.device)
    velocity = velocities(policy, context, ready.view.x[rows], ready.view.tau[rows])
    given = loss_inputs(policy, ready, context, rows, velocity)
    out = recipe.loss(given, recipe.objective)
    loss, diagnostics = out.loss, {**out.diagnostics, "policy_loss": out.loss.detach()}
    if policy.critic != "none":
        worth = _critic_loss(policy, ready, context, rows, recipe)
        loss, diagnostics["value_loss"] = loss + recipe.critic.coefficient * worth, worth.detach()
    for name, weight, term in _regularisers(policy, ready, context, rows, velocity, recipe):
        loss, diagnostics[name] = loss + weight * term, term.detach()
    return loss, diagnostics


def loss_inputs(
    policy: QwenVLAPolicy, ready: Prepared, context: TorchContext, rows: Tensor, velocity: Tensor
) -> LossInputs:
    """The objective's inputs for the decisions `rows` [B]."""
    return ready.view.inputs(
        policy, context, rows, velocity, None if ready.reference is None else ready.reference[rows]
    )


def velocities(policy: QwenVLAPolicy, context: TorchContext, x: Tensor, tau: Tensor) -> Tensor:
    """[B, P, H, K] in points x [B, P, H, K] at tau [B, P]; the context is prepared once."""
    prepared = policy.prepare(context, x.shape[2])
    return torch.stack([policy.decoder(prepared, x[:, p], tau[:, p]) for p in range(x.shape[1])], 1)


def explained_variance(value: FloatArray, returns: FloatArray) -> float:
    """1 - Var(returns - value) / Var(returns); NaN where the returns do not vary."""
    spread = returns.var()
    return float(1 - (returns - value).var() / spread) if spread > 0 else float("nan")


def _explained(batches: Sequence[Batch]) -> dict[str, float]:
    """Explained variance over all decisions, and for each body of several."""

    def of(parts: Sequence[Batch]) -> float:
        value, returns = (torch.cat([getattr(b, name) for b in parts]).numpy() for name in ("old_value", "returns"))
        return explained_variance(value, returns)

    name, tags = "explained_variance", list(dict.fromkeys(batch.embodiment for batch in batches))
    each = {f"{name}/{tag}": of([b for b in batches if b.embodiment == tag]) for tag in tags if len(tags) > 1}
    return {name: of(batches)} | each


def _context(policy: QwenVLAPolicy, view: View, rows: Tensor) -> TorchContext:
    """Cached, or encoded again where observations were kept."""
    inputs = view.batch.inputs
    context = view.context(rows) if isinstance(inputs, TorchContext) else policy.encode(inputs.rows(rows.numpy()))
    return context.to(policy.device)


Asked = Callable[[QwenVLAPolicy, TorchContext, Tensor, Tensor], Tensor]


@torch.no_grad()
def _once(policy: QwenVLAPolicy, view: View, size: int, ask: Asked) -> Tensor:
    """`ask` of every decision, in parts."""
    found = []
    for rows in torch.arange(len(view.x)).split(size):
        context, here = _context(policy, view, rows), rows.to(policy.device)
        found.append(ask(policy, context, here, velocities(policy, context, view.x[here], view.tau[here])))
    return torch.cat(found)


def _critic_loss(policy: QwenVLAPolicy, ready: Prepared, context: TorchContext, rows: Tensor, recipe: Recipe) -> Tensor:
    batch = ready.batch
    state = None if batch.privileged is None else batch.privileged[rows]
    value = policy.value(context, state)
    return value_loss(value, batch.old_value[rows], batch.returns[rows], recipe.critic, ready.value_scale)


def _regularisers(
    policy: QwenVLAPolicy, ready: Prepared, context: TorchContext, rows: Tensor, velocity: Tensor, recipe: Recipe
) -> list[tuple[str, float, Tensor]]:
    """(name, weight, term) of those that are on."""
    weights, batch, view = recipe.regularisers, ready.batch, ready.view
    mask, found = batch.mask[rows], []
    start = None if ready.start_velocity is None else ready.start_velocity[rows]
    if weights.velocity and start is not None:
        found.append(("velocity_distance", weights.velocity, terms.velocity_distance(velocity, start, mask)))
    if isinstance(view, Transitions) and (weights.kl or weights.entropy):
        mean, std = view.moments(policy, context, rows, velocity)
        if weights.kl and start is not None:
            start_mean, _ = view.moments(policy, context, rows, start)
            found.append(("start_kl", weights.kl, terms.gaussian_kl(mean, start_mean, std, mask, view.law.correlation)))
        if weights.entropy:
            found.append(("entropy", -weights.entropy, terms.entropy(std.expand_as(mean), mask)))
    if ready.cloning is not None:
        noise, times = (t[rows] for t in ready.cloning)
        x = interpolate(batch.sample[rows], noise, times[:, None, None])
        clone = velocities(policy, context, x[:, None], times[:, None])[:, 0]
        term = terms.cloning_loss(clone, batch.sample[rows], noise, mask, batch.success[rows])
        found.append(("cloning", weights.cloning, term))
    return found
