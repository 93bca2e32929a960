"""Collect: play chunks with the exploring policy and keep exactly what an objective needs.

look -> value, sample (under the law) -> step_chunk -> look ...      T chunks for N environments, one policy version
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from envs import VectorEnv
from rl_finetune.policy import QwenVLAPolicy, TorchContext
from rl_finetune.policy.calibration import contributions, distance
from rl_finetune.policy.laws import Law
from rl_finetune.policy.policy import Advised, Seen, plain
from rl_finetune.policy.sampler import Transition
from rl_finetune.spec import EmbodimentSpec
from rl_finetune.types import (
    ActionChunk,
    ChunkOutcome,
    Context,
    FloatArray,
    IntArray,
    Observation,
    SeedKeys,
    Trajectory,
    concatenate,
    concatenate_contexts,
)

NOISE_SAMPLE = 16
CONTRIBUTION_SAMPLE = 4
"""Each of these costs one more chain for each denoising step: together a hundredth of a round."""


@dataclass(frozen=True, slots=True)
class _Decision:
    """One chunk decision of N environments, and what came of it."""

    observation: Observation
    seen: Seen
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
    law: Law,
    cache_contexts: bool,
    policy_version: int,
    world: str | None = None,
) -> Trajectory:
    """Play `chunks` chunks in each environment, from the fresh episodes `keys`.

    Args:
        policy: explores under the law; not changed.
        env: `len(keys)` environments.
        keys: episodes to begin with; where one ends the next has the following number.
        chunks: T.
        body: embodiment, as agreed in the handshake.
        law: sampling law.
        cache_contexts: keep encoded contexts (frozen backbone) rather than observations.
        policy_version: version of the weights.
        world: label of the world; None takes the environment's name.
    """
    observation, decisions = env.reset(keys), []
    episode, number = keys.episode.copy(), np.zeros(len(keys), np.int64)
    for _ in range(chunks):
        seen = policy.look(observation)
        chunk, transition = policy.sample(seen, keys.at(episode), number, body, law)
        outcome = env.step_chunk(chunk)
        value = _value(policy, plain(seen), observation)
        decisions.append(_Decision(observation, seen, value, chunk, transition, outcome))
        ended = outcome.terminated | outcome.truncated
        episode, number = episode + ended, np.where(ended, 0, number + 1)
        observation = outcome.observation
    exploration = _explored(policy, decisions[0], keys, body, law)
    next_value = _next_values(policy, decisions)
    label, rate = world or env.spec.name, body.action.rate
    return _trajectory(decisions, next_value, keys, cache_contexts, policy_version, exploration, label, rate)


def executed_std(
    policy: QwenVLAPolicy, seen: Seen, keys: SeedKeys, chunk: ActionChunk, body: EmbodimentSpec, law: Law
) -> float:
    """What exploration adds to executed first chunks: `calibration.distance` to the ODE's from the same initial noise.

    The first `NOISE_SAMPLE` environments only, for it costs another chain.
    """
    n = min(NOISE_SAMPLE, len(keys))
    alone = policy.act(
        seen.rows(torch.arange(n)), keys.rows(slice(0, n)), np.zeros(n, np.int64), body, law.temperature, law.num_steps
    )
    return distance(chunk.actions[:n], alone.actions, body)


def _explored(
    policy: QwenVLAPolicy, first: _Decision, keys: SeedKeys, body: EmbodimentSpec, law: Law
) -> tuple[float, FloatArray]:
    """Executed standard deviation, and each denoising step's contribution from `CONTRIBUTION_SAMPLE` environments."""
    n = min(CONTRIBUTION_SAMPLE, len(keys))
    steps = contributions(policy, first.seen.rows(torch.arange(n)), keys.rows(slice(0, n)), body, law)
    return executed_std(policy, first.seen, keys, first.chunk, body, law), steps


def _next_values(policy: QwenVLAPolicy, decisions: list[_Decision]) -> FloatArray:
    """[T, N] value of the state each chunk led to: zero after termination and where a world broke down, the final
    observation's after truncation.

    Without a critic all are zero, and the observations that only they need are not encoded.
    """
    if policy.critic == "none":
        return np.zeros((len(decisions), *decisions[0].value.shape), np.float32)
    following = [d.value for d in decisions[1:]]
    last = decisions[-1].outcome
    tail = np.zeros_like(decisions[0].value)
    open_ = np.flatnonzero(~(last.terminated | last.truncated))
    if open_.size:
        tail[open_] = _values(policy, last.observation.rows(open_))
    values = np.stack([*following, tail])
    for t, decision in enumerate(decisions):
        outcome = decision.outcome
        values[t, outcome.terminated | outcome.failed] = 0
        cut = np.flatnonzero((outcome.truncated & ~outcome.failed)[outcome.final_index])
        if cut.size and outcome.final_observation is not None:
            values[t, outcome.final_index[cut]] = _values(policy, outcome.final_observation.rows(cut))
    return values


def _values(policy: QwenVLAPolicy, observation: Observation) -> FloatArray:
    context = policy.encode(observation) if policy.critic == "linear" else None
    return _value(policy, context, observation)


def _value(policy: QwenVLAPolicy, context: TorchContext | None, observation: Observation) -> FloatArray:
    """[N] by the policy's critic; the privileged one needs no context."""
    state = None if observation.privileged is None else torch.from_numpy(observation.privileged).to(policy.device)
    if policy.critic == "none":
        return np.zeros(len(observation), np.float32)
    return policy.value(context, state).cpu().numpy()


def _trajectory(
    decisions: list[_Decision],
    next_value: FloatArray,
    keys: SeedKeys,
    cache_contexts: bool,
    policy_version: int,
    exploration: tuple[float, FloatArray],
    world: str,
    rate: float,
) -> Trajectory:
    def stacked(name: str) -> np.ndarray:
        return np.stack([getattr(d.outcome, name) for d in decisions])

    def transitions(name: str) -> np.ndarray:
        return np.stack([getattr(d.transition, name).cpu().numpy() for d in decisions])

    def contexts(parts: list[TorchContext]) -> Context:
        return concatenate_contexts([part.numpy() for part in parts])

    executed: IntArray = stacked("steps_executed")
    seen = [d.seen for d in decisions]
    advised = [s for s in seen if isinstance(s, Advised)]
    states = [d.observation.privileged for d in decisions if d.observation.privileged is not None]
    valid = np.stack([d.chunk.mask for d in decisions])
    horizon = valid.shape[2]
    return Trajectory(
        inputs=contexts([plain(s) for s in seen])
        if cache_contexts
        else concatenate([d.observation for d in decisions]),
        states=transitions("states"),
        step=transitions("step"),
        log_prob=transitions("log_prob"),
        sample=transitions("sample"),
        action_mask=valid & (np.arange(horizon) < executed[..., None])[..., None],
        reward=stacked("reward"),
        steps_executed=executed,
        terminated=stacked("terminated"),
        truncated=stacked("truncated"),
        success=stacked("success"),
        failed=stacked("failed"),
        value=np.stack([d.value for d in decisions]),
        next_value=next_value,
        privileged=np.stack(states) if states else None,
        advised=(contexts([a.good for a in advised]), contexts([a.bad for a in advised])) if advised else None,
        executed_std=exploration[0],
        contribution=exploration[1],
        policy_version=policy_version,
        keys=keys,
        embodiment=decisions[0].observation.embodiment,
        world=world,
        rate=rate,
        failures=tuple(failure for d in decisions for failure in d.outcome.failures),
    )
