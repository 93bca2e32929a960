"""Low-rank adapters through peft: which layers train, how they are stored, how they travel.

Stored layout, each part loadable by `peft.PeftModel.from_pretrained` alone:

    decoder/adapter_config.json, decoder/adapter_model.safetensors
    backbone/...                      where the backbone trains too
    value_head.safetensors
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from peft.utils import load_peft_weights, set_peft_model_state_dict
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

from rl_finetune.config.schema import LoraSection
from rl_finetune.errors import UserError
from rl_finetune.policy.policy import QwenVLAPolicy
from rl_finetune.types import FloatArray

VALUE_FILE = "value_head.safetensors"


def add_adapters(policy: QwenVLAPolicy, config: LoraSection, *, seed: int) -> QwenVLAPolicy:
    """Freeze the policy, wrap the configured parts with fresh adapters (a zero change), leave the value head trainable.

    Raises:
        UserError: no layer has one of the configured names.
    """
    policy.requires_grad_(False)
    torch.manual_seed(seed)
    if "decoder" in config.parts:
        policy.decoder = _wrapped(policy.decoder, config, config.decoder_targets, "decoder")
    if "backbone" in config.parts and policy.backbone is not None:
        language = policy.backbone.model.model
        language.language_model = _wrapped(language.language_model, config, config.backbone_targets, "backbone")
    policy.value_head.requires_grad_(True)
    return policy


def trained_state(policy: QwenVLAPolicy) -> dict[str, FloatArray]:
    """Copies of everything that trains: parameter name -> array."""
    return {name: p.detach().cpu().numpy().copy() for name, p in policy.named_parameters() if p.requires_grad}


def load_trained_state(policy: QwenVLAPolicy, tensors: Mapping[str, FloatArray]) -> None:
    """Overwrite everything that trains; names and shapes must be exactly those of `trained_state`."""
    own = {name: p for name, p in policy.named_parameters() if p.requires_grad}
    if own.keys() != tensors.keys():
        raise ValueError(
            f"trained weights: got {len(tensors)} names, expected {len(own)}: {sorted(own.keys() ^ tensors.keys())[:3]}"
        )
    with torch.no_grad():
        for name, parameter in own.items():
            parameter.copy_(torch.from_numpy(np.array(tensors[name])))


def save_adapters(policy: QwenVLAPolicy, folder: Path) -> None:
    """Write the stored layout into `folder` (made if missing)."""
    folder.mkdir(parents=True, exist_ok=True)
    for part, module in _wrapped_parts(policy).items():
        module.save_pretrained(folder / part)
    save_file({k: v.contiguous() for k, v in policy.value_head.state_dict().items()}, folder / VALUE_FILE)


def load_adapters(policy: QwenVLAPolicy, folder: Path) -> QwenVLAPolicy:
    """Put stored adapters and value head on a plain policy, for evaluation.

    A policy that was loaded without its backbone takes no adapter for it.

    Raises:
        UserError: missing, truncated, or made for another shape.
    """
    if not folder.is_dir() or not any((folder / part).is_dir() for part in ("decoder", "backbone")):
        raise UserError(
            "adapter not found", got=str(folder), expected="a folder with decoder/ or backbone/ in peft's layout",
            do="name the adapter folder of a run, for example runs/train/adapter",
        )  # fmt: skip
    try:
        if (folder / "decoder").is_dir():
            policy.decoder = PeftModel.from_pretrained(policy.decoder, str(folder / "decoder"))
        if (folder / "backbone").is_dir() and policy.backbone is not None:
            language = policy.backbone.model.model
            language.language_model = PeftModel.from_pretrained(language.language_model, str(folder / "backbone"))
        policy.value_head.load_state_dict(load_file(folder / VALUE_FILE))
    except (OSError, ValueError, RuntimeError, KeyError, SafetensorError) as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(
            "adapter does not fit this policy", got=f"{folder}: {reason}", expected="an adapter trained from it",
            do="name the policy that the run's config.yaml names, or copy the adapter again",
        ) from error  # fmt: skip
    return policy.eval()


def merge_adapters(policy: QwenVLAPolicy) -> QwenVLAPolicy:
    """Fold adapters into the weights they adapt; afterwards the policy is plain and can be saved whole."""
    if isinstance(policy.decoder, PeftModel):
        policy.decoder = policy.decoder.merge_and_unload()
    if policy.backbone is not None and isinstance(policy.backbone.model.model.language_model, PeftModel):
        language = policy.backbone.model.model
        language.language_model = language.language_model.merge_and_unload()
    return policy


def restore_adapters(policy: QwenVLAPolicy, folder: Path) -> None:
    """Load stored adapters and value head into a policy that `add_adapters` prepared, to go on training."""
    for part, module in _wrapped_parts(policy).items():
        set_peft_model_state_dict(module, load_peft_weights(str(folder / part), device="cpu"))
    policy.value_head.load_state_dict(load_file(folder / VALUE_FILE))


def _wrapped_parts(policy: QwenVLAPolicy) -> dict[str, PeftModel]:
    found: dict[str, nn.Module] = {"decoder": policy.decoder}
    if policy.backbone is not None:
        found["backbone"] = policy.backbone.model.model.language_model
    return {part: module for part, module in found.items() if isinstance(module, PeftModel)}


def _wrapped(module: nn.Module, config: LoraSection, targets: list[str], part: str) -> PeftModel:
    lora = LoraConfig(r=config.rank, lora_alpha=config.alpha, target_modules=targets, lora_dropout=0.0, bias="none")
    try:
        return get_peft_model(module, lora)
    except ValueError as error:
        names = sorted({name.rsplit(".", 1)[-1] for name, m in module.named_modules() if isinstance(m, nn.Linear)})
        raise UserError(
            f"no layer of the {part} matches lora.{part}_targets", got=targets, expected=f"some of {names}",
            do="change the list in the config",
        ) from error  # fmt: skip
