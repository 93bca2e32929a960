"""Low-rank adapters through peft: which layers train, how they are stored, how they travel.

`adapter_files` says what is stored; each part is loadable by `peft.PeftModel.from_pretrained` alone.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import cast

import numpy as np
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from peft.utils import get_peft_model_state_dict, set_peft_model_state_dict
from safetensors.torch import save_file
from torch import Tensor, nn

from rl_finetune.config.objectives import RECAPSection
from rl_finetune.config.schema import LoraSection, TrainConfig
from rl_finetune.errors import UserError
from rl_finetune.policy.adapter_files import (
    EXTRAS_FILE,
    PARTS,
    PEFT_CONFIG,
    PEFT_WEIGHTS,
    START_FOLDER,
    VALUE_FILE,
    AdapterRecord,
    Origin,
    Part,
    StoredPart,
    check_names,
    first_line,
    misfit,
    read_tensors,
)
from rl_finetune.policy.critics import PrivilegedCritic, check_state
from rl_finetune.policy.decoder import ActionDecoder
from rl_finetune.policy.identity import Base
from rl_finetune.policy.noise_net import NoiseNet
from rl_finetune.policy.policy import QwenVLAPolicy
from rl_finetune.types import FloatArray

ADVICE_TOKENS = 32
"""Room that advice takes in the prompt, at most."""
READ = frozenset({"r", "lora_alpha", "target_modules"})
"""What is read of peft's settings; all others must be as they are when nobody sets them."""
NOTES = frozenset({"auto_mapping", "base_model_name_or_path", "inference_mode", "peft_version", "revision"})
"""Settings of peft that change nothing about what an adapter computes."""


def add_adapters(policy: QwenVLAPolicy, config: LoraSection, *, seed: int) -> QwenVLAPolicy:
    """Freeze the policy, wrap the configured parts with fresh adapters (a zero change), leave the value head trainable.

    Raises:
        UserError: no layer has one of the configured names.
    """
    policy.requires_grad_(False)
    torch.manual_seed(seed)
    targets: dict[Part, list[str]] = {"decoder": config.decoder_targets, "backbone": config.backbone_targets}
    for part in PARTS:
        module = _part(policy, part)
        if part in config.parts and module is not None:
            _put(policy, part, _wrapped(module, config, targets[part], part))
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

    The policy acts with as many denoising steps as it trains with, when it is evaluated before training too.

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
    set_steps(policy, job.rollout.denoising_steps)
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


def set_steps(policy: QwenVLAPolicy, steps: int) -> None:
    """Euler steps that the policy acts with; it is saved with them."""
    policy.config = replace(policy.config, num_steps=steps)


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


def save_adapters(policy: QwenVLAPolicy, folder: Path, origin: Origin) -> None:
    """Write the layout of `adapter_files` into `folder` (made if missing).

    Args:
        policy: with adapters.
        folder: where to.
        origin: what the adapters were trained on.
    """
    folder.mkdir(parents=True, exist_ok=True)
    parts = _wrapped_parts(policy)
    for part, module in parts.items():
        module.save_pretrained(folder / part)
    save_file({k: v.contiguous() for k, v in policy.value_head.state_dict().items()}, folder / VALUE_FILE)
    extras = _extras(policy)
    if extras:
        save_file({k: v.detach().contiguous() for k, v in extras.items()}, folder / EXTRAS_FILE)
    for name, data in (origin.start or {}).items():
        path = folder / START_FOLDER / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    started = origin.start is not None
    AdapterRecord(origin.base, tuple(parts), started, policy.config.num_steps, policy.guidance).save(folder)


def load_adapters(policy: QwenVLAPolicy, folder: Path, base: Base) -> QwenVLAPolicy:
    """Put stored adapters and value head on a plain policy, which then acts as it was trained to.

    A policy that was loaded without its backbone takes no adapter for it.

    Args:
        policy: plain; changed in place, and of no use where an error is raised.
        folder: of the adapters.
        base: which policy that is.

    Raises:
        UserError: missing, damaged, trained on another policy, or anything in it has no place in this one.
    """
    record = AdapterRecord.read(folder)
    record.check_base(folder, base)
    if record.started:
        policy = merge_adapters(load_adapters(policy, folder / START_FOLDER, base))
    for part in record.parts:
        stored, module = StoredPart.read(folder / part), _part(policy, part)
        lora = _lora(stored)
        if module is not None:
            with _one_line(stored.folder):
                adapted = get_peft_model(module, lora)
                _fill(adapted, stored)
            _put(policy, part, adapted.requires_grad_(False))
    _fill_value_head(policy, folder)
    set_steps(policy, record.denoising_steps)
    if record.guidance is not None:
        guide(policy, record.guidance)
    return policy.eval()


