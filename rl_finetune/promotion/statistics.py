"""Statistics of paired successes and of latencies. numpy and scipy only.

A level is one-sided: each limit of an interval at level a is wrong with a chance of about a, both together with 2a.

Why Tango's score interval here, where reports have the interval of Bonett and Price (`metrics.intervals.paired_gain`):
a gate asks one side, and asks it at a margin away from 0. Bonett and Price add an episode to each side, which draws
the interval to 0: where few episodes differ, its lower limit is above a loss of 10 points not in 2.5 % of 100 episodes'
outcomes but in up to 5.8 %; Tango's in 2.4 % (exact sums over all outcomes; `tests/test_promotion_statistics.py`).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache
from operator import and_, gt, lt

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import brentq
from scipy.stats import binom, multinomial, norm

from rl_finetune.metrics.intervals import Gain
from rl_finetune.types import BoolArray

Estimate = tuple[float, tuple[float, float]]
"""A value and its interval."""
Counts = int | NDArray[np.int64]
"""Episodes, of one outcome or of many."""


@lru_cache
def z_of(level: float) -> float:
    """Quantile of the normal distribution that is exceeded with chance `level`."""
    return float(norm.isf(level))


def score_gain(before: Sequence[bool], after: Sequence[bool], level: float) -> Gain:
    """Gain in points on the same episodes, with Tango's interval.

    Raises:
        ValueError: the two do not pair, or there is no episode.
    """
    n = len(before)
    if n == 0 or len(after) != n:
        raise ValueError(f"episodes to pair: got {n} before, {len(after)} after; expected as many, at least 1")
    won, lost = counts(before, after)
    low, high = score_interval(won, lost, n, level)
    return Gain(100 * (won - lost) / n, (100 * low, 100 * high), n, won, lost)


def counts(before: Sequence[bool], after: Sequence[bool]) -> tuple[int, int]:
    """Episodes that only the second succeeds in, and those that only the first does."""
    return sum(map(gt, after, before)), sum(map(lt, after, before))


@lru_cache(maxsize=200_000)
def score_interval(won: int, lost: int, n: int, level: float) -> tuple[float, float]:
    """Limits of the difference of two success rates on n paired episodes, in [-1, 1].

    They are the differences that the score test just does not reject (Tango 1998, "Equivalence test and confidence
    interval for the difference in proportions for the paired-sample design", Stat. Med. 17:891-908). Without an
    episode that differs they are +-z^2 / (n + z^2): more episodes narrow it, none makes it a point.

    Raises:
        ValueError: won and lost are not counts among n >= 1.
    """
    if not (n >= 1 and min(won, lost) >= 0 and won + lost <= n):
        raise ValueError(f"won, lost: got {won}, {lost}; expected counts that sum to at most {n}, n at least 1")
    z, middle = z_of(level), (won - lost) / n

    def crossing(target: float, end: float) -> float:
        if middle == end:
            return end
        return float(brentq(lambda d: float(score(won, lost, n, d)) - target, middle, end, xtol=1e-9))

    return crossing(z, -1.0), crossing(-z, 1.0)


def score(won: Counts, lost: Counts, n: int, difference: float) -> NDArray[np.float64]:
    """Tango's statistic: how many standard errors the gain lies above `difference`, were that the true one.

    Its variance takes the chance of losing an episode, q, where it is most likely under that difference: the larger
    root of 2n q^2 + (2n d - (1 + d) won - (1 - d) lost) q - d (1 - d) lost = 0.
    """
    d = difference
    linear = 2 * n * d - (1 + d) * np.asarray(won, float) - (1 - d) * np.asarray(lost, float)
    root = np.sqrt(np.maximum(linear**2 + 8 * n * d * (1 - d) * lost, 0))
    chance = np.maximum((root - linear) / (4 * n), max(0.0, -d))
    variance = np.maximum(n * (2 * chance + d * (1 - d)), 1e-18)
    return (won - lost - n * d) / np.sqrt(variance)


def mcnemar(won: int, lost: int, *, mid: bool = False) -> float:
    """One-sided p-value of "no better": the chance of `won` or more wins among the episodes that differ.

    Exact (McNemar 1947, Psychometrika 12:153-157), also for the sum over worlds if the policies are equal in each.
    `mid` counts the observed outcome half, which is less conservative (Fagerland, Lydersen and Laake 2013, BMC Med.
    Res. Methodol. 13:91).
    """
    differing = won + lost
    tail = float(binom.sf(won - 1, differing, 0.5))
    return tail - 0.5 * float(binom.pmf(won, differing, 0.5)) if mid else tail


def least(near: Sequence[Estimate], far: Sequence[Estimate]) -> Estimate:
    """The least of several unknowns, and an interval whose every limit is wrong with at most the chance of `near`.

    `near` are the estimates at level a, `far` the same at level a / (their number). The lower limit is the least of
    near's: it can only be above the truth if that of the truly least is. The upper limit is the least of far's: any of
    them could be below the truth (Bonferroni).

    Raises:
        ValueError: there is none.
    """
    return min(value for value, _ in near), (min(low for _, (low, _) in near), min(high for _, (_, high) in far))


def difference(first: Estimate, second: Estimate, correlation: float = 0.0) -> Estimate:
    """first - second, by squaring and adding the distances to their limits.

    With a correlation r of the two estimates, distances s and t join to sqrt(s^2 + t^2 - 2 r s t) (method 10 of
    Newcombe 1998, Stat. Med. 17:2635-2650).
    """
    (a, (a_low, a_high)), (b, (b_low, b_high)) = first, second

    def joined(s: float, t: float) -> float:
        return math.sqrt(max(s * s + t * t - 2 * correlation * s * t, 0.0))

    return a - b, (a - b - joined(a - a_low, b_high - b), a - b + joined(a_high - a, b - b_low))


def correlation_of(pairs: Sequence[tuple[Sequence[bool], Sequence[bool]]]) -> float:
    """Correlation of two policies' mean success over worlds, each weighing the same; 0 where one never varies.

    Args:
        pairs: successes of both in the same episodes of each world.
    """
    both = first = second = 0.0
    for a, b in pairs:
        n, p, q = len(a), sum(a) / len(a), sum(b) / len(b)
        both += (sum(map(and_, a, b)) / n - p * q) / n
        first, second = first + p * (1 - p) / n, second + q * (1 - q) / n
    return both / math.sqrt(first * second) if first * second > 0 else 0.0


def quantile(values: Sequence[float], share: float, level: float) -> tuple[float, tuple[float, float | None]]:
    """A quantile and its limits, free of any distribution: order statistics whose ranks are binomial quantiles.

    The value is the ceil(share * n)-th smallest. A rank above n leaves the upper limit None: too few values; a rank of
    0 leaves the lower limit 0, as for durations. (David and Nagaraja 2003, Order Statistics, section 7.1.)

    Raises:
        ValueError: there is no value.
    """
    if not values:
        raise ValueError("values: got none; expected at least 1")
    ordered, n = sorted(values), len(values)
    below, above = _ranks(n, share, level)
    low = ordered[below - 1] if below else 0.0
    return ordered[math.ceil(share * n) - 1], (low, ordered[above - 1] if above <= n else None)


@lru_cache
def _ranks(n: int, share: float, level: float) -> tuple[int, int]:
    return int(binom.ppf(level, n, share)), int(binom.isf(level, n, share)) + 1


def calls_needed(share: float, level: float) -> int:
    """Values from which on the greatest is an upper limit of the quantile: the least n with share^n <= level."""
    return math.ceil(math.log(level) / math.log(share) - 1e-12)


def episodes_needed(gain: float, differing: float, *, level: float, power: float, margin: float = 0.0) -> int:
    """Paired episodes of one world that show a true gain to be above -margin with that chance, nearly.

    Normal approximation, with the variance of the true gain: n = (z_level + z_miss)^2 (differing - gain^2) /
    (gain + margin)^2 (compare Connor 1987, Biometrics 43:207-211, whose null has its own). All are shares: `differing`
    of the episodes end differently. Where episodes have nothing in common that is p (1 - q) + q (1 - p), at most
    0.5 + gain^2 / 2.

    Raises:
        ValueError: what is to be shown is not so.
    """
    if gain + margin <= 0:
        raise ValueError(f"gain + margin: got {gain + margin}; expected above 0")
    return math.ceil((z_of(level) + z_of(1 - power)) ** 2 * (differing - gain**2) / (gain + margin) ** 2)


def chance_shown(gain: float, differing: float, n: int, *, level: float, margin: float = 0.0) -> float:
    """Exact chance that n paired episodes show a gain above -margin by Tango's test: the sum over all outcomes.

    With a true gain of -margin it is the test's error, with a greater one its power. Shares as in `episodes_needed`.
    """
    p, q = (differing + gain) / 2, (differing - gain) / 2
    won, lost = (side.ravel() for side in np.meshgrid(np.arange(n + 1), np.arange(n + 1)))
    possible = won + lost <= n
    won, lost = won[possible], lost[possible]
    shown = score(won, lost, n, -margin) > z_of(level)
    chosen = np.stack([won, lost, n - won - lost], axis=-1)[shown]
    return float(multinomial.pmf(chosen, n, [p, q, 1 - p - q]).sum())


def draw_pairs(
    rng: np.random.Generator, shape: tuple[int, ...], before: float, after: float, correlation: float = 0.0
) -> tuple[BoolArray, BoolArray]:
    """[shape] successes of two policies in the same episodes, for simulations.

    Raises:
        ValueError: two such rates cannot have that correlation.
    """
    both = before * after + correlation * math.sqrt(before * (1 - before) * after * (1 - after))
    if not max(0.0, before + after - 1) - 1e-12 <= both <= min(before, after) + 1e-12:
        raise ValueError(f"correlation: got {correlation}; expected one that {before} and {after} can have")
    u = rng.random(shape)
    return u < before, (u < both) | ((u >= before) & (u < before + after - both))
