"""What a policy is held to: by the audit, and by the envelope that stands between it and a body."""

from __future__ import annotations

from collections.abc import Iterable

from rl_finetune.config.promotion import LimitsSection, PromoteConfig
from rl_finetune.promotion.evidence.limits import limits_for
from rl_finetune.promotion.evidence.policies import Weights
from rl_finetune.promotion.records import Limits
from rl_finetune.promotion.registry.limits import check_limits
from rl_finetune.promotion.serving.envelope import Envelope
from rl_finetune.spec import EmbodimentSpec


def limits_of(body: EmbodimentSpec, config: PromoteConfig, weights: Weights) -> Limits:
    """What is written in the config, else in the policy's bundle (the server keeps to it), else known of the body.

    Raises:
        UserError: none of them says anything, or the config's are impossible.
    """
    if body.tag in config.limits:
        return check_limits(body.tag, _plain(config.limits[body.tag]), body.action.channels)
    return weights.limits[body.tag] if body.tag in weights.limits else limits_for(body.tag)


def served_limits(body: EmbodimentSpec, config: PromoteConfig, weights: Weights) -> Limits:
    """What the server keeps a policy to: its bundle's limits, or those that its bundle would be given.

    Raises:
        UserError: see `limits_of`.
    """
    return weights.limits[body.tag] if body.tag in weights.limits else limits_of(body, config, weights)


def check_bounds(bodies: Iterable[EmbodimentSpec], config: PromoteConfig, *policies: Weights) -> None:
    """Whether every policy could be audited and served in every body.

    Raises:
        UserError: nothing is known of a body's limits, or no envelope can keep them.
    """
    for body in bodies:
        for weights in policies:
            limits_of(body, config, weights)
            if config.guarded:
                Envelope.of(body, served_limits(body, config, weights))


def _plain(section: LimitsSection) -> Limits:
    values = section.model_dump()
    stale = values.pop("stale_after")
    workspace = tuple((low, high) for low, high in values.pop("workspace"))
    return Limits(**{name: tuple(each) for name, each in values.items()}, workspace=workspace, stale_after=stale)
