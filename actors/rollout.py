"""Collect: play chunks with the exploring policy and keep exactly what an objective needs.

encode -> value, sample (Flow-SDE) -> step_chunk -> encode ...      T chunks for N environments, one policy version
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from envs import VectorEnv
from rl_finetune.policy import FlowSDE, QwenVLAPolicy, TorchContext
from rl_finetune.policy.sampler import Transition
from rl_finetune.spec import EmbodimentSpec
from rl_finetune.types import (
    ActionChunk,
    ChunkOutcome,
    FloatArray,
    IntArray,
    Observation,
    SeedKeys,
    Trajectory,
    concatenate,
    concatenate_contexts,
)

NOISE_SAMPLE = 16


@dataclass(frozen=True, slots=True)
class _Decision:
    """One chunk decision of N environments, and what came of it."""

    seen: Observation
    context: TorchContext
    value: FloatArray
    chunk: ActionChunk
    transition: Transition
    outcome: ChunkOutcome


@torch.no_grad()
def collect(
    policy: QwenVLAPolicy,
    env: VectorEnv,
    keys: SeedKeys,
    *,
    chunks: int,
    body: EmbodimentSpec,
    law: FlowSDE,
    cache_contexts: bool,
    policy_version: int,
) -> Trajectory:
    """Play `chunks` chunks in each environment, from the fresh episodes `keys`.

    Args:
        policy: explores with the ODE-SDE hybrid; not changed.
        env: `len(keys)` environments.
        keys: episodes to begin with; where one ends the next has the following number.
        chunks: T.
        body: embodiment, as agreed in the handshake.
        law: sampling law.
        cache_contexts: keep encoded contexts (frozen backbone) rather than observations.
        policy_version: version of the weights.
    """
    seen, decisions = env.reset(keys), []
    episode, number = keys.episode.copy(), np.zeros(len(keys), np.int64)
    for _ in range(chunks):
        context = policy.encode(seen)
        now = SeedKeys(keys.seed, keys.env, episode)
        chunk, transition = policy.sample(context, now, number, body, law)
        outcome = env.step_chunk(chunk)
        decisions.append(_Decision(seen, context, policy.value(context).cpu().numpy(), chunk, transition, outcome))
        ended = outcome.terminated | outcome.truncated
        episode, number = episode + ended, np.where(ended, 0, number + 1)
        seen = outcome.observation
    noise = executed_std(policy, decisions[0].context, keys, decisions[0].chunk, body, law)
    return _trajectory(decisions, _next_values(policy, decisions), keys, cache_contexts, policy_version, noise)


def executed_std(
    policy: QwenVLAPolicy, context: TorchContext, keys: SeedKeys, chunk: ActionChunk, body: EmbodimentSpec, law: FlowSDE
) -> float:
    """What exploration adds to executed first chunks: RMS distance to the ODE's from the same initial noise.

    Over translation channels in metres where the body has them (`delta_ee`), else over all; the first
    `NOISE_SAMPLE` environments only, for it costs another chain.
    """
    n = min(NOISE_SAMPLE, len(keys))
    first = SeedKeys(keys.seed, keys.env[:n], keys.episode[:n])
    plain = policy.act(context.rows(torch.arange(n)), first, np.zeros(n, np.int64), body, 1.0, law.num_steps)
    channels = 3 if body.action.control == "delta_ee" else body.action.channels
    difference = chunk.actions[:n, :, :channels] - plain.actions[:, :, :channels]
    return float(np.sqrt((difference**2).mean()))


def _next_values(policy: QwenVLAPolicy, decisions: list[_Decision]) -> FloatArray:
    """[T, N] value of the state each chunk led to: zero after termination, the final observation's after truncation."""
    following = [d.value for d in decisions[1:]]
    last = decisions[-1].outcome
    tail = np.zeros_like(decisions[0].value)
    open_ = np.flatnonzero(~(last.terminated | last.truncated))
    if open_.size:
        tail[open_] = _values(policy, last.observation.rows(open_))
    values = np.stack([*following, tail])
    for t, decision in enumerate(decisions):
        outcome = decision.outcome
        values[t, outcome.terminated] = 0
        cut = np.flatnonzero(outcome.truncated[outcome.final_index])
        if cut.size and outcome.final_observation is not None:
            values[t, outcome.final_index[cut]] = _values(policy, outcome.final_observation.rows(cut))
    return values


def _values(policy: QwenVLAPolicy, observation: Observation) -> FloatArray:
    return policy.value(policy.encode(observation)).cpu().numpy()


def _trajectory(
    decisions: list[_Decision],
    next_value: FloatArray,
    keys: SeedKeys,
    cache_contexts: bool,
    policy_version: int,
    noise: float,
) -> Trajectory:
    def stacked(name: str) -> np.ndarray:
        return np.stack([getattr(d.outcome, name) for d in decisions])

    def transitions(name: str) -> np.ndarray:
        return np.stack([getattr(d.transition, name).cpu().numpy() for d in decisions])

    executed: IntArray = stacked("steps_executed")
    valid = np.stack([d.chunk.mask for d in decisions])
    horizon = valid.shape[2]
    return Trajectory(
        inputs=concatenate_contexts([d.context.numpy() for d in decisions])
        if cache_contexts
        else concatenate([d.seen for d in decisions]),
        x=transitions("x"),
        x_next=transitions("x_next"),
        step=transitions("step"),
        log_prob=transitions("log_prob"),
        action_mask=valid & (np.arange(horizon) < executed[..., None])[..., None],
        reward=stacked("reward"),
        steps_executed=executed,
        terminated=stacked("terminated"),
        truncated=stacked("truncated"),
        success=stacked("success"),
        value=np.stack([d.value for d in decisions]),
        next_value=next_value,
        executed_std=noise,
        policy_version=policy_version,
        keys=keys,
    )
