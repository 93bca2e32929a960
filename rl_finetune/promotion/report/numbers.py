"""Numbers of the page that follow from the evidence; the gates' own numbers are shown as the verdict has them."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from rl_finetune.metrics.intervals import Gain, mean_gain, mean_over, paired_gain, wilson
from rl_finetune.promotion.records import NONE, WorldRecord

Ends = tuple[float, float]


@dataclass(frozen=True, slots=True)
class Rate:
    """How often one policy succeeded."""

    value: float
    """Share of episodes, 0 to 1; NaN without episodes."""
    interval: Ends
    """95 %: Wilson's of one world, of several what these add up to."""


@dataclass(frozen=True, slots=True)
class Pairing:
    """Both policies in the episodes of one world under one suite, all seeds together."""

    world: str
    """Its label."""
    embodiment: str
    """Robot tag."""
    suite: str
    """Perturbation suite."""
    seeds: tuple[int, ...]
    """Of the initial states."""
    candidate: tuple[bool, ...]
    """Success by episode."""
    incumbent: tuple[bool, ...]
    """Success in the same episodes."""
    failed: int
    """Episodes in which the world broke down."""

    def count(self, candidate: bool, incumbent: bool) -> int:
        """Episodes that went this way."""
        return sum(pair == (candidate, incumbent) for pair in zip(self.candidate, self.incumbent, strict=True))

    @property
    def rates(self) -> tuple[Rate, Rate]:
        """Of candidate and incumbent."""
        return _rate(self.candidate), _rate(self.incumbent)

    @property
    def gain(self) -> Gain | None:
        """Candidate against incumbent; None without episodes."""
        return paired_gain(self.incumbent, self.candidate) if self.candidate else None


@dataclass(frozen=True, slots=True)
class Mean:
    """Several worlds, each weighing the same."""

    candidate: Rate
    """The candidate's."""
    incumbent: Rate
    """The incumbent's."""
    gain: Gain
    """Paired difference."""
    worlds: tuple[str, ...]
    """Labels of those that had episodes."""


def pairings(records: Sequence[WorldRecord]) -> list[Pairing]:
    """One for each world and suite, in order of first appearance.

    Raises:
        ValueError: the episodes of a record do not pair.
    """
    found: dict[tuple[str, str], list[WorldRecord]] = {}
    for record in records:
        if len(record.candidate) != len(record.incumbent):
            raise ValueError(
                f"episodes of {record.world!r} under {record.suite!r}: got {len(record.candidate)} of the candidate, "
                f"{len(record.incumbent)} of the incumbent; expected as many"
            )
        found.setdefault((record.world, record.suite), []).append(record)
    return [
        Pairing(
            world, group[0].embodiment, suite, tuple(r.seed for r in group),
            tuple(done for r in group for done in r.candidate), tuple(done for r in group for done in r.incumbent),
            sum(r.failed for r in group),
        )
        for (world, suite), group in found.items()
    ]  # fmt: skip


def mean(pairs: Iterable[Pairing]) -> Mean | None:
    """Over worlds with episodes; None where there are none."""
    pairs = [pair for pair in pairs if pair.candidate]
    if not pairs:
        return None
    sides = [Rate(*mean_over([(p.rates[i].value, p.rates[i].interval) for p in pairs])) for i in (0, 1)]
    gains = [gain for pair in pairs if (gain := pair.gain) is not None]
    return Mean(sides[0], sides[1], mean_gain(gains), tuple(pair.world for pair in pairs))


@dataclass(frozen=True, slots=True)
class Weakest:
    """Where the candidate stands worst."""

    title: str
    """In what respect."""
    where: str
    """Task, body or suite."""
    mean: Mean
    """Its numbers."""


def weakest(pairs: Sequence[Pairing]) -> list[Weakest]:
    """Lowest success by task, by body and by suite, and the greatest loss against the incumbent anywhere."""
    plain = [pair for pair in pairs if pair.suite == NONE]
    shaken = [pair for pair in pairs if pair.suite != NONE]
    found = [
        _lowest("Worst task", [(pair.world, [pair]) for pair in plain]),
        _lowest("Worst embodiment", _grouped(plain, lambda pair: pair.embodiment)),
        _lowest("Worst suite", _grouped(shaken, lambda pair: pair.suite)),
    ]
    losses = [(m.gain.points, where_is(pair), m) for pair in pairs if (m := mean([pair])) is not None]
    if losses:
        _, where, worst = min(losses, key=lambda loss: loss[0])
        found.append(Weakest("Smallest gain" if worst.gain.points >= 0 else "Greatest loss", where, worst))
    return [one for one in found if one is not None]


def where_is(pair: Pairing) -> str:
    """World, and the suite where there is one."""
    return pair.world if pair.suite == NONE else f"{pair.world}, {pair.suite}"


def suites(pairs: Sequence[Pairing]) -> list[tuple[str, Mean]]:
    """(suite, mean over its worlds), unperturbed first; suites without episodes are left out."""
    found = [(suite, mean(group)) for suite, group in _grouped(pairs, lambda pair: pair.suite)]
    return sorted([(suite, one) for suite, one in found if one is not None], key=lambda row: row[0] != NONE)


def _grouped(pairs: Sequence[Pairing], by: Callable[[Pairing], str]) -> list[tuple[str, list[Pairing]]]:
    groups: dict[str, list[Pairing]] = {}
    for pair in pairs:
        groups.setdefault(by(pair), []).append(pair)
    return list(groups.items())


def _lowest(title: str, groups: Sequence[tuple[str, list[Pairing]]]) -> Weakest | None:
    found = [Weakest(title, where, one) for where, group in groups if (one := mean(group)) is not None]
    return min(found, key=lambda weak: weak.mean.candidate.value) if len(found) > 1 else None


def _rate(successes: Sequence[bool]) -> Rate:
    done, n = sum(successes), len(successes)
    return Rate(done / n if n else math.nan, wilson(done, n))
