"""From a config to everything that the gates look at.

policies -> preflight -> play (paired, cached) -> motion -> parity -> latency, last, when nobody else is busy
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch

import envs
from rl_finetune.config.promotion import PromoteConfig
from rl_finetune.config.worlds import World
from rl_finetune.memory import check_environments
from rl_finetune.policy import QwenVLAConfig, QwenVLAPolicy, compatibility
from rl_finetune.policy.compatibility import Bytes
from rl_finetune.policy.hub import local_folder
from rl_finetune.policy.loading import load_policy
from rl_finetune.policy.policy import BACKBONE_FOLDER
from rl_finetune.promotion.evidence import latency, parity
from rl_finetune.promotion.evidence.bounds import check_bounds, limits_of
from rl_finetune.promotion.evidence.motion import audit
from rl_finetune.promotion.evidence.parity import Question
from rl_finetune.promotion.evidence.play import Found, Gather, compare
from rl_finetune.promotion.evidence.policies import Weights, find
from rl_finetune.promotion.evidence.progress import Progress
from rl_finetune.promotion.records import Evidence, LatencyRecord, Limits, MotionAudit, ParityRecord
from rl_finetune.spec import EmbodimentSpec, EnvSpec, handshake
from rl_finetune.types import Observation, SeedKeys

PLACES = 8
"""Environments side by side for what is looked at one observation at a time."""


def gather(config: PromoteConfig, progress: Progress, players: Gather | None = None) -> Evidence:
    """Play, audit, compare and time. What was played is kept in `config.folder`; a second call only reads it.

    Args:
        config: who, where, how often.
        progress: told of every part.
        players: who plays; by default `config.num_actors` processes.

    Raises:
        UserError: a policy or a world cannot be used, or nothing is known of a body's limits; nothing has been played.
    """
    candidate, incumbent = find(config.candidate), find(config.opponent)
    bodies = bodies_of(config, candidate, incumbent)
    check_bounds(bodies.values(), config, candidate, incumbent)
    limits = {body.tag: limits_of(body, config, candidate) for body in bodies.values()}
    found = compare(config, candidate, incumbent, progress, players)
    bench = _Bench(config, candidate)
    done = sum(len(record.candidate) + len(record.incumbent) for record in found.worlds)
    progress("comparing what is exported with what was trained", done, done)
    same = tuple(bench.parity())
    progress("timing inference", done, done)
    return Evidence(
        candidate=candidate.name, incumbent=incumbent.name, worlds=found.worlds,
        motion=tuple(_audits(config, found, bodies, limits)), latency=tuple(bench.latency()), parity=same,
        limits=limits,
    )  # fmt: skip


def bodies_of(config: PromoteConfig, *policies: Weights) -> Mapping[str, EmbodimentSpec]:
    """World's label -> its body, once everybody has shaken hands in every world and under every suite.

    Raises:
        UserError: a policy cannot act in a world, this machine cannot hold so many of it, or it cannot be built.
    """
    found: dict[str, EmbodimentSpec] = {}
    for weights in policies:
        needed, specs = 0, [envs.spec(world.name, **world.options) for world in config.env.worlds()]
        folder = local_folder(weights.section.path)
        policy, own = QwenVLAConfig.load(folder), None if weights.section.backbone else folder / BACKBONE_FOLDER
        for world, spec in zip(config.env.worlds(), specs, strict=True):
            found[world.label] = compatibility.check(policy, own, spec)
            needed += world.num_envs * Bytes.of(policy, spec).acting
        check_environments(needed, config.env.num_envs)
        load_policy(weights.section, specs, with_backbone=False)
    for suite in config.asked_suites:
        for world in config.env.perturbed(suite).worlds():
            if suite not in config.gates.suites.lacking.get(world.label, ()):
                # a spec does not show that there is nothing for a suite to vary
                envs.make(world.name, 1, **world.options).close()
    return found


def _audits(
    config: PromoteConfig, found: Found, bodies: Mapping[str, EmbodimentSpec], limits: Mapping[str, Limits]
) -> Iterator[MotionAudit]:
    for world in config.env.worlds():
        if world.label in found.motion:
            body = bodies[world.label]
            yield audit(found.motion[world.label], body, limits[body.tag], world.label)


@dataclass
class _Bench:
    """The candidate in this process, in one world of each embodiment."""

    config: PromoteConfig
    candidate: Weights

    @cached_property
    def served(self) -> QwenVLAPolicy:
        return parity.exported(self.candidate, self.specs).eval()

    @cached_property
    def specs(self) -> list[EnvSpec]:
        """Of those worlds."""
        return [envs.spec(world.name, **world.options) for world in self.worlds.values()]

    @cached_property
    def worlds(self) -> dict[str, World]:
        """Robot tag -> the first world of that body."""
        found: dict[str, World] = {}
        for world in self.config.env.worlds():
            found.setdefault(envs.spec(world.name, **world.options).embodiment.tag, world)
        return found

    def parity(self) -> Iterator[ParityRecord]:
        """One record an embodiment."""
        torch.set_num_threads(1)
        trained = self.candidate if self.config.trained is None else find(self.config.trained)
        mine = trained.load(self.specs)
        chunks = self.config.parity_chunks or self.config.gates.parity.chunks
        for tag, world in self.worlds.items():
            asked = questions(mine, world, chunks, self.config.seed, self.config.temperature)
            yield parity.compared(mine, self.served, mine.body(tag), asked, self.config.temperature)

    def latency(self) -> Iterator[LatencyRecord]:
        """One record an embodiment."""
        for tag, world in self.worlds.items():
            with envs.make(world.name, PLACES, **world.options) as env:
                seen = env.reset(_keys(self.config.seed, PLACES))
            single = [seen.rows(np.array([row])) for row in range(PLACES)]
            body = self.served.body(tag)
            yield latency.timed(self.served, body, single, self.config.latency, self.config.temperature)


def questions(policy: QwenVLAPolicy, world: World, chunks: int, seed: int, temperature: float) -> tuple[Question, ...]:
    """At least so many observations of a world, as the policy itself comes to see them; the last are cut off."""
    asked: list[Question] = []
    with envs.make(world.name, min(chunks, PLACES), **world.options) as env:
        keys = _keys(seed, env.num_envs)
        body = handshake(policy.config.embodiments, env.spec)
        seen, number, left = env.reset(keys), 0, chunks
        while left > 0:
            rows = np.arange(min(left, env.num_envs))
            chunk = np.full(env.num_envs, number)
            asked.append(Question(_cut(seen, rows), keys.rows(rows), chunk[rows]))
            left -= len(rows)
            if left > 0:
                seen = env.step_chunk(policy.act(policy.look(seen), keys, chunk, body, temperature)).observation
            number += 1
    return tuple(asked)


def _cut(seen: Observation, rows: np.ndarray) -> Observation:
    return seen if len(rows) == len(seen) else seen.rows(rows)


def _keys(seed: int, count: int) -> SeedKeys:
    return SeedKeys(seed, np.arange(count), np.zeros(count, np.int64))
