"""Charts over time: latencies, commanded actions, evidence. See `canvas`: x in per cent, y in pixels."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from rl_finetune.metrics.svg import nice_ticks, tick_label
from rl_finetune.promotion.records import LatencyRecord
from rl_finetune.promotion.report.canvas import Axis, box, dot, grid, group, line, named, picture, stretched, text
from rl_finetune.promotion.report.data import EvidencePoint, TrialsView
from rl_finetune.promotion.report.words import milliseconds
from rl_finetune.types import FloatArray

BINS = 48
"""Bars of a histogram."""
_FLAGS = 52
"""Room above a histogram for the names of its three lines."""
_TALL = 110
"""Height of the tallest bar in pixels."""
_PANEL = 68
"""Height of one channel's panel."""
_CURVE = 200
"""Height of the evidence curve."""


@dataclass(frozen=True, slots=True)
class Latency:
    """What a latency record comes to."""

    record: LatencyRecord
    """Where it comes from; has at least one call."""
    p50: float
    """Median in seconds: an order statistic, as the gate has it."""
    p99: float
    """99th percentile in seconds, likewise."""
    late: int
    """Calls that took longer than one control step."""


def latency(record: LatencyRecord) -> Latency | None:
    """None where no call was timed."""
    if not record.seconds:
        return None
    p50, p99 = np.percentile(np.asarray(record.seconds), (50, 99), method="inverted_cdf").tolist()
    return Latency(record, p50, p99, sum(one > record.control_period for one in record.seconds))


@dataclass(frozen=True, slots=True)
class Histogram:
    """Calls by how long they took."""

    counts: tuple[int, ...]
    """[BINS]; the last one holds what is beyond the axis, too."""
    axis: Axis
    """Seconds."""
    beyond: int
    """Calls beyond the axis."""


def histogram(found: Latency) -> Histogram:
    """Bins from 0 to a round number well beyond p99 and the control period, which leaves room for their names; a few
    very slow calls do not flatten the rest."""
    reach = 1.7 * max(found.p99, found.record.control_period)
    axis = Axis(tuple(nice_ticks(0.0, reach, count=4)), milliseconds)
    seconds = np.asarray(found.record.seconds)
    places = np.minimum((seconds / axis.ticks[-1] * BINS).astype(int), BINS - 1)
    counts = np.bincount(places, minlength=BINS)
    return Histogram(tuple(counts.tolist()), axis, int((seconds > axis.ticks[-1]).sum()))


def latency_chart(found: Latency) -> str:
    """Histogram with p50, p99 and the control period as lines."""
    shown = histogram(found)
    bottom, most, width = _FLAGS + _TALL, max(shown.counts), 100 / BINS
    parts = grid(shown.axis, (_FLAGS, bottom))
    for i, count in enumerate(shown.counts):
        if count:
            ends = tuple(milliseconds(shown.axis.ticks[-1] * k / BINS, bare=True) for k in (i, i + 1))
            tip = f"{ends[0]} to {ends[1]} ms, calls: {count}"
            tall = box("mass", (width * i, width * (i + 1)), (bottom - _TALL * count / most, bottom))
            parts.append(group("bin", tip, [tall]))
    lines = [("p50", "p50", found.p50), ("p99", "p99", found.p99)]
    lines.append(("period", "control step", found.record.control_period))
    # From left to right and down: so no name crosses another's line.
    lines.sort(key=lambda one: one[2])
    parts += [
        _flag(kind, f"{word} {milliseconds(at)}", shown.axis(at), 16 * i) for i, (kind, word, at) in enumerate(lines)
    ]
    spoken = ", ".join(f"{word} {milliseconds(at)}" for _, word, at in lines)
    return picture(
        bottom + 22, f"Latency of {len(found.record.seconds)} calls for {found.record.embodiment}: {spoken}", parts
    )


def _flag(kind: str, words: str, x: float, y: float) -> str:
    """A named line."""
    parts = [line("pole", (x, x), (y + 2, _FLAGS + _TALL)), text(x + 1, y + 12, words, kind="label")]
    return group(f"flag {kind}", words, parts)


@dataclass(frozen=True, slots=True)
class Panel:
    """One action channel over an episode."""

    name: str
    """Of the channel."""
    candidate: FloatArray
    """[T] action units."""
    incumbent: FloatArray | None
    """[T'] of the incumbent."""
    limits: tuple[float, float] | None
    """Least and greatest value that may be commanded."""


