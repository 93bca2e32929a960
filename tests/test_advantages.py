"""Credit assignment by hand: chunk lengths, two ways to end, and groups (flow_rl: test 10, traps 6 and 7)."""

from __future__ import annotations

import numpy as np
import pytest
from builders import blind_policy, random_contexts, trajectory

from learners.advantages import chunk_reward, gae, group_relative, score


def column(values: list[float], dtype: type = np.float32) -> np.ndarray:
    """[T, 1]."""
    return np.array(values, dtype)[:, None]


def test_rewards_within_a_chunk_are_discounted_by_the_step() -> None:
    reward = np.array([[[1, 2, 4], [0, 0, 8]]], np.float32)
    np.testing.assert_array_equal(chunk_reward(reward, 0.5), [[1 + 1 + 1, 2]])
    assert chunk_reward(reward, 0.5).dtype == np.float32


def test_three_chunks_of_different_lengths_by_hand() -> None:
    go_on = np.zeros((3, 1), bool)
    advantage, returns = gae(
        column([1, 2, 4]), column([1, 2, 3]), column([2, 3, 8]), column([2, 1, 4], np.int64), go_on, go_on,
        gamma=0.5, lam=0.5,
    )  # fmt: skip
    # Discounts 1/4, 1/2, 1/16; errors 1 + 2/4 - 1, 2 + 3/2 - 2, 4 + 8/16 - 3.
    last = 1.5
    middle = 1.5 + 0.5 * 0.5 * last
    first = 0.5 + 0.25 * 0.5 * middle
    np.testing.assert_array_equal(advantage[:, 0], [first, middle, last])
    np.testing.assert_array_equal(returns[:, 0], [first + 1, middle + 2, last + 3])


def test_trap_6_truncation_bootstraps_and_termination_does_not() -> None:
    """One environment goes on, one is terminated, one truncated after the first chunk; both ends cut the trace."""
    ones = np.ones((2, 3), np.float32)
    terminated, truncated = np.zeros((2, 3), bool), np.zeros((2, 3), bool)
    terminated[0, 1] = truncated[0, 2] = True
    advantage, returns = gae(
        ones * 1, ones * 2, ones * 10, np.full((2, 3), 1), terminated, truncated, gamma=0.5, lam=1.0
    )
    np.testing.assert_array_equal(advantage[1], [1 + 5 - 2] * 3)
    np.testing.assert_array_equal(advantage[0], [4 + 0.5 * 4, 1 - 2, 1 + 5 - 2])
    np.testing.assert_array_equal(returns[0], [8, 1, 6])


def test_nothing_beyond_termination_counts_even_if_a_value_is_given() -> None:
    end, alive = np.ones((1, 1), bool), np.zeros((1, 1), bool)
    for worth in (0.0, 1e6):
        advantage, _ = gae(column([1]), column([0]), column([worth]), column([8], int), end, alive, gamma=1.0, lam=0.9)
        assert advantage.item() == 1


@pytest.mark.parametrize("lam", [1.0, 0.95])
@pytest.mark.parametrize("executed", [16, 11], ids=["whole", "ends within a chunk"])
@pytest.mark.parametrize("end", ["terminated", "truncated", "goes on"])
def test_trap_7_returns_do_not_depend_on_the_chunk_length(executed: int, end: str, lam: float) -> None:
    """The same step rewards cut into chunks of 4, 8 or 16: the first state's return is the sum over steps.

    With lambda = 1 whatever the values between; with lambda < 1 where the values are exact.
    """
    gamma, beyond = 0.9, 3.0
    steps = np.random.default_rng(0).normal(size=16).astype(np.float32) * (np.arange(16) < executed)
    tail = 0.0 if end == "terminated" else beyond
    to_go = [sum(gamma ** (i - t) * steps[i] for i in range(t, executed)) + gamma ** (executed - t) * tail
             for t in range(executed + 1)]  # fmt: skip
    for horizon in (4, 8, 16):
        chunks = -(-executed // horizon)
        starts = np.arange(chunks) * horizon
        stops = np.minimum(starts + horizon, executed)
        value = np.array([to_go[t] for t in starts]) if lam < 1 else np.random.default_rng(horizon).normal(size=chunks)
        last = np.zeros((chunks, 1), bool)
        last[-1] = True
        _, returns = gae(
            chunk_reward(steps[: chunks * horizon].reshape(chunks, 1, horizon), gamma),
            column(value), column([*value[1:], beyond]), (stops - starts)[:, None],
            last & (end == "terminated"), last & (end == "truncated"), gamma=gamma, lam=lam,
        )  # fmt: skip
        assert returns[0, 0] == pytest.approx(to_go[0], abs=1e-5)


def test_lambda_zero_is_the_one_chunk_error() -> None:
    rng = np.random.default_rng(0)
    reward, value, following = rng.normal(size=(3, 5, 2)).astype(np.float32)
    steps, no = rng.integers(1, 9, (5, 2)), np.zeros((5, 2), bool)
    advantage, _ = gae(reward, value, following, steps, no, no, gamma=0.9, lam=0.0)
    np.testing.assert_allclose(advantage, reward + 0.9**steps * following - value, rtol=1e-6)


def test_groups_by_hand() -> None:
    returns = np.array([1, 0, 7, 0, 1, 3, 3, 0], np.float32)
    group = np.array([2, 2, 9, 2, 2, 4, 4, 2])
    # Group 2: (1, 0, 0, 1, 0), mean 0.4, standard deviation sqrt(0.24); groups 9 and 4 say nothing.
    spread = np.sqrt(0.24)
    expected = np.array([0.6, -0.4, 0, -0.4, 0.6, 0, 0, -0.4]) / spread
    np.testing.assert_allclose(group_relative(returns, group), expected, rtol=1e-5)
    # Leave one out: against (0, 0, 1, 0) for a success, against (1, 0, 1, 0) for a failure.
    expected = np.array([0.75, -0.5, 0, -0.5, 0.75, 0, 0, -0.5])
    np.testing.assert_allclose(group_relative(returns, group, leave_one_out=True), expected, rtol=1e-6)


def test_score_uses_step_rewards_and_executed_lengths() -> None:
    made = trajectory(blind_policy(), random_contexts(6), chunks=3)
    scored = score(made, gamma=0.5, lam=0.5)
    reward = (made.reward * 0.5 ** np.arange(8)).sum(-1)
    last = reward[2] + 0.5 ** made.steps_executed[2] * made.next_value[2] - made.value[2]
    np.testing.assert_allclose(scored.advantage[2], last, rtol=1e-5)
    np.testing.assert_allclose(scored.returns, scored.advantage + made.value, rtol=1e-6)
    assert scored.trajectory is made and scored.advantage.dtype == scored.returns.dtype == np.float32
