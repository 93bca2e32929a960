"""Records as pictures: SVG files that stand alone, on a light ground of their own."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from html import escape
from itertools import accumulate

import numpy as np
from numpy.typing import NDArray

from benchmarks.objectives.records import Grid, RunRecord, by_name, grid, mean_std, mean_success
from rl_finetune.metrics.svg import nice_ticks, tick_label

_Values = NDArray[np.float64]
_PAPER, _INK, _SOFT, _LINE, _EMPTY = "#ffffff", "#1d2126", "#59626d", "#e3e5e8", "#f1f2f4"
_COLOURS = (
    "#0072b2", "#d55e00", "#009e73", "#aa4499", "#b8860b", "#1d2126", "#e0708a", "#3aa0dc", "#6f7d1f", "#882255",
)  # fmt: skip
"""After Okabe and Ito, and Tol: told apart by the colour-blind, and none too light for text on white."""
_DASHES = ("", "8 4", "2 3", "10 3 2 3", "5 2")
"""An objective itself, then its variants (`ppo, no critic`), which share its colour."""
_BLUES = ("#f3f8fd", "#c3dcf0", "#7fb6de", "#2f7fbf", "#0b3f78")
_BROWNS = ("#fff8ee", "#fbd9ab", "#f0a355", "#c4641a", "#6d2c06")
_FLIP = 0.212
"""Luminance on which white and ink stand out alike."""
_LEFT, _TOP, _BOTTOM, _SPAN = 66, 42, 402, 560
"""The curves' plot area: left, upper and lower edge, width."""
_CELL_WIDTH, _CELL_HEIGHT, _ROW_LABELS, _HEAD = 84, 46, 122, 66
"""The heat maps' cells, and what stands left of and above them."""


@dataclass(frozen=True, slots=True)
class _Curve:
    """One objective: success [seeds, n] at environment steps [n]."""

    name: str
    steps: _Values
    seeds: _Values
    colour: str
    dash: str


@dataclass(frozen=True, slots=True)
class _Panel:
    """One heat map."""

    title: str
    ramp: tuple[str, ...]
    """Five colours from low to high."""
    value: Callable[[Sequence[RunRecord]], float]
    """Of a cell, which `text` then writes."""
    text: Callable[[float], str]
    ends: tuple[float, float]
    """Values of the first and the last colour."""
    beneath: bool = False
    """The executed noise is a cell's second line."""


def learning_curves(records: Iterable[RunRecord], level: float = 0.8) -> str:
    """Success against environment steps: mean over the seeds as a line, from the worst to the best seed as a band.

    Runs stop at different steps: between its points a seed is interpolated, and a line ends with its shortest seed.
    """
    curves = _curves(by_name(records, "objectives"))
    last = max((float(curve.steps[-1]) for curve in curves), default=1.0) or 1.0
    curves.sort(key=lambda curve: -curve.seeds[:, -1].mean())
    drawn = [_drawn(curve, last) for curve in curves]
    parts = [_curve_axes(last, level), *(band for band, _, _ in drawn), *(line for _, line, _ in drawn)]
    labels = _LEFT + _SPAN + 30
    heights = _apart([end[1] for _, _, end in drawn], 17)
    for curve, (_, _, end), y in zip(curves, drawn, heights, strict=True):
        parts.append(
            f'<g opacity="0.6">{_rule(*end, labels - 5, y, curve.colour, curve.dash or "none")}</g>'
            + _text(labels, y + 4.5, curve.name, fill=curve.colour, weight=600)
        )
    width = labels + 12 + 8 * max((len(curve.name) for curve in curves), default=0)
    return _page("Success during training", width, _BOTTOM + 52, parts)


def heat_map(records: Iterable[RunRecord]) -> str:
    """Two maps of the grid side by side: success with the executed noise beneath, and the executed noise alone."""
    found = grid(records)
    shares = [mean_success(runs) for runs in found.cells.values()] or [0.0]
    low = min(math.floor(10 * min(shares)) / 10, 0.9)
    high = max(math.ceil(10 * max(shares)) / 10, low + 0.1)
    loudest = max((std for runs in found.cells.values() if math.isfinite(std := _executed(runs))), default=1.0)
    panels = (
        _Panel("success (and executed noise)", _BLUES, mean_success, _percent, (low, high), beneath=True),
        _Panel("executed noise (std)", _BROWNS, _executed, _noise, (0.0, nice_ticks(0.0, loudest)[-1])),
    )
    across, down = max(_CELL_WIDTH * len(found.columns), 250), _CELL_HEIGHT * len(found.rows)
    parts = [_note(_ROW_LABELS - 12, _HEAD - 12, "noisy step k", "end")]
    for i, k in enumerate(found.rows):
        parts.append(_text(_ROW_LABELS - 12, _HEAD + _CELL_HEIGHT * (i + 0.5) + 5, k, "end"))
    for i, panel in enumerate(panels):
        parts.append(_panel(panel, found, _ROW_LABELS + i * (across + 44), f"ramp-{i}"))
    return _page("Success and executed noise", _ROW_LABELS + 2 * across + 44 + 24, _HEAD + down + 72, parts)


