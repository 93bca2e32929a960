"""From the records to what the template shows, section by section."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from rl_finetune.metrics.report_data import Clip
from rl_finetune.metrics.strip import Strip, film
from rl_finetune.promotion.records import NONE, OFF, Check, MotionAudit, Outcome, ParityRecord, Verdict
from rl_finetune.promotion.report.charts import GainRow, RateRow, UseRow, gain_rows, outcome_rows, rate_rows, use_rows
from rl_finetune.promotion.report.data import ActionTrace, CandidateReport, EpisodeClips
from rl_finetune.promotion.report.motion import Use, uses
from rl_finetune.promotion.report.numbers import Mean, Pairing, Weakest, mean, pairings, suites, weakest
from rl_finetune.promotion.report.timelines import Latency, Panel, action_panels, evidence_chart, latency, latency_chart

GAIN_GATES = ("success", "tasks")
"""Gates whose checks named after a world, or `mean`, are about its gain."""
COUNTED = ("workspace", "joint", "self_collision")
"""Kinds of which only the control steps are counted."""
OPEN_UP_TO = 8
"""Checks of a gate without objections that are shown without being asked for; panels of a trace, too."""


@dataclass(frozen=True, slots=True)
class Gate:
    """All checks of one gate."""

    name: str
    """Its name."""
    checks: tuple[Check, ...]
    """In the verdict's order."""

    @property
    def outcome(self) -> Outcome:
        """The worst of its checks'."""
        return max((check.outcome for check in self.checks), key=("promote", "hold", "reject").index)

    @property
    def off(self) -> bool:
        """Whether it was not asked."""
        return all(check.name == OFF for check in self.checks)

    @property
    def passed(self) -> int:
        """Checks without an objection."""
        return sum(check.outcome == "promote" for check in self.checks)

    @property
    def shown(self) -> bool:
        """Whether its table is open from the beginning."""
        return self.outcome != "promote" or len(self.checks) <= OPEN_UP_TO


@dataclass(frozen=True, slots=True)
class Success:
    """Success without perturbation."""

    pairs: tuple[Pairing, ...]
    """World by world."""
    gains: tuple[GainRow, ...]
    """World by world as far as there were episodes, then the mean of several."""
    overall: Mean | None
    """Over worlds."""
    rates: str
    """Chart of both policies."""
    outcomes: str
    """Chart of episodes won and lost."""
    difference: str
    """Chart of gains; empty without any."""


@dataclass(frozen=True, slots=True)
class SuiteCard:
    """One chart of success by suite."""

    title: str
    """A world, or the mean over worlds."""
    chart: str
    """Bars."""


@dataclass(frozen=True, slots=True)
class MotionCard:
    """One audit."""

    audit: MotionAudit
    """Where the numbers come from."""
    uses: tuple[Use, ...]
    """By kind of limit."""
    chart: str
    """Bars of how much of the limits was used."""
    counts: tuple[tuple[str, int | None], ...]
    """(kind, control steps beyond), None where the world could not tell."""
    reasons: tuple[tuple[str, int], ...]
    """(why the safety envelope changed control steps, how many), the most frequent first."""


@dataclass(frozen=True, slots=True)
class ParityRow:
    """One comparison of exported and trained policy."""

    record: ParityRecord
    """Where the numbers come from."""
    channel: str
    """The channel that differs most, by its standard deviation."""
    worst: float
    """Its difference, action units."""
    share: float
    """The same by the standard deviation there; NaN where nothing can be said."""


@dataclass(frozen=True, slots=True)
class TraceCard:
    """One episode's commands."""

    trace: ActionTrace
    """What it shows."""
    chart: str
    """One panel a channel."""
    channels: int
    """c."""

    @property
    def folded(self) -> bool:
        """Whether there are so many panels that they are shown only when asked for."""
        return self.channels > OPEN_UP_TO


@dataclass(frozen=True, slots=True)
class ClipCard:
    """One episode on film."""

    episode: EpisodeClips
    """What it shows."""
    candidate: Strip | None
    """The candidate's side."""
    incumbent: Strip | None
    """The incumbent's."""


