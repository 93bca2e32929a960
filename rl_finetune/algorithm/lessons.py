"""What `rl-finetune sft` refuses before any world is built, told by the specs of its worlds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from envs.base import no_expert
from rl_finetune.config.schema import SFTConfig
from rl_finetune.errors import UserError
from rl_finetune.memory import check_memory
from rl_finetune.policy import QwenVLAConfig
from rl_finetune.policy.compatibility import Bytes, check_pictures
from rl_finetune.policy.hub import local_folder
from rl_finetune.spec import EmbodimentSpec, EnvSpec

LABELLED = ("vision", "backbone")
"""Stages that learn from grounding labels alone."""


def check_lessons(config: SFTConfig, specs: Sequence[EnvSpec]) -> None:
    """Whether these worlds can be taught in these stages.

    Raises:
        UserError: a world has no expert, or none of the labels that a stage learns from; worlds do not go together;
            pictures do not fit the policy, or the demonstrations this machine.
    """
    for spec in specs:
        if not spec.expert:
            raise no_expert(spec)
        _check_labels(config, spec)
    things_of(specs)
    bodies_of(specs)
    start = QwenVLAConfig.tiny() if config.start is None else QwenVLAConfig.load(local_folder(config.start))
    for spec in specs:
        check_pictures(start, spec)
    _check_room(config, start, specs)


def things_of(specs: Sequence[EnvSpec]) -> tuple[str, ...]:
    """Names of the grounding labels, which all worlds that give any must share: one head reads them.

    Raises:
        UserError: they differ.
    """
    names = list(dict.fromkeys(spec.things for spec in specs if spec.things))
    if len(names) > 1:
        raise UserError(
            "worlds of one supervised run name different things", got=", ".join(map(str, names)),
            expected="the same EnvSpec.things in all", do="train on the others in a run of their own",
        )  # fmt: skip
    return names[0] if names else ()


def bodies_of(specs: Sequence[EnvSpec]) -> dict[str, EmbodimentSpec]:
    """Robot tag -> body.

    Raises:
        UserError: two worlds mean different bodies by one tag.
    """
    found: dict[str, EmbodimentSpec] = {}
    for spec in specs:
        known = found.setdefault(spec.embodiment.tag, spec.embodiment)
        if known != spec.embodiment:
            raise UserError(
                "worlds of one supervised run mean different bodies by one tag", got=f"{spec.embodiment} and {known}",
                expected="one body a tag", do="rename one of them",
            )  # fmt: skip
    return found


def _check_labels(config: SFTConfig, spec: EnvSpec) -> None:
    for stage in config.stages:
        if stage.train in LABELLED and not spec.things:
            raise UserError(
                f"{spec.name!r} does not tell where things appear, which a stage learns from",
                got=f"stage {stage.name!r} with train={stage.train}",
                expected="train=decoder or train=all, or a world with labels (`Episode.places`, `EnvSpec.things`)",
                do="leave the stage out, or write `places`",
            )


def _check_room(config: SFTConfig, start: QwenVLAConfig, specs: Sequence[EnvSpec]) -> None:
    """Pictures are held twice while they are put together, and so are the contexts of a decoder stage."""
    shown = config.demonstrations
    encoded = [min(stage.demonstrations or shown, shown) for stage in config.stages if stage.train == "decoder"]
    bare = replace(start, max_context_tokens=0, context_tokens={})  # how many words there are is not known yet
    each = [Bytes.of(bare, spec) for spec in specs]
    needed = sum(2 * shown * one.pictures + 2 * max(encoded, default=0) * one.context for one in each)
    check_memory(
        needed, f"demonstrations={shown}", "lower demonstrations (of a decoder stage too), or make pictures smaller"
    )
