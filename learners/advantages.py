"""Credit assignment over chunks, with every discount counted in environment steps.

A chunk is one decision that lasts `steps` environment steps: its reward is sum_h gamma^h r_h and the state after it is
worth gamma^steps, so that the return does not depend on the chunk length H (flow_rl, trap 7). The setting is the
discount of a second; a step at rate f has its f-th root, so that neither does the horizon depend on the rate.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from rl_finetune.config.objectives import ObjectiveSection
from rl_finetune.types import BoolArray, FloatArray, IntArray, ScoredTrajectory, Trajectory

EPSILON = 1e-6


def chunk_reward(reward: FloatArray, gamma: float) -> FloatArray:
    """Discounted sum [...] of the step rewards [..., H] within a chunk."""
    return (reward * gamma ** np.arange(reward.shape[-1])).sum(-1).astype(np.float32)


def gae(
    reward: FloatArray,
    value: FloatArray,
    next_value: FloatArray,
    steps: IntArray,
    terminated: BoolArray,
    truncated: BoolArray,
    *,
    gamma: float,
    lam: float,
) -> tuple[FloatArray, FloatArray]:
    """Generalised advantage estimation (Schulman et al. 2016) over chunks.

    Args:
        reward: [T, N] discounted within the chunk, see `chunk_reward`.
        value: [T, N] of the state in which the chunk was chosen.
        next_value: [T, N] of the state it led to; of the final observation where an episode was truncated.
        steps: [T, N] environment steps executed.
        terminated: [T, N]; nothing is worth anything beyond it.
        truncated: [T, N]; bootstraps from `next_value`, and the trace ends.
        gamma: discount per environment step.
        lam: lambda per chunk.

    Returns:
        Advantages [T, N] and returns [T, N] = advantage + value.
    """
    discount = gamma**steps
    delta = reward + discount * next_value * ~terminated - value
    goes_on = ~(terminated | truncated)
    advantage = np.zeros_like(value)
    later = np.zeros_like(value[0])
    for t in reversed(range(len(value))):
        later = delta[t] + discount[t] * lam * goes_on[t] * later
        advantage[t] = later
    return advantage, advantage + value


def group_relative(returns: FloatArray, group: IntArray, *, leave_one_out: bool = False) -> FloatArray:
    """Advantage of each episode against others that began in the same state.

    Args:
        returns: [N] of whole episodes.
        group: [N] group number; members share the reset state.
        leave_one_out: RLOO's baseline (mean of the others) in place of GRPO's (R - mean) / (std + 1e-6).

    Returns:
        [N]; zero where a group has one member, or all members did equally well.
    """
    advantage = np.zeros_like(returns)
    for number in np.unique(group[decided(returns, group)]):
        rows = group == number
        members, size = returns[rows], int(rows.sum())
        centred = members - members.mean()
        advantage[rows] = centred * size / (size - 1) if leave_one_out else centred / (members.std() + EPSILON)
    return advantage


def decided(returns: FloatArray, group: IntArray) -> BoolArray:
    """[N] whether the returns within the episode's group differ; False where it has no other member."""
    names, place = np.unique(group, return_inverse=True)
    low, high = np.full(len(names), np.inf), np.full(len(names), -np.inf)
    np.minimum.at(low, place, returns)
    np.maximum.at(high, place, returns)
    return (low < high)[place]


def score(
    trajectory: Trajectory, *, gamma: float, lam: float, time_limit: Literal["truncation", "termination"] = "truncation"
) -> ScoredTrajectory:
    """Attach GAE advantages and returns; episodes that a broken world ended have none and are left out.

    Args:
        trajectory: its `rate` says how many environment steps make a second.
        gamma: discount per second.
        lam: lambda per chunk.
        time_limit: whether `truncated` bootstraps or counts as an end.
    """
    t, per_step = trajectory, gamma ** (1 / trajectory.rate)
    ends_there = t.truncated & (time_limit == "termination")
    advantage, returns = gae(
        chunk_reward(t.reward, per_step), t.value, t.next_value, t.steps_executed, t.terminated | ends_there,
        t.truncated, gamma=per_step, lam=lam,
    )  # fmt: skip
    used = ~broken(t)
    advantage, returns = np.where(used, advantage, 0), np.where(used, returns, t.value)
    return ScoredTrajectory(t, advantage.astype(np.float32), returns.astype(np.float32), used)


