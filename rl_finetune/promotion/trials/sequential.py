"""When pairs of trials suffice: a sequential sign test with exact error, and a confidence sequence for the difference.

A pair is won (only the candidate succeeds), lost (only the incumbent does) or tied. Won and lost pairs are decisive.

- `better`: where the candidate is not better a decisive pair is won with chance at most 1/2, whatever the success rates
  are. Then (1 + b)^wins (1 - b)^losses, the money of somebody who bets the share b of it on the candidate, is a
  supermartingale. It is Wald's likelihood ratio of double dichotomies (1947, Sequential Analysis, ch. 6) and a betting
  martingale of Waudby-Smith and Ramdas (2024, J. R. Stat. Soc. B 86:1-27). Ville's inequality would ask it to reach
  1 / alpha. As the number of pairs is bounded, a lower bar holds alpha: it is read off the walk of a fair coin.
- `worse`: the same with roles exchanged. A bad candidate is nearly always `short` first, in far fewer pairs, unless the
  design is to prove it worse.
- `short`: a bet against a gain of `gain`, mixed over the share, has reached 2 / beta: by Ville's inequality a candidate
  that is better by `gain` or more meets this with chance beta / 2 at most.
- `unreachable`: not even winning all remaining pairs would lead to `better` (nor losing them to `worse`, if wanted).

Neither bar knows anything of success rates, tasks or time. Both hold as long as, whatever came before, a decisive pair
is won with chance 1/2 at most: success may change from pair to pair, pairs may be correlated, and whoever stops early
promotes nobody. A candidate that is better in one task, as much worse in another and so not better on the mean is not
covered by that argument, nor are blocks of letters where whoever plays second does better. There the blocks balance
what a fair coin would leave to chance, and simulation finds fewer errors, not more (`benchmarks/bench_trials.py`).
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import logsumexp

Call = Literal["better", "worse", "short", "unreachable"]
"""Why trials stop."""
_SHARES = (np.arange(40) + 0.5) / 40
"""Shares that the mixture bets, of the most that cannot be lost beyond everything."""


@dataclass(frozen=True, slots=True)
class Tally:
    """Pairs by how they ended."""

    wins: int = 0
    """Only the candidate succeeded."""
    losses: int = 0
    """Only the incumbent succeeded."""
    ties: int = 0
    """Both did, or neither."""

    @property
    def pairs(self) -> int:
        """All of them."""
        return self.wins + self.losses + self.ties

    @property
    def points(self) -> float:
        """Difference of the success rates, candidate less incumbent; 0 where there is no pair."""
        return 100 * (self.wins - self.losses) / max(self.pairs, 1)

    def plus(self, difference: int) -> Tally:
        """One pair more, of difference 1, -1 or 0."""
        return Tally(self.wins + (difference > 0), self.losses + (difference < 0), self.ties + (difference == 0))


@dataclass(frozen=True, slots=True)
class Design:
    """The test, settled before the first trial."""

    alpha: float
    """Chance of `better` for a candidate that is not better, and of `worse` for one that is not worse."""
    beta: float
    """Chance to miss a candidate that is better by `gain`."""
    gain: float
    """Smallest gain worth finding, as a share."""
    pairs: int
    """Most pairs that are played."""
    prove_worse: bool
    """Whether `short` ends nothing: trials go on until the candidate is shown to be better or worse."""
    needed: tuple[int, ...]
    """[pairs + 1] wins that suffice, by the number of decisive pairs; more than that number where none do."""

    @property
    def short_bar(self) -> float:
        """Logarithm of what the bet against the gain must reach."""
        return math.inf if self.prove_worse else math.log(2 / self.beta)

    def look(self, tally: Tally) -> Call | None:
        """Whether to stop after these pairs, and why."""
        decisive, left = tally.wins + tally.losses, self.pairs - tally.pairs
        if tally.wins >= self.needed[decisive]:
            return "better"
        if tally.losses >= self.needed[decisive]:
            return "worse"
        if log_wealth(tally.losses, tally.wins, tally.ties, -self.gain) >= self.short_bar:
            return "short"
        ahead = max(tally.wins, tally.losses) if self.prove_worse else tally.wins
        return "unreachable" if ahead + left < self.needed[decisive + left] else None

    def read(self, differences: Iterable[int]) -> tuple[Tally, Call | None]:
        """Pairs one by one, candidate less incumbent, up to the one that ends it; later ones are not looked at."""
        tally = Tally()
        for difference in differences:
            tally = tally.plus(difference)
            if (call := self.look(tally)) is not None:
                return tally, call
        return tally, None


def design(
    alpha: float, beta: float, gain: float, pairs: int, *, prove_worse: bool = False, ville: bool = False
) -> Design:
    """The test of at most `pairs` pairs; `characteristics.plan` finds how many are needed. With `ville` the bar is
    1 / alpha, which would hold for any number of pairs; for comparison.

    The share that is bet, gain / (1/2 + gain^2 / 2), makes the money grow fastest for a candidate better by `gain` at
    the success rates with which most pairs are decisive, (1 - gain) / 2 and (1 + gain) / 2.
    """
    bet = gain / (0.5 + gain * gain / 2)
    low, high = 0.0, -math.log(alpha)
    for _ in range(0 if ville else 40):
        middle = (low + high) / 2
        if crossing(_needed(pairs, bet, middle), 0.5)[-1] <= alpha:
            high = middle
        else:
            low = middle
    return Design(alpha, beta, gain, pairs, prove_worse, tuple(int(wins) for wins in _needed(pairs, bet, high)))


def crossing(needed: ArrayLike, chance: float) -> NDArray[np.float64]:
    """[m + 1] chance that `needed` wins are reached within so many decisive pairs, each won with `chance`; exact."""
    bar = np.asarray(needed)
    walk = np.zeros(len(bar) + 1)
    walk[0] = 1.0
    reached = np.zeros(len(bar))
    for decisive in range(1, len(bar)):
        walk[1:] = walk[1:] * (1 - chance) + walk[:-1] * chance
        walk[0] *= 1 - chance
        reached[decisive] = reached[decisive - 1] + walk[bar[decisive] :].sum()
        walk[bar[decisive] :] = 0.0
    return reached


def log_wealth(wins: ArrayLike, losses: ArrayLike, ties: ArrayLike, mean: float) -> NDArray[np.float64]:
    """Logarithm of what the mixture of bets on a mean difference above `mean` has made of 1, same shape as the counts.

    A share s of the most that can be staked turns a pair of difference d into 1 + s (d - mean) / (1 + mean); `mean`
    lies strictly within -1 and 1. Where the true mean is at most `mean` it ever reaches log(1/p) with chance p at most.
    """
    stake = _SHARES / (1 + mean)
    counts = [np.asarray(count, float)[..., None] for count in (wins, losses, ties)]
    factors = (np.log1p(stake * (1 - mean)), np.log1p(-_SHARES), np.log1p(-stake * mean))
    logs = sum(count * factor for count, factor in zip(counts, factors, strict=True))
    return np.asarray(logsumexp(logs, axis=-1) - math.log(len(_SHARES)))


def interval(tally: Tally, alpha: float) -> tuple[float, float]:
    """Limits of the mean difference in points, at level 1 - 2 alpha and at all times at once (a confidence sequence).

    They are the means that neither bet refutes at 1 / alpha. Valid without a largest number of pairs, hence a little
    wider than the test: it may still hold 0 where the test says `better`.
    """
    low = _least(tally.wins, tally.losses, tally.ties, alpha)
    high = -_least(tally.losses, tally.wins, tally.ties, alpha)
    return 100 * low, 100 * high


def _least(wins: int, losses: int, ties: int, alpha: float) -> float:
    low, high = -1.0, 1.0
    while high - low > 1e-6:
        middle = (low + high) / 2
        if log_wealth(wins, losses, ties, middle) >= -math.log(alpha):
            low = middle
        else:
            high = middle
    return low


def _needed(pairs: int, bet: float, log_bar: float) -> NDArray[np.int64]:
    """[pairs + 1] fewest wins w with w log(1 + bet) + (m - w) log(1 - bet) >= log_bar."""
    decisive = np.arange(pairs + 1)
    win, loss = math.log1p(bet), math.log1p(-bet)
    wins = np.ceil((log_bar - decisive * loss) / (win - loss) - 1e-9).astype(np.int64)
    return np.where(decisive > 0, np.minimum(wins, decisive + 1), 1)
