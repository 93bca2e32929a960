"""Credit assignment by hand: chunk lengths, two ways to end, and groups (flow_rl: test 10, traps 6 and 7)."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from builders import blind_policy, random_contexts, trajectory

from learners.advantages import chunk_reward, credit, first_episodes, gae, group_relative, group_scores, score
from rl_finetune.config.objectives import GRPOSection, PPOSection, RLOOSection
from rl_finetune.types import SeedKeys, Trajectory


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


@pytest.mark.parametrize("rate", [5.0, 50.0])
def test_a_reward_after_eight_seconds_is_worth_the_same_to_every_body(rate: float) -> None:
    """40 steps at 5 Hz or 400 at 50 Hz, in chunks of 8: 0.95^8 = 0.66, where 0.99 a step would leave 0.02 of 400."""
    chunks = int(8 * rate) // 8
    made = trajectory(blind_policy(), random_contexts(chunks), chunks=chunks, whole=True, rate=rate)
    reward, end = np.zeros((chunks, 1, 8), np.float32), np.zeros((chunks, 1), bool)
    reward[-1, 0, -1], end[-1, 0] = 1.0, True
    nothing = np.zeros((chunks, 1), np.float32)
    lasting = replace(made, reward=reward, terminated=end, value=nothing, next_value=nothing)
    worth = score(lasting, gamma=0.95, lam=1.0).returns[0, 0]
    assert worth == pytest.approx(0.95 ** (8 - 1 / rate), rel=1e-5)


def test_an_episode_that_ran_out_of_time_bootstraps_unless_the_time_limit_is_an_end() -> None:
    made = trajectory(blind_policy(), random_contexts(2), chunks=1, whole=True)
    cut = np.array([[True, False]])
    made = replace(made, truncated=cut, value=np.zeros_like(made.value), reward=np.zeros_like(made.reward))
    beyond = 0.5**8 * made.next_value[0]
    for setting, worth in (("truncation", beyond), ("termination", [0, beyond[1]])):
        objective = PPOSection(gamma=0.5, time_limit=setting)
        np.testing.assert_allclose(credit([made], objective)[0].returns[0], worth, rtol=1e-6)


# ---- what a round says of its policy


def test_later_episodes_of_a_round_do_not_count_for_success() -> None:
    """A policy that succeeds in the first chunk in 3 of 4 episodes and otherwise in none of the four that an episode
    may last: every later success is quick, every later failure is cut off by the round."""
    rng, n = np.random.default_rng(0), 4000
    ends = np.zeros((4, n), bool)
    success, cut = ends.copy(), ends.copy()
    for env in range(n):
        now = 0
        while now < 4 and rng.random() < 0.75:
            success[now, env], now = True, now + 1
        cut[3, env] = now == 0
    made = trajectory(blind_policy(), random_contexts(4), chunks=4, whole=True)
    reward = np.repeat(success[..., None] / 8, 8, -1).astype(np.float32)
    played = replace(made, success=success, terminated=success, truncated=cut, failed=ends, reward=reward)
    found = first_episodes(played)
    assert abs(found.success.mean() - 0.75) < 4 * np.sqrt(0.75 * 0.25 / n) and len(found.success) == n
    assert success.sum() / (success.sum() + cut.sum()) > 0.85  # of all that ended
    np.testing.assert_allclose(found.returns, found.success, rtol=1e-6)  # of the first episode alone


# ---- groups of a round

ENDS = ["..S..", "....C", "S...S", "S...C", "C.C..", "..S.S"]
"""One environment a line, one chunk a letter: S success, C cut by the time limit, . goes on. Groups are of two."""


def grouped(ends: list[str] = ENDS, *, first: int = 0, episode: int = 8, group: int = 2) -> Trajectory:
    """Environments `first`...; chunk t of environment e is worth 0.5^t + e, over two of its steps."""
    chunks, n = len(ends[0]), len(ends)
    letters = np.array([list(line) for line in ends]).T
    reward = np.zeros((chunks, n, 8), np.float32)
    reward[..., 2] = 0.5 ** np.arange(chunks)[:, None]
    reward[..., 7] = first + np.arange(n)
    return replace(
        trajectory(blind_policy(), random_contexts(chunks * n), chunks=chunks),
        terminated=letters == "S", success=letters == "S", truncated=letters == "C", reward=reward,
        keys=SeedKeys(3, np.arange(first, first + n), np.full(n, episode), group),
    )  # fmt: skip


USED = [
    "xxx..",  # group 0, episode 8; nobody else has begun episode 9
    "xxxxx",
    "xxxxx",  # group 1: episodes 8 and 9, of which the round cuts none off
    "xxxxx",
    "xxx..",  # group 2: episodes 8 and 9, the second of which the round would cut off next; nobody else is in its third
    "xxxxx",
]


def returns_by_hand(env: int, first: int, last: int) -> float:
    """Undiscounted, over the chunks of an episode."""
    return sum(0.5**t + env for t in range(first, last + 1))


def test_every_chunk_of_a_decided_group_has_the_advantage_of_its_episode() -> None:
    made = grouped()
    (scored,) = group_scores([made], leave_one_out=True)
    pairs = [
        ((0, 0, 2), (1, 0, 4)), ((2, 0, 0), (3, 0, 0)), ((2, 1, 4), (3, 1, 4)), ((4, 0, 0), (5, 0, 2)),
        ((4, 1, 2), (5, 3, 4)),
    ]  # fmt: skip
    expected = np.zeros((5, 6), np.float32)
    for one, other in pairs:
        for (env, first, last), against in ((one, other), (other, one)):
            expected[first : last + 1, env] = returns_by_hand(env, first, last) - returns_by_hand(*against)
    np.testing.assert_allclose(scored.advantage, expected, rtol=1e-5)
    assert np.array_equal(scored.used.T, [[letter == "x" for letter in line] for line in USED])
    assert scored.trajectory is made and not scored.returns.any() and scored.advantage.dtype == np.float32
    (relative,) = group_scores([made], leave_one_out=False)
    np.testing.assert_allclose(relative.advantage, np.sign(expected), rtol=1e-4)  # two members: +-1
    assert np.array_equal(relative.used, scored.used)


@pytest.mark.parametrize("cut", [1, 3, 5])
def test_groups_may_be_spread_over_trajectories(cut: int) -> None:
    (whole,) = group_scores([grouped()], leave_one_out=True)
    parts = group_scores([grouped(ENDS[:cut]), grouped(ENDS[cut:], first=cut)], leave_one_out=True)
    np.testing.assert_allclose(np.concatenate([p.advantage for p in parts], axis=1), whole.advantage, rtol=1e-5)
    assert np.array_equal(np.concatenate([p.used for p in parts], axis=1), whole.used)


def test_episodes_of_other_rounds_are_other_groups() -> None:
    """A success in one round and a failure in the next, in environments of one group."""
    parts = group_scores([grouped(["....S"]), grouped(["....C"], first=1, episode=13)], leave_one_out=True)
    assert not any(p.used.any() or p.advantage.any() for p in parts)
    parts = group_scores([grouped(["....S"]), grouped(["....C"], first=1)], leave_one_out=True)
    assert all(p.used.all() and p.advantage.all() for p in parts)


def rewarded(ends: list[str], reward: list[list[float]]) -> Trajectory:
    """One group; `reward` [N][T] is earned in a chunk's last step."""
    made = grouped(ends, group=len(ends))
    steps = np.zeros_like(made.reward)
    steps[..., -1] = np.array(reward).T
    return replace(made, reward=steps)


