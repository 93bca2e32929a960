"""Which base policy an adapter belongs to: told by what its files hold, so that a copied folder is the same base.

Two digests, for `policy.backbone` may put another backbone below the same decoder. Tensors above `WHOLE_BYTES` are
sampled, so that a policy of 10 GB is known in about a second. That tells apart policies that were trained apart, for
training moves every tensor nearly everywhere. It does not find a few numbers that somebody changed on purpose: the
manifest of a bundle hashes every byte.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open

from rl_finetune.config.schema import PolicySection
from rl_finetune.errors import UserError
from rl_finetune.policy.config import CONFIG_FILE
from rl_finetune.policy.hub import local_folder
from rl_finetune.policy.normalisation import NORMALISATION_FILE
from rl_finetune.policy.policy import BACKBONE_FOLDER, WEIGHTS_FILE

WHOLE_BYTES = 1 << 18
"""Tensors up to this size are hashed whole."""
BLOCKS, BLOCK_BYTES = 4, 1 << 16
"""Of larger tensors this many evenly spread blocks of rows are hashed, each of about this size."""
ROOM = ("max_context_tokens", "context_tokens", "num_steps")
"""Settings in `config.json` that no adapter depends on: lengths that prompts are padded to, and a number of denoising
steps that every adapter brings itself."""
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json")


@dataclass(frozen=True, slots=True)
class Base:
    """The policy that an adapter was trained on."""

    name: str
    """As settings name it, for a person."""
    policy: str
    """SHA-256 over config, action normalisation, decoder and value head."""
    backbone: str
    """SHA-256 over the backbone's config, tokenizer and weights."""


def base_of(section: PolicySection) -> Base:
    """The base policy that settings name, whatever adapter they put on it.

    Raises:
        UserError: some of its files are missing or damaged.
    """
    folder, backbone = folders_of(section)
    name = section.path if section.backbone is None else f"{section.path} with backbone {section.backbone}"
    return Base(name, _policy_digest(folder), _backbone_digest(backbone))


def folders_of(section: PolicySection) -> tuple[Path, Path]:
    """Where the policy that settings name and its backbone lie.

    Raises:
        UserError: one of them does not exist.
    """
    folder = local_folder(section.path)
    return folder, folder / BACKBONE_FOLDER if section.backbone is None else local_folder(section.backbone, "backbone")


def _policy_digest(folder: Path) -> str:
    config = {key: value for key, value in _object(folder / CONFIG_FILE).items() if key not in ROOM}
    digest = hashlib.sha256(_canonical(config) + _canonical(_object(folder / NORMALISATION_FILE)))
    _add_weights(digest, [folder / WEIGHTS_FILE])
    return digest.hexdigest()


def _backbone_digest(folder: Path) -> str:
    digest = hashlib.sha256(_canonical(_object(folder / CONFIG_FILE)))
    for name in TOKENIZER_FILES:
        digest.update(_canonical(_object(folder / name)) if (folder / name).is_file() else b"none")
    _add_weights(digest, sorted(folder.glob("*.safetensors")))
    return digest.hexdigest()


def _add_weights(digest: Any, files: list[Path]) -> None:
    """Names, types, shapes and values, in the order of names: however they are spread over files."""
    try:
        with ExitStack() as stack:
            opened = [stack.enter_context(safe_open(path, "pt")) for path in files]
            where = {name: file for file in opened for name in file.keys()}  # noqa: SIM118
            for name in sorted(where):
                part = where[name].get_slice(name)
                digest.update(f"{name}|{part.get_dtype()}|{part.get_shape()}|".encode())
                for block in _blocks(where[name], name, part):
                    digest.update(block.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    except (OSError, SafetensorError) as error:
        raise _damaged(files, error) from error


def _blocks(file: Any, name: str, part: Any) -> Iterator[torch.Tensor]:
    rows = part.get_shape()[:1]
    row_bytes = part[:1].nbytes if rows and rows[0] else 0
    if row_bytes == 0 or rows[0] * row_bytes <= WHOLE_BYTES:
        yield file.get_tensor(name)
        return
    length = min(rows[0], max(1, BLOCK_BYTES // row_bytes))
    for first in np.unique(np.linspace(0, rows[0] - length, BLOCKS).astype(int)).tolist():
        yield part[first : first + length]


def _object(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise _damaged(path, error) from error
    return value if isinstance(value, dict) else {"": value}


def _canonical(value: dict[str, Any]) -> bytes:
    return json.dumps(value, sort_keys=True).encode()


def _damaged(where: object, error: Exception) -> UserError:
    return UserError(
        "base policy cannot be read", got=f"{where}: {error}", expected="JSON and safetensors as they were saved",
        do="copy the policy again from its source",
    )  # fmt: skip
