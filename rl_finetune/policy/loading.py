"""The one way from settings to a policy that can act: for training, evaluation, films, promotion and the server."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rl_finetune.config.schema import PolicySection
from rl_finetune.policy.identity import base_of
from rl_finetune.policy.policy import QwenVLAPolicy
from rl_finetune.spec import EnvSpec, handshake


def load_policy(
    section: PolicySection, specs: Sequence[EnvSpec] = (), *, with_backbone: bool = True, merge: bool = False
) -> QwenVLAPolicy:
    """The base policy with its adapter, acting as it was trained to, and ready for some environments.

    Args:
        section: which policy, with which adapter.
        specs: environments that it will act or learn in: the prompts of all their tasks will fit.
        with_backbone: False leaves the backbone out, and what an adapter changes in it.
        merge: fold the adapter into the weights.

    Raises:
        UserError: it is missing, damaged, or does not fit: the adapter the policy, or the policy an environment.
    """
    policy = QwenVLAPolicy.from_pretrained(section.path, section.backbone, with_backbone=with_backbone)
    if section.adapter is not None or section.guidance is not None:
        from rl_finetune.policy.adapters import guide, load_adapters, merge_adapters  # peft takes two seconds to import

        if section.adapter is not None:
            policy = load_adapters(policy, Path(section.adapter), base_of(section))
        if merge:
            policy = merge_adapters(policy)
        if section.guidance is not None:
            guide(policy, section.guidance)
    for spec in specs:
        handshake(policy.config.embodiments, spec)
        policy.make_room_for(spec)
    return policy.eval()