def action_panels(panels: Sequence[Panel], control_period: float) -> str:
    """Commanded actions as steps, one panel a channel under one time axis; limits are drawn where there are any."""
    steps = max(len(side) for p in panels for side in (p.candidate, p.incumbent) if side is not None)
    time = Axis(tuple(nice_ticks(0.0, steps * control_period, count=4)), lambda at: f"{tick_label(at)} s")
    height = _PANEL * len(panels)
    parts = [*grid(time, (0, height))]
    curves: list[tuple[str, list[str]]] = []
    for i, panel in enumerate(panels):
        value = _range(panel)
        top = _PANEL * i + 18
        parts.append(named(panel.name, top - 4))
        parts.append(text(100, top - 4, _extent(panel), "end", "value"))
        for side, kind in ((panel.incumbent, "incumbent"), (panel.candidate, "candidate")):
            if side is not None and len(side):
                curves.append((f"step {kind}", _steps(side, control_period, time, value, top)))
        ends = [line("bound", (0, 100), (_down(at, value, top),) * 2) for at in panel.limits or ()]
        parts.append(group("bounds", f"limits of {panel.name}", ends))
    parts.insert(0, stretched(height, curves))
    spoken = "; ".join(f"{panel.name} {_extent(panel)}" for panel in panels)
    return picture(height + 22, "Commanded actions of the candidate, least to greatest. " + spoken, parts)


def _range(panel: Panel) -> tuple[float, float]:
    """Of the panel: everything commanded, and the limits."""
    sides = [side for side in (panel.candidate, panel.incumbent) if side is not None]
    found = np.concatenate([*sides, np.asarray(panel.limits or ())])
    finite = found[np.isfinite(found)]
    low, high = (float(finite.min()), float(finite.max())) if len(finite) else (0.0, 0.0)
    return (low, high) if high > low else (low - 1.0, high + 1.0)


def _extent(panel: Panel) -> str:
    """Least and greatest value that the candidate commanded."""
    finite = panel.candidate[np.isfinite(panel.candidate)]
    words = (
        f"{tick_label(float(finite.min()), 3)} … {tick_label(float(finite.max()), 3)}" if len(finite) else "no number"
    )
    broken = len(panel.candidate) - len(finite)
    return f"{words}, {broken} not finite" if broken else words


def _down(value: float, ends: tuple[float, float], top: float) -> float:
    low, high = ends
    return top + (_PANEL - 28) * (high - min(max(value, low), high)) / (high - low)


def _steps(side: FloatArray, period: float, time: Axis, ends: tuple[float, float], top: float) -> list[str]:
    """One stretch of path for each run of finite values; a command holds for its whole control step."""
    parts, drawing = [], False
    for t, value in enumerate(side.tolist()):
        if math.isfinite(value):
            y = f"{_down(value, ends, top):.2f}"
            parts.append(f"{'V' if drawing else f'M{time(t * period):.3f} '}{y}H{time((t + 1) * period):.3f}")
        drawing = math.isfinite(value)
    return parts


def evidence_chart(trials: TrialsView) -> str:
    """The test's statistic against its two boundaries; it stops where it leaves the band."""
    points = [point for point in trials.evidence if math.isfinite(point.value)]
    if not points:
        said = f"{trials.taken} of at most {trials.planned} pairs are complete"
        return f'<p class="nothing">{said}; who did better is shown once the letters are opened</p>'
    value, time = _evidence_axis(points), Axis((0.0, float(max(trials.planned, points[-1].pair, 1))))
    bottom = _CURVE + 14.0

    def at(pair: float, height: float) -> tuple[float, float]:
        return time(pair), bottom - value(height) / 100 * _CURVE

    parts = [stretched(bottom, _evidence_paths(points, at))]
    for tick in value.ticks:
        y = at(0, tick)[1]
        parts += [line("zero" if tick == 0 else "grid", (0, 100), (y, y)), text(0, y - 3, tick_label(tick))]
    for point in points:
        parts.append(group("evidence", _evidence_tip(point), [dot("mark", *at(point.pair, point.value), radius=2.5)]))
    parts += [text(0, bottom + 16, "0"), text(100, bottom + 16, f"{time.ticks[-1]:g} pairs at most", "end")]
    last = points[-1]
    label = f"Evidence {_evidence_tip(last)}. {trials.decision or 'No decision yet.'}"
    return picture(bottom + 22, label, parts)


def _evidence_axis(points: Sequence[EvidencePoint]) -> Axis:
    ends = [end for point in points for end in (point.value, point.low, point.high) if math.isfinite(end)]
    return Axis(tuple(nice_ticks(min(0.0, *ends), max(0.0, *ends), count=4)))


def _evidence_paths(
    points: Sequence[EvidencePoint], at: Callable[[float, float], tuple[float, float]]
) -> list[tuple[str, list[str]]]:
    """The band in which the test goes on, its two edges, and the statistic."""
    upper = [at(p.pair, p.high) for p in points if math.isfinite(p.high)]
    lower = [at(p.pair, p.low) for p in points if math.isfinite(p.low)]
    curve = [at(p.pair, p.value) for p in points]
    band = [f"{_path([*upper, *reversed(lower)])}z"] if upper and lower else []
    edges = [_path(edge) for edge in (upper, lower) if edge]
    return [("band", band), ("edge", edges), ("line", [_path(curve)])]


def _path(places: Sequence[tuple[float, float]]) -> str:
    return "M" + "L".join(f"{x:.3f} {y:.2f}" for x, y in places)


def _evidence_tip(point: EvidencePoint) -> str:
    return (
        f"after pair {point.pair}: {tick_label(point.value, 3)}, "
        f"stops at {tick_label(point.low, 3)} and {tick_label(point.high, 3)}"
    )