def _curves(by_objective: dict[str, list[RunRecord]]) -> list[_Curve]:
    """By name, so that colours do not depend on the order of the records."""
    bases = sorted({name.split(", ")[0] for name in by_objective})
    found, seen = [], dict.fromkeys(bases, -1)
    for name in sorted(by_objective):
        base = name.split(", ")[0]
        seen[base] += 1
        measured = ([p for p in run.curve if math.isfinite(p.success)] for run in by_objective[name])
        if seeds := [points for points in measured if points]:
            start, end = max(s[0].env_steps for s in seeds), min(s[-1].env_steps for s in seeds)
            steps = np.array(sorted({p.env_steps for s in seeds for p in s if start <= p.env_steps <= end} or {end}))
            rows = [np.interp(steps, [p.env_steps for p in s], [p.success for p in s]) for s in seeds]
            colour, dash = _COLOURS[bases.index(base) % len(_COLOURS)], _DASHES[seen[base] % len(_DASHES)]
            found.append(_Curve(name, steps.astype(float), np.array(rows), colour, dash))
    return found


def _curve_axes(last: float, level: float) -> str:
    right, guide = _LEFT + _SPAN, _BOTTOM - (_BOTTOM - _TOP) * level
    parts = []
    for share in (0.0, 0.2, 0.4, 0.6, 0.8, 1.0):
        y = _BOTTOM - (_BOTTOM - _TOP) * share
        parts += [_rule(_LEFT, y, right, y, _LINE), _note(_LEFT - 8, y + 4.5, _percent(share), "end")]
    for tick in (tick for tick in nice_ticks(0.0, last, count=5) if tick <= last):
        x = _LEFT + _SPAN * tick / last
        parts += [_rule(x, _BOTTOM, x, _BOTTOM + 5, _SOFT), _note(x, _BOTTOM + 19, tick_label(tick), "middle")]
    parts += [_rule(_LEFT, guide, right, guide, _SOFT, "5 4"), _rule(_LEFT, 18, _LEFT + 26, 18, _SOFT, "5 4")]
    key = f"{_percent(level)} guide; lines: mean over seeds; bands: worst to best seed"
    parts.append(_note(_LEFT + 33, 22, key, "start"))
    parts.append(_text(_LEFT + _SPAN / 2, _BOTTOM + 41, "environment steps", "middle"))
    middle = (_TOP + _BOTTOM) / 2
    label = _text(16, middle + 4, "success on held-out episodes (%)", "middle")
    parts.append(f'<g transform="rotate(-90 16 {middle})">{label}</g>')
    return "".join(parts)


def _drawn(curve: _Curve, last: float) -> tuple[str, str, tuple[float, float]]:
    """Band, line and the line's end."""
    across = _LEFT + _SPAN * curve.steps / last
    worst, mean, best = (
        list(zip(across, _BOTTOM - (_BOTTOM - _TOP) * success, strict=True))
        for success in (curve.seeds.min(axis=0), curve.seeds.mean(axis=0), curve.seeds.max(axis=0))
    )
    (x, y), look = mean[-1], f'stroke="{curve.colour}" stroke-width="2.2" stroke-dasharray="{curve.dash or "none"}"'
    band = f'<path d="{_path(best + worst[::-1])}z" fill="{curve.colour}" fill-opacity="0.1"/>'
    dot = f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3" fill="{curve.colour}"/>'
    return band, f'<path d="{_path(mean)}" fill="none" stroke-linejoin="round" {look}/>{dot}', (x, y)


def _apart(heights: Sequence[float], gap: float) -> list[float]:
    """Ascending heights moved up and down to lie `gap` apart within the plot; closer where they would not fit."""
    last = len(heights) - 1
    gap = min(gap, (_BOTTOM - _TOP) / max(last, 1))
    down = accumulate(heights, lambda edge, y: max(y, edge + gap))
    up = reversed(list(accumulate(reversed(heights), lambda edge, y: min(y, edge - gap))))
    middle = [(a + b) / 2 for a, b in zip(down, up, strict=True)]
    return [min(max(y, _TOP + gap * i), _BOTTOM - gap * (last - i)) for i, y in enumerate(middle)]


