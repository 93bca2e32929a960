"""Which episodes a person should see, filmed with both policies; and what was commanded in some of them."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path

import numpy as np
import torch

import envs
from actors.film import Film, film_episodes
from actors.guarding import Guard
from envs.supervision import WorldError
from rl_finetune.config.promotion import PromoteConfig
from rl_finetune.config.worlds import World
from rl_finetune.metrics.report_data import Clip
from rl_finetune.promotion.evidence.bounds import served_limits
from rl_finetune.promotion.evidence.cache import Cache
from rl_finetune.promotion.evidence.guarding import Envelopes
from rl_finetune.promotion.evidence.play import planned
from rl_finetune.promotion.evidence.policies import Weights
from rl_finetune.promotion.records import NONE, WorldRecord
from rl_finetune.promotion.report import ActionTrace, EpisodeClips
from rl_finetune.spec import EmbodimentSpec
from rl_finetune.types import SeedKeys

TRACES = 6
"""Worlds of which one episode's commands are shown."""


@dataclass(frozen=True, slots=True)
class Pick:
    """One episode."""

    world: str
    """Label."""
    suite: str
    """Perturbation suite, or `none`."""
    episode: int
    """Its number."""


def worst_first(record: WorldRecord) -> list[int]:
    """Episodes of a record: those that only the candidate lost, that both lost, that only it won, that both won."""
    fate = 2 * np.array(record.candidate, int) + ~np.array(record.incumbent, bool)
    order = np.array([0, 1, 3, 2])  # lost alone, lost by both, won by both, won alone
    ranked: list[int] = np.argsort(order[fate], kind="stable").tolist()
    return ranked


def chosen(records: Sequence[WorldRecord], count: int) -> tuple[Pick, ...]:
    """`count` episodes, failures of the candidate before all others; worlds and suites take turns."""
    failures = [[e for e in worst_first(record) if not record.candidate[e]] for record in records]
    others = [[e for e in worst_first(record) if record.candidate[e]] for record in records]
    picks = [
        Pick(record.world, record.suite, episode)
        for group in (failures, others)
        for round_ in zip_longest(*group)
        for record, episode in zip(records, round_, strict=True)
        if episode is not None
    ]
    return tuple(picks[:count])


def films(config: PromoteConfig, sides: Mapping[str, Weights], picks: Sequence[Pick]) -> tuple[EpisodeClips, ...]:
    """Each pick as both policies play it.

    Args:
        config: worlds, seed, temperature.
        sides: `candidate` and `incumbent`.
        picks: what to film.
    """
    found = {side: dict(_filmed(config, weights, picks)) for side, weights in sides.items()}
    mine, theirs = found["candidate"], found["incumbent"]
    return tuple(
        EpisodeClips(mine.get(pick), theirs.get(pick), pick.suite) for pick in picks if pick in mine or pick in theirs
    )


def traces(config: PromoteConfig, sides: Mapping[str, Weights], records: Sequence[WorldRecord]) -> list[ActionTrace]:
    """Commands of the worst unperturbed episode of each world, as far as motion was kept."""
    cache, wanted = Cache(Path(config.folder) / "played"), {r.world: r for r in records if r.suite == NONE}
    found: list[ActionTrace] = []
    for visit in planned(config, {"candidate": sides["candidate"]}):
        label = visit.world.label
        if not visit.watched or label not in wanted or len(found) == TRACES:
            continue
        kept = cache.load(visit.key, watched=True)
        if kept is None or kept[1] is None:
            continue
        log, record = kept[1], wanted[label]
        for episode in worst_first(record):
            actions = log.actions[log.episode == episode]
            if len(actions):
                action = envs.spec(visit.world.name, **visit.world.options).embodiment.action
                found.append(
                    ActionTrace(
                        label, record.embodiment, episode, 1 / action.rate, actions, success=record.candidate[episode]
                    )
                )
                break
    return found


def _filmed(config: PromoteConfig, weights: Weights, picks: Sequence[Pick]) -> Iterator[tuple[Pick, Clip]]:
    """One policy's films; a world that breaks down is left out."""
    if not picks:
        return
    torch.set_num_threads(1)
    played_in = {(pick.world, pick.suite): _world(config, pick.world, pick.suite) for pick in picks}
    policy = weights.load([envs.spec(played.name, **played.options) for played in played_in.values()])
    for (world, suite), played in played_in.items():
        episodes = np.array([pick.episode for pick in picks if (pick.world, pick.suite) == (world, suite)], np.int64)
        keys = SeedKeys(config.seed, episodes, np.zeros_like(episodes))
        try:
            with envs.make(played.name, len(episodes), **played.options) as env:
                guard = _guard(config, weights, policy.body(env.spec.embodiment.tag))
                shown = film_episodes(policy, env, keys, temperature=config.temperature, guard=guard)
        except WorldError as error:
            print(f"not filmed: {error}", file=sys.stderr)
            continue
        for film in shown:
            yield Pick(world, suite, film.episode), _clip(film, world)


def _guard(config: PromoteConfig, weights: Weights, body: EmbodimentSpec) -> Guard | None:
    """What stood between in the episodes that are filmed."""
    return Envelopes({body.tag: served_limits(body, config, weights)})(body) if config.guarded else None


def _world(config: PromoteConfig, label: str, suite: str) -> World:
    env = config.env if suite == NONE else config.env.perturbed(suite)
    return next(world for world in env.worlds() if world.label == label)


def _clip(film: Film, label: str) -> Clip:
    return Clip(film.frames, film.instruction, film.success, film.episode, label)
