"""Conventions that a policy and an environment must share, and the handshake that compares them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields

from rl_finetune.errors import UserError


@dataclass(frozen=True, slots=True)
class ActionConvention:
    """What the numbers of an action mean."""

    channels: int
    """c: leading channels of the padded action tensor that the body uses."""
    horizon: int
    """Steps of one open-loop chunk."""
    control: str
    """`delta_ee`: displacement from the first frame of the chunk. `joint`: absolute joint positions. `waypoint`: places
    (dx, dy, dtheta) in the base's frame at the first frame of the chunk. `trace`: points (u, v) in the first view."""
    rotation: str
    """`axis_angle`, or `none`."""
    gripper: str
    """`open_positive` (+1 open, -1 closed), or `none`."""
    rate: float
    """Control frequency in Hz."""


@dataclass(frozen=True, slots=True)
class EmbodimentSpec:
    """One body as the prompt describes it, and its conventions."""

    tag: str
    """Robot tag of the prompt, for example `widowx`."""
    arms: str
    """`single arm`, `dual arms`, or empty for a body without any."""
    views: tuple[str, ...]
    """Camera tags in the order in which the policy sees them."""
    action: ActionConvention
    """Convention of its actions."""
    waist: bool = False
    """Whether the body has a waist."""
    mobile_base: bool = False
    """Whether it drives."""


@dataclass(frozen=True, slots=True)
class EnvSpec:
    """What an environment promises."""

    name: str
    """Registered name, for example `widowx_reach`."""
    embodiment: EmbodimentSpec
    """The body in it."""
    image_size: int
    """Side of the square pictures in pixels."""
    time_limit: int
    """Environment steps after which an episode is truncated."""
    privileged: tuple[str, ...] = ()
    """Names of the channels of `Observation.privileged`."""
    tasks: tuple[str, ...] = ()
    """Task descriptions: prompts have room for the longest. Empty where nobody knows them beforehand."""
    expert: bool = False
    """Whether a scripted expert can show the task: what supervised training learns from."""
    things: tuple[str, ...] = ()
    """Names of the things whose places `Observation.grounding` tells; empty where it tells none."""

    @property
    def episode_chunks(self) -> int:
        """Chunks of the longest episode."""
        return -(-self.time_limit // self.embodiment.action.horizon)


def shared_state(specs: Sequence[EnvSpec]) -> int:
    """S, channels of the privileged state, where all environments name the same ones; else 0."""
    named = {spec.privileged for spec in specs}
    return len(named.pop()) if len(named) == 1 else 0


def handshake(policy: tuple[EmbodimentSpec, ...], env: EnvSpec) -> EmbodimentSpec:
    """Compare the environment's body with those the policy was trained for; return the policy's entry.

    Raises:
        UserError: the body is unknown to the policy, there is nothing to look at, or one of their conventions differs;
            names both sides.
    """
    known = {body.tag: body for body in policy}
    want = env.embodiment
    if want.tag not in known:
        raise UserError(
            f"environment {env.name!r} has an embodiment that the policy was not trained for",
            got=repr(want.tag),
            expected=f"one of {sorted(known)}",
            do="choose another environment, or fine-tune the policy on this body first with `rl-finetune sft`",
        )
    if not want.views:
        raise UserError(
            f"environment {env.name!r} shows no pictures", got="views=()", expected="at least one view to look at",
            do="set its views, where it has any",
        )  # fmt: skip
    have = known[want.tag]
    for record_have, record_want in ((have, want), (have.action, want.action)):
        for field in fields(record_have):
            if field.name != "action":
                _same(field.name, getattr(record_have, field.name), getattr(record_want, field.name), env.name)
    return have


def _same(field: str, policy: object, env: object, env_name: str) -> None:
    if policy != env:
        raise UserError(
            f"policy and environment {env_name!r} disagree on {field!r}",
            got=f"environment {env!r}",
            expected=f"policy {policy!r}",
            do="use the environment the policy was trained for, or change its options",
        )
