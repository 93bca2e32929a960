"""From what the settings name to a bundle: what is judged is what would be served."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import envs
from rl_finetune.config import files
from rl_finetune.config.promotion import PromoteConfig
from rl_finetune.config.schema import PolicySection
from rl_finetune.durable import Json
from rl_finetune.errors import UserError
from rl_finetune.policy import QwenVLAConfig
from rl_finetune.policy.compatibility import prompt_room
from rl_finetune.policy.hub import local_folder
from rl_finetune.policy.identity import folders_of
from rl_finetune.promotion.commands import BUNDLE
from rl_finetune.promotion.evidence.bounds import limits_of
from rl_finetune.promotion.evidence.limits import KNOWN
from rl_finetune.promotion.evidence.policies import Weights, find
from rl_finetune.promotion.records import Limits
from rl_finetune.promotion.registry.bundle import Bundle, make_bundle, open_bundle
from rl_finetune.promotion.registry.contents import Acted, Provenance
from rl_finetune.spec import EnvSpec

SOURCE = "source"
"""Setting in a bundle's provenance: digest of the weights that it was made of."""


@dataclass(frozen=True, slots=True)
class Candidate:
    """Who wants to be promoted."""

    weights: Weights
    """As the settings name them."""
    folder: Path
    """Of its bundle."""
    bundle: Bundle | None
    """That bundle, where it has been made."""

    @property
    def source(self) -> str:
        """Digest of the weights that the bundle is made of; of a bundle that came as such, what it says itself."""
        return self.weights.name.digest if self.weights.bundle is None else source_of(self.weights.bundle)


def candidate_of(config: PromoteConfig) -> Candidate:
    """Look up the candidate, and its bundle if it has one; nothing is written.

    Raises:
        UserError: there is no such policy, or the folder holds another candidate's bundle.
    """
    if config.candidate.adapter is not None and not Path(config.candidate.adapter).is_dir():
        raise UserError(
            "no adapter there", got=config.candidate.adapter, expected="a folder that `rl-finetune train` left behind",
            do="train first, or correct candidate.adapter (null is none)",
        )  # fmt: skip
    weights = find(config.candidate)
    if weights.bundle is not None:
        _check_plain(config.candidate)
        check_acted(config, weights.bundle)
        _check_limits(config, weights.bundle)
        return Candidate(weights, weights.bundle.folder, weights.bundle)
    if config.candidate.guidance is not None:
        raise UserError(
            "a bundle keeps the guidance that was trained with", got=f"candidate.guidance={config.candidate.guidance}",
            expected="null", do="leave it out",
        )  # fmt: skip
    folder = Path(config.folder) / BUNDLE
    if not folder.exists():
        return Candidate(weights, folder, None)
    made = open_bundle(folder)
    if source_of(made) != weights.name.digest:
        raise UserError(
            f"{config.folder} holds another candidate", got=f"bundle {made.name} of other weights",
            expected=f"a bundle of {weights.name.name}", do="set another `folder`",
        )  # fmt: skip
    check_acted(config, made)
    _check_limits(config, made)
    return Candidate(weights, folder, made)


def sealed(config: PromoteConfig, candidate: Candidate) -> Bundle:
    """The candidate's bundle, made if it is missing.

    Raises:
        UserError: see `make_bundle`.
    """
    if candidate.bundle is not None:
        return candidate.bundle
    asked, run = config.candidate, _run(config.candidate)
    training = _settings(run)
    told = training.get("run")
    seed = told.get("seed") if isinstance(told, Mapping) else None
    provenance = Provenance.here(
        {SOURCE: candidate.source, "training": training}, [seed] if isinstance(seed, int) else []
    )
    evaluation = [] if run is None else [path for path in (run / "evaluation.json",) if path.is_file()]
    return make_bundle(
        asked.path, candidate.folder, name=config.bundle.name or _name(asked), provenance=provenance,
        adapter=None if asked.adapter is None else Path(asked.adapter), merge=config.bundle.merge,
        backbone=asked.backbone, limits=limits_for_all(config, candidate.weights), evaluations=evaluation,
        acted=replace(acted_in(config), context_tokens=_room(config)),
        sign_with=None if config.bundle.sign_with is None else Path(config.bundle.sign_with),
    )  # fmt: skip


