"""Charts with one row a world, a suite or a kind of limit. See `canvas`: x in per cent, y in pixels.

row r, 54 px:   y + 14   name                         numbers
                y + 22   marks
                y + 46   space to the next row
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

from rl_finetune.metrics.svg import nice_ticks
from rl_finetune.promotion.records import Outcome
from rl_finetune.promotion.report.canvas import SHARES, Axis, box, dot, grid, group, line, named, picture, text
from rl_finetune.promotion.report.numbers import Pairing, Rate
from rl_finetune.promotion.report.words import SYMBOLS, percent, points, span

ROW = 54
"""Height of one row in pixels."""
FOOT = 22
"""Room for the labels of the axis."""
OUTCOMES = (("kept", "both", True, True), ("won", "won", True, False), ("lost", "lost", False, True),
            ("open", "neither", False, False))  # fmt: skip
"""(CSS class, word, candidate succeeded, incumbent succeeded) of the four ways in which an episode can have gone."""


@dataclass(frozen=True, slots=True)
class RateRow:
    """Both policies in one place."""

    name: str
    """Of the world or the suite."""
    candidate: Rate
    """The candidate's success."""
    incumbent: Rate
    """The incumbent's."""


@dataclass(frozen=True, slots=True)
class GainRow:
    """A paired difference, in points."""

    name: str
    """Of the world, or `mean`."""
    points: float
    """Candidate minus incumbent."""
    interval: tuple[float, float]
    """Its interval; an infinite end is open."""
    bound: float | None = None
    """What the gate holds it against: a margin, or 0 for superiority; None where no gate looked."""
    outcome: Outcome = "promote"
    """What the gate said."""


@dataclass(frozen=True, slots=True)
class UseRow:
    """How much of a limit was used."""

    name: str
    """Kind of limit and channel."""
    share: float
    """1 is at the limit; NaN where nothing can be said."""
    words: str
    """The numbers."""


def rate_rows(rows: Sequence[RateRow], *, bars: bool = False) -> str:
    """Success of both policies with intervals on one axis from 0 to 100 %: as dots, or as bars that begin at 0."""
    parts = grid(SHARES, (0, ROW * len(rows)))
    for i, row in enumerate(rows):
        y = ROW * i
        parts.append(named(row.name, y + 14))
        both = f"{percent(row.incumbent.value)} → {percent(row.candidate.value)} %"
        parts.append(text(100, y + 14, both, "end", "value"))
        for kind, rate, place in (("candidate", row.candidate, y + 26), ("incumbent", row.incumbent, y + 38)):
            parts.append(_rate(kind, rate, place, bars))
    spoken = [
        f"{row.name}: candidate {percent(row.candidate.value)} %, incumbent {percent(row.incumbent.value)} %"
        for row in rows
    ]
    return picture(ROW * len(rows) + FOOT, "Success. " + "; ".join(spoken), parts)


def _rate(kind: str, rate: Rate, y: float, bars: bool) -> str:
    """A dot for the candidate and a square for the incumbent, so that nobody has to tell them by colour."""
    tip = f"{kind} {percent(rate.value)} % [{percent(rate.interval[0])}, {percent(rate.interval[1])}]"
    ends = SHARES(rate.interval[0]), SHARES(rate.interval[1])
    if not math.isfinite(rate.value):
        return group(f"rate {kind}", f"{kind}: no episodes", [text(0, y + 4, "no episodes")])
    at = SHARES(rate.value)
    if bars:
        return group(f"rate {kind}", tip, [box("mass", (0, at), (y - 5, y + 5)), line("whisker", ends, (y, y))])
    mark = dot("mark", at, y) if kind == "candidate" else _square(at, y)
    return group(f"rate {kind}", tip, [line("range", ends, (y, y)), mark])


def _square(x: float, y: float) -> str:
    """8 px wide around a place in per cent: SVG moves it by half its width."""
    return f'<rect class="mark" x="{round(x, 3):g}%" y="{y - 4:g}" width="8" height="8" transform="translate(-4 0)"/>'