def _panel(panel: _Panel, found: Grid, left: float, ramp: str) -> str:
    """Title, noise levels, cells, and the colours' key beneath."""
    parts = [_text(left, 24, panel.title, weight=600)]
    for j, a in enumerate(found.columns):
        parts.append(_note(left + _CELL_WIDTH * (j + 0.5), _HEAD - 12, f"a = {a}", "middle"))
        for i, k in enumerate(found.rows):
            runs = found.cells.get((k, a), [])
            parts.append(_cell(panel, runs, left + j * _CELL_WIDTH, _HEAD + i * _CELL_HEIGHT))
    (low, high), y = panel.ends, _HEAD + _CELL_HEIGHT * len(found.rows) + 18
    stops = "".join(f'<stop offset="{i / 4}" stop-color="{colour}"/>' for i, colour in enumerate(panel.ramp))
    parts.append(
        f'<defs><linearGradient id="{ramp}">{stops}</linearGradient></defs>'
        f'<rect x="{left}" y="{y}" width="168" height="10" fill="url(#{ramp})" stroke="{_LINE}"/>'
    )
    parts += [_note(left, y + 26, panel.text(low), "start"), _note(left + 168, y + 26, panel.text(high), "end")]
    return "".join(parts)


def _cell(panel: _Panel, runs: Sequence[RunRecord], x: float, y: float) -> str:
    (low, high), value = panel.ends, panel.value(runs) if runs else math.nan
    fill = _mixed(panel.ramp, (value - low) / (high - low)) if math.isfinite(value) else _EMPTY
    lines = [panel.text(value), _noise(_executed(runs))][: 1 + panel.beneath] if runs else ["-"]
    ink = _PAPER if _luminance(fill) < _FLIP else _INK
    middle, first = x + _CELL_WIDTH / 2, y + _CELL_HEIGHT / 2 + (5 if len(lines) == 1 else -3)
    return (
        f'<rect x="{x}" y="{y}" width="{_CELL_WIDTH - 2}" height="{_CELL_HEIGHT - 2}" rx="3" fill="{fill}"/>'
        + _text(middle - 1, first, lines[0], "middle", ink, 14, 600)
        + "".join(_text(middle - 1, first + 17, line, "middle", ink, 12) for line in lines[1:])
    )


def _mixed(ramp: Sequence[str], place: float) -> str:
    """The colour at `place`, 0 to 1."""
    channels = np.array([_rgb(colour) for colour in ramp]).T
    return "#" + "".join(f"{round(float(np.interp(4 * place, range(5), channel))):02x}" for channel in channels)


def _luminance(colour: str) -> float:
    """Relative luminance of WCAG 2, 0 to 1, its gamma taken as 2.2."""
    return float((_rgb(colour) / 255) ** 2.2 @ (0.2126, 0.7152, 0.0722))


def _rgb(colour: str) -> _Values:
    return np.array([int(colour[i : i + 2], 16) for i in (1, 3, 5)], float)


def _executed(runs: Sequence[RunRecord]) -> float:
    return 1000 * mean_std(runs)


def _percent(share: float) -> str:
    return f"{100 * share:.0f} %" if math.isfinite(share) else "n/a"


def _noise(millimetres: float) -> str:
    return f"{millimetres:.1f} mm" if math.isfinite(millimetres) else "n/a"


def _text(
    x: float, y: float, text: str, anchor: str = "start", fill: str = _INK, size: int = 13, weight: int = 400
) -> str:
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" fill="{fill}" font-size="{size}" '
        f'font-weight="{weight}">{escape(text)}</text>'
    )


def _note(x: float, y: float, text: str, anchor: str) -> str:
    return _text(x, y, text, anchor, _SOFT, 12)


def _rule(x1: float, y1: float, x2: float, y2: float, colour: str, dash: str = "none") -> str:
    return f'<path d="{_path([(x1, y1), (x2, y2)])}" stroke="{colour}" stroke-dasharray="{dash}"/>'


def _path(points: Sequence[tuple[float, float]]) -> str:
    return "M" + "L".join(f"{x:.1f},{y:.1f}" for x, y in points)


def _page(title: str, width: float, height: float, parts: Sequence[str]) -> str:
    """A whole file."""
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width:.0f}" height="{height:.0f}" '
        f'viewBox="0 0 {width:.0f} {height:.0f}" role="img" '
        f'font-family="system-ui, -apple-system, Segoe UI, Helvetica, Arial, sans-serif">'
        f"<title>{escape(title)}</title>"
        f'<rect width="100%" height="100%" rx="6" fill="{_PAPER}"/>{"".join(parts)}</svg>\n'
    )
