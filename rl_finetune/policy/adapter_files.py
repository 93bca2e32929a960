"""What a stored adapter consists of, read as strictly as it was written. Nothing here is unpickled.

adapter.json                      the base policy that it was trained on, and how it acts (`AdapterRecord`)
decoder/adapter_config.json, decoder/adapter_model.safetensors      in peft's layout
backbone/...                      where the backbone trains too
value_head.safetensors
extras.safetensors                privileged critic and noise net, where there are any; only training reads them
start/...                         the adapter that was folded into the base before this one was trained
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from rl_finetune.config.schema import PolicySection
from rl_finetune.errors import UserError
from rl_finetune.policy.identity import Base, base_of

Part = Literal["decoder", "backbone"]
PARTS: tuple[Part, ...] = ("decoder", "backbone")
RECORD_FILE, VALUE_FILE, EXTRAS_FILE = "adapter.json", "value_head.safetensors", "extras.safetensors"
PEFT_CONFIG, PEFT_WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
START_FOLDER = "start"
FORMAT = "qwen-vla-adapter"


@dataclass(frozen=True, slots=True)
class Origin:
    """What an adapter is trained on; kept in memory, so that a run can save when the files are gone."""

    base: Base
    """The base policy."""
    start: Mapping[str, bytes] | None = None
    """Files of the adapter that was folded into it first; None where there was none."""


def origin_of(section: PolicySection) -> Origin:
    """What an adapter will have been trained on that begins with these settings.

    Raises:
        UserError: base policy or adapter cannot be read.
    """
    if section.adapter is None:
        return Origin(base_of(section))
    folder = Path(section.adapter)
    AdapterRecord.read(folder)
    files = {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    return Origin(base_of(section), files)


@dataclass(frozen=True, slots=True)
class AdapterRecord:
    """`adapter.json`: whose adapter it is, and how it acts."""

    base: Base
    """The policy that it was trained on."""
    parts: tuple[Part, ...]
    """Parts of the policy that it adapts, a folder each."""
    started: bool
    """Whether another adapter, in `start/`, is folded into the base first."""
    denoising_steps: int
    """Euler steps that it was trained with, and acts with."""
    guidance: float | None
    """beta of an advantage-conditioned policy; None acts without advice."""

    def save(self, folder: Path) -> None:
        """Write `adapter.json` into an existing folder."""
        (folder / RECORD_FILE).write_text(json.dumps({"format": FORMAT, **asdict(self)}, indent=2) + "\n")

    @classmethod
    def read(cls, folder: Path) -> AdapterRecord:
        """From the folder of an adapter, whose parts must be those that the record names.

        Raises:
            UserError: there is no adapter, or the record is missing, damaged or of another adapter.
        """
        if not folder.is_dir() or not any((folder / part).is_dir() for part in PARTS):
            raise UserError(
                "adapter not found", got=str(folder), expected="a folder with decoder/ or backbone/ in peft's layout",
                do="name the adapter folder of a run, for example runs/train/adapter",
            )  # fmt: skip
        path = folder / RECORD_FILE
        if not path.is_file():
            raise misfit(folder, f"no {RECORD_FILE}", "one that names the base policy", do="train the adapter again")
        record = _record(path)
        for name, said in ((START_FOLDER, record.started), *((part, part in record.parts) for part in PARTS)):
            if (folder / name).is_dir() != said:
                got = f"no {name}/" if said else f"{name}/, which {RECORD_FILE} does not name"
                raise misfit(folder, got, "the parts that it was saved with")
        return record

    def check_base(self, folder: Path, base: Base) -> None:
        """Compare the policy that the adapter in `folder` was trained on with the one that it is put on.

        Raises:
            UserError: it is another one, or its files have changed.
        """
        for part, mine, other in (
            ("weights", self.base.policy, base.policy), ("backbone", self.base.backbone, base.backbone),
        ):  # fmt: skip
            if mine != other:
                raise UserError(
                    "adapter was trained on another policy", got=f"{folder}, trained on {part} {mine[:12]} of "
                    f"{self.base.name}", expected=f"{part} {other[:12]} of {base.name}",
                    do="name the policy (policy.path and policy.backbone) that the run's config.yaml names",
                )  # fmt: skip


@dataclass(frozen=True, slots=True)
class StoredPart:
    """One part's adapter in peft's layout."""

    folder: Path
    """Where it lies."""
    rank: int
    """r."""
    alpha: float
    """Scale: the update is multiplied by alpha / r."""
    targets: tuple[str, ...]
    """Ends of the names of the layers that it adapts."""
    settings: Mapping[str, Any]
    """All settings as peft wrote them."""
    tensors: Mapping[str, Tensor]
    """Name -> values, all finite."""

    @classmethod
    def read(cls, folder: Path) -> StoredPart:
        """From its folder.

        Raises:
            UserError: settings or weights are missing, damaged, pickled, or not finite.
        """
        path = folder / PEFT_CONFIG
        settings = _object(path)
        rank, alpha, targets = (settings.get(name) for name in ("r", "lora_alpha", "target_modules"))
        if not isinstance(rank, int) or isinstance(rank, bool) or rank < 1:
            raise misfit(path, f"r {rank!r}", "a positive whole number")
        if not isinstance(alpha, int | float) or isinstance(alpha, bool) or not 0 < alpha < math.inf:
            raise misfit(path, f"lora_alpha {alpha!r}", "a positive number")
        if not isinstance(targets, list) or not targets or not all(isinstance(name, str) for name in targets):
            raise misfit(path, f"target_modules {targets!r}", "names of layers")
        tensors = read_tensors(folder / PEFT_WEIGHTS)
        return cls(folder, rank, float(alpha), tuple(targets), settings, tensors)


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Name -> values of a safetensors file of an adapter.

    Raises:
        UserError: it is missing or damaged, or something in it is no finite number.
    """
    pickled = [other.name for other in sorted(path.parent.glob("*.bin"))]
    if pickled and not path.is_file():
        raise misfit(path.parent, f"{pickled[0]}, which may hold code and is never read", path.name,
                     do="convert it to safetensors where you trust it")  # fmt: skip
    try:
        tensors = load_file(path)
    except (OSError, SafetensorError) as error:
        raise misfit(path, first_line(error), "safetensors") from error
    for name, tensor in tensors.items():
        if not tensor.is_floating_point() or not bool(torch.isfinite(tensor).all()):
            raise misfit(path, f"{name} {list(tensor.shape)} of {tensor.dtype} that is not finite", "finite numbers")
    return tensors