def merge_adapters(policy: QwenVLAPolicy) -> QwenVLAPolicy:
    """Fold adapters into the weights they adapt; afterwards the policy is plain and can be saved whole."""
    for part, module in _wrapped_parts(policy).items():
        _put(policy, part, module.merge_and_unload())
    return policy


def restore_adapters(policy: QwenVLAPolicy, folder: Path, base: Base) -> None:
    """Load stored adapters and value head into a policy that `equip` prepared, to go on training.

    Raises:
        UserError: as `load_adapters`, or what is stored is not what this policy trains.
    """
    record, parts = AdapterRecord.read(folder), _wrapped_parts(policy)
    record.check_base(folder, base)
    if set(record.parts) != set(parts):
        raise misfit(folder, f"adapters for {', '.join(record.parts)}", f"for {', '.join(parts)}")
    for part, module in parts.items():
        stored, mine = StoredPart.read(folder / part), module.peft_config["default"]
        lora = _lora(stored)
        for name in sorted(READ):
            if getattr(lora, name) != getattr(mine, name):
                raise misfit(stored.folder / PEFT_CONFIG, f"{name} {getattr(lora, name)}", str(getattr(mine, name)))
        with _one_line(stored.folder):
            _fill(module, stored)
    _fill_value_head(policy, folder)
    extras = _extras(policy)
    if extras:
        kept = read_tensors(folder / EXTRAS_FILE)
        check_names(folder / EXTRAS_FILE, kept, extras)
        _copy(kept, extras)


def _lora(stored: StoredPart) -> LoraConfig:
    """Settings for peft, made of what was read: it is never handed a file.

    Raises:
        UserError: something is set that this project neither trains with nor loads.
    """
    lora = LoraConfig(
        r=stored.rank, lora_alpha=stored.alpha, target_modules=list(stored.targets), lora_dropout=0.0, bias="none"
    )
    usual = lora.to_dict()
    for name, value in stored.settings.items():
        if name not in READ | NOTES and value != usual.get(name):
            raise misfit(stored.folder / PEFT_CONFIG, f"{name} {value!r}", f"{usual.get(name)!r}, as for plain LoRA")
    return lora


def _fill(module: PeftModel, stored: StoredPart) -> None:
    check_names(stored.folder / PEFT_WEIGHTS, stored.tensors, get_peft_model_state_dict(module))
    left = set_peft_model_state_dict(module, dict(stored.tensors)).unexpected_keys
    if left:
        raise misfit(stored.folder / PEFT_WEIGHTS, f"{left[0]}, which peft has no place for", "known names")


def _fill_value_head(policy: QwenVLAPolicy, folder: Path) -> None:
    stored, want = read_tensors(folder / VALUE_FILE), policy.value_head.state_dict()
    check_names(folder / VALUE_FILE, stored, want)
    _copy(stored, want)


def _copy(source: Mapping[str, Tensor], target: Mapping[str, Tensor]) -> None:
    with torch.no_grad():
        for name, tensor in target.items():
            tensor.copy_(source[name])


@contextmanager
def _one_line(folder: Path) -> Iterator[None]:
    """Whatever peft raises or warns of means that the adapter is not what it seems."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", UserWarning)
            yield
    except UserError:
        raise
    except Exception as error:
        raise misfit(folder, f"{type(error).__name__}: {first_line(error)}", "an adapter trained from it") from error


def _extras(policy: QwenVLAPolicy) -> dict[str, nn.Parameter]:
    """Parameters of what only training has."""
    prefixes = ("privileged_critic.", "noise_net.")
    return {name: p for name, p in policy.named_parameters() if name.startswith(prefixes)}


def _part(policy: QwenVLAPolicy, part: Part) -> nn.Module | None:
    """The module that adapters of that part go on; None of a policy without its backbone."""
    if part == "decoder":
        return policy.decoder
    return None if policy.backbone is None else policy.backbone.model.model.language_model


def _put(policy: QwenVLAPolicy, part: Part, module: nn.Module) -> None:
    if part == "decoder":
        policy.decoder = cast(ActionDecoder, module)
    else:
        policy.eyes.model.model.language_model = module


def _wrapped_parts(policy: QwenVLAPolicy) -> dict[Part, PeftModel]:
    found = {part: _part(policy, part) for part in PARTS}
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