def test_an_episode_that_the_round_cuts_off_counts_with_what_it_has() -> None:
    """Four of eight succeed in the fourth chunk, four go on when the round ends: all 32 decisions count."""
    made = rewarded(["...S"] * 4 + ["...."] * 4, [[0, 0, 0, 1]] * 4 + [[0, 0, 0, 0]] * 4)
    (grpo,), (rloo,) = (group_scores([made], leave_one_out=leave) for leave in (False, True))
    assert grpo.used.sum() == rloo.used.sum() == 32
    np.testing.assert_allclose(grpo.advantage, np.tile([1] * 4 + [-1] * 4, (4, 1)), rtol=1e-5)
    np.testing.assert_allclose(rloo.advantage, np.tile([4 / 7] * 4 + [-4 / 7] * 4, (4, 1)), rtol=1e-6)


@pytest.mark.parametrize("ends", [["..S", "..S"], ["..C", "..C"], ["...", "..."], ["..S", "..C"], ["..C", "..."]])
def test_a_group_is_decided_by_its_returns_and_not_by_success(ends: list[str]) -> None:
    for leave_one_out in (False, True):
        for other, says in ((1.25, False), (1.5, True)):
            made = rewarded(ends, [[1, 0, 0.25], [0, 0, other]])
            (scored,) = group_scores([made], leave_one_out=leave_one_out)
            assert (scored.used == says).all() and (scored.advantage != 0).any() == says


def test_environments_without_a_group_have_nobody_to_be_compared_with() -> None:
    (scored,) = group_scores([grouped(group=1)], leave_one_out=True)
    assert not scored.used.any()


def test_the_objective_says_how_credit_is_assigned() -> None:
    made = grouped()
    (gae_,), (grpo,), (rloo,) = (credit([made], s()) for s in (PPOSection, GRPOSection, RLOOSection))
    assert np.array_equal(gae_.advantage, score(made, gamma=0.95, lam=0.95).advantage) and gae_.used.all()
    assert np.array_equal(grpo.advantage, group_scores([made], leave_one_out=False)[0].advantage)
    assert np.array_equal(rloo.advantage, group_scores([made], leave_one_out=True)[0].advantage)
