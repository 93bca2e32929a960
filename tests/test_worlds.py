"""Every world that MuJoCo simulates keeps the contract, and its judge cannot be had for nothing."""

from __future__ import annotations

import numpy as np
import pytest

import envs
from envs import contract
from envs.expert import expert_chunk
from envs.mujoco.catalogue import WORLDS
from rl_finetune.types import ActionChunk, Observation, SeedKeys

VARIANTS = [(name, {}) for name in WORLDS] + [("franka_reach", {"control": "joint"})]
SCALE = {"delta_ee": 0.03, "joint": 0.1, "waypoint": 0.2, "trace": 0.3}
QUICK = ("widowx_reach", "franka_reach", "aloha_reach", "gr1_reach", "rover_navigate", "widowx_trace", "widowx_moving")


def label(variant: tuple[str, dict[str, str]]) -> str:
    return "-".join([variant[0], *variant[1].values()])


@pytest.mark.parametrize(("name", "options"), VARIANTS, ids=map(label, VARIANTS))
def test_world_keeps_the_contract(name: str, options: dict[str, str]) -> None:
    scale = SCALE[envs.spec(name, **options).embodiment.action.control]
    with envs.make(name, 2, **options) as env:
        skipped = contract.check(env, make=lambda n: envs.make(name, n, **options), scale=scale, chunks=2)
    assert not skipped


@pytest.mark.parametrize("name", QUICK)
def test_expert_succeeds_and_doing_nothing_does_not(name: str) -> None:
    """Success rates are measured by `benchmarks.experts`; here that the judge tells the two apart."""
    with envs.make(name, 12) as env:
        keys = SeedKeys(5, np.arange(12), np.zeros(12, np.int64))
        won = {}
        for who in ("expert", "nobody"):
            seen, running, success = env.reset(keys), np.ones(12, bool), np.zeros(12, bool)
            hold = expert_chunk(env, seen)
            hold.actions[:] = hold.actions[:, :1] if env.spec.embodiment.action.control == "joint" else 0.0
            while running.any():
                chunk = expert_chunk(env, seen) if who == "expert" else ActionChunk(hold.actions, hold.mask)
                out = env.step_chunk(chunk)
                success |= out.success & running
                running &= ~(out.terminated | out.truncated)
                seen = out.observation
            won[who] = int(success.sum())
    assert won["expert"] >= 11
    assert won["nobody"] == 0


@pytest.mark.parametrize("name", ["widowx_reach", "aloha_reach", "rover_navigate"])
def test_progress_pays_each_metre_once_and_success_as_before(name: str) -> None:
    """Over an expert's episode the shaping term adds up to the way that was made, whatever its pieces."""
    keys = SeedKeys(5, np.arange(4), np.zeros(4, np.int64))
    with envs.make(name, 4, progress=2.0) as env:
        seen, running = env.reset(keys), np.ones(4, bool)
        first = _left(seen)
        paid, won, last = np.zeros(4), np.zeros(4), first.copy()
        while running.any():
            outcome = env.step_chunk(expert_chunk(env, seen))
            paid += running * outcome.reward_terms["progress"].sum(-1)
            won += running * outcome.reward_terms["success"].sum(-1)
            np.testing.assert_allclose(sum(outcome.reward_terms.values()), outcome.reward, atol=1e-6)
            last[running] = _left(outcome.observation)[running]
            if outcome.final_observation is not None:
                over = np.isin(np.arange(4), outcome.final_index) & running
                last[over] = _left(outcome.final_observation)[np.isin(outcome.final_index, np.flatnonzero(over))]
            running &= ~(outcome.terminated | outcome.truncated)
            seen = outcome.observation
    np.testing.assert_allclose(paid, 2.0 * (first - last), atol=1e-4)
    assert (won == 1).all() and (first - last > 0.05).all()


def _left(seen: Observation) -> np.ndarray:
    assert seen.privileged is not None
    return np.linalg.norm(seen.privileged[:, :3] - seen.privileged[:, 3:6], axis=-1)
