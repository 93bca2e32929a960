"""Supervised training in stages: see, read, act.

    vision    picture -> tower -> which token holds which thing, and where in it
    backbone  prompt + picture -> language model -> where the named thing and the tool are
    decoder   frozen backbone, contexts encoded once -> flow matching on expert chunks
    all       flow matching (weight 1) and grounding (0.1) through everything; without labels flow matching alone

The staging is for a small budget: a tower that starts from nothing learns to locate things several times faster when
the language model does not have to run, and the decoder several times faster when nothing but the decoder does.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from learners.grounding import METRES, ROAM, GroundingHead, GroundingLabels, last_token
from rl_finetune.config.schema import StageSection
from rl_finetune.config.worlds import apportion
from rl_finetune.policy import QwenVLAPolicy, TorchContext
from rl_finetune.policy.flow import flow_matching_loss, interpolate
from rl_finetune.policy.normalisation import channel_mask
from rl_finetune.spec import EmbodimentSpec
from rl_finetune.types import FloatArray, Observation

WARMUP = 0.05
ENCODE_BATCH = 128


@dataclass(frozen=True, slots=True)
class SupervisedData:
    """M labelled samples of one body, ready for any stage."""

    observation: Observation
    """M rows."""
    actions: Tensor
    """[M, H, K] normalised and padded."""
    labels: GroundingLabels | None
    """Grounding of the same rows; None where the world gives none."""

    def __len__(self) -> int:
        return len(self.actions)

    @classmethod
    def of(
        cls, observation: Observation, actions: FloatArray, policy: QwenVLAPolicy, privileged: tuple[str, ...]
    ) -> SupervisedData:
        """From demonstrations [M, H, c] in the environment's units."""
        quantiles = policy.quantiles[observation.embodiment]
        padded = quantiles.normalise(actions, policy.config.decoder.action_width)
        metres = ROAM if policy.body(observation.embodiment).action.control == "waypoint" else METRES
        labels = None if observation.grounding is None else GroundingLabels.of(observation, privileged, metres)
        return cls(observation, torch.from_numpy(padded), labels)


@dataclass(frozen=True, slots=True)
class StepLog:
    """One line of a stage's progress."""

    stage: str
    step: int
    loss: float
    pixel_error: float
    """Mean distance between predicted and true target in picture widths; NaN where the stage does not predict it."""
    lr: float
    seconds: float
    """Since the stage began."""
    left: float
    """Seconds to go at the present pace."""


def run_stage(
    stage: StageSection,
    policy: QwenVLAPolicy,
    head: GroundingHead,
    data: Sequence[SupervisedData],
    *,
    seed: int,
    grounding_weight: float,
    weight_decay: float,
    log: Callable[[StepLog], None],
    log_every: int = 25,
    shares: Sequence[float] | None = None,
) -> None:
    """Train the stage's part of `policy` (and `head`) in place.

    Every batch holds samples of every body: their losses are means over their own samples, channels and steps, weighted
    by how many of the batch they are.

    Args:
        stage: what and how long.
        policy, head: trained.
        data: of each body.
        seed: of batches and noise.
        grounding_weight: weight of grounding beside the flow loss, in stages with both.
        weight_decay: decoupled.
        log: told every `log_every` steps.
        log_every: steps.
        shares: of each body in a batch; None is the same for all.
    """
    parameters = _trainable(stage.train, policy, head)
    optimizer = torch.optim.AdamW(parameters, lr=stage.lr, betas=(0.9, 0.95), weight_decay=weight_decay)
    rng = torch.Generator().manual_seed(seed)
    losses = [_objective(stage, policy, head, part, grounding_weight, rng) for part in data]
    sizes = apportion(stage.batch, shares or [1.0] * len(data))
    batches = [
        _batches(min(stage.demonstrations or len(part), len(part)), size, seed + 1000 * number)
        for number, (part, size) in enumerate(zip(data, sizes, strict=True))
    ]
    start, window = time.monotonic(), []
    for step in range(1, stage.steps + 1):
        lr = stage.lr * _schedule(step / stage.steps)
        for group in optimizer.param_groups:
            group["lr"] = lr
        optimizer.zero_grad()
        window.append(_backward(losses, [next(batch) for batch in batches]))
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        if step % log_every == 0 or step == stage.steps:
            elapsed = time.monotonic() - start
            mean_loss, mean_error = np.mean(window, axis=0)
            log(StepLog(stage.name, step, mean_loss, mean_error, lr, elapsed, elapsed / step * (stage.steps - step)))
            window = []


Objective = Callable[[Tensor], tuple[Tensor, float]]
"""Sample indices [B] -> loss, pixel error."""


def _backward(losses: list[Objective], rows: list[Tensor]) -> tuple[float, float]:
    """Add up the gradients of all bodies; loss and pixel error of the whole batch."""
    total = sum(len(index) for index in rows)
    found = []
    for loss_of, index in zip(losses, rows, strict=True):
        loss, error = loss_of(index)
        share = len(index) / total
        (loss * share).backward()
        found.append((loss.item() * share, error * share))
    loss_sum, error_sum = np.sum(found, axis=0)
    return float(loss_sum), float(error_sum)


