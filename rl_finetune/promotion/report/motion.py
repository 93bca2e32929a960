"""How much of its limits the candidate used in simulation."""

from __future__ import annotations

import math
from dataclasses import dataclass

from rl_finetune.promotion.records import Limits, MotionAudit


@dataclass(frozen=True, slots=True)
class Use:
    """How much of one kind of limit the candidate used."""

    kind: str
    """`action`, `velocity`, `acceleration` or `jerk`."""
    share: float
    """1 is at the limit, in the channel that came closest; NaN where it was not measured or nothing is limited."""
    channel: int
    """That channel, counted from 0."""
    value: float
    """Its extreme, action units or their derivative."""
    limit: float
    """What it is held against."""
    measured: bool
    """Whether the world could tell."""


def uses(audit: MotionAudit, limits: Limits | None) -> list[Use]:
    """Actions by the distance from the middle of their range, derivatives by their greatest size."""
    found = []
    for kind in ("action", "velocity", "acceleration", "jerk"):
        shares = _shares(kind, audit, limits or Limits()) if kind in audit.measured else []
        i = max(range(len(shares)), key=lambda k: shares[k][0], default=0)
        share, value, limit = shares[i] if shares else (math.nan, math.nan, math.nan)
        found.append(Use(kind, share, i, value, limit, kind in audit.measured))
    return found


def _shares(kind: str, audit: MotionAudit, limits: Limits) -> list[tuple[float, float, float]]:
    """(share, extreme, limit) by channel, as far as there are limits."""
    if kind == "action":
        return [
            max(_share(found, low, high, 1), _share(found, low, high, 0))
            for found, low, high in zip(audit.actions, limits.low, limits.high, strict=False)
        ]
    values: tuple[float, ...] = getattr(audit, kind)
    bounds: tuple[float, ...] = getattr(limits, kind)
    return [(_over(value, bound), value, bound) for value, bound in zip(values, bounds, strict=False)]


def _share(found: tuple[float, float], low: float, high: float, side: int) -> tuple[float, float, float]:
    """Of one end of a range; the range of an unlimited channel is infinite, and nothing uses any of it."""
    bound = (low, high)[side]
    if not (math.isfinite(low) and math.isfinite(high)):
        beyond = found[1] > high if side else found[0] < low
        return (math.inf if beyond or not math.isfinite(found[side]) else 0.0), found[side], bound
    middle, half = (low + high) / 2, (high - low) / 2
    return _over(found[1] - middle if side else middle - found[0], half), found[side], bound


def _over(value: float, bound: float) -> float:
    if not math.isfinite(value):
        return math.inf
    return value / bound if bound > 0 else math.inf if value > 0 else 0.0
