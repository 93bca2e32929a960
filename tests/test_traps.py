"""Ten mistakes that other systems shipped (flow_rl), each against a test that would catch it.

    1  sampler and scorer on different time grids       first ratios are 1 on the sampler's grid, and on no other
    2  one SDE index a batch, from a global generator   indices differ, and follow from keys alone
    3  first-step sigma blown up by clamping tau        its standard deviation is the level, for any N
    4  log-probability over padded channels             it is a sum over valid channels of executed steps
    5  noise drawn in bfloat16                          noise and chain have more digits than that
    6  truncation treated as termination                the value of what was cut off counts
    7  gamma per chunk                                  returns do not depend on the chunk length
    8  a dropped object counted as success              what counts is how the episode ended
    9  a frozen reference worked out in each epoch      passes of backbone and decoder are counted
    10 asynchronous runs without evaluation             a run with lag is judged twice and logs its staleness

The tests bear these numbers. Where it is short, the mistake is made here on purpose, and must look different.
"""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from builders import HORIZON, WIDTH, blind_policy, episode_keys, observations, random_contexts, tiny_policy, trajectory
from torch import Tensor

from actors.evaluator import EpisodeResults
from envs.mujoco.bodies.widowx import WidowX
from envs.mujoco.task import EpisodeKey, Now
from envs.mujoco.tasks.reach import Layout, Reach
from envs.mujoco.world import ends
from learners.advantages import chunk_reward, gae, score
from learners.batch import flatten
from learners.objectives import OBJECTIVES
from learners.update import Recipe, prepare, recipe, run_update, velocities
from learners.views import Densities
from rl_finetune.algorithm import job as jobs
from rl_finetune.algorithm.summary import Clock, iteration_row
from rl_finetune.checkpoint import RunState, complete
from rl_finetune.config import TrainConfig, load
from rl_finetune.config.objectives import DecoupledPPOSection, PPOSection
from rl_finetune.policy import FlowSDE, QwenVLAPolicy
from rl_finetune.policy.flow import euler_grid, sde_step
from rl_finetune.policy.laws import law_of
from rl_finetune.policy.sampler import Noise, draw_noise, sample, transition_mean
from rl_finetune.types import ScoredTrajectory, UpdateReport

LAW = FlowSDE(4, 0.5)


def scored(policy: QwenVLAPolicy, inputs: Any, **changes: Any) -> list[ScoredTrajectory]:
    return [score(trajectory(policy, inputs, **changes), gamma=0.99, lam=0.95)]


def first_error(policy: QwenVLAPolicy, data: list[ScoredTrajectory], law: FlowSDE) -> float:
    given = Recipe(PPOSection(epochs=1, minibatch=32), OBJECTIVES["ppo"], law)
    return run_update(policy, data, given, optimise=lambda loss: None, seed=0, version=0).first_ratio_error


def noise_of(num: int, first: int = 0, law: FlowSDE = LAW) -> Noise:
    return draw_noise(episode_keys(num, first=first), np.zeros(num, np.int64), HORIZON, WIDTH, law)


def test_1_sampler_and_scorer_share_their_grid() -> None:
    policy = blind_policy()
    data = scored(policy, random_contexts(32), law=LAW)
    assert first_error(policy, data, LAW) < 1e-4
    assert first_error(policy, data, replace(LAW, num_steps=5)) > 0.1
    for words in ([], ["exploration.law=flow_noise"], ["rollout.denoising_steps=6"]):
        job = load(TrainConfig, None, words)
        assert recipe(job).law == law_of(job)  # and actors ask `law_of` too: there is no other place


def test_2_stochastic_steps_follow_from_keys() -> None:
    """In a batch of 64, and in the same 64 as two batches under another state of the global generators."""
    whole = noise_of(64)
    assert len(whole.step.unique()) == 4  # the mistake has one
    torch.manual_seed(1)
    np.random.seed(1)
    parts = [noise_of(16), noise_of(48, first=16)]
    for name in ("start", "transition", "step"):
        assert torch.equal(torch.cat([getattr(part, name) for part in parts]), getattr(whole, name))


@pytest.mark.parametrize("num_steps", [2, 4, 10, 100])
def test_3_first_step_is_as_noisy_as_its_level(num_steps: int) -> None:
    """sigma = a sqrt(1 / (1 - tau_1)), so that std = sigma sqrt(delta) = a."""
    grid, zero = euler_grid(num_steps), torch.zeros(1)
    _, std = sde_step(zero, zero, grid[0], grid[1], 0.5)
    assert std.item() == pytest.approx(0.5, rel=1e-5)
    clamped = 1 - 1e-3
    mistaken = 0.5 * math.sqrt(clamped / (1 - clamped) / num_steps)
    assert mistaken > 3 * std.item()


