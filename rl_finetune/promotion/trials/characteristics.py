"""What a test of pairs does in the long run, computed exactly, and how many pairs it must be given."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from scipy.stats import binom, norm

from rl_finetune.errors import UserError
from rl_finetune.promotion.trials.sequential import Design, design, log_wealth

MOST_PAIRS = 1000
"""Beyond this nobody plays, and the tables would grow with its cube."""


@dataclass(frozen=True, slots=True)
class Characteristics:
    """How often a test says what, and after how many pairs."""

    better: float
    """Chance to promote."""
    worse: float
    """Chance to reject."""
    hold: float
    """Chance of neither."""
    mean: float
    """Pairs on average."""
    ninth: int
    """Pairs within which nine in ten evaluations end."""


def chances(incumbent: float, gain: float) -> tuple[float, float]:
    """Chances to win and to lose a pair whose trials are independent, by success rate and gain (shares)."""
    candidate = incumbent + gain
    return candidate * (1 - incumbent), (1 - candidate) * incumbent


def hardest(gain: float) -> tuple[float, float]:
    """`chances` where independent trials vary most: success rates (1 - gain) / 2 and (1 + gain) / 2."""
    return chances((1 - gain) / 2, gain)


@lru_cache(maxsize=8)
def plan(alpha: float, beta: float, gain: float, pairs: int | None = None, prove_worse: bool = False) -> Design:
    """The test; without `pairs`, of as many as find `gain` (a share) with chance 1 - beta at its `hardest`.

    Raises:
        UserError: more than 1000 pairs would be needed.
    """

    def of(most: int) -> Design:
        return design(alpha, beta, gain, most, prove_worse=prove_worse)

    if pairs is not None:
        return of(pairs)
    few = fixed_pairs(alpha, beta, gain)
    many = 2 * few
    while not _finds(of(min(many, MOST_PAIRS))):
        if many >= MOST_PAIRS:
            raise UserError(
                "trials cannot find so small a gain", got=f"{100 * gain:g} points at alpha {alpha:g}, beta {beta:g}",
                expected=f"one that {MOST_PAIRS} pairs find", do="raise trials.gain, or set trials.pairs",
            )  # fmt: skip
        few, many = many, 2 * many
    many = min(many, MOST_PAIRS)
    while many - few > 1:
        middle = (few + many) // 2
        few, many = (few, middle) if _finds(of(middle)) else (middle, many)
    return of(many)


def characteristics(test: Design, won: float, lost: float) -> Characteristics:
    """Exact, for independent pairs that are won and lost with these chances."""
    size = test.pairs + 1
    mass = np.zeros((size, size))
    mass[0, 0] = 1.0
    ended, said = np.zeros(size), np.zeros(3)
    for played in range(1, size):
        area = mass[: played + 1, : played + 1]
        before = area.copy()
        area *= 1 - won - lost
        area[1:] += won * before[:-1]
        area[:, 1:] += lost * before[:, :-1]
        for which, where in enumerate(_stops(test, played)):
            stopped = float(area[where].sum())
            area[where] = 0.0
            said[which] += stopped
            ended[played] += stopped
    counts = np.arange(size)
    ninth = int(np.searchsorted(np.cumsum(ended), 0.9 - 1e-12))
    better, worse, hold = (float(value) for value in said)
    return Characteristics(better, worse, hold, float(counts @ ended), ninth)


def table(test: Design) -> NDArray[np.int8]:
    """[pairs + 1, wins + 1, losses + 1] what `look` says: 0 go on, 1 better, 2 worse, 3 hold. For simulation."""
    size = test.pairs + 1
    says = np.zeros((size, size, size), np.int8)
    for played in range(1, size):
        area = says[played, : played + 1, : played + 1]
        for which, where in reversed(list(enumerate(_stops(test, played), start=1))):
            area[where] = which
    return says


def fixed_pairs(alpha: float, beta: float, gain: float) -> int:
    """Pairs of McNemar's test of fixed size at its `hardest` (Connor 1987, Biometrics 43:207-211)."""
    decisive = sum(hardest(gain))
    spread = norm.isf(alpha) * math.sqrt(decisive) + norm.isf(beta) * math.sqrt(decisive - gain * gain)
    return math.ceil((spread / gain) ** 2)


def fixed_power(pairs: int, alpha: float, won: float, lost: float) -> float:
    """Exact chance that the exact sign test of so many pairs says `better`."""
    decisive = np.arange(pairs + 1)
    needed = binom.isf(alpha, decisive, 0.5) + 1
    reached = binom.sf(needed - 1, decisive, won / (won + lost))
    return float(binom.pmf(decisive, pairs, won + lost) @ reached)


def fixed_exact(alpha: float, beta: float, gain: float) -> int:
    """Fewest pairs with which, and with any number above it, the exact sign test finds `gain` at its `hardest`."""
    pairs = 2 * fixed_pairs(alpha, beta, gain)
    while fixed_power(pairs - 1, alpha, *hardest(gain)) >= 1 - beta:
        pairs -= 1
    return pairs


def _finds(test: Design) -> bool:
    return characteristics(test, *hardest(test.gain)).better >= 1 - test.beta


def _stops(test: Design, played: int) -> tuple[NDArray[np.bool_], NDArray[np.bool_], NDArray[np.bool_]]:
    """[wins + 1, losses + 1] where `look` says better, worse, or that there is no point, after so many pairs."""
    wins, losses = np.ogrid[: played + 1, : played + 1]
    decisive = wins + losses
    possible = decisive <= played
    decisive = np.minimum(decisive, played)
    needed = np.array(test.needed)
    left = test.pairs - played
    ahead = np.maximum(wins, losses) if test.prove_worse else wins
    short = _most_short(test.gain, test.short_bar, played)
    hopeless = (wins <= short[decisive]) | (ahead + left < needed[decisive + left])
    better, worse = wins >= needed[decisive], losses >= needed[decisive]
    return possible & better, possible & worse, possible & hopeless


@lru_cache(maxsize=4096)
def _most_short(gain: float, bar: float, played: int) -> NDArray[np.int64]:
    """[played + 1] most wins, by decisive pairs, that refute the gain; -1 where none do. Fewer wins refute it more."""
    decisive = np.arange(played + 1)
    low, high = np.full(played + 1, -1), decisive + 1
    while (high - low > 1).any():
        middle = (low + high) // 2
        wins = np.maximum(middle, 0)
        refuted = log_wealth(decisive - wins, wins, played - decisive, -gain) >= bar
        low, high = np.where(refuted & (middle >= 0), middle, low), np.where(refuted, high, middle)
        high = np.maximum(high, low + 1)
    return low