def _objective(
    stage: StageSection,
    policy: QwenVLAPolicy,
    head: GroundingHead,
    data: SupervisedData,
    grounding_weight: float,
    rng: torch.Generator,
) -> Objective:
    body = policy.body(data.observation.embodiment)
    tokenise = policy.eyes.tokenise
    contexts = encode_all(policy, data.observation, stage.demonstrations) if stage.train == "decoder" else None

    def labels(index: Tensor) -> GroundingLabels:
        if data.labels is None:
            raise ValueError(f"stage {stage.name!r} learns from grounding labels, and the world gives none")
        return data.labels.rows(index)

    def first(visual: Tensor) -> Tensor:
        return visual[:, : visual.shape[1] // len(body.views)]

    def vision(index: Tensor) -> tuple[Tensor, float]:
        visual = policy.eyes.see(tokenise(data.observation.rows(index.numpy()), body))
        return head.dense_loss(first(visual), labels(index)), math.nan

    def encoded(index: Tensor) -> tuple[Tensor, TorchContext]:
        inputs = tokenise(data.observation.rows(index.numpy()), body)
        visual = policy.eyes.see(inputs)
        return visual, TorchContext(policy.eyes.read(inputs, visual), inputs.mask, inputs.positions)

    def grounding(index: Tensor, visual: Tensor, context: TorchContext) -> tuple[Tensor, float]:
        true, last = labels(index), last_token(context.hidden, context.mask)
        loss = head.dense_loss(first(visual), true) + head.named_loss(last, true)
        return loss, head.pixel_error(last, true).mean().item()

    def acting(index: Tensor, context: TorchContext) -> Tensor:
        return flow_loss(policy, context, data.actions[index], body, stage.time_distribution, rng)

    def decoder(index: Tensor) -> tuple[Tensor, float]:
        assert contexts is not None
        return acting(index, contexts.rows(index)), math.nan

    def everything(index: Tensor) -> tuple[Tensor, float]:
        visual, context = encoded(index)
        if data.labels is None:
            return acting(index, context), math.nan
        loss, error = grounding(index, visual, context)
        return acting(index, context) + grounding_weight * loss, error

    table: dict[str, Objective] = {
        "vision": vision, "backbone": lambda index: grounding(index, *encoded(index)), "decoder": decoder,
        "all": everything,
    }  # fmt: skip
    return table[stage.train]


def flow_loss(
    policy: QwenVLAPolicy,
    context: TorchContext,
    actions: Tensor,
    body: EmbodimentSpec,
    distribution: str,
    rng: torch.Generator,
) -> Tensor:
    """Flow-matching loss of one batch at random noise levels.

    Args:
        policy: its decoder is trained.
        context: N samples.
        actions: [N, H, K] normalised.
        body: for the channel mask.
        distribution: p(tau), see `StageSection.time_distribution`.
        rng: of noise and times.
    """
    eps = torch.randn(actions.shape, generator=rng)
    tau = sample_times(len(actions), distribution, rng)
    mask = torch.from_numpy(channel_mask(len(actions), actions.shape[1], body.action.channels, actions.shape[2]))
    velocity = policy.velocity(context, interpolate(actions, eps, tau[:, None, None]), tau)
    return flow_matching_loss(velocity, actions, eps, mask)


def sample_times(n: int, distribution: str, rng: torch.Generator) -> Tensor:
    """[n] noise levels in (0, 1): Beta(1, 3) leans to the clean end (tau = 0), by its inverse distribution function."""
    uniform = torch.rand(n, generator=rng)
    if distribution == "beta":
        return 1 - (1 - uniform) ** (1 / 3)
    if distribution == "logit_normal":
        return torch.randn(n, generator=rng).sigmoid()
    return uniform


@torch.no_grad()
def encode_all(policy: QwenVLAPolicy, observation: Observation, limit: int | None = None) -> TorchContext:
    """Contexts of the first `limit` rows (all by default), in batches."""
    rows = np.arange(min(limit or len(observation), len(observation)))
    parts = [policy.encode(observation.rows(part)) for part in np.array_split(rows, -(-len(rows) // ENCODE_BATCH))]
    return TorchContext(
        torch.cat([p.hidden for p in parts]),
        torch.cat([p.mask for p in parts]),
        torch.cat([p.positions for p in parts], dim=1),
    )


def _trainable(part: str, policy: QwenVLAPolicy, head: GroundingHead) -> list[nn.Parameter]:
    modules: dict[str, list[nn.Module]] = {
        "vision": [policy.eyes.model.model.visual, head.dense],
        "backbone": [policy.eyes, head],
        "decoder": [policy.decoder],
        "all": [policy.eyes, policy.decoder, head],
    }
    return [p for module in modules[part] for p in module.parameters()]


def _batches(samples: int, batch: int, seed: int) -> Iterator[Tensor]:
    rng = torch.Generator().manual_seed(seed)
    while True:
        yield from torch.randperm(samples, generator=rng).split(min(batch, samples))[: max(samples // batch, 1)]


def _schedule(progress: float) -> float:
    """Linear warm-up, then a cosine to a twentieth."""
    if progress < WARMUP:
        return progress / WARMUP
    return 0.05 + 0.95 * 0.5 * (1 + math.cos(math.pi * (progress - WARMUP) / (1 - WARMUP)))
