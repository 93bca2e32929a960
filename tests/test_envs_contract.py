"""The conformance suite passes on our environments, in-process and spread, and fails on broken ones."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace

import numpy as np
import pytest

import envs
from envs import contract
from envs.base import Disturbance, VectorEnv
from rl_finetune.errors import UserError
from rl_finetune.types import ActionChunk, ChunkOutcome, FloatArray, Observation, SeedKeys


@pytest.fixture(scope="module")
def spread() -> Iterator[VectorEnv]:
    with envs.make("widowx_reach", 3, workers=2) as env:
        yield env


def keys(*episodes: int, seed: int = 1) -> SeedKeys:
    return SeedKeys(seed, np.arange(len(episodes), dtype=np.int64), np.array(episodes, np.int64))


def chunk(actions: np.ndarray) -> ActionChunk:
    return ActionChunk(actions.astype(np.float32), np.ones(actions.shape, bool))


def test_environment_in_this_process_keeps_the_contract() -> None:
    with envs.make("widowx_reach", 3) as env:
        contract.check(env, make=lambda n: envs.make("widowx_reach", n))


def test_environment_spread_over_processes_keeps_the_contract(spread: VectorEnv) -> None:
    contract.check(spread)


def test_processes_give_what_one_process_gives(spread: VectorEnv) -> None:
    actions = np.random.default_rng(3).normal(size=(3, 8, 7)) * 0.05
    with envs.make("widowx_reach", 3) as here:
        for env in (here, spread):
            env.reset(keys(0, 5, 9))
        ours, theirs = here.step_chunk(chunk(actions)), spread.step_chunk(chunk(actions))
    assert list(contract._differences(ours, theirs, "outcome")) == []


def test_error_inside_a_worker_arrives_here_and_leaves_it_usable(spread: VectorEnv) -> None:
    spread.reset(keys(0, 0, 0))
    bad = np.zeros((3, 8, 7))
    bad[2, 4, 1] = np.inf
    with pytest.raises(UserError, match="environment 2, step 4, channel 1 is not finite"):
        spread.step_chunk(chunk(bad))
    assert spread.step_chunk(chunk(np.zeros((3, 8, 7)))).steps_executed.tolist() == [8, 8, 8]


class Wrapped(VectorEnv):
    """Breaks one rule of an otherwise sound environment."""

    def __init__(self, inner: VectorEnv, spoil: Callable[[ChunkOutcome], ChunkOutcome]) -> None:
        self.inner, self.spoil = inner, spoil
        self.spec, self.num_envs = inner.spec, inner.num_envs

    def reset(self, keys: SeedKeys) -> Observation:
        return self.inner.reset(keys)

    def step_chunk(self, chunk: ActionChunk) -> ChunkOutcome:
        return self.spoil(self.inner.step_chunk(chunk))

    def close(self) -> None:
        self.inner.close()

    def expert(self, privileged: FloatArray, disturbed: Disturbance | None = None) -> np.ndarray:
        return self.inner.expert(privileged, disturbed)


def reward_without_terms(out: ChunkOutcome) -> ChunkOutcome:
    return replace(out, reward=out.reward + 1)


def success_at_the_time_limit(out: ChunkOutcome) -> ChunkOutcome:
    return replace(out, success=out.success | out.truncated)


def final_observation_of_the_next_episode(out: ChunkOutcome) -> ChunkOutcome:
    if out.final_observation is None:
        return out
    return replace(out, final_observation=out.observation.rows(out.final_index))


def truncation_called_termination(out: ChunkOutcome) -> ChunkOutcome:
    return replace(out, truncated=np.zeros_like(out.truncated), terminated=out.terminated | out.truncated)


def wrong_dtype(out: ChunkOutcome) -> ChunkOutcome:
    return replace(out, reward=out.reward.astype(np.float64))


pictures = np.zeros((2, 64, 64, 3), np.uint8)


def reused_buffer(out: ChunkOutcome) -> ChunkOutcome:
    pictures[:] = out.observation.images["ego"]
    return replace(out, observation=replace(out.observation, images={"ego": pictures}))


counter = np.random.default_rng(0)


def noise(out: ChunkOutcome) -> ChunkOutcome:
    assert out.observation.privileged is not None
    moved = out.observation.privileged + counter.normal(size=(1, 1)).astype(np.float32)
    return replace(out, observation=replace(out.observation, privileged=moved))


def bound_to_the_place_in_the_batch(out: ChunkOutcome) -> ChunkOutcome:
    assert out.observation.privileged is not None
    moved = out.observation.privileged + np.arange(2, dtype=np.float32)[:, None]
    return replace(out, observation=replace(out.observation, privileged=moved))


def measured_all_the_time(out: ChunkOutcome) -> ChunkOutcome:
    return replace(out, measures={"spl": np.ones(2, np.float32)})


def stopped_early_for_no_reason(out: ChunkOutcome) -> ChunkOutcome:
    return replace(out, steps_executed=np.minimum(out.steps_executed, 7))


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (reward_without_terms, "reward_terms must sum to reward"),
        (success_at_the_time_limit, "a truncated episode cannot be a success"),
        (final_observation_of_the_next_episode, "is that of the next episode"),
        (truncation_called_termination, "doing nothing never ran into the time limit"),
        (wrong_dtype, "reward must be float32, got float64"),
        (reused_buffer, "an earlier record changed"),
        (bound_to_the_place_in_the_batch, "an episode depends on its place in the batch"),
        (measured_all_the_time, "measure 'spl' must be NaN where no episode ended"),
        (stopped_early_for_no_reason, "a chunk stopped early although no episode ended"),
        (noise, "the same keys and actions gave a different run"),
    ],
)
def test_broken_environment_is_found_out(spoil: Callable[[ChunkOutcome], ChunkOutcome], message: str) -> None:
    with Wrapped(envs.make("widowx_reach", 2), spoil) as env, pytest.raises(contract.ContractError, match=message):
        contract.check(env)


class DeafToGroups(Wrapped):
    """Draws scenes by environment, whatever the group."""

    def reset(self, keys: SeedKeys) -> Observation:
        return super().reset(replace(keys, group=1))


class Unsettled(Wrapped):
    """Who goes on while another begins anew is moved by a micrometre from then on: only the others' history tells."""

    moved = False

    def reset(self, keys: SeedKeys) -> Observation:
        self.moved = False
        return super().reset(keys)

    def step_chunk(self, chunk: ActionChunk) -> ChunkOutcome:
        out = super().step_chunk(chunk)
        assert out.observation.privileged is not None
        out.observation.privileged[...] += 1e-6 * self.moved
        self.moved |= 0 < out.final_index.size < self.num_envs
        return out


def test_environment_whose_neighbours_disturb_it_by_beginning_anew_is_found_out() -> None:
    with (
        Unsettled(envs.make("widowx_reach", 2), lambda out: out) as env,
        pytest.raises(contract.ContractError, match=r"depends on what the others do: chunk \d, environment 0"),
    ):
        contract.check(env)


class KeepsKeys(Wrapped):
    """Counts episodes in the caller's own keys."""

    def reset(self, keys: SeedKeys) -> Observation:
        self.keys = keys
        return super().reset(keys)

    def step_chunk(self, chunk: ActionChunk) -> ChunkOutcome:
        out = super().step_chunk(chunk)
        self.keys.episode[out.final_index] += 1
        return out


def test_environment_that_writes_into_the_callers_keys_is_found_out() -> None:
    with (
        KeepsKeys(envs.make("widowx_reach", 2), lambda out: out) as env,
        pytest.raises(contract.ContractError, match="the caller's keys or actions were written to"),
    ):
        contract.check(env)


def test_environment_that_ignores_groups_is_found_out() -> None:
    with (
        DeafToGroups(envs.make("widowx_reach", 2), lambda out: out) as env,
        pytest.raises(contract.ContractError, match="environments of one group"),
    ):
        contract.check(env)