def broken(t: Trajectory) -> BoolArray:
    """[T, N] whether the decision belongs to an episode that ended because its world broke down."""
    found, later = np.zeros_like(t.failed), np.zeros_like(t.failed[0])
    ended = t.terminated | t.truncated | t.failed
    for now in reversed(range(len(found))):
        later = np.where(ended[now], t.failed[now], later)
        found[now] = later
    return found


def group_scores(trajectories: list[Trajectory], *, leave_one_out: bool) -> list[ScoredTrajectory]:
    """Give every chunk of an episode the advantage of that episode within its group.

    A group is all episodes of the round with the same initial state, whichever actors played them; a return is the
    undiscounted sum of rewards. An episode that the round cuts off counts with what it has until then: how much time is
    left when it begins does not depend on its own actions, so that the gradient is that of the return within the round.
    Without them an episode would count only if it ends soon. A group whose returns are all equal decides nothing and is
    left out, as are episodes that a broken world ended.
    """
    episodes = [_episodes(t) for t in trajectories]
    returns = np.concatenate([e.returns for e in episodes])
    _, group = np.unique(np.concatenate([e.beginning for e in episodes]), axis=0, return_inverse=True)
    group = group.reshape(-1)
    counts, advantage = decided(returns, group), group_relative(returns, group, leave_one_out=leave_one_out)
    scored, first = [], 0
    for trajectory, found in zip(trajectories, episodes, strict=True):
        rows = slice(first, first + len(found.returns))
        known, used = np.append(advantage[rows], 0).astype(np.float32), np.append(counts[rows], False)
        nothing = np.zeros_like(trajectory.value)
        scored.append(ScoredTrajectory(trajectory, known[found.number], nothing, used[found.number]))
        first = rows.stop
    return scored


@dataclass(frozen=True, slots=True)
class _Episodes:
    """E episodes of one trajectory, without those that a broken world ended."""

    number: IntArray
    """[T, N] which of them a chunk belongs to; -1 in an episode that a broken world ended."""
    beginning: IntArray
    """[E, 2] scene and episode number."""
    returns: FloatArray
    """[E] undiscounted, within the trajectory."""


def _episodes(t: Trajectory) -> _Episodes:
    number = np.full(t.value.shape, -1, np.int64)
    beginning: list[tuple[int, int]] = []
    returns: list[float] = []
    gained, ended = t.reward.sum(-1), t.terminated | t.truncated | t.failed
    ended[-1] = True
    for env in range(t.value.shape[1]):
        first = 0
        for episode, last in enumerate(np.flatnonzero(ended[:, env]).tolist()):
            chunks, first = slice(first, last + 1), last + 1
            if t.failed[last, env]:
                continue
            number[chunks, env] = len(returns)
            beginning.append((int(t.keys.scene[env]), int(t.keys.episode[env]) + episode))
            returns.append(float(gained[chunks, env].sum()))
    return _Episodes(number, np.array(beginning, np.int64).reshape(-1, 2), np.array(returns, np.float32))


@dataclass(frozen=True, slots=True)
class FirstEpisodes:
    """The episode that each of N environments began the round with, but for the B that a broken world ended."""

    success: BoolArray
    """[N - B] within the round."""
    returns: FloatArray
    """[N - B] undiscounted, within the round."""


def first_episodes(t: Trajectory) -> FirstEpisodes:
    """What a round says of its policy without leaning to quick episodes.

    Each environment counts once, whatever came of it. Later episodes must not: only those that end before the round
    does would be seen, and successes end sooner than failures. Where a round is as long as an episode the mean is
    unbiased; where it is shorter, an episode that the round cut off counts with what it has, which bounds success from
    below.
    """
    ended = t.terminated | t.truncated | t.failed
    within: BoolArray = np.cumsum(ended, axis=0) - ended == 0
    whole = ~np.any(t.failed & within, axis=0)
    success, returns = np.any(t.success & within, axis=0), (t.reward.sum(-1) * within).sum(0)
    return FirstEpisodes(np.asarray(success)[whole], returns[whole].astype(np.float32))


def credit(trajectories: list[Trajectory], objective: ObjectiveSection) -> list[ScoredTrajectory]:
    """Score a round as the objective's settings say."""
    if objective.credit == "gae":
        return [
            score(t, gamma=objective.gamma, lam=objective.lam, time_limit=objective.time_limit) for t in trajectories
        ]
    return group_scores(trajectories, leave_one_out=objective.credit == "leave_one_out")
