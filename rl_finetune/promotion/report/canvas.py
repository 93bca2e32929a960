"""SVG whose x is in per cent of its box and whose y is in pixels: it fills any width, and its text never shrinks.

Colours are CSS classes, so that the page decides between light and dark.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape

from rl_finetune.metrics.svg import tick_label

NAME_ROOM = 28
"""Characters of a row's name that fit beside its numbers on a phone."""


@dataclass(frozen=True, slots=True)
class Axis:
    """From values to per cent of the width."""

    ticks: tuple[float, ...]
    """Ascending, at least two; the axis ends at the first and the last."""
    label: Callable[[float], str] = tick_label
    """Text of a tick."""

    def __call__(self, value: float) -> float:
        """Place in per cent, 0 to 100; what lies outside is put on the edge."""
        low, high = self.ticks[0], self.ticks[-1]
        return 100 * min(max((value - low) / (high - low), 0.0), 1.0)


SHARES = Axis((0.0, 0.25, 0.5, 0.75, 1.0), lambda share: f"{100 * share:.0f}{' %' if share == 1 else ''}")
"""0 to 100 %."""


def picture(height: float, label: str, parts: Sequence[str], kind: str = "") -> str:
    """The whole chart as one `<svg>`; `label` is what a screen reader says."""
    return (
        f'<svg class="plot{" " + kind if kind else ""}" style="height:{_number(height)}px" role="img" '
        f'aria-label="{escape(label)}">{"".join(parts)}</svg>'
    )


def text(x: float, y: float, words: str, anchor: str = "start", kind: str = "tick") -> str:
    """Words at a place."""
    return f'<text class="{kind}" x="{_share(x)}" y="{_number(y)}" text-anchor="{anchor}">{escape(words)}</text>'


def line(kind: str, x: tuple[float, float], y: tuple[float, float]) -> str:
    """A straight line from (x[0], y[0]) to (x[1], y[1])."""
    return f'<line class="{kind}" x1="{_share(x[0])}" x2="{_share(x[1])}" y1="{_number(y[0])}" y2="{_number(y[1])}"/>'


def box(kind: str, x: tuple[float, float], y: tuple[float, float]) -> str:
    """A filled rectangle between x[0] and x[1], y[0] and y[1]."""
    return (
        f'<rect class="{kind}" x="{_share(x[0])}" width="{_share(x[1] - x[0])}" y="{_number(y[0])}" '
        f'height="{_number(y[1] - y[0])}"/>'
    )


def dot(kind: str, x: float, y: float, radius: float = 5) -> str:
    """A filled circle."""
    return f'<circle class="{kind}" cx="{_share(x)}" cy="{_number(y)}" r="{_number(radius)}"/>'


def group(kind: str, tip: str, parts: Sequence[str]) -> str:
    """Parts that share a class and a tooltip."""
    return f'<g class="{kind}"><title>{escape(tip)}</title>{"".join(parts)}</g>'


def stretched(height: float, paths: Sequence[tuple[str, Sequence[str]]]) -> str:
    """Paths (CSS class, stretches) in a box of 100 x `height`, stretched to the width; lines keep their weight."""
    drawn = "".join(f'<path class="{kind}" d="{"".join(found)}"/>' for kind, found in paths if found)
    tall = _number(height)
    # Browsers differ in whether the attribute or the style of an inner <svg> counts: it has both.
    return (
        f'<svg class="stretched" width="100%" height="{tall}" style="height:{tall}px" viewBox="0 0 100 {tall}" '
        f'preserveAspectRatio="none">{drawn}</svg>'
    )


def grid(axis: Axis, y: tuple[float, float]) -> list[str]:
    """Lines at the ticks from y[0] to y[1], and their labels below."""
    parts = []
    for i, tick in enumerate(axis.ticks):
        anchor = "start" if i == 0 else "end" if i == len(axis.ticks) - 1 else "middle"
        parts.append(line("grid", (axis(tick), axis(tick)), y))
        parts.append(text(axis(tick), y[1] + 16, axis.label(tick), anchor))
    return parts


def cut(words: str, room: int = NAME_ROOM) -> str:
    """`words`, with their middle left out where they are too long: names often differ at their ends."""
    if len(words) <= room:
        return words
    tail = room // 2 - 1
    return f"{words[: room - tail - 1]}…{words[-tail:]}"


def named(words: str, y: float) -> str:
    """A row's name, cut to its room; the tooltip has all of it."""
    return group("name", words, [text(0, y, cut(words), kind="label")])


def _share(value: float) -> str:
    return f"{_number(value)}%"


def _number(value: float) -> str:
    if not math.isfinite(value):
        raise ValueError(f"coordinate of a chart: got {value}; expected a finite number")
    return f"{round(value, 3):g}"
