"""Simulated worlds behind one contract: `make` builds one, `spec` tells what it promises without building it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields
from difflib import get_close_matches
from functools import partial
from typing import Any

from envs import gymnasium, isaac
from envs.base import VectorEnv
from envs.imported import imported
from envs.mujoco import catalogue
from envs.mujoco.build import build
from rl_finetune.errors import UserError, users_code
from rl_finetune.spec import EnvSpec

__all__ = ["REGISTRY", "Entry", "VectorEnv", "alone_on", "expert_steps", "make", "spec"]

PATIENCE = 60.0
"""Seconds: hundreds of times a slow machine's chunk."""


@dataclass(frozen=True, slots=True)
class Entry:
    """How one registered environment is described and built."""

    options: type[Any]
    """Frozen dataclass of its options; validates itself."""
    describe: Callable[[Any], EnvSpec]
    """Options -> spec, importing no simulator."""
    build: Callable[[int, Any], VectorEnv]
    """Number of environments, options -> the environment, in this process."""
    alone_on: Callable[[Any], str | None] = lambda _: None
    """Options -> what one such environment must have to itself, whatever its size; None is nothing."""
    expert_steps: int = 0
    """Steps that its expert takes on average; 0 where that is not measured."""


def _simulated(world: catalogue.World) -> Entry:
    return Entry(
        options=world.options,
        describe=lambda chosen: world.task(chosen).spec,
        build=lambda num_envs, chosen: build(world.task(chosen), num_envs, chosen),
        expert_steps=world.expert_steps,
    )


REGISTRY: dict[str, Entry] = {name: _simulated(world) for name, world in catalogue.WORLDS.items()}
REGISTRY[gymnasium.NAME] = Entry(gymnasium.GymnasiumOptions, gymnasium.spec, gymnasium.build)
REGISTRY[isaac.NAME] = Entry(isaac.IsaacOptions, isaac.spec, isaac.build, isaac.alone_on)
"""Name -> entry. Adding an environment is one line here, or in `envs.mujoco.catalogue`."""


def make(name: str, num_envs: int, /, *, workers: int = 0, patience: float = PATIENCE, **options: Any) -> VectorEnv:
    """Build `num_envs` environments of the registered `name`.

    Args:
        name: a key of `REGISTRY`, or `package.module:attribute` of an `Entry` elsewhere.
        num_envs: N, at least 1.
        workers: processes over which they are spread; 0 keeps them in this one. A worker that breaks is replaced.
        patience: seconds that a worker may take to answer, the first chunk included; then it is taken for hung.
        options: fields of the entry's option class, for example `image_size` and `tolerance` of `widowx_reach`.

    Raises:
        UserError: unknown name or option, a bad value, a simulator that raises when it is made, or no way to draw on
            this machine.
    """
    entry = _entry(name)
    chosen = _options(name, entry, options)
    if num_envs < 1 or not 0 <= workers <= num_envs or not patience > 0:
        raise UserError(
            "impossible number of environments or workers, or no patience",
            got=f"num_envs={num_envs}, workers={workers}, patience={patience}",
            expected="num_envs >= 1, 0 <= workers <= num_envs and patience > 0",
            do="change one of them",
        )
    if workers:
        from envs.process import ProcessEnv

        return ProcessEnv(spec(name, **options), partial(make, name, **options), num_envs, workers, patience=patience)
    with users_code(f"environment {name!r} cannot be made", certain=":" in name):
        return entry.build(num_envs, chosen)


def spec(name: str, /, **options: Any) -> EnvSpec:
    """What `make(name, ..., **options)` would promise; imports no simulator. Raises like `make`."""
    entry = _entry(name)
    with users_code(f"environment {name!r} cannot be described", certain=":" in name):
        return entry.describe(_options(name, entry, options))


def alone_on(name: str, /, **options: Any) -> str | None:
    """What one such environment must have to itself, in words; None where there may be many. Raises like `make`."""
    entry = _entry(name)
    return entry.alone_on(_options(name, entry, options))


def expert_steps(name: str) -> int:
    """Steps that its expert takes on average; 0 where that is not measured. Raises like `make`."""
    return _entry(name).expert_steps


def _entry(name: str) -> Entry:
    if ":" in name:
        found = imported(name, "environment")
        if not isinstance(found, Entry):
            raise UserError(
                f"{name!r} is no environment", got=type(found).__name__, expected="an envs.Entry",
                do="make one with envs.simple.entry, or envs.Entry(options, describe, build)",
            )  # fmt: skip
        return found
    if name not in REGISTRY:
        raise _unknown("environment", name, list(REGISTRY))
    return REGISTRY[name]


def _options(name: str, entry: Entry, options: dict[str, Any]) -> Any:
    known = [field.name for field in fields(entry.options)]
    for option in options:
        if option not in known:
            raise _unknown(f"option of {name}", option, known)
    with users_code(f"options of environment {name!r} cannot be used", certain=":" in name):
        return entry.options(**options)


def _unknown(kind: str, got: str, known: list[str]) -> UserError:
    near = get_close_matches(got, known, n=1, cutoff=0.0)
    return UserError(f"unknown {kind}", got=repr(got), expected=f"one of {known}", do=f"did you mean {near[0]!r}?")
