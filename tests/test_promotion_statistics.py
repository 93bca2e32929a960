"""Intervals and tests of the gates against closed forms, numbers worked by hand, and exact sums over all outcomes."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.optimize import minimize_scalar

from rl_finetune.metrics.intervals import paired_gain, wilson
from rl_finetune.promotion.statistics import (
    calls_needed,
    chance_shown,
    correlation_of,
    difference,
    draw_pairs,
    episodes_needed,
    least,
    mcnemar,
    quantile,
    score,
    score_gain,
    score_interval,
    z_of,
)  # fmt: skip

LEVEL = 0.025
Z = 1.959964


@pytest.mark.parametrize("n", [1, 20, 600])
def test_without_an_episode_that_differs_the_limits_have_a_closed_form(n) -> None:
    # No win, no loss: T(d) = -n d / sqrt(n d (1 - d)), which is -z at d = z^2 / (n + z^2).
    end = Z**2 / (n + Z**2)
    assert score_interval(0, 0, n, LEVEL) == (pytest.approx(-end, abs=1e-6), pytest.approx(end, abs=1e-6))


def test_all_won_touches_the_end_and_sides_are_mirrored() -> None:
    low, high = score_interval(50, 0, 50, LEVEL)
    assert high == 1.0 and 0.8 < low < 1
    for won, lost in ((12, 2), (50, 0), (7, 7)):
        low, high = score_interval(won, lost, 50, LEVEL)
        assert score_interval(lost, won, 50, LEVEL) == (pytest.approx(-high), pytest.approx(-low))


def test_at_no_difference_the_statistic_is_mcnemars() -> None:
    assert score(9, 1, 50, 0.0) == pytest.approx(8 / math.sqrt(10))


@pytest.mark.parametrize(
    ("won", "lost", "n", "d"), [(12, 2, 50, 0.05), (12, 2, 50, -0.1), (0, 4, 30, 0.2), (3, 40, 60, -0.5)]
)
def test_the_statistic_agrees_with_a_likelihood_maximised_by_search(won, lost, n, d) -> None:
    def surprise(q: float) -> float:
        shares = (q + d, q, 1 - 2 * q - d)
        return -sum(k * math.log(p) for k, p in zip((won, lost, n - won - lost), shares, strict=True) if k)

    low, high = max(0.0, -d) + 1e-12, (1 - d) / 2 - 1e-12
    q = minimize_scalar(surprise, bounds=(low, high), method="bounded", options={"xatol": 1e-12}).x
    expected = (won - lost - n * d) / math.sqrt(n * (2 * q + d - d * d))
    assert score(won, lost, n, d) == pytest.approx(expected, rel=1e-4)


def test_limits_are_where_the_statistic_is_z() -> None:
    low, high = score_interval(40, 20, 160, LEVEL)
    assert (score(40, 20, 160, low), score(40, 20, 160, high)) == (
        pytest.approx(Z, abs=1e-5),
        pytest.approx(-Z, abs=1e-5),
    )


def test_score_gain_counts_and_refuses() -> None:
    gain = score_gain([True, True, False, False], [True, False, True, True], LEVEL)
    assert (gain.points, gain.won, gain.lost, gain.episodes) == (25.0, 2, 1, 4)
    assert gain.interval == tuple(100 * limit for limit in score_interval(2, 1, 4, LEVEL))
    with pytest.raises(ValueError, match="got 0 before, 0 after"):
        score_gain([], [], LEVEL)
    with pytest.raises(ValueError, match="got 5, 6"):
        score_interval(5, 6, 10, LEVEL)


def test_chance_shown_by_hand() -> None:
    # Two episodes, z = 0.253: shown by (2 won), (1 won, 1 the same), not by (1, 1): p^2 + 2 p r with p = 0.5, r = 0.4.
    assert chance_shown(0.4, 0.6, 2, level=0.4) == pytest.approx(0.25 + 0.4)


@pytest.mark.parametrize("n", [100, 300])
@pytest.mark.parametrize("margin", [0.0, 0.05, 0.1])
def test_a_policy_at_the_bound_is_passed_no_more_often_than_the_level_says(n, margin) -> None:
    errors = [chance_shown(-margin, margin + more, n, level=LEVEL, margin=margin) for more in (0.0, 0.01, 0.1, 0.3)]
    assert max(errors) < LEVEL * 1.1
    assert errors[-1] > LEVEL * 0.8, "the test is not just timid"


def test_why_not_the_interval_of_the_reports() -> None:
    """Losing one in ten, never winning: 100 episodes that show a loss below 10 points are errors."""
    level = {"tango": 0.0, "reports": 0.0}
    for lost in range(101):
        chance = math.comb(100, lost) * 0.1**lost * 0.9 ** (100 - lost)
        after = [False] * lost + [True] * (100 - lost)
        level["tango"] += chance * (score_interval(0, lost, 100, LEVEL)[0] > -0.1)
        level["reports"] += chance * (paired_gain([True] * 100, after).interval[0] > -10)
    assert level["tango"] < 0.025 < 0.05 < level["reports"]


def test_exact_mcnemar_by_hand() -> None:
    # 3 or more of 4 fair coins: 5/16; counting "exactly 3" (4/16) half: 3/16.
    assert mcnemar(3, 1) == pytest.approx(5 / 16)
    assert mcnemar(3, 1, mid=True) == pytest.approx(3 / 16)
    assert (mcnemar(0, 0), mcnemar(0, 0, mid=True)) == (1.0, 0.5)


def test_sample_size_by_hand_and_against_exact_power() -> None:
    # (1.959964 + 1.281552)^2 = 10.5074; times (0.505 - 0.01) / 0.01 = 520.1.
    n = episodes_needed(0.1, 0.505, level=LEVEL, power=0.9)
    assert n == 521
    assert chance_shown(0.1, 0.505, n, level=LEVEL) == pytest.approx(0.9, abs=0.01)
    with_margin = episodes_needed(0.0, 0.3, level=LEVEL, power=0.8, margin=0.1)
    assert chance_shown(0.0, 0.3, with_margin, level=LEVEL, margin=0.1) == pytest.approx(0.8, abs=0.02)
    with pytest.raises(ValueError, match="expected above 0"):
        episodes_needed(-0.1, 0.3, level=LEVEL, power=0.8, margin=0.1)


def test_least_and_difference_by_hand() -> None:
    near = [(0.5, (0.4, 0.6)), (0.45, (0.42, 0.5))]
    far = [(0.5, (0.3, 0.7)), (0.45, (0.4, 0.55))]
    assert least(near, far) == (0.45, (0.4, 0.55))
    value, (low, high) = difference((0.5, (0.4, 0.6)), (0.3, (0.2, 0.5)))
    assert (value, low, high) == pytest.approx((0.2, 0.2 - math.hypot(0.1, 0.2), 0.2 + math.hypot(0.1, 0.1)))
    # Wholly correlated, distances 0.1 and 0.2 leave 0.1, and 0.1 and 0.1 leave nothing.
    assert difference((0.5, (0.4, 0.6)), (0.3, (0.2, 0.5)), 1.0)[1] == pytest.approx((0.1, 0.2))


def test_correlation_of_means_by_hand() -> None:
    # Rates 1/2 and 1/2, together in 1/2: (1/2 - 1/4) / (1/4) = 1. With a world that pairs the other way: 0.
    same, opposite = ([True, False], [True, False]), ([True, False], [False, True])
    assert correlation_of([same]) == pytest.approx(1.0)
    assert correlation_of([same, opposite]) == pytest.approx(0.0)
    assert correlation_of([([True, True], [True, False])]) == 0.0


def test_limits_of_the_worst_of_three_equal_worlds_are_wrong_as_seldom_as_they_say() -> None:
    runs, n, truth = 2000, 100, 0.6
    successes = np.random.default_rng(0).binomial(n, truth, (runs, 3))
    wrong = np.zeros(2)
    for row in successes.tolist():
        near, far = ([(k / n, wilson(k, n, z_of(at))) for k in row] for at in (LEVEL, LEVEL / 3))
        _, (low, high) = least(near, far)
        wrong += low > truth, high < truth
    slack = 3 * math.sqrt(LEVEL * (1 - LEVEL) / runs)
    assert (wrong / runs < LEVEL + slack).all()
    assert wrong[1] > 0, "the upper limit is not out of reach"


def test_limits_of_a_median_by_hand() -> None:
    # Ten values: P(at most 1 below the median) = 11/1024, of at most 2 = 56/1024: ranks 2 and 9.
    assert quantile(list(range(10, 0, -1)), 0.5, LEVEL) == (5, (2, 9))


def test_the_99th_percentile_needs_368_calls() -> None:
    # 0.99^367 = 0.02501, 0.99^368 = 0.02476.
    assert calls_needed(0.99, LEVEL) == 368
    assert quantile([1.0] * 367, 0.99, LEVEL)[1][1] is None
    assert quantile([1.0] * 367 + [2.0], 0.99, LEVEL)[1] == (1.0, 2.0)
    assert quantile([3.0], 0.5, LEVEL) == (3.0, (0.0, None))
    with pytest.raises(ValueError, match="got none"):
        quantile([], 0.5, LEVEL)


def test_drawn_pairs_have_their_rates_and_their_correlation() -> None:
    before, after = draw_pairs(np.random.default_rng(0), (100_000,), 0.6, 0.7, 0.5)
    assert (before.mean(), after.mean()) == pytest.approx((0.6, 0.7), abs=0.01)
    assert np.corrcoef(before, after)[0, 1] == pytest.approx(0.5, abs=0.02)
    before, after = draw_pairs(np.random.default_rng(0), (1000,), 0.0, 1.0)
    assert not before.any() and after.all()
    with pytest.raises(ValueError, match="correlation"):
        draw_pairs(np.random.default_rng(0), (1,), 0.1, 0.9, 0.9)