@dataclass(frozen=True, slots=True)
class Extent:
    """How much was played."""

    worlds: int
    """Worlds."""
    bodies: int
    """Embodiments."""
    suites: int
    """Suites, the unperturbed one not among them."""
    episodes: int
    """Paired episodes of all of these."""


@dataclass(frozen=True, slots=True)
class Sections:
    """Everything between the verdict and the provenance; what is empty is not shown."""

    extent: Extent
    gates: tuple[Gate, ...]
    success: Success | None
    suites: tuple[SuiteCard, ...]
    shaken: tuple[Pairing, ...]
    """Worlds under suites, for the table."""
    weakest: tuple[Weakest, ...]
    clips: tuple[ClipCard, ...]
    motion: tuple[MotionCard, ...]
    traces: tuple[TraceCard, ...]
    latency: tuple[tuple[Latency, str], ...]
    parity: tuple[ParityRow, ...]
    evidence: str
    """The sequential test's curve; empty without trials."""
    missing: tuple[str, ...]
    """What nothing is known of."""


def sections(data: CandidateReport) -> Sections:
    """All of them.

    Raises:
        ValueError: the episodes of a world do not pair, or a clip has no frames.
    """
    pairs = pairings(data.evidence.worlds)
    found = Sections(
        extent=Extent(
            len({pair.world for pair in pairs}), len({pair.embodiment for pair in pairs}),
            len({pair.suite for pair in pairs} - {NONE}), sum(len(pair.candidate) for pair in pairs),
        ),
        gates=gates(data.verdict),
        success=_success([pair for pair in pairs if pair.suite == NONE], data.verdict),
        suites=_suites(pairs),
        shaken=tuple(pair for pair in pairs if pair.suite != NONE),
        weakest=tuple(weakest(pairs)),
        clips=_clips(data),
        motion=tuple(_motion(audit, data) for audit in data.evidence.motion),
        traces=tuple(_trace(trace, data) for trace in data.traces if trace.candidate.size),
        latency=tuple((one, latency_chart(one)) for one in map(latency, data.evidence.latency) if one is not None),
        parity=tuple(_parity(record, data) for record in data.evidence.parity),
        evidence=evidence_chart(data.trials) if data.trials else "",
        missing=(),
    )  # fmt: skip
    return replace(found, missing=_missing(found, data))


def gates(verdict: Verdict) -> tuple[Gate, ...]:
    """In order of first appearance."""
    names = dict.fromkeys(check.gate for check in verdict.checks)
    return tuple(Gate(name, tuple(check for check in verdict.checks if check.gate == name)) for name in names)


def _missing(found: Sections, data: CandidateReport) -> tuple[str, ...]:
    parts = {
        "success": found.success, "perturbation suites": found.suites, "clips": found.clips,
        "the motion audit": found.motion, "action traces": found.traces, "latency": found.latency,
        "parity of the export": found.parity, "trials on the robot": data.trials, "the ledger": data.history,
    }  # fmt: skip
    return tuple(name for name, part in parts.items() if not part)


def _success(pairs: Sequence[Pairing], verdict: Verdict) -> Success | None:
    if not pairs:
        return None
    overall = mean(pairs)
    rates = [RateRow(pair.world, *pair.rates) for pair in pairs]
    gains = [_gain(pair.world, pair.gain.points, pair.gain.interval, verdict) for pair in pairs if pair.gain]
    if overall is not None and len(pairs) > 1:
        rates.append(RateRow("mean", overall.candidate, overall.incumbent))
        gains.append(_gain("mean", overall.gain.points, overall.gain.interval, verdict))
    return Success(
        tuple(pairs), tuple(gains), overall, rate_rows(rates), outcome_rows(pairs), gain_rows(gains) if gains else ""
    )


def _gain(name: str, points: float, interval: tuple[float, float], verdict: Verdict) -> GainRow:
    """As the gates have it, where one asked: their intervals may be others, at another confidence."""
    for check in verdict.checks:
        if check.gate in GAIN_GATES and (check.name, check.unit) == (name, "points") and check.interval is not None:
            return GainRow(name, check.value, check.interval, check.bound, check.outcome)
    return GainRow(name, points, interval)


