"""A simulated world that breaks down is named and replaced, and nobody else notices."""

from __future__ import annotations

import numpy as np
import pytest

import envs
from envs.expert import expert_chunk
from envs.mujoco.world import World
from rl_finetune.types import ActionChunk, ChunkOutcome, SeedKeys

N = 4
KEYS = SeedKeys(11, np.arange(20, 20 + N), np.zeros(N, np.int64))
VICTIM = 2


def play(env: World, spoil: float | None) -> list[ChunkOutcome]:
    """Three chunks of the expert; before the second the victim's state is spoilt."""
    seen, outcomes = env.reset(KEYS), []
    for number in range(3):
        chunk = expert_chunk(env, seen, keys=KEYS, chunk=number, noise=0.05)
        still = ActionChunk(chunk.actions * 0.2, chunk.mask)
        if number == 1 and spoil is not None:
            env._engine._state[VICTIM, 3] = spoil  # type: ignore[attr-defined]  # a joint position
        outcomes.append(env.step_chunk(still))
        seen = outcomes[-1].observation
    return outcomes


@pytest.mark.parametrize("spoil", [np.nan, 1e12], ids=["nan", "absurd"])
def test_a_broken_world_is_named_and_begins_its_next_episode(spoil: float) -> None:
    with envs.make("widowx_reach", N) as env:
        assert isinstance(env, World)
        calm, broken = play(env, None), play(env, spoil)
        following = env.reset(KEYS.at(KEYS.episode + 1))
    (failure,) = broken[1].failures
    assert (failure.row, failure.world, failure.seed, failure.env, failure.episode) == (2, "widowx_reach", 11, 22, 0)
    assert broken[1].truncated[VICTIM] and not broken[1].success[VICTIM] and not broken[1].reward[VICTIM].any()
    assert broken[1].failed.tolist() == [False, False, True, False]
    assert broken[1].final_observation is not None and broken[1].final_observation.privileged is not None
    assert np.isfinite(broken[1].final_observation.privileged).all()
    begun = broken[1].observation
    assert np.array_equal(begun.images["ego"][VICTIM], following.images["ego"][VICTIM])
    others = [row for row in range(N) if row != VICTIM]
    for one, two in zip(calm, broken, strict=True):
        assert np.array_equal(one.observation.images["ego"][others], two.observation.images["ego"][others])
        assert np.array_equal(one.reward[others], two.reward[others])


def test_an_episode_whose_world_broke_down_is_not_measured() -> None:
    keys = SeedKeys(11, np.arange(2), np.zeros(2, np.int64))
    with envs.make("rover_navigate", 2) as env:
        assert isinstance(env, World)
        env.reset(keys)
        action = env.spec.embodiment.action
        still = np.zeros((2, action.horizon, action.channels), np.float32)
        env._engine._state[1, 1] = np.nan  # type: ignore[attr-defined]
        out = env.step_chunk(ActionChunk(still, np.ones(still.shape, bool)))
    assert out.failed.tolist() == [False, True] and out.measures
    assert all(np.isnan(values).all() for values in out.measures.values())