def outcome_rows(pairs: Sequence[Pairing]) -> str:
    """Episodes that both did, that the candidate won or lost, and that neither did: one bar of full width a world."""
    parts, spoken = [], []
    for i, pair in enumerate(pairs):
        y, done, total = ROW * i, 0, len(pair.candidate)
        counts = [pair.count(candidate, incumbent) for _, _, candidate, incumbent in OUTCOMES]
        parts.append(named(pair.world, y + 14))
        parts.append(text(100, y + 14, f"{counts[1]} won, {counts[2]} lost", "end", "value"))
        for (kind, word, _, _), count in zip(OUTCOMES, counts, strict=True):
            if count:
                parts.append(_piece(kind, word, count, (100 * done / total, 100 * (done + count) / total), y))
            done += count
        worded = ", ".join(f"{count} {word}" for (_, word, _, _), count in zip(OUTCOMES, counts, strict=True))
        spoken.append(f"{pair.world}: {worded}")
    return picture(ROW * len(pairs), "Episodes. " + "; ".join(spoken), parts)


def _piece(kind: str, word: str, count: int, x: tuple[float, float], y: float) -> str:
    parts = [box("mass", x, (y + 22, y + 42))]
    if x[1] - x[0] >= 9:
        parts.append(text(sum(x) / 2, y + 36, str(count), "middle", "count"))
    return group(f"piece {kind}", f"{count} {word}", parts)


def gain_rows(rows: Sequence[GainRow]) -> str:
    """Paired differences with intervals, the line of no difference, and what each is held against."""
    axis = gain_axis(rows)
    height = ROW * len(rows)
    parts = [*grid(axis, (0, height)), line("zero", (axis(0), axis(0)), (0, height))]
    for i, row in enumerate(rows):
        y = ROW * i
        words = f"{points(row.points)} {span(row.interval)}"
        ends = axis(row.interval[0]), axis(row.interval[1])
        marks = [line("range", ends, (y + 32, y + 32)), dot("mark", axis(row.points), y + 32)]
        if row.bound is not None:
            words += f", against {points(row.bound)}"
            marks.insert(0, line("bound", (axis(row.bound), axis(row.bound)), (y + 22, y + 42)))
        parts.append(named(row.name, y + 14))
        value = f"{points(row.points)}{'' if row.outcome == 'promote' else ' ' + SYMBOLS[row.outcome]}"
        parts.append(text(100, y + 14, value, "end", "value"))
        parts.append(group(f"gain {row.outcome}", words, marks))
    spoken = [f"{row.name}: {points(row.points)} {span(row.interval)}" for row in rows]
    return picture(height + FOOT, "Gain in points. " + "; ".join(spoken), parts)


def gain_axis(rows: Sequence[GainRow]) -> Axis:
    """Round numbers around every finite value, bound and end of an interval, and 0."""
    places = [0.0, *(value for row in rows for value in (row.points, *row.interval, row.bound) if value is not None)]
    finite = [place for place in places if math.isfinite(place)]
    return Axis(tuple(nice_ticks(min(finite), max(finite), count=4)), points)


def use_rows(rows: Sequence[UseRow]) -> str:
    """Bars of how much of a limit was used, and the line at which it is used up. Bars end at twice the limit."""
    if all(math.isnan(row.share) for row in rows):
        return f'<p class="unsaid">{escape("; ".join(f"{row.name}: {row.words}" for row in rows))}</p>'
    far = any(row.share > 1.25 for row in rows)
    axis = Axis((0.0, 0.5, 1.0, 1.5, 2.0) if far else (0.0, 0.25, 0.5, 0.75, 1.0, 1.25), SHARES.label)
    height = ROW * len(rows)
    parts = grid(axis, (0, height))
    for i, row in enumerate(rows):
        y = ROW * i
        parts += [named(row.name, y + 14), text(100, y + 14, row.words, "end", "value")]
        if not math.isnan(row.share):
            kind = "over" if row.share > 1 else "within"
            parts.append(group(f"use {kind}", row.words, [box("mass", (0, axis(row.share)), (y + 24, y + 38))]))
    parts.append(line("limit", (axis(1), axis(1)), (0, height)))
    spoken = "; ".join(f"{row.name}: {row.words}" for row in rows)
    return picture(height + FOOT, "Share of the limit that was used. " + spoken, parts)