def test_4_log_probability_is_of_valid_channels_and_executed_steps() -> None:
    policy, context = blind_policy(), random_contexts(12)
    made = trajectory(policy, context, law=LAW)
    batch = flatten([score(made, gamma=0.99, lam=0.95)], normalise=True)
    view = Densities(batch, LAW)
    v = velocities(policy, context, view.x, view.tau).detach().requires_grad_(True)
    mean, std = transition_mean(v, view.x, view.tau, view.tau_next, batch.step, LAW)
    assert std is not None
    each = torch.distributions.Normal(mean, std.expand_as(mean)).log_prob(view.x_next)[:, 0]
    by_hand = torch.stack([e[:n, :7].sum() for e, n in zip(each, made.steps_executed[0], strict=True)])
    again = view.reference(policy, context, torch.arange(12), v)
    torch.testing.assert_close(batch.old_log_prob, by_hand.detach(), rtol=0, atol=1e-3)
    torch.testing.assert_close(again, by_hand, rtol=0, atol=1e-3)
    assert (each.sum((1, 2)) - by_hand).abs().median() > 10  # the mistake
    (slope,) = torch.autograd.grad(again.sum(), v)
    assert not slope[:, 0][~batch.mask].any() and slope[:, 0][batch.mask].all()


def test_5_noise_and_chain_are_float32() -> None:
    def in_half(x: Tensor, tau: Tensor) -> Tensor:
        return torch.sin(3 * x).bfloat16()

    noise = noise_of(32)
    moved = sample(in_half, noise, LAW, torch.ones(32, HORIZON, WIDTH, dtype=torch.bool))
    for found in (noise.start, noise.transition, moved.states[:, 1], moved.sample, moved.log_prob):
        assert found.dtype == torch.float32
        assert (found != found.bfloat16().float()).float().mean() > 0.9  # the mistake has none


def test_6_truncation_is_no_termination() -> None:
    reward, value, beyond = (np.full((1, 2), v, np.float32) for v in (1.0, 2.0, 10.0))
    steps, truncated = np.full((1, 2), 2), np.array([[False, True]])
    advantage, returns = gae(reward, value, beyond, steps, ~truncated, truncated, gamma=0.5, lam=0.9)
    np.testing.assert_array_equal(advantage, [[1 - 2, 1 + 0.25 * 10 - 2]])
    np.testing.assert_array_equal(returns, [[1, 3.5]])


def test_7_discount_counts_steps() -> None:
    """Sixteen rewards in chunks of 4 and of 8, values of zero and lambda = 1: the return of the first state."""
    rewards, gamma = np.random.default_rng(0).normal(size=16).astype(np.float32), 0.9
    expected = (rewards * gamma ** np.arange(16)).sum()
    for horizon in (4, 8):
        t = 16 // horizon
        nothing, no = np.zeros((t, 1), np.float32), np.zeros((t, 1), bool)
        chunks = rewards.reshape(t, 1, horizon)
        end = no | (np.arange(t) == t - 1)[:, None]
        right, mistaken = (
            gae(chunk_reward(chunks, gamma), nothing, nothing, np.full((t, 1), steps), end, no, gamma=gamma, lam=1.0)[1]
            for steps in (horizon, 1)
        )
        assert right[0, 0] == pytest.approx(expected, rel=1e-5)
        assert abs(mistaken[0, 0] - expected) > 0.1


def test_8_success_is_how_the_episode_ended() -> None:
    """The tool touches, in this order: the wrong block and then the right one; the right one; neither."""
    task = Reach(WidowX(), "widowx_reach", image_size=64, tolerance=0.03, time_limit=32)
    starts = [task.begin(EpisodeKey(0, env, 0)) for env in range(3)]
    facts, mocap = np.stack([s.facts for s in starts]), np.stack([s.mocap for s in starts])
    readings = np.full((3, HORIZON, 8), 9.0)
    layout = Layout.of(facts)
    for row in range(3):
        target = layout.target[row]
        wrong = next(c for c in np.flatnonzero(layout.present[row]) if c != target)
        if row < 2:
            readings[row, 5, :3] = layout.tops[row, target]
        if row < 1:
            readings[row, 2, :3] = layout.tops[row, wrong]
    now = Now(readings[:, 0], mocap, mocap[:, 0], facts, np.zeros((3, 0)), np.zeros(3, np.int64))
    judged = task.judge(now, readings)
    assert judged.success.argmax(1).tolist() == [5, 5, 0] and judged.success.any(1).tolist() == [True, True, False]
    assert judged.failure.argmax(1).tolist() == [2, 0, 0] and judged.failure.any(1).tolist() == [True, False, False]
    executed, ended, success = ends(judged, np.full(3, HORIZON), np.zeros(3, bool))
    assert executed.tolist() == [3, 6, HORIZON]
    assert ended.tolist() == [True, True, False] and success.tolist() == [False, True, False]


