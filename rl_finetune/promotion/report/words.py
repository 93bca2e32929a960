"""How the page writes numbers."""

from __future__ import annotations

import math
from collections.abc import Callable

from markupsafe import Markup, escape

from rl_finetune.metrics.svg import tick_label
from rl_finetune.promotion.records import Check, Outcome

SYMBOLS: dict[Outcome, str] = {"promote": "✓", "hold": "○", "reject": "✕"}
"""Beside the colours, for who cannot tell these."""
NOTHING = "\u2013"
"""Where there is no number."""


def percent(share: float) -> str:
    """A share of 1 as per cent with one decimal, without the sign; n/a for NaN."""
    return f"{100 * share:.1f}" if math.isfinite(share) else "n/a"


def points(value: float) -> str:
    """Percentage points with their sign and at most one decimal."""
    if not math.isfinite(value):
        return "n/a"
    rounded = round(value, 1)
    return "0" if rounded == 0 else f"{rounded:+g}".replace("-", "\u2212")


def span(ends: tuple[float, float], write: Callable[[float], str] = points) -> str:
    """An interval; an open end is left out."""
    low, high = (None if math.isinf(end) else write(end) for end in ends)
    if low is None or high is None:
        return f"[{low} or more]" if low is not None else f"[{high} or less]" if high is not None else "[unbounded]"
    return f"[{low}, {high}]"


def shares(ends: tuple[float, float]) -> str:
    """An interval of shares, in per cent."""
    return span(ends, percent)


def number(value: float) -> str:
    """Four digits; infinity as such."""
    if math.isinf(value):
        return "∞" if value > 0 else "\u2212∞"
    return tick_label(value)


def bare(value: float, unit: str) -> str:
    """A number in its unit, which is left out; seconds are written as milliseconds."""
    if unit == "s":
        return milliseconds(value, bare=True)
    return number(round(value, 1) if unit == "points" else value)


def measure(value: float, unit: str) -> str:
    """A number with its unit."""
    return f"{bare(value, unit)} {'ms' if unit == 's' else unit}".rstrip()


def milliseconds(seconds: float, *, bare: bool = False) -> str:
    """A duration with at most one decimal; below a tenth of a millisecond with three digits."""
    found = 1000 * seconds
    number = f"{found:,.1f}".removesuffix(".0") if abs(found) >= 0.1 else tick_label(found, digits=3)
    return number if bare else f"{number} ms"


def breakable(name: str) -> Markup:
    """An identifier that may be broken after its underscores and slashes, escaped."""
    return Markup(str(escape(name)).replace("_", "_<wbr>").replace("/", "/<wbr>"))


def value_of(check: Check) -> str:
    """A check's number and its interval; a dash where the check had nothing to measure."""
    if not check.unit and check.interval is None and check.value == check.bound == 0:
        return NOTHING
    found = measure(check.value, check.unit)
    return found if check.interval is None else f"{found} {span(check.interval, lambda end: bare(end, check.unit))}"


def bound_of(check: Check) -> str:
    """What a check's number is held against."""
    return NOTHING if value_of(check) == NOTHING else measure(check.bound, check.unit)
