"""Intervals for success rates: of one policy, of the difference between two on the same episodes, and of means over
worlds."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from scipy.special import stdtrit

Z_95 = 1.96
"""Quantile of the normal distribution for two-sided 95 %."""


@dataclass(frozen=True, slots=True)
class Gain:
    """How much more often the second policy succeeds, in percentage points."""

    points: float
    """100 * (success after - success before)."""
    interval: tuple[float, float]
    """Interval of `points`, 95 % where nothing else is said."""
    episodes: int
    """Paired episodes."""
    won: int
    """Episodes that failed before and succeed after."""
    lost: int
    """Episodes that succeeded before and fail after."""

    def __str__(self) -> str:
        return f"{self.points:+.1f} points [{self.interval[0]:+.1f}, {self.interval[1]:+.1f}]"


def wilson(successes: int, n: int, z: float = Z_95) -> tuple[float, float]:
    """Wilson's score interval of a proportion (Wilson 1927, JASA 22:209-212); without episodes it is all of [0, 1].

    Raises:
        ValueError: `successes` is not within 0..n.
    """
    if not 0 <= successes <= n:
        raise ValueError(f"successes: got {successes}; expected 0..{n}")
    if n == 0:
        return 0.0, 1.0
    share = successes / n
    scale = 1 + z * z / n
    centre = (share + z * z / (2 * n)) / scale
    half = z / scale * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    # At the ends the interval touches 0 or 1 exactly, which rounding would miss.
    return (0.0 if successes == 0 else centre - half), (1.0 if successes == n else centre + half)


def paired_gain(before: Sequence[bool], after: Sequence[bool], z: float = Z_95) -> Gain:
    """Difference of two success rates on the same episodes.

    Interval: adjusted Wald of Bonett and Price (2012, "Adjusted Wald confidence interval for a difference of binomial
    proportions based on paired data", J. Educ. Behav. Stat. 37:479-488), which Fagerland, Lydersen and Laake (2014,
    Stat. Med. 33:2850-2875) recommend: with p = (won + 1) / (n + 2) and q = (lost + 1) / (n + 2) it is
    p - q +- z sqrt((p + q - (p - q)^2) / (n + 2)). Unlike the plain Wald interval it never has width 0.

    Raises:
        ValueError: the two do not pair, or there is no episode.
    """
    n = len(before)
    if n == 0 or len(after) != n:
        raise ValueError(f"episodes to pair: got {n} before, {len(after)} after; expected as many, at least 1")
    won = sum(not b and bool(a) for b, a in zip(before, after, strict=True))
    lost = sum(bool(b) and not a for b, a in zip(before, after, strict=True))
    p, q = (won + 1) / (n + 2), (lost + 1) / (n + 2)
    half = z * math.sqrt((p + q - (p - q) ** 2) / (n + 2))
    low, high = max(p - q - half, -1.0), min(p - q + half, 1.0)
    return Gain(points=100 * (won - lost) / n, interval=(100 * low, 100 * high), episodes=n, won=won, lost=lost)


def student(values: Sequence[float]) -> tuple[float, tuple[float, float]]:
    """Mean of independent values, and its 95 % interval by Student's t.

    Raises:
        ValueError: there are fewer than two.
    """
    n = len(values)
    if n < 2:
        raise ValueError(f"values: got {n}; expected at least 2")
    mean = math.fsum(values) / n
    half = float(stdtrit(n - 1, 0.975)) * math.sqrt(math.fsum((v - mean) ** 2 for v in values) / (n - 1) / n)
    return mean, (mean - half, mean + half)


def mean_gain(gains: Sequence[Gain]) -> Gain:
    """The mean over worlds, each weighing the same; see `mean_over`."""
    points, (low, high) = mean_over([(gain.points, gain.interval) for gain in gains])
    episodes, won, lost = (sum(getattr(gain, name) for gain in gains) for name in ("episodes", "won", "lost"))
    return Gain(points, (max(low, -100.0), min(high, 100.0)), episodes, won, lost)


def mean_over(parts: Sequence[tuple[float, tuple[float, float]]]) -> tuple[float, tuple[float, float]]:
    """Mean of W independent estimates (value, interval), and its interval.

    The variances that the parts' own limits imply add up (MOVER: Zou, Huang and Zhang 2009, "A note on confidence
    interval estimation for a linear function of binomial proportions", Comput. Stat. Data Anal. 53:1080-1085): for
    estimates m_w within [l_w, u_w] the limits are m - sqrt(sum (m_w - l_w)^2) / W and m + sqrt(sum (u_w - m_w)^2) / W.
    With Wilson's limits it keeps its width where a world always fails or succeeds, and one part keeps its own interval.
    """
    if len(parts) == 1:
        return parts[0]
    count = len(parts)
    mean = sum(value for value, _ in parts) / count
    below = math.sqrt(sum((value - low) ** 2 for value, (low, _) in parts)) / count
    above = math.sqrt(sum((high - value) ** 2 for value, (_, high) in parts)) / count
    return mean, (mean - below, mean + above)