def test_8_chunks_of_failed_episodes_are_not_cloned() -> None:
    """Two environments, three chunks: one episode fails in the second chunk and the next succeeds in the third; the
    other environment's is cut off by the round."""
    ended = np.array([[0, 0], [1, 0], [1, 0]], bool)
    success = np.array([[0, 0], [0, 0], [1, 0]], bool)
    made = trajectory(blind_policy(), random_contexts(6), chunks=3, terminated=ended, success=success)
    batch = flatten([score(made, gamma=0.99, lam=0.95)], normalise=True)
    assert batch.success.reshape(3, 2).tolist() == [[False, False], [False, False], [True, False]]


@pytest.mark.parametrize("epochs", [1, 4])
def test_9_what_is_frozen_is_worked_out_once(epochs: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """48 decisions in minibatches of 16: the old policy is asked of each once, and no picture is looked at again."""
    policy = tiny_policy()
    with torch.no_grad():
        data = scored(policy, policy.encode(observations(48)))
    passes: list[str] = []
    policy.decoder.register_forward_hook(lambda *_: passes.append("grad" if torch.is_grad_enabled() else "old"))
    monkeypatch.setattr(QwenVLAPolicy, "encode", lambda *_: passes.append("encode"))
    given = Recipe(DecoupledPPOSection(epochs=epochs, minibatch=16), OBJECTIVES["decoupled_ppo"], FlowSDE())
    run_update(policy, data, given, optimise=lambda loss: None, seed=0, version=0)
    assert passes == ["old"] * 3 + ["grad"] * 3 * epochs


def test_9_the_old_policy_stays_what_it_was() -> None:
    policy = blind_policy()
    given = Recipe(DecoupledPPOSection(epochs=1, minibatch=16), OBJECTIVES["decoupled_ppo"], FlowSDE())
    ready = prepare(policy, flatten(scored(policy, random_contexts(16)), normalise=True), given, (0, 0))
    assert ready.reference is not None and not ready.reference.requires_grad
    before = ready.reference.clone()
    with torch.no_grad():
        policy.decoder.action_out[2].weight.mul_(2)
    torch.testing.assert_close(before, ready.batch.old_log_prob, rtol=0, atol=1e-3)
    assert torch.equal(ready.reference, before)


class Rounds:
    """Stands in for the algorithm: rounds of four episodes under weights that are `lag` updates old."""

    def __init__(self, lag: int) -> None:
        self.lag, self.said, self.row = lag, [], None
        self.state = RunState(0, 0, 0, 0.0, 0, (), 1)
        ended = np.ones((1, 4), bool)
        self.made = trajectory(blind_policy(), random_contexts(4), terminated=ended, success=ended)

    def train(self) -> None:
        self.said.append("round")
        number = self.state.version
        made = replace(self.made, policy_version=max(0, number - self.lag))
        numbers = {name: 0.0 for name in ("explained_variance", "grad_norm", "policy_loss", "actor_lr")}
        clock = Clock({"collect": 1.0, "update": 1.0})
        self.state, self.row = iteration_row(
            self.state, [made], UpdateReport(number + 1, numbers, 0.0, 1.0), clock, publish_bytes=1, recent=8,
            healthy=1, events=(),
        )  # fmt: skip

    def play(self, episodes: int) -> dict[str, EpisodeResults]:
        self.said.append(f"evaluation of version {self.state.version}")
        won = np.arange(episodes) < self.state.version
        return {"widowx_reach": EpisodeResults(won, 1.0 * won, np.ones(episodes, np.int64), (None,) * episodes, {})}

    def film(self, episodes: int) -> list[Any]:
        return []

    def take_events(self) -> tuple[str, ...]:
        return ()

    def save_checkpoint(self, folder: str) -> None:
        (Path(folder) / "adapter").mkdir()
        complete(Path(folder), self.state)

    def stop(self) -> None:
        self.said.append("stop")


@pytest.mark.parametrize("lag", [0, 2])
def test_10_runs_with_lag_are_evaluated_before_and_after(
    lag: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    algorithm = Rounds(lag)
    monkeypatch.setattr(jobs._Job, "_algorithm", lambda self: algorithm)
    monkeypatch.setattr(jobs.preflight, "check", lambda *_: None)
    words = [f"rollout.lag={lag}", "run.iterations=4", "run.wandb=disabled", "evaluation.episodes=10"]
    assert jobs.train(load(TrainConfig, "smoke", [*words, f"run.folder={tmp_path / 'run'}"])) == 0
    before, after = (f"evaluation of version {version}" for version in (0, 4))
    assert algorithm.said == [before, *["round"] * 4, after, "stop"]
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [row["staleness"] for row in rows] == [min(number, lag) for number in range(4)]
    found = json.loads((tmp_path / "run" / "evaluation.json").read_text())
    assert found["before"]["success"] == 0 and found["after"]["success"] == 0.4


def test_no_mistake_is_left_out() -> None:
    covered = {int(name.split("_")[1]) for name in globals() if name.startswith("test_") and name[5].isdigit()}
    assert covered == set(range(1, 11))
