"""Which worlds a job plays in, and how many environments each gets."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from pydantic import Field, model_validator

from rl_finetune.config.section import Section, require
from rl_finetune.types import IntArray


@dataclass(frozen=True, slots=True)
class World:
    """One world of a job, and the environments of it that somebody holds."""

    label: str
    """Name in metrics, evaluation and report: the registered one, numbered where it stands twice."""
    name: str
    """Registered environment."""
    options: dict[str, Any]
    """Options of that environment."""
    env_ids: IntArray
    """[n] global numbers of the environments, ascending; no two worlds share one."""
    chunks: int | None
    """Chunks that each of them plays a round; None leaves it to `rollout.chunks`."""
    workers: int = 0
    """Processes over which each holder spreads them; 0 is none but the holder's."""
    patience: float = 60.0
    """Seconds that such a process may take to answer."""

    @property
    def num_envs(self) -> int:
        """How many there are."""
        return len(self.env_ids)

    def share(self, holder: int, holders: int) -> World:
        """What one of `holders` equal holders gets of it."""
        return replace(self, env_ids=np.array_split(self.env_ids, holders)[holder])


class WorldSection(Section):
    """One world of a mix."""

    name: str
    """Registered environment."""
    share: float = Field(1.0, gt=0)
    """Weight of this world: it gets share / (sum of all shares) of `env.num_envs`."""
    options: dict[str, Any] = Field(default_factory=dict)
    """Options of that environment."""
    chunks: int | None = Field(None, ge=1)
    """Chunks that each of its environments plays an iteration; null is `rollout.chunks`, and where that is null too, as
    many as its longest episode has."""


class EnvSection(Section):
    """The world, or several at once."""

    name: str = "widowx_reach"
    """Registered environment."""
    num_envs: int = Field(128, ge=1)
    """Environments in all, spread over worlds and actors."""
    options: dict[str, Any] = Field(default_factory=dict)
    """Options of that environment, for example `image_size` or `tolerance`."""
    mix: list[WorldSection] = []
    """Worlds that one policy plays side by side, of as many embodiments as it knows; they take the place of `name` and
    `options`. Empty is the one world `name`."""
    workers: int = Field(0, ge=0)
    """Processes over which each actor spreads its environments of each world; one that breaks down is replaced, and
    nobody else's episode is lost. 0 keeps them in the actor: what a world raises then costs the actor's whole round."""
    patience: float = Field(60.0, gt=0)
    """Seconds that such a process may take over a chunk, the first included; then it is taken for hung."""

    @model_validator(mode="before")
    @classmethod
    def _null_is_no_mix(cls, values: Any) -> Any:
        return {**values, "mix": []} if isinstance(values, dict) and values.get("mix", []) is None else values

    @property
    def labels(self) -> tuple[str, ...]:
        """A name for each world, in order: `name`, and `name#2` for the second of that name."""
        names = [world.name for world in self._worlds]
        seen = [names[: i + 1].count(name) for i, name in enumerate(names)]
        return tuple(name if number == 1 else f"{name}#{number}" for name, number in zip(names, seen, strict=True))

    @property
    def shares(self) -> tuple[float, ...]:
        """Weight of each world."""
        return tuple(world.share for world in self._worlds)

    @property
    def title(self) -> str:
        """All worlds in a few words."""
        return " + ".join(self.labels)

    def worlds(self, group_size: int = 1) -> tuple[World, ...]:
        """The worlds with their environments, numbered one world after the other; groups stay within a world."""
        counts = [group_size * n for n in apportion(self.num_envs // group_size, [w.share for w in self._worlds])]
        ends = np.cumsum(counts)
        return tuple(
            World(
                label, world.name, world.options, np.arange(end - count, end, dtype=np.int64), world.chunks,
                self.workers, self.patience,
            )
            for label, world, count, end in zip(self.labels, self._worlds, counts, ends, strict=True)
        )  # fmt: skip

    def perturbed(self, suite: str) -> EnvSection:
        """The same worlds under one perturbation suite."""
        mix = [w.model_copy(update={"options": {**w.options, "perturb": suite}}) for w in self.mix]
        return self.model_copy(update={"options": {**self.options, "perturb": suite}, "mix": mix})

    @property
    def _worlds(self) -> list[WorldSection]:
        return self.mix or [WorldSection(name=self.name, options=self.options)]


def apportion(seats: int, weights: Sequence[float]) -> list[int]:
    """Whole seats in proportion to positive weights, by largest remainder (Hamilton's method); ties go to the first."""
    quotas = [seats * weight / math.fsum(weights) for weight in weights]
    given = [math.floor(quota) for quota in quotas]
    order = sorted(range(len(weights)), key=lambda i: given[i] - quotas[i])
    for i in order[: seats - sum(given)]:
        given[i] += 1
    return given


def check_worlds(env: EnvSection, holders: int, group_size: int = 1, *, by: str = "rollout.num_actors") -> None:
    """Refuse a mix that leaves some holder without an environment of some world, or splits a group over two.

    Raises:
        Impossible: names the world, or the number of environments.
    """
    size = env.num_envs
    require(size % group_size == 0, "objective.group_size", group_size, f"a divisor of env.num_envs = {size}")
    require(size >= holders, "env.num_envs", size, f"at least {by} = {holders}")
    for world in env.worlds(group_size):
        require(
            world.num_envs >= holders, "env.mix", f"{world.num_envs} of {size} environments for {world.label}",
            f"at least {by} = {holders}: raise env.num_envs or the world's share",
        )  # fmt: skip
