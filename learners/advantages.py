"""Credit assignment over chunks, with every discount counted in environment steps.

A chunk is one decision that lasts `steps` environment steps: its reward is sum_h gamma^h r_h and the state after it is
worth gamma^steps, so that the return does not depend on the chunk length H (flow_rl, trap 7).
"""

from __future__ import annotations

import numpy as np

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
    for number in np.unique(group):
        rows = group == number
        members, size = returns[rows], int(rows.sum())
        if size < 2 or np.ptp(members) == 0:
            continue
        centred = members - members.mean()
        advantage[rows] = centred * size / (size - 1) if leave_one_out else centred / (members.std() + EPSILON)
    return advantage


def score(trajectory: Trajectory, *, gamma: float, lam: float) -> ScoredTrajectory:
    """Attach GAE advantages and returns."""
    t = trajectory
    advantage, returns = gae(
        chunk_reward(t.reward, gamma), t.value, t.next_value, t.steps_executed, t.terminated, t.truncated,
        gamma=gamma, lam=lam,
    )  # fmt: skip
    return ScoredTrajectory(t, advantage.astype(np.float32), returns.astype(np.float32))
