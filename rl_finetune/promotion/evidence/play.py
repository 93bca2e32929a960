"""Candidate and incumbent in the same held-out episodes, in every world and under every suite.

visits: suite by suite, policy by policy, world by world --> from the disk, or played and kept --> paired records
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

import envs
from actors import cluster
from actors.evaluator import EpisodeResults, together
from actors.guarding import Guards
from actors.playing import Alone, Company, Part, Remote, shares
from actors.watching import MotionLog, joined
from envs.supervision import WorldError
from rl_finetune.config.promotion import PromoteConfig
from rl_finetune.config.schema import EvaluationSection, PolicySection
from rl_finetune.config.worlds import World
from rl_finetune.promotion.evidence.bounds import served_limits
from rl_finetune.promotion.evidence.cache import Cache, Episodes, Key
from rl_finetune.promotion.evidence.guarding import Envelopes
from rl_finetune.promotion.evidence.policies import Weights
from rl_finetune.promotion.evidence.progress import Progress
from rl_finetune.promotion.records import NONE, WorldRecord
from rl_finetune.spec import EmbodimentSpec
from rl_finetune.types import Failure

Side = Literal["candidate", "incumbent"]
Gather = Callable[[PolicySection, Sequence[World], EvaluationSection, Guards | None], Company]
"""Policy, worlds, episodes, what stands between -> players."""


@dataclass(frozen=True, slots=True, eq=False)
class Visit:
    """One policy's episodes in one world under one suite."""

    side: Side
    """Whose."""
    suite: str
    """Perturbation suite, or `none`."""
    world: World
    """With the suite among its options."""
    key: Key
    """What it is kept under."""
    watched: bool
    """Whether the body is watched."""


@dataclass(frozen=True, slots=True)
class Found:
    """What came of all visits."""

    worlds: tuple[WorldRecord, ...]
    """Paired, suite by suite."""
    motion: Mapping[str, MotionLog]
    """World's label -> how the candidate moved in its unperturbed episodes."""


def compare(
    config: PromoteConfig, candidate: Weights, incumbent: Weights, progress: Progress, players: Gather | None = None
) -> Found:
    """Play whatever is not on the disk yet, and pair it.

    Args:
        config: worlds, suites, episodes, processes.
        candidate: who wants to be promoted.
        incumbent: who acts now; played once where both are the same.
        progress: told of every part.
        players: who plays; by default `config.num_actors` processes.
    """
    cache = Cache(Path(config.folder) / "played")
    visits = planned(config, {"candidate": candidate, "incumbent": incumbent})
    found = {visit: cache.load(visit.key, watched=visit.watched) for visit in visits}
    missing = [visit for visit, kept in found.items() if kept is None]
    ready = sum(visit.key.episodes for visit in visits) - sum(visit.key.episodes for visit in missing)
    desk = _Desk(cache, progress, sum(visit.key.episodes for visit in visits), ready)
    by_side: dict[Side, Weights] = {"candidate": candidate, "incumbent": incumbent}
    for company in _companies(missing):
        first = company[0]
        asked = config.evaluation(perturbed=first.suite != NONE)
        still = [visit for visit in company if cache.load(visit.key, watched=visit.watched) is None]
        if not still:  # both sides are one policy
            desk.skip(company)
            continue
        worlds = [visit.world for visit in still]
        hired = (players or _hired(config))(by_side[first.side].section, worlds, asked, _guards(still))
        with hired:
            for number, visit in enumerate(still):
                desk.play(hired, number, visit, _round(visit.world, config.num_actors))
    return paired(visits, {visit: _kept(cache, visit) for visit in visits}, config.seed)


def planned(config: PromoteConfig, by_side: Mapping[Side, Weights]) -> tuple[Visit, ...]:
    """Every visit, unperturbed ones first."""
    suites = {NONE: config.env} | {suite: config.env.perturbed(suite) for suite in config.asked_suites}
    lacking = config.gates.suites.lacking
    visits = []
    for suite, env in suites.items():
        asked = config.evaluation(perturbed=suite != NONE)
        for side, weights in by_side.items():
            for world in env.worlds():
                if suite in lacking.get(world.label, ()):
                    continue
                limits = served_limits(_body(world), config, weights) if config.guarded else None
                key = Key(
                    weights.name.digest, world.name, world.options, asked.episodes, asked.seed, asked.temperature,
                    limits,
                )  # fmt: skip
                visits.append(Visit(side, suite, world, key, watched=suite == NONE and side == "candidate"))
    return tuple(visits)


