"""Which weights a config names: a policy's folder, with or without an adapter, or a bundle."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from rl_finetune.config.schema import PolicySection
from rl_finetune.durable import canonical, sha256
from rl_finetune.policy import QwenVLAPolicy
from rl_finetune.policy.hub import local_folder
from rl_finetune.policy.loading import load_policy
from rl_finetune.promotion.records import Limits, PolicyName
from rl_finetune.promotion.registry.bundle import Bundle, open_bundle
from rl_finetune.promotion.registry.manifest import RECORD
from rl_finetune.spec import EnvSpec


@dataclass(frozen=True, slots=True)
class Weights:
    """Where one policy's weights lie, and what they are called."""

    name: PolicyName
    """As the evidence names it."""
    section: PolicySection
    """What a player loads."""
    bundle: Bundle | None = None
    """The bundle that it is, verified."""

    @property
    def limits(self) -> Mapping[str, Limits]:
        """What its bundle says of the bodies; nothing without one."""
        return {} if self.bundle is None else self.bundle.limits

    def load(self, specs: Sequence[EnvSpec] = ()) -> QwenVLAPolicy:
        """As it is kept: an adapter stands beside the weights that it adapts.

        Args:
            specs: environments that it will act in, see `load_policy`.

        Raises:
            UserError: it cannot be loaded.
        """
        if self.bundle is not None:
            return self.bundle.load(specs)
        return load_policy(self.section, specs)


def find(section: PolicySection) -> Weights:
    """Look up what a config names.

    Raises:
        UserError: it does not exist, or is a bundle that was tampered with.
    """
    folder = local_folder(section.path)
    if (folder / RECORD).is_file():
        bundle = open_bundle(folder)
        return Weights(bundle.called, bundle.section, bundle)
    adapter = None if section.adapter is None else local_folder(section.adapter)
    parts = {"policy": folder, "adapter": adapter, "backbone": section.backbone and local_folder(section.backbone)}
    sealed = {name: _digest(Path(part)) for name, part in parts.items() if part}
    told = {} if section.guidance is None else {"guidance": section.guidance}
    name = str(section.path) if adapter is None else f"{section.path} + {section.adapter}"
    return Weights(PolicyName(name, sha256(canonical({**sealed, **told}))), section)


def _digest(folder: Path) -> str:
    """SHA-256 over the names and contents of all files."""
    found = {}
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            with path.open("rb") as file:
                found[path.relative_to(folder).as_posix()] = hashlib.file_digest(file, "sha256").hexdigest()
    return sha256(canonical(found))
