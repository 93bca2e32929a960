"""A round's decisions, time and environment flattened, and which of them make up a minibatch."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields, replace

import numpy as np
import torch
from torch import Tensor

from rl_finetune.policy import TorchContext
from rl_finetune.types import (
    Context,
    IntArray,
    Observation,
    ScoredTrajectory,
    Trajectory,
    concatenate,
    concatenate_contexts,
)


@dataclass(frozen=True, slots=True)
class Batch:
    """M chunk decisions of one embodiment from all trajectories of a round."""

    embodiment: str
    """Robot tag of all M."""
    inputs: TorchContext | Observation
    """What the decoder is conditioned on."""
    advised: tuple[TorchContext, TorchContext] | None
    """The same with advice in the prompt (good, bad), where the objective asks for it."""
    states: Tensor
    """[M, J + 1, H, K] see `Trajectory`."""
    step: Tensor
    """[M]."""
    sample: Tensor
    """[M, H, K]."""
    mask: Tensor
    """[M, H, K] valid channels of executed steps."""
    old_log_prob: Tensor
    """[M] summed over executed steps."""
    advantage: Tensor
    """[M]."""
    success: Tensor
    """[M] whether the chunk's episode ended in success within the round."""
    old_value: Tensor
    """[M]."""
    returns: Tensor
    """[M]."""
    privileged: Tensor | None
    """[M, S]."""

    def __len__(self) -> int:
        return len(self.step)

    def to(self, device: torch.device) -> Batch:
        """On another device, but for contexts and pictures: they follow a minibatch at a time."""
        tensors = {f.name: getattr(self, f.name) for f in fields(self) if isinstance(getattr(self, f.name), Tensor)}
        return replace(self, **{name: tensor.to(device) for name, tensor in tensors.items()})


def by_body(scored: list[ScoredTrajectory], *, normalise: bool) -> tuple[Batch, ...]:
    """What there is to learn from, one batch for each embodiment, in the order in which they come first.

    Bodies are never padded to one another: padding would enter joint attention and change what was sampled. Worlds of
    one body whose records differ in shape (pictures, privileged state) stand apart too. Advantages are normalised over
    all decisions of an embodiment.
    """
    moments = {tag: _moments(scored, tag) for tag in {s.trajectory.embodiment for s in scored}} if normalise else {}
    kinds: dict[object, list[ScoredTrajectory]] = {}
    for part in scored:
        kinds.setdefault(_kind(part.trajectory), []).append(part)
    anything = any(part.used.any() for part in scored)
    return tuple(
        _flat(parts, moments.get(parts[0].trajectory.embodiment))
        for parts in kinds.values()
        if not anything or any(part.used.any() for part in parts)
    )


def flatten(scored: list[ScoredTrajectory], *, normalise: bool) -> Batch:
    """`by_body` where all trajectories are of one body."""
    (batch,) = by_body(scored, normalise=normalise)
    return batch


def _kind(t: Trajectory) -> object:
    """What must agree between trajectories of one batch."""
    if isinstance(t.inputs, Context):
        seen: object = t.inputs.hidden.shape[1:]
    else:
        seen = tuple((tag, image.shape[1:]) for tag, image in t.inputs.images.items())
    known = None if t.privileged is None else t.privileged.shape[2:]
    return t.embodiment, seen, known, t.states.shape[2:]


def _rows(scored: list[ScoredTrajectory]) -> IntArray:
    """The decisions to learn from; all of them where there is none."""
    used = np.concatenate([s.used.reshape(-1) for s in scored])
    return np.flatnonzero(used) if used.any() else np.arange(len(used))


def _moments(scored: list[ScoredTrajectory], tag: str) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of the advantages of one embodiment."""
    own = [s for s in scored if s.trajectory.embodiment == tag]
    advantage = torch.from_numpy(np.concatenate([s.advantage.reshape(-1) for s in own])[_rows(own)])
    return advantage.mean(), advantage.std() if len(advantage) > 1 else torch.zeros(())


def _flat(scored: list[ScoredTrajectory], moments: tuple[Tensor, Tensor] | None) -> Batch:
    """One body's batch."""
    trajectories, rows = [s.trajectory for s in scored], _rows(scored)

    def flat(arrays: list[np.ndarray]) -> Tensor:
        return torch.from_numpy(np.concatenate([a.reshape(-1, *a.shape[2:]) for a in arrays])[rows])

    advantage = flat([s.advantage for s in scored])
    if moments is not None:
        advantage = (advantage - moments[0]) / (moments[1] + 1e-8)
    mask = flat([t.action_mask for t in trajectories])
    log_prob = flat([t.log_prob for t in trajectories])
    states = [t.privileged for t in trajectories if t.privileged is not None]
    return Batch(
        embodiment=trajectories[0].embodiment,
        inputs=_inputs([t.inputs for t in trajectories], rows),
        advised=_advised(trajectories, rows),
        states=flat([t.states for t in trajectories]),
        step=flat([t.step for t in trajectories]),
        sample=flat([t.sample for t in trajectories]),
        mask=mask,
        old_log_prob=(log_prob * mask.any(-1)).sum(-1),
        advantage=advantage,
        success=flat([_part_of_success(t.success, t.terminated | t.truncated) for t in trajectories]),
        old_value=flat([t.value for t in trajectories]),
        returns=flat([s.returns for s in scored]),
        privileged=flat(states) if states else None,
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


def _part_of_success(success: np.ndarray, ended: np.ndarray) -> np.ndarray:
    """[T, N] whether the episode that a chunk belongs to ended in success."""
    found, later = np.zeros_like(success), np.zeros_like(success[0])
    for t in reversed(range(len(success))):
        later = np.where(ended[t], success[t], later)
        found[t] = later
    return found


def _inputs(parts: list[Context | Observation], rows: IntArray) -> TorchContext | Observation:
    contexts = [p for p in parts if isinstance(p, Context)]
    if len(contexts) == len(parts):
        return _contexts(contexts, rows)
    return concatenate([p for p in parts if isinstance(p, Observation)]).rows(rows)


def _advised(trajectories: list[Trajectory], rows: IntArray) -> tuple[TorchContext, TorchContext] | None:
    pairs = [t.advised for t in trajectories if t.advised is not None]
    if len(pairs) < len(trajectories):
        return None
    good, bad = ([pair[i] for pair in pairs] for i in (0, 1))
    return _contexts(good, rows), _contexts(bad, rows)


def _contexts(parts: list[Context], rows: IntArray) -> TorchContext:
    joined = TorchContext.from_numpy(concatenate_contexts(parts))
    everything = len(rows) == len(joined.mask) and rows[-1] == len(rows) - 1
    return joined if everything else joined.rows(torch.from_numpy(rows))
