"""The test of pairs: bars by enumeration, bets by hand, error rates exactly and by simulation."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest

from rl_finetune.errors import UserError
from rl_finetune.promotion.trials import characteristics as exact
from rl_finetune.promotion.trials import sequential
from rl_finetune.promotion.trials.sequential import Tally

ALPHA, BETA, GAIN = 0.05, 0.1, 0.4


@pytest.fixture(scope="module")
def test_of_pairs():
    return exact.plan(ALPHA, BETA, GAIN)


def reaches(needed, signs):
    """Whether a walk of decisive pairs ever has the wins that suffice."""
    wins = np.cumsum(signs)
    return any(wins[m - 1] >= needed[m] for m in range(1, len(signs) + 1))


@pytest.mark.parametrize("chance", [0.5, 0.8])
def test_the_bar_is_crossed_as_often_as_enumeration_says(chance):
    test = sequential.design(0.05, 0.1, 0.3, pairs=9)
    share = np.zeros(10)
    for signs in itertools.product((0, 1), repeat=9):
        weight = chance ** sum(signs) * (1 - chance) ** (9 - sum(signs))
        for pairs in range(1, 10):
            share[pairs] += weight * reaches(test.needed, signs[:pairs])
    np.testing.assert_allclose(sequential.crossing(test.needed, chance), share, atol=1e-12)


def test_the_bar_spends_alpha_and_ville_would_not():
    """bet = 0.4 / 0.58; a fair coin may reach the bar with chance 0.05 at most, and reaches the next lower one more."""
    test = sequential.design(ALPHA, BETA, GAIN, pairs=40)
    size = sequential.crossing(test.needed, 0.5)[-1]
    bet = 0.4 / 0.58
    by_hand = [
        min(w for w in range(m + 2) if w > m or w * math.log1p(bet) + (m - w) * math.log1p(-bet) >= math.log(20))
        for m in range(1, 41)
    ]
    assert 0.04 < size <= 0.05
    assert all(bar <= wins for bar, wins in zip(test.needed[1:], by_hand, strict=True))
    assert sequential.crossing([1, *by_hand], 0.5)[-1] < size
    assert sequential.design(ALPHA, BETA, GAIN, pairs=40, ville=True).needed == (1, *by_hand)
    lower = [max(wins - 1, 1) for wins in test.needed]
    assert sequential.crossing(lower, 0.5)[-1] > 0.05


def test_bets_by_hand():
    """Shares are spread evenly over 0 to 1, so that their mean is 1/2 and their mean square 1/3 (midpoints: a little
    less)."""

    def made(wins, losses, ties, mean):
        return float(np.exp(sequential.log_wealth(wins, losses, ties, mean)))

    assert made(0, 0, 0, 0.3) == pytest.approx(1)
    assert made(1, 0, 0, 0) == pytest.approx(1.5)
    assert made(0, 1, 0, 0) == pytest.approx(0.5)
    assert made(0, 0, 7, 0) == pytest.approx(1)
    assert made(1, 1, 0, 0) == pytest.approx(2 / 3, abs=1e-4)
    # stake s / 1.5: a win makes 1 + s / 3, a tie 1 - s / 3
    assert made(1, 0, 0, 0.5) == pytest.approx(1 + 1 / 6)
    assert made(0, 0, 1, 0.5) == pytest.approx(1 - 1 / 6)
    # the bet against a gain of 0.2: stake s / 0.8, a lost pair makes 1 + 1.5 s
    assert made(1, 0, 0, -0.2) == pytest.approx(1.75)


@pytest.mark.parametrize("mean", [-0.3, 0.0, 0.4])
def test_a_bet_is_fair_at_its_mean(mean):
    """From any tally, one pair more whose expected difference is `mean` leaves the expected money as it was."""
    lost = 0.25
    chances = (lost + mean, lost, 1 - 2 * lost - mean) if mean >= 0 else (0.1, 0.1 - mean, 0.8 + mean)
    before = np.exp(sequential.log_wealth(3, 2, 4, mean))
    after = [np.exp(sequential.log_wealth(3 + w, 2 + v, 4 + t, mean)) for w, v, t in np.eye(3)]
    assert np.dot(chances, after) == pytest.approx(float(before))


def test_pairs_are_read_up_to_the_one_that_ends_it(test_of_pairs):
    # (1 + 0.69)^5 = 13.8 is below the bar, and the sixth win lifts it to 23
    assert test_of_pairs.needed[:7] == (1, 2, 3, 4, 5, 6, 6)
    assert test_of_pairs.read([1] * 5) == (Tally(5), None)
    assert test_of_pairs.read([1, 0, 1, 1, 0, 1, 1, 1, -1, -1, -1]) == (Tally(6, 0, 2), "better")
    # stake s / 0.6: k losses make the mean of (1 + 7/3 s)^k, about (3.33^(k+1) - 1) / (7/3 (k + 1)): 13 at 3, 35 at 4
    assert test_of_pairs.read([-1] * 9) == (Tally(0, 4, 0), "short")


def test_worse_and_unreachable():
    patient = sequential.design(ALPHA, BETA, GAIN, pairs=37, prove_worse=True)
    assert patient.read([-1] * 20) == (Tally(0, 6), "worse")
    short = sequential.design(ALPHA, 1e-6, GAIN, pairs=8)
    assert short.needed == (1, 2, 3, 4, 5, 5, 6, 7, 8)
    # after three ties five pairs are left, and all must be won; a fourth tie leaves four, which do not suffice
    assert short.look(Tally(0, 0, 3)) is None
    assert short.look(Tally(0, 0, 4)) == "unreachable"
    assert short.look(Tally(0, 1, 3)) == "unreachable"
    # four more losses would still prove it worse
    both = sequential.design(ALPHA, BETA, GAIN, pairs=8, prove_worse=True)
    assert both.look(Tally(0, 1, 3)) is None and both.look(Tally(0, 1, 4)) == "unreachable"


@pytest.mark.parametrize("prove_worse", [False, True])
def test_the_table_says_what_a_look_says(prove_worse):
    test_of_pairs = sequential.design(ALPHA, BETA, GAIN, 37, prove_worse=prove_worse)
    says = exact.table(test_of_pairs)
    codes = {None: 0, "better": 1, "worse": 2, "short": 3, "unreachable": 3}
    rng = np.random.default_rng(0)
    for _ in range(400):
        pairs = int(rng.integers(1, test_of_pairs.pairs + 1))
        wins, losses, ties = (int(count) for count in rng.multinomial(pairs, (0.4, 0.3, 0.3)))
        assert says[pairs, wins, losses] == codes[test_of_pairs.look(Tally(wins, losses, ties))]


def played(test, differences):
    """What the test says of every row of differences [runs, pairs], and after how many pairs."""
    wins, losses = ((differences == sign).cumsum(1) for sign in (1, -1))
    says = exact.table(test)[np.arange(1, differences.shape[1] + 1), wins, losses]
    ends = (says > 0).argmax(1)
    return says[np.arange(len(says)), ends], ends + 1


@pytest.mark.parametrize(("base", "gain"), [(0.5, 0.0), (0.9, 0.0), (0.3, 0.4), (0.55, 0.4), (0.5, -0.3)])
def test_exact_characteristics_are_those_of_simulation(test_of_pairs, base, gain):
    runs = 6000
    rng = np.random.default_rng(1)
    candidate, incumbent = (rng.random((2, runs, test_of_pairs.pairs)) < np.array([[[base + gain]], [[base]]])).astype(
        int
    )
    said, pairs = played(test_of_pairs, candidate - incumbent)
    known = exact.characteristics(test_of_pairs, *exact.chances(base, gain))
    for code, chance in ((1, known.better), (2, known.worse), (3, known.hold)):
        assert (said == code).mean() == pytest.approx(chance, abs=4 * math.sqrt(0.25 / runs))
    assert pairs.mean() == pytest.approx(known.mean, abs=4 * pairs.std() / math.sqrt(runs))
    assert known.better + known.worse + known.hold == pytest.approx(1)
    assert (pairs < known.ninth).mean() < 0.9 + 0.02 and (pairs <= known.ninth).mean() > 0.9 - 0.02


def test_error_rates_hold_at_every_success_rate():
    """The default test: an equal policy is promoted in at most 5 %, one better by 20 points in at least 90 %."""
    test = exact.plan(ALPHA, BETA, 0.2)
    for base in (0.1, 0.5, 0.9):
        assert exact.characteristics(test, *exact.chances(base, 0.0)).better <= ALPHA
    for base in (0.05, 0.4, 0.75):
        assert exact.characteristics(test, *exact.chances(base, 0.2)).better >= 1 - BETA
    smaller = sequential.design(ALPHA, BETA, 0.2, test.pairs - 8)
    assert exact.characteristics(smaller, *exact.hardest(0.2)).better < 1 - BETA


def test_on_average_it_needs_fewer_pairs_than_a_fixed_test(test_of_pairs):
    """Connor: decisive 0.58, (1.6449 sqrt 0.58 + 1.2816 sqrt 0.42)^2 / 0.16 = 27.2; the exact test needs some more."""
    assert exact.fixed_pairs(ALPHA, BETA, GAIN) == 28
    pairs = exact.fixed_exact(ALPHA, BETA, GAIN)
    assert exact.fixed_power(pairs, ALPHA, *exact.hardest(GAIN)) >= 0.9
    assert exact.fixed_power(pairs - 1, ALPHA, *exact.hardest(GAIN)) < 0.9
    for gain in (0.0, GAIN):
        assert exact.characteristics(test_of_pairs, *exact.chances(0.3, gain)).mean < 0.75 * pairs
    # of 5 pairs that are all decisive, only 5 wins are rare enough: 1/32 <= 0.05 < 6/32
    assert exact.fixed_power(5, 0.05, 0.9, 0.1) == pytest.approx(0.9**5)


def test_interval_holds_the_truth_at_all_times():
    """Runs in which the limits ever leave out the true difference: at most alpha on each side."""
    rng = np.random.default_rng(2)
    differences = rng.choice([1, -1, 0], size=(400, 100), p=[0.4, 0.2, 0.4])
    wins, losses, ties = ((differences == sign).cumsum(1) for sign in (1, -1, 0))
    above = (sequential.log_wealth(wins, losses, ties, 0.2) >= math.log(20)).any(1).mean()
    below = (sequential.log_wealth(losses, wins, ties, -0.2) >= math.log(20)).any(1).mean()
    assert 0 < above <= 0.05 and 0 < below <= 0.05


def test_interval_by_hand():
    assert sequential.interval(Tally(), ALPHA) == pytest.approx((-100, 100), abs=1e-3)
    low, high = sequential.interval(Tally(30, 10, 20), ALPHA)
    assert 0 < low < 100 / 3 < high < 100
    assert sequential.interval(Tally(10, 30, 20), ALPHA) == pytest.approx((-high, -low), abs=1e-3)
    # at its ends the money is exactly 1 / alpha
    assert float(sequential.log_wealth(30, 10, 20, low / 100)) == pytest.approx(math.log(20), abs=1e-3)


def test_a_gain_too_small_to_find_is_refused(monkeypatch):
    monkeypatch.setattr(exact, "MOST_PAIRS", 30)
    with pytest.raises(UserError, match=r"40 points at alpha 0\.05, beta 0\.01"):
        exact.plan(0.05, 0.01, 0.4)