def limits_for_all(config: PromoteConfig, weights: Weights) -> dict[str, Limits]:
    """Robot tag -> limits of the settings, else of the modelled body; other bodies get those of their demonstrations.

    Raises:
        UserError: the settings' are impossible.
    """
    bodies = QwenVLAConfig.load(local_folder(weights.section.path)).embodiments
    known = {*config.limits, *KNOWN}
    return {body.tag: limits_of(body, config, weights) for body in bodies if body.tag in known}


def acted_in(config: PromoteConfig) -> Acted:
    """How the candidate acts in its evaluation; no size of pictures where worlds differ in it."""
    sizes = {spec.image_size for spec in _specs(config)}
    return Acted(sizes.pop() if len(sizes) == 1 else None, config.temperature)


def _specs(config: PromoteConfig) -> list[EnvSpec]:
    return [envs.spec(world.name, **world.options) for world in config.env.worlds()]


def _room(config: PromoteConfig) -> dict[str, int]:
    """Tokens that prompts are padded to where the candidate is evaluated."""
    folder, backbone = folders_of(config.candidate)
    return prompt_room(QwenVLAConfig.load(folder), backbone, _specs(config))


def source_of(bundle: Bundle) -> str:
    """Digest of the weights that a bundle was made of; its own where it does not say."""
    return str(bundle.provenance.config.get(SOURCE, bundle.digest))


def _check_plain(policy: PolicySection) -> None:
    """A bundle is whole: nothing else belongs to it."""
    beside = {"adapter": policy.adapter, "backbone": policy.backbone, "guidance": policy.guidance}
    for name, given in beside.items():
        if given is not None:
            raise UserError(
                f"a bundle takes no {name}", got=f"{policy.path} and {given}", expected="a bundle alone",
                do=f"set its {name} to null, for example candidate.{name}=",
            )  # fmt: skip


def check_acted(config: PromoteConfig, bundle: Bundle) -> None:
    """Whether a bundle is played with the pictures and the noise that are sealed into it, as it is served.

    Raises:
        UserError: with others.
    """
    played = acted_in(config)
    for name in ("image_size", "temperature"):
        said, asked = getattr(bundle.acted, name), getattr(played, name)
        if None not in (said, asked) and said != asked:
            raise UserError(
                f"bundle {bundle.name} is served with another {name}", got=asked, expected=said,
                do="judge it as it is served, or make another bundle",
            )  # fmt: skip


def _check_limits(config: PromoteConfig, bundle: Bundle) -> None:
    """A bundle's limits are sealed: other ones would be audited than the server keeps to."""
    for body in bundle.embodiments:
        tag = body.spec.tag
        if tag in config.limits:
            wanted = limits_of(body.spec, config, Weights(bundle.called, config.candidate))
            if wanted != bundle.limits[tag]:
                raise UserError(
                    f"bundle {bundle.name} has other limits", got=f"limits.{tag} that differ from the bundle's",
                    expected="those that it was sealed with", do="leave `limits` out, or make another bundle",
                )  # fmt: skip


def _run(policy: PolicySection) -> Path | None:
    """Folder of the run that trained the adapter."""
    return None if policy.adapter is None else Path(policy.adapter).resolve().parent


def _settings(run: Path | None) -> dict[str, Json]:
    """Resolved config of a run; empty where nobody kept it."""
    saved = None if run is None else run / "config.yaml"
    return {} if saved is None or not saved.is_file() else files.read(saved)


def _name(policy: PolicySection) -> str:
    """For a person: policy and run."""
    run = _run(policy)
    return Path(policy.path).name + ("" if run is None else f"+{run.name}")
