"""Low-rank adapters through peft: which layers train, how they are stored, how they travel.

Stored layout, each part loadable by `peft.PeftModel.from_pretrained` alone:

    decoder/adapter_config.json, decoder/adapter_model.safetensors
    backbone/...                      where the backbone trains too
    value_head.safetensors
    extras.safetensors                privileged critic and noise net, where there are any
    guidance.json                     of an advantage-conditioned policy
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path

import numpy as np
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from peft.utils import load_peft_weights, set_peft_model_state_dict
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

from rl_finetune.config.objectives import RECAPSection
from rl_finetune.config.schema import LoraSection, TrainConfig
from rl_finetune.errors import UserError
from rl_finetune.policy.critics import PrivilegedCritic, check_state
from rl_finetune.policy.noise_net import NoiseNet
from rl_finetune.policy.policy import QwenVLAPolicy
from rl_finetune.types import FloatArray

VALUE_FILE = "value_head.safetensors"
EXTRAS_FILE = "extras.safetensors"
GUIDANCE_FILE = "guidance.json"
ADVICE_TOKENS = 32
"""Room that advice takes in the prompt, at most."""


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


@contextmanager
def without_adapters(policy: QwenVLAPolicy) -> Iterator[None]:
    """The policy as it was before training, for as long as the block lasts."""
    with ExitStack() as stack:
        for module in _wrapped_parts(policy).values():
            stack.enter_context(module.disable_adapter())
        yield


def equip(policy: QwenVLAPolicy, job: TrainConfig, privileged: int) -> QwenVLAPolicy:
    """Everything that a job trains: adapters, the critic, and a noise net where the law learns one.

    Args:
        policy: plain; changed in place.
        job: the job.
        privileged: S, channels of the privileged state that all worlds of the job share; 0 for none.

    Raises:
        UserError: a privileged critic without such a state, or no layer has a configured name.
    """
    check_state(job, privileged)
    policy = add_adapters(policy, job.lora, seed=job.run.seed)
    policy.critic = job.critic_kind
    policy.value_head.requires_grad_(policy.critic == "linear")
    if policy.critic == "privileged":
        policy.privileged_critic = PrivilegedCritic(privileged)
    law, decoder = job.exploration, policy.config.decoder
    if law.law == "flow_noise":
        policy.noise_net = NoiseNet(decoder.context_width, decoder.action_width, law.std_min, law.std_max)
    set_version(policy, job, 0)
    return policy


def set_version(policy: QwenVLAPolicy, job: TrainConfig, version: int) -> None:
    """What the version of the weights decides besides the weights: an advised policy acts on advice once it knows
    it."""
    if isinstance(job.objective, RECAPSection):
        guide(policy, job.objective.guidance if version >= job.objective.warmup else 0.0)


def guide(policy: QwenVLAPolicy, guidance: float) -> None:
    """Let the policy act on good advice, and make room for it in the prompt."""
    policy.guidance = guidance
    policy.make_room(ADVICE_TOKENS)


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
    extras = _extras(policy)
    if extras:
        save_file({k: v.detach().contiguous() for k, v in extras.items()}, folder / EXTRAS_FILE)
    if policy.guidance is not None:
        (folder / GUIDANCE_FILE).write_text(json.dumps({"guidance": policy.guidance}) + "\n")


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
        if (folder / GUIDANCE_FILE).is_file():
            guide(policy, float(json.loads((folder / GUIDANCE_FILE).read_text())["guidance"]))
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
    extras = _extras(policy)
    if extras:
        stored = load_file(folder / EXTRAS_FILE)
        with torch.no_grad():
            for name, parameter in extras.items():
                parameter.copy_(stored[name])


def _extras(policy: QwenVLAPolicy) -> dict[str, nn.Parameter]:
    """Parameters of what only training has."""
    prefixes = ("privileged_critic.", "noise_net.")
    return {name: p for name, p in policy.named_parameters() if name.startswith(prefixes)}


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