def check_names(path: Path, tensors: Mapping[str, Tensor], want: Mapping[str, Tensor]) -> None:
    """Stored tensors must be exactly those that the policy has a place for.

    Raises:
        UserError: names the first that is missing, of another shape or that there is no place for.
    """
    for name in sorted(want.keys() | tensors.keys(), key=lambda name: (name in want, name)):
        have = f"{name} of shape {list(tensors[name].shape)}" if name in tensors else f"no {name}"
        expected = f"shape {list(want[name].shape)}" if name in want else f"only names like {next(iter(want), 'none')}"
        if name not in tensors or name not in want or tensors[name].shape != want[name].shape:
            raise misfit(path, have, expected)


def misfit(
    where: Path,
    got: str,
    expected: str,
    do: str = "name the policy that the run's config.yaml names, or copy the adapter again",
) -> UserError:
    """The error of an adapter that is not one of this policy."""
    return UserError("adapter does not fit this policy", got=f"{where}: {got}", expected=expected, do=do)


def first_line(error: BaseException) -> str:
    """What an error says, in a line that is not too long."""
    return " ".join(str(error).split())[:200] or type(error).__name__


def _record(path: Path) -> AdapterRecord:
    payload = _object(path)
    try:
        if payload.pop("format", None) != FORMAT:
            raise ValueError(f'"format" is not "{FORMAT}"')
        record = AdapterRecord(**{**payload, "base": Base(**payload["base"]), "parts": tuple(payload["parts"])})
        steps, guidance = record.denoising_steps, record.guidance
        if record.parts != tuple(part for part in PARTS if part in record.parts):
            raise ValueError(f"parts {record.parts}")
        if not isinstance(steps, int) or isinstance(steps, bool) or steps < 1:
            raise ValueError(f"denoising_steps {steps!r}")
        if guidance is not None and not (isinstance(guidance, int | float) and 0 <= guidance < math.inf):
            raise ValueError(f"guidance {guidance!r}")
    except (TypeError, KeyError, ValueError) as error:
        raise misfit(path, f"{type(error).__name__}: {error}", "a record that this version wrote") from error
    return record


def _object(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text())
        if not isinstance(value, dict):
            raise ValueError(f"{type(value).__name__} in place of an object")
    except (OSError, ValueError, RecursionError) as error:
        raise misfit(path, first_line(error), "a JSON object") from error
    return value
