"""What acts, made ready before it may: a bundle verified, loaded, warmed, and fit to take over from another."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, TypeVar

import numpy as np
import torch

from rl_finetune.errors import UserError
from rl_finetune.policy import QwenVLAPolicy, TorchContext
from rl_finetune.policy.policy import Seen
from rl_finetune.promotion.records import Limits
from rl_finetune.promotion.registry.contents import Acted
from rl_finetune.promotion.serving.batching import kind_of
from rl_finetune.promotion.serving.envelope import Envelope
from rl_finetune.promotion.serving.requests import ActRequest
from rl_finetune.spec import EmbodimentSpec
from rl_finetune.types import FloatArray, Observation, SeedKeys, concatenate


class Opened(Protocol):
    """A bundle whose bytes were verified; `registry.bundle.Bundle` is one."""

    @property
    def digest(self) -> str: ...
    @property
    def name(self) -> str: ...
    @property
    def limits(self) -> Mapping[str, Limits]: ...
    @property
    def acted(self) -> Acted: ...
    def load(self) -> QwenVLAPolicy: ...


Number = TypeVar("Number", int, float)
WARM_UP = "do nothing"
"""Task of the first chunk, which nobody executes."""
Opener = Callable[[Path], Opened]
"""Folder -> bundle, or UserError."""


@dataclass(frozen=True, slots=True)
class StageSettings:
    """How policies act here."""

    image_size: int | None = None
    """Side of the square pictures that policies are shown, pixels; None is what each bundle says."""
    temperature: float | None = None
    """Scale of the initial noise; None is what each bundle says."""
    device: str = "cpu"
    """Where policies are put, as torch names it."""
    keep_previous: bool = True
    """Keep the bundle before in memory for rollback; otherwise it is loaded from its folder again."""


@dataclass(frozen=True, slots=True)
class Loaded:
    """A bundle that can act at once."""

    folder: Path
    """Where it lies."""
    digest: str
    """Its identity."""
    name: str
    """For a person."""
    policy: QwenVLAPolicy
    """Its weights; nobody changes them."""
    envelopes: Mapping[str, Envelope]
    """Robot tag -> what that body may be told."""
    image_size: int
    """Side of the square pictures that it is shown, pixels."""
    temperature: float
    """Scale of its initial noise."""

    @property
    def bodies(self) -> tuple[EmbodimentSpec, ...]:
        """Bodies that it can act in."""
        return self.policy.config.embodiments


def load(folder: Path, settings: StageSettings, opener: Opener) -> Loaded:
    """Verify, load and warm up; a first chunk in every body shows that it can act.

    Raises:
        UserError: the bundle is damaged, its limits cannot be kept, nobody says how it acts, or what it computes is not
            finite.
    """
    bundle = opener(folder)
    size = _said("image_size", settings.image_size, bundle.acted.image_size, bundle)
    temperature = _said("temperature", settings.temperature, bundle.acted.temperature, bundle)
    policy = bundle.load().eval().to(torch.device(settings.device))
    bodies = policy.config.embodiments
    envelopes = {body.tag: Envelope.of(body, bundle.limits.get(body.tag, Limits())) for body in bodies}
    for body in bodies:
        chunk = infer(policy, [_nothing(body, size)], temperature)[0]
        if not np.isfinite(chunk).all():
            raise UserError(
                f"bundle {bundle.name!r} cannot act", got=f"numbers that are not finite for {body.tag}",
                expected="finite actions", do="keep the present bundle, and look at the weights",
            )  # fmt: skip
    return Loaded(folder, bundle.digest, bundle.name, policy, envelopes, size, temperature)


def check_successor(old: Loaded, new: Loaded) -> None:
    """Whether clients of `old` could go on under `new` without noticing.

    Raises:
        UserError: it does not know a body, means something else by its views or actions, or sees pictures of another
            size, which requests under way do not have.
    """
    if new.image_size != old.image_size:
        raise UserError(
            f"bundle {new.name!r} cannot take over from {old.name!r}", got=f"pictures of {new.image_size} pixels",
            expected=f"{old.image_size}", do="serve it on its own",
        )  # fmt: skip
    known = {body.tag: body for body in new.bodies}
    for body in old.bodies:
        if known.get(body.tag) != body:
            raise UserError(
                f"bundle {new.name!r} cannot take over from {old.name!r}", got=known.get(body.tag, "nothing"),
                expected=body, do="serve it on its own, or make a bundle for the same bodies",
            )  # fmt: skip


def alike(requests: Sequence[ActRequest]) -> list[list[int]]:
    """Rows that can be computed together."""
    groups: dict[Hashable, list[int]] = {}
    for row, request in enumerate(requests):
        groups.setdefault(kind_of(request), []).append(row)
    return list(groups.values())


@torch.no_grad()
def infer(policy: QwenVLAPolicy, requests: Sequence[ActRequest], temperature: float) -> list[FloatArray]:
    """Actions [H, c] for each request, in action units, computed together; the same as `act` in an evaluation.

    Args:
        policy: acts.
        requests: at least one; all of one embodiment, one set of views and one picture size.
        temperature: scale of the initial noise.
    """
    body = policy.body(requests[0].embodiment)
    seen = policy.look(concatenate([request.observation for request in requests]))
    out: dict[int, FloatArray] = {}
    for seed in {request.seed for request in requests}:
        rows = [row for row, request in enumerate(requests) if request.seed == seed]
        env, episode, chunk = (
            np.array([getattr(requests[row], name) for row in rows], np.int64) for name in ("env", "episode", "chunk")
        )
        some = seen if len(rows) == len(requests) else _rows(seen, rows)
        actions = policy.act(some, SeedKeys(seed, env, episode), chunk, body, temperature).actions
        out |= zip(rows, actions[..., : body.action.channels], strict=True)
    return [out[row] for row in range(len(requests))]


def _rows(seen: Seen, rows: list[int]) -> Seen:
    context = seen if isinstance(seen, TorchContext) else seen.plain
    return seen.rows(torch.tensor(rows, device=context.hidden.device))


def _said(name: str, setting: Number | None, bundled: Number | None, bundle: Opened) -> Number:
    said = bundled if setting is None else setting
    if said is None:
        raise UserError(
            f"nobody says with what {name} bundle {bundle.name!r} acts", got="null in settings and bundle",
            expected="what it was evaluated with", do=f"set acting.{name}, or make the bundle again",
        )  # fmt: skip
    return said


def _nothing(body: EmbodimentSpec, size: int) -> ActRequest:
    """Black pictures."""
    images = {view: np.zeros((1, size, size, 3), np.uint8) for view in body.views}
    return ActRequest(Observation(images, (WARM_UP,), body.tag), seed=0, env=0, episode=0, chunk=0)
