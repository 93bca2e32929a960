"""report.html: one page without any request to the outside that shows what a run did."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from rl_finetune.metrics.intervals import Gain
from rl_finetune.metrics.report_data import Clip, ReportData
from rl_finetune.metrics.rows import IterationRow
from rl_finetune.metrics.strip import Strip, film
from rl_finetune.metrics.svg import Chart, Marker, interval_chart, line_chart, tick_label
from rl_finetune.types import EvalReport

_TEMPLATES = Path(__file__).parent / "templates"


@dataclass(frozen=True, slots=True)
class Diagnostic:
    """One small chart of the page."""

    label: str
    """Its heading."""
    meaning: str
    """What a healthy run looks like."""
    value: Callable[[IterationRow], float]
    """What it shows."""


DIAGNOSTICS = (
    Diagnostic("Clip fraction", "Decisions that the clip leaves without gradient.", lambda r: r.clip_fraction),
    Diagnostic("KL divergence", "How far one update moves the policy.", lambda r: r.kl),
    Diagnostic("First ratio error", "Sampler against scorer before any step; about 0.", lambda r: r.first_ratio_error),
    Diagnostic("Effective samples", "Share that ratios leave to count; near 1.", lambda r: r.effective_samples),
    Diagnostic("Staleness", "Updates between acting and learning weights.", lambda r: r.staleness),
    Diagnostic("Explained variance", "How well the critic predicts; towards 1.", lambda r: r.explained_variance),
    Diagnostic("Mean return", "Undiscounted, with exploration noise.", lambda r: r.mean_return),
    Diagnostic("Value loss", "Error of the critic.", lambda r: r.value_loss),
    Diagnostic("Policy loss", "What the objective minimises.", lambda r: r.policy_loss),
    Diagnostic("Gradient norm", "Before clipping.", lambda r: r.grad_norm),
    Diagnostic("Exploration", "Standard deviation of executed actions.", lambda r: r.executed_std),
    Diagnostic("Learning rate", "Of the adapters.", lambda r: r.actor_lr),
    Diagnostic("Steps per second", "Environment steps, update included.", lambda r: r.steps_per_second),
    Diagnostic("Seconds per iteration", "Collecting and updating.", lambda r: r.seconds),
)


def diagnostics_of(rows: Sequence[IterationRow]) -> list[Diagnostic]:
    """Those that this run has numbers for, then each denoising step's contribution and the objective's terms."""
    steps = range(max((len(row.contribution) for row in rows), default=0))
    terms = sorted({name for row in rows for name in row.terms})
    return [
        *(d for d in DIAGNOSTICS if not rows or any(math.isfinite(d.value(row)) for row in rows)),
        *(Diagnostic(f"Noise of step {k}", "What it adds to executed actions.", partial(_step, k)) for k in steps),
        *(Diagnostic(name.replace("_", " "), "Of the objective.", partial(_term, name)) for name in terms),
    ]


@dataclass(frozen=True, slots=True)
class WorldSummary:
    """One of several worlds on the page."""

    label: str
    """Its label."""
    before: EvalReport
    """Held-out episodes before training."""
    after: EvalReport
    """The same after."""
    gain: Gain
    """Paired difference."""
    measures: tuple[tuple[str, str, str], ...]
    """(name, before, after) of what else its task reports."""
    curve: Chart | None
    """Success over training, where there was any."""


def worlds_of(data: ReportData) -> list[WorldSummary]:
    """Each world, where there are several or the one has measures to show."""
    before, after = data.compared.before.worlds, data.compared.after.worlds
    if len(after) == 1 and not any(report.measures or report.failed for report in after.values()):
        return []
    return [
        WorldSummary(label, before[label], report, gain, _measures(before[label], report), _world_curve(label, data))
        for (label, report), gain in zip(after.items(), data.compared.gains.values(), strict=True)
    ]


def _measures(before: EvalReport, after: EvalReport) -> tuple[tuple[str, str, str], ...]:
    def shown(report: EvalReport, name: str) -> str:
        return tick_label(report.measures.get(name, math.nan), digits=3)

    return tuple((name, shown(before, name), shown(after, name)) for name in {**before.measures, **after.measures})


def _world_curve(label: str, data: ReportData) -> Chart | None:
    rows = [row for row in data.rows if label in row.worlds]
    if not rows:
        return None
    before, after = data.compared.before.worlds[label], data.compared.after.worlds[label]
    seen = [row.worlds[label] for row in rows]
    return Chart(
        title=f"Success in {label} over training",
        x=[row.iteration for row in rows],
        y=[world.success for world in seen],
        tips=[f"iteration {row.iteration}\n{tick_label(100 * row.worlds[label].success)} %" for row in rows],
        percent=True,
        band=[world.success_interval for world in seen],
        markers=[_marker("before", rows[0].iteration - 1, before), _marker("after", rows[-1].iteration, after)],
    )


def _step(k: int, row: IterationRow) -> float:
    return row.contribution[k] if k < len(row.contribution) else math.nan


def _term(name: str, row: IterationRow) -> float:
    return row.terms.get(name, math.nan)


@dataclass(frozen=True, slots=True)
class ClipPair:
    """The same held-out episode before and after; one side may be missing."""

    world: str
    """Label of its world."""
    episode: int
    """Number of the episode."""
    instruction: str
    """Task in words."""
    before: Strip | None
    """Filmed before training."""
    after: Strip | None
    """Filmed after training."""


def write_report(path: Path, data: ReportData) -> None:
    """Write the page beside and rename it, so that a reader never sees half of it."""
    beside = path.with_name(path.name + ".tmp")
    beside.write_text(render(data), encoding="utf-8")
    beside.replace(path)


def render(data: ReportData) -> str:
    """The page as text."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined
    from markupsafe import Markup

    environment = Environment(
        loader=FileSystemLoader(_TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["percent"] = lambda share: f"{100 * share:.1f}"
    return environment.get_template("report.html.j2").render(
        data=data,
        style=Markup((_TEMPLATES / "report.css").read_text()),
        script=Markup((_TEMPLATES / "report.js").read_text()),
        intervals=Markup(_intervals(data)),
        curve=Markup(line_chart(_learning_curve(data))) if data.rows else None,
        diagnostics=[
            (d, Markup(line_chart(_diagnostic(d, data.rows))), _latest(d, data.rows)) for d in diagnostics_of(data.rows)
        ],
        events=[(row.iteration, event) for row in data.rows for event in row.events],
        pairs=pair(data.clips_before, data.clips_after, data.frames_per_second),
        outcomes=_outcomes(data),
        worlds=[(world, None if world.curve is None else Markup(line_chart(world.curve))) for world in worlds_of(data)],
        broken=sum(row.failures for row in data.rows),
        last=data.rows[-1] if data.rows else None,
    )


def pair(before: Sequence[Clip], after: Sequence[Clip], frames_per_second: float) -> list[ClipPair]:
    """Clips of the same episode side by side, world after world in the order of their numbers."""
    old = {(clip.world, clip.episode): clip for clip in before}
    new = {(clip.world, clip.episode): clip for clip in after}

    def strip(clip: Clip | None) -> Strip | None:
        return None if clip is None else film(clip, frames_per_second)

    return [
        ClipPair(*place, (old | new)[place].instruction, strip(old.get(place)), strip(new.get(place)))
        for place in sorted(old | new)
    ]


def _intervals(data: ReportData) -> str:
    reports = {"before": data.before, "after": data.after}
    return interval_chart([(kind, kind, report.success, *report.interval) for kind, report in reports.items()])


def _learning_curve(data: ReportData) -> Chart:
    rows = data.rows
    return Chart(
        title="Success over training",
        x=[row.iteration for row in rows],
        y=[row.success for row in rows],
        tips=[_success_tip(row) for row in rows],
        width=960,
        height=330,
        percent=True,
        band=[row.success_interval for row in rows],
        markers=[
            _marker("before", rows[0].iteration - 1, data.before),
            _marker("after", rows[-1].iteration, data.after),
        ],
        events=_events(rows),
    )


def _events(rows: Sequence[IterationRow]) -> list[tuple[float, str]]:
    """One mark an iteration, and none for the checkpoints that every run writes."""
    marks = []
    for row in rows:
        texts = [event for event in row.events if "checkpoint" not in event]
        if texts:
            marks.append((float(row.iteration), f"iteration {row.iteration}: {'; '.join(texts)}"))
    return marks


def _marker(kind: str, place: float, report: EvalReport) -> Marker:
    low, high = report.interval
    label = f"{kind} training: {100 * report.success:.1f} % [{100 * low:.1f}, {100 * high:.1f}], held-out episodes"
    return Marker(place, report.success, low, high, kind, label)


def _success_tip(row: IterationRow) -> str:
    low, high = row.success_interval
    return (
        f"iteration {row.iteration} · {row.minutes:.1f} min\n"
        f"success {100 * row.success:.1f} % [{100 * low:.1f}, {100 * high:.1f}]"
    )


def _diagnostic(diagnostic: Diagnostic, rows: Sequence[IterationRow]) -> Chart:
    values = [diagnostic.value(row) for row in rows]
    return Chart(
        title=f"{diagnostic.label} over training",
        x=[row.iteration for row in rows],
        y=values,
        tips=[f"iteration {row.iteration}\n{tick_label(value)}" for row, value in zip(rows, values, strict=True)],
    )


def _latest(diagnostic: Diagnostic, rows: Sequence[IterationRow]) -> str:
    return tick_label(diagnostic.value(rows[-1]), digits=3) if rows else ""


def _outcomes(data: ReportData) -> list[tuple[str, str, int]]:
    """(CSS class, words, count) of the four ways in which an episode can have gone."""
    counts = {key: 0 for key in ((True, True), (False, True), (True, False), (False, False))}
    for old, new in zip(data.before.successes, data.after.successes, strict=True):
        counts[bool(old), bool(new)] += 1
    names = (("kept", "done both times"), ("won", "won"), ("lost", "lost"), ("open", "failed both times"))
    return [(kind, words, count) for (kind, words), count in zip(names, counts.values(), strict=True)]