def paired(visits: Sequence[Visit], found: Mapping[Visit, tuple[Episodes, MotionLog | None]], seed: int) -> Found:
    """Records of both sides side by side; episodes that broke down under either count as lost by both."""
    sides: dict[tuple[str, str], dict[Side, Visit]] = {}
    for visit in visits:
        sides.setdefault((visit.suite, visit.world.label), {})[visit.side] = visit
    records, motion = [], {}
    for (suite, label), both in sides.items():
        mine, watched = found[both["candidate"]]
        theirs, _ = found[both["incumbent"]]
        broken = mine.broken | theirs.broken
        tag = _body(both["candidate"].world).tag
        records.append(
            WorldRecord(label, tag, suite, seed, _won(mine, broken), _won(theirs, broken), failed=len(broken))
        )
        if watched is not None:
            motion[label] = watched
    return Found(tuple(records), motion)


def _won(episodes: Episodes, broken: frozenset[int]) -> tuple[bool, ...]:
    return tuple(done and number not in broken for number, done in enumerate(episodes.success))


def _body(world: World) -> EmbodimentSpec:
    return envs.spec(world.name, **world.options).embodiment


def _guards(visits: Sequence[Visit]) -> Guards | None:
    """Envelopes of one policy, if it plays as it is served."""
    limits = {_body(visit.world).tag: visit.key.limits for visit in visits if visit.key.limits is not None}
    return Envelopes(limits) if limits else None


@dataclass(slots=True)
class _Desk:
    """Keeps what is played, and says so."""

    cache: Cache
    progress: Progress
    total: int
    done: int

    def play(self, company: Company, number: int, visit: Visit, size: int) -> None:
        """Play the visit's episodes in rounds of `size`, and keep them."""
        ids = np.arange(visit.key.episodes)
        rounds = np.split(ids, np.arange(size, len(ids), size))
        what = f"{visit.side} in {visit.world.label}" + ("" if visit.suite == NONE else f" under {visit.suite}")
        parts: list[Part] = []
        try:
            for part in company.play(number, rounds, watch=visit.watched):
                parts.append(part)
                self.done += len(part.results.steps)
                self.progress(what, self.done, self.total)
            ordered = sorted(parts, key=lambda part: part.number)
            results = together([part.results for part in ordered])
            logs = [part.motion for part in ordered if part.motion is not None]
        except WorldError as error:
            self.done += len(ids) - sum(len(part.results.steps) for part in parts)
            results, logs = _lost(visit, str(error)), []
        motion = joined(logs) if logs else None
        if motion is None and visit.watched:
            motion = _unseen(visit)
        self.cache.save(visit.key, Episodes.of(results), motion)

    def skip(self, visits: Sequence[Visit]) -> None:
        """They have been played meanwhile."""
        self.done += sum(visit.key.episodes for visit in visits)
        self.progress("the same policy as the candidate", self.done, self.total)


def _companies(missing: Sequence[Visit]) -> Iterator[list[Visit]]:
    """Visits that the same players can make."""
    groups: dict[tuple[str, str], list[Visit]] = {}
    for visit in missing:
        groups.setdefault((visit.suite, visit.side), []).append(visit)
    yield from groups.values()


def _hired(config: PromoteConfig) -> Gather:
    """Processes, or this one."""
    if not config.num_actors:
        return lambda policy, worlds, asked, guards: Alone(policy, worlds, asked, gpus=config.gpus, guards=guards)
    cluster.connect(config.num_actors)
    return lambda policy, worlds, asked, guards: Remote(
        policy, worlds, asked, config.num_actors, gpus=config.gpus, guards=guards
    )


def _round(world: World, players: int) -> int:
    """Environments that each player holds."""
    (share,) = shares([world], max(1, players))
    return share.num_envs


def _kept(cache: Cache, visit: Visit) -> tuple[Episodes, MotionLog | None]:
    kept = cache.load(visit.key, watched=visit.watched)
    if kept is None:
        raise RuntimeError(f"{visit.world.label} under {visit.suite} was played and is not on the disk: {cache.folder}")
    return kept


def _lost(visit: Visit, cause: str) -> EpisodeResults:
    """Every episode of a world that cannot be kept alive."""
    n = visit.key.episodes
    failures = tuple(Failure(row, visit.world.name, visit.key.seed, row, 0, cause) for row in range(n))
    return EpisodeResults(np.zeros(n, bool), np.zeros(n, np.float32), np.zeros(n, np.int64), failures, {})


def _unseen(visit: Visit) -> MotionLog:
    """A log without steps."""
    n, channels = visit.key.episodes, _body(visit.world).action.channels
    none, held = np.zeros((0, channels), np.float32), np.full((n, channels), np.nan, np.float32)
    unchanged = None if visit.key.limits is None else np.zeros(0, np.int64)
    return MotionLog(np.zeros(0, np.int64), np.zeros(0, bool), none, held, None, None, None, unchanged)
