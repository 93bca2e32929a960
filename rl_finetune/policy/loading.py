"""The one way from settings to a policy that can act: for training, evaluation, films, promotion and the server."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rl_finetune.config.schema import PolicySection
from rl_finetune.policy.config import QwenVLAConfig
from rl_finetune.policy.hub import local_folder
from rl_finetune.policy.identity import base_of
from rl_finetune.policy.policy import BACKBONE_FOLDER, QwenVLAPolicy
from rl_finetune.spec import EnvSpec, handshake


def prompt_room(section: PolicySection, specs: Sequence[EnvSpec]) -> dict[str, int]:
    """Robot tag -> tokens that prompts are padded to where `load_policy` has made the policy ready for these
    environments. No weights are read.

    Raises:
        UserError: there is no such policy, or it does not know a body.
    """
    from rl_finetune.policy.backbone import empty_backbone

    folder = local_folder(section.path)
    config = QwenVLAConfig.load(folder)
    source = section.backbone or str(folder / BACKBONE_FOLDER)
    backbone = empty_backbone(source, config.max_context_tokens, config.views, config.context_tokens)
    for spec in specs:
        backbone.fit(handshake(config.embodiments, spec), spec.tasks, spec.image_size)
    return {spec.embodiment.tag: backbone.lengths[spec.embodiment.tag] for spec in specs}


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
