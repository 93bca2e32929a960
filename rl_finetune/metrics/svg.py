"""Small charts as inline SVG. Colours are CSS classes, so that the page decides between light and dark."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

Point = tuple[float, float]

_LEFT = 48
"""Room for the numbers of the y-axis: the same in every chart, so that charts in a grid line up."""


@dataclass(frozen=True, slots=True)
class Marker:
    """A value with an interval at one place of the x-axis."""

    x: float
    """Place."""
    y: float
    """Value."""
    low: float
    """Lower end of its interval."""
    high: float
    """Upper end."""
    kind: str
    """CSS class: `before` or `after`."""
    label: str
    """Text of its tooltip."""


@dataclass(frozen=True, slots=True)
class Chart:
    """One line over the iterations, perhaps with a band, markers and events."""

    title: str
    """Read aloud by screen readers, too."""
    x: Sequence[float]
    """[n] iterations, ascending."""
    y: Sequence[float]
    """[n] values; NaN leaves a gap."""
    tips: Sequence[str]
    """[n] what the tooltip says at each point."""
    width: int = 300
    """Units of the view box; the page scales it."""
    height: int = 150
    """Likewise."""
    percent: bool = False
    """The y-axis is 0 to 100 % of values 0 to 1."""
    band: Sequence[tuple[float, float]] = ()
    """[n] interval around each value."""
    markers: Sequence[Marker] = ()
    """Separate measurements."""
    events: Sequence[tuple[float, str]] = ()
    """Place and text of what happened."""


@dataclass(frozen=True, slots=True)
class _Scale:
    """From values to the view box."""

    x: tuple[float, float]
    y: tuple[float, float]
    left: float
    right: float
    top: float
    bottom: float

    def __call__(self, x: float, y: float) -> Point:
        (x0, x1), (y0, y1) = self.x, self.y
        across = (x - x0) / (x1 - x0) if x1 > x0 else 0.5
        up = min(max((y - y0) / (y1 - y0), 0.0), 1.0)
        return self.left + across * (self.right - self.left), self.bottom - up * (self.bottom - self.top)


def line_chart(chart: Chart) -> str:
    """The chart as one `<svg>`; the points it carries in `data-points` feed the tooltips."""
    if not any(math.isfinite(value) for value in chart.y):
        return '<p class="nothing">no values</p>'
    ticks = [0.0, 0.25, 0.5, 0.75, 1.0] if chart.percent else nice_ticks(*_range(chart))
    scale = _scale(chart, ticks)
    parts = [_axes(chart, scale, ticks), _events(chart, scale), _band(chart, scale), _lines(chart, scale)]
    parts += [_marker(marker, scale) for marker in chart.markers]
    points = [
        (round(px, 1), round(py, 1), tip)
        for x, y, tip in zip(chart.x, chart.y, chart.tips, strict=True)
        if math.isfinite(y)
        for px, py in [scale(x, y)]
    ]
    return (
        f'<svg class="chart" viewBox="0 0 {chart.width} {chart.height}" role="img" aria-label="{escape(chart.title)}" '
        f'data-points="{escape(json.dumps(points))}">{"".join(parts)}'
        f'<g class="hover" hidden><line y1="{scale.top}" y2="{scale.bottom}"/><circle r="3.5"/></g></svg>'
    )


def interval_chart(bars: Sequence[tuple[str, str, float, float, float]], width: int = 520) -> str:
    """Rows (label, CSS class, value, low, high; values 0 to 1) on one axis from 0 to 100 %."""
    row, top, left, right = 30, 6, 62, width - 14
    bottom = top + row * len(bars)

    def at(value: float) -> float:
        return round(left + value * (right - left), 1)

    parts = [
        f'<line class="grid" x1="{at(v)}" x2="{at(v)}" y1="{top}" y2="{bottom}"/>'
        f'<text class="tick" x="{at(v)}" y="{bottom + 15}" text-anchor="middle">{100 * v:.0f} %</text>'
        for v in (0, 0.25, 0.5, 0.75, 1)
    ]
    for i, (label, kind, value, low, high) in enumerate(bars):
        y = top + row * (i + 0.5)
        parts.append(
            f'<text class="tick" x="{left - 14}" y="{y + 4}" text-anchor="end">{escape(label)}</text>'
            f'<g class="{kind}"><line class="range" x1="{at(low)}" x2="{at(high)}" y1="{y}" y2="{y}"/>'
            f'<circle cx="{at(value)}" cy="{y}" r="5"/></g>'
        )
    label = "; ".join(f"{b[0]} {100 * b[2]:.1f} %" for b in bars)
    return (
        f'<svg class="intervals" viewBox="0 0 {width} {bottom + 20}" role="img" '
        f'aria-label="{escape(label)}">{"".join(parts)}</svg>'
    )


def nice_ticks(low: float, high: float, count: int = 3) -> list[float]:
    """About `count` + 1 round numbers from at most `low` to at least `high`."""
    if high <= low:
        pad = abs(low) * 0.5 or 1.0
        low, high = low - pad, high + pad
    raw = (high - low) / count
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(m * power for m in (1, 2, 2.5, 5, 10) if m * power >= raw * 0.999)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [i * step for i in range(first, last + 1)]


def tick_label(value: float, digits: int = 4) -> str:
    """Short, with a true minus and powers of ten; n/a for what is no number."""
    if not math.isfinite(value):
        return "n/a"
    if value == 0:
        return "0"
    size = abs(value)
    if 1e-3 <= size < 1e4:
        text = f"{value:.{digits}g}" if size < 10**digits else f"{value:.0f}"
    elif 1e4 <= size < 1e7:
        text = f"{value / 1000:.{digits}g}k"
    else:
        mantissa, exponent = f"{value:.{digits - 2}e}".split("e")
        raised = str(int(exponent)).translate(str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹"))
        text = f"{float(mantissa):g}·10{raised}"
    return text.replace("-", "\u2212")


def _range(chart: Chart) -> tuple[float, float]:
    values = [value for value in chart.y if math.isfinite(value)]
    low, high = min(values), max(values)
    # A curve of positive numbers stands on zero: its height then means something.
    return (0.0 if 0 < low < 0.7 * high else low), high


def _scale(chart: Chart, ticks: Sequence[float]) -> _Scale:
    places = [*chart.x, *(marker.x for marker in chart.markers)]
    return _Scale(
        x=(min(places), max(places)),
        y=(ticks[0], ticks[-1]),
        left=_LEFT,
        right=chart.width - 12,
        top=10,
        bottom=chart.height - 22,
    )


def _axes(chart: Chart, scale: _Scale, ticks: Sequence[float]) -> str:
    parts = []
    for tick in ticks:
        _, y = scale(scale.x[0], tick)
        text = f"{100 * tick:.0f} %" if chart.percent else tick_label(tick)
        parts.append(
            f'<line class="grid" x1="{scale.left:.1f}" x2="{scale.right}" y1="{y:.1f}" y2="{y:.1f}"/>'
            f'<text class="tick" x="{scale.left - 7:.1f}" y="{y + 3.5:.1f}" text-anchor="end">{text}</text>'
        )
    wide = scale.right - scale.left > 400
    for tick in nice_ticks(*scale.x, count=6 if wide else 3):
        if scale.x[0] <= tick <= scale.x[1] and tick == int(tick):
            x, _ = scale(tick, ticks[0])
            parts.append(
                f'<text class="tick" x="{x:.1f}" y="{chart.height - 6}" text-anchor="middle">{int(tick)}</text>'
            )
    return "".join(parts)


def _events(chart: Chart, scale: _Scale) -> str:
    parts = []
    for place, text in chart.events:
        x, _ = scale(place, 0)
        parts.append(
            f'<g class="event"><title>{escape(text)}</title>'
            f'<line x1="{x:.1f}" x2="{x:.1f}" y1="{scale.top}" y2="{scale.bottom}"/>'
            f'<path d="M{x - 4:.1f},{scale.top - 7} h8 l-4,7z"/></g>'
        )
    return "".join(parts)


def _band(chart: Chart, scale: _Scale) -> str:
    if not chart.band:
        return ""
    upper = [scale(x, high) for x, (_, high) in zip(chart.x, chart.band, strict=True) if math.isfinite(high)]
    lower = [scale(x, low) for x, (low, _) in zip(chart.x, chart.band, strict=True) if math.isfinite(low)]
    return f'<path class="band" d="{_path(upper + lower[::-1])}z"/>'


def _lines(chart: Chart, scale: _Scale) -> str:
    """One path for each stretch without gaps; a single point is a dot."""
    stretches: list[list[Point]] = [[]]
    for x, y in zip(chart.x, chart.y, strict=True):
        if math.isfinite(y):
            stretches[-1].append(scale(x, y))
        elif stretches[-1]:
            stretches.append([])
    parts = []
    for points in stretches:
        if len(points) == 1:
            parts.append(f'<circle class="dot" cx="{points[0][0]:.1f}" cy="{points[0][1]:.1f}" r="2.5"/>')
        elif points:
            parts.append(f'<path class="line" d="{_path(points)}"/>')
    return "".join(parts)


def _marker(marker: Marker, scale: _Scale) -> str:
    (x, y), (_, low), (_, high) = (scale(marker.x, value) for value in (marker.y, marker.low, marker.high))
    return (
        f'<g class="marker {marker.kind}"><title>{escape(marker.label)}</title>'
        f'<line class="range" x1="{x:.1f}" x2="{x:.1f}" y1="{low:.1f}" y2="{high:.1f}"/>'
        f'<circle cx="{x:.1f}" cy="{y:.1f}" r="5"/></g>'
    )


def _path(points: Sequence[Point]) -> str:
    return "M" + "L".join(f"{x:.1f},{y:.1f}" for x, y in points)