def _suites(pairs: Sequence[Pairing]) -> tuple[SuiteCard, ...]:
    """The mean over worlds, then each of several worlds; nothing where no suite was played."""
    if not any(pair.suite != NONE and pair.candidate for pair in pairs):
        return ()
    worlds = list(dict.fromkeys(pair.world for pair in pairs if pair.suite != NONE))
    cards = [_suite_card("Mean over worlds", pairs)] if len(worlds) > 1 else []
    return (*cards, *(_suite_card(world, [pair for pair in pairs if pair.world == world]) for world in worlds))


def _suite_card(title: str, pairs: Sequence[Pairing]) -> SuiteCard:
    rows = [RateRow("unperturbed" if suite == NONE else suite, m.candidate, m.incumbent) for suite, m in suites(pairs)]
    return SuiteCard(title, rate_rows(rows, bars=True))


def _clips(data: CandidateReport) -> tuple[ClipCard, ...]:
    def strip(clip: Clip | None) -> Strip | None:
        return None if clip is None else film(clip, data.frames_per_second)

    return tuple(ClipCard(one, strip(one.candidate), strip(one.incumbent)) for one in failures_first(data.clips))


def failures_first(clips: Sequence[EpisodeClips]) -> list[EpisodeClips]:
    """Lost to the incumbent, failed by the candidate, done by it alone, done by both; then world, suite, episode."""

    def order(one: EpisodeClips) -> tuple[bool, bool, str, str, int]:
        done = one.candidate is not None and one.candidate.success
        beaten = one.incumbent is not None and one.incumbent.success
        return done, (beaten if done else not beaten), one.shown.world, one.suite, one.shown.episode

    return sorted(clips, key=order)


def _motion(audit: MotionAudit, data: CandidateReport) -> MotionCard:
    found = uses(audit, data.evidence.limits.get(audit.embodiment))
    rows = [_use_row(use, audit, data) for use in found]
    counts = {"workspace": audit.over.get("workspace", 0), "joint": audit.over.get("joint", 0)}
    counts["self_collision"] = audit.self_collisions
    shown = tuple((kind.replace("_", "-"), counts[kind] if kind in audit.measured else None) for kind in COUNTED)
    reasons = sorted(audit.interventions.items(), key=lambda each: -each[1])
    return MotionCard(
        audit, tuple(found), use_rows(rows), shown, tuple((kind.replace("_", " "), n) for kind, n in reasons)
    )


def _use_row(use: Use, audit: MotionAudit, data: CandidateReport) -> UseRow:
    if not use.measured:
        return UseRow(use.kind, math.nan, "not measured")
    if math.isnan(use.share):
        return UseRow(use.kind, math.nan, "no limit set")
    name = f"{use.kind}, {data.channel(audit.embodiment, use.channel)}"
    share = f"{100 * use.share:.0f} %" if math.isfinite(use.share) else "beyond"
    beyond = audit.over.get(use.kind, 0)
    return UseRow(name, use.share, f"{share}{f', {beyond:,} steps beyond' if beyond else ''}")


def _trace(trace: ActionTrace, data: CandidateReport) -> TraceCard:
    limits = data.evidence.limits.get(trace.embodiment)
    channels = trace.candidate.shape[1]
    panels = [
        Panel(
            name=data.channel(trace.embodiment, k),
            candidate=trace.candidate[:, k],
            incumbent=None if trace.incumbent is None else trace.incumbent[:, k],
            limits=(limits.low[k], limits.high[k]) if limits and k < min(len(limits.low), len(limits.high)) else None,
        )
        for k in range(channels)
    ]
    return TraceCard(trace, action_panels(panels, trace.control_period), channels)


def _parity(record: ParityRecord, data: CandidateReport) -> ParityRow:
    """A channel that should not move at all (scale 0) and differs is beyond any share."""
    shares = [
        worst / scale if scale > 0 else math.inf if worst > 0 else 0.0
        for worst, scale in zip(record.worst, record.scale, strict=True)
    ]
    if not shares:
        return ParityRow(record, "", math.nan, math.nan)
    k = max(range(len(shares)), key=shares.__getitem__)
    return ParityRow(record, data.channel(record.embodiment, k), record.worst[k], shares[k])
