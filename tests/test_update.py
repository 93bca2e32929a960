"""One update as plain torch: which decisions go where, what the first ratio is, and that learning goes uphill."""

from __future__ import annotations

from dataclasses import replace
from itertools import chain
from typing import Any

import numpy as np
import pytest
import torch
from builders import HORIZON, blind_policy, episode_keys, observations, random_contexts, tiny_policy, trajectory
from torch import Tensor

from learners.advantages import score
from learners.batch import flatten, minibatches
from learners.objectives import OBJECTIVES
from learners.objectives.base import DensityInputs
from learners.update import (
    Prepared,
    Recipe,
    explained_variance,
    loss_inputs,
    minibatch_loss,
    prepare,
    run_update,
    velocities,
)
from rl_finetune.config.objectives import PPOSection
from rl_finetune.config.schema import LoraSection
from rl_finetune.policy import FlowSDE, QwenVLAPolicy, TorchContext
from rl_finetune.policy.adapters import add_adapters, trained_state
from rl_finetune.policy.config import WIDOWX
from rl_finetune.types import ScoredTrajectory, Trajectory, UpdateReport

LAW = FlowSDE()


def scored(*trajectories: Trajectory) -> list[ScoredTrajectory]:
    return [score(t, gamma=0.99, lam=0.95) for t in trajectories]


def ppo(**changes: Any) -> Recipe:
    return Recipe(PPOSection(**changes), OBJECTIVES["ppo"], LAW)


def inputs_of(policy: QwenVLAPolicy, ready: Prepared, rows: Tensor) -> DensityInputs:
    """What the objective is given of some decisions."""
    context = ready.view.context(rows)
    velocity = velocities(policy, context, ready.view.x[rows], ready.view.tau[rows])
    given = loss_inputs(policy, ready, context, rows, velocity)
    assert isinstance(given, DensityInputs)
    return given


def update(policy: QwenVLAPolicy, data: list[ScoredTrajectory], **changes: Any) -> UpdateReport:
    """One pass with AdamW at `lr` (zero by default) over everything that trains."""
    lr = changes.pop("lr", 0.0)
    settings = ppo(**({"epochs": 1, "minibatch": 16} | changes))
    parameters = [p for p in policy.parameters() if p.requires_grad]
    adam = torch.optim.AdamW(parameters, lr=lr, betas=(0.9, 0.95), weight_decay=0.01)

    def optimise(loss: Tensor) -> None:
        adam.zero_grad()
        loss.backward()
        adam.step()

    return run_update(policy, data, settings, optimise=optimise, seed=0, version=4)


# ---- minibatches


def test_every_rank_has_work_where_samples_are_fewer() -> None:
    shares = [list(minibatches(2, 8, seed=0, update=0, epoch=0, rank=rank, world=4)) for rank in range(4)]
    assert all(len(share) == 1 and len(share[0]) == 1 for share in shares)
    assert {int(share[0][0]) for share in shares} == {0, 1}


def shares(samples: int, size: int, world: int, **changes: int) -> list[list[list[int]]]:
    """Rank -> minibatch -> sample numbers."""
    key = {"seed": 1, "update": 2, "epoch": 0} | changes
    return [
        [index.tolist() for index in minibatches(samples, size, rank=rank, world=world, **key)] for rank in range(world)
    ]


def test_ranks_share_each_minibatch_of_one_permutation() -> None:
    alone = shares(40, 12, 1)[0]
    three = shares(40, 12, 3)
    assert [len(batch) for batch in alone] == [12, 12, 12]  # four samples are left over
    assert len({sample for batch in alone for sample in batch}) == 36
    for number, whole in enumerate(alone):
        parts = [rank[number] for rank in three]
        assert [len(part) for part in parts] == [4, 4, 4]
        assert sorted(chain(*parts)) == sorted(whole)


def test_order_follows_from_seed_update_and_epoch() -> None:
    first = shares(64, 64, 1)
    assert shares(64, 64, 1) == first
    for change in ({"seed": 9}, {"update": 9}, {"epoch": 9}):
        other = shares(64, 64, 1, **change)
        assert other != first and sorted(other[0][0]) == list(range(64))


def test_a_batch_larger_than_the_data_is_the_data() -> None:
    assert [len(part[0]) for part in shares(11, 100, 2)] == [5, 5]


def test_learners_gradients_average_to_that_of_one_learner() -> None:
    policy = blind_policy()
    batch = flatten(scored(trajectory(policy, random_contexts(24), chunks=2)), normalise=True)
    ready = prepare(policy, batch, ppo(), (0, 0))

    def gradient(index: np.ndarray) -> Tensor:
        policy.zero_grad()
        minibatch_loss(policy, ready, index, ppo())[0].backward()
        return torch.cat([p.grad.flatten() for p in policy.parameters() if p.grad is not None])

    key = dict(seed=0, update=0, epoch=0)
    (whole,) = minibatches(24, 24, rank=0, world=1, **key)
    halves = [next(minibatches(24, 24, rank=rank, world=2, **key)) for rank in (0, 1)]
    torch.testing.assert_close(gradient(whole), (gradient(halves[0]) + gradient(halves[1])) / 2, rtol=1e-3, atol=1e-6)


# ---- what is joined


def test_trajectories_are_joined_in_their_order_and_padding_is_not_counted() -> None:
    policy = blind_policy()
    first = trajectory(policy, random_contexts(6), chunks=2)
    second = trajectory(policy, random_contexts(8, seed=1), chunks=2, seed=1)
    batch = flatten(scored(first, second), normalise=False)
    assert len(batch) == 14
    for row, (made, chunk, env) in {1: (first, 0, 1), 5: (first, 1, 2), 6: (second, 0, 0), 12: (second, 1, 2)}.items():
        assert np.array_equal(batch.states[row], made.states[chunk, env])
        assert np.array_equal(batch.sample[row], made.sample[chunk, env])
        executed = made.steps_executed[chunk, env]
        assert batch.old_log_prob[row].item() == pytest.approx(made.log_prob[chunk, env, :executed].sum(), rel=1e-5)
        inside = batch.inputs.hidden[row] if isinstance(batch.inputs, TorchContext) else None
        cut = chunk * made.value.shape[1] + env
        assert np.array_equal(inside, made.inputs.hidden[cut])  # type: ignore[union-attr]


def test_advantages_are_normalised_over_the_whole_round() -> None:
    policy = blind_policy()
    parts = scored(*(trajectory(policy, random_contexts(8, seed=s), seed=s) for s in range(3)))
    advantage = flatten(parts, normalise=True).advantage
    assert advantage.mean().item() == pytest.approx(0, abs=1e-6) and advantage.std().item() == pytest.approx(1)
    raw = np.concatenate([p.advantage.ravel() for p in parts])
    np.testing.assert_allclose(advantage, (raw - raw.mean()) / raw.std(ddof=1), rtol=1e-4, atol=1e-6)


def test_explained_variance_by_hand() -> None:
    returns = np.array([1.0, 3.0], np.float32)
    assert explained_variance(returns, returns) == 1
    assert explained_variance(np.array([2.0, 2.0], np.float32), returns) == 0
    assert explained_variance(np.array([3.0, 1.0], np.float32), returns) == -3
    assert np.isnan(explained_variance(returns, np.ones(2, np.float32)))


# ---- ratios


@pytest.mark.parametrize("attention", ["joint", "prefix"])
def test_first_ratio_is_one_in_float32(attention: str) -> None:
    policy = blind_policy(context_attention=attention)
    data = scored(*(trajectory(policy, random_contexts(48, seed=s), chunks=3, seed=s) for s in range(2)))
    report = update(policy, data, minibatch=32)
    assert report.first_ratio_error < 1e-4
    assert report.diagnostics["ratio_error"] < 1e-4 and report.diagnostics["clip_fraction"] == 0
    assert report.policy_version == 5 and report.seconds > 0


def test_first_ratio_betrays_weights_that_are_not_those_that_acted() -> None:
    policy = blind_policy()
    data = scored(trajectory(policy, random_contexts(32)))
    with torch.no_grad():
        policy.decoder.action_out[2].weight.mul_(1.05)
    assert update(policy, data).first_ratio_error > 0.01


def test_drift_of_a_bfloat16_decoder_is_bounded_and_reported() -> None:
    """Acting and learning in bfloat16, with other batch shapes: the ratio leaves 1, but not the clip range."""
    policy = blind_policy()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        data = scored(trajectory(policy, random_contexts(64)))
        same = update(policy, data)
    assert same.first_ratio_error < 0.2
    mixed = update(policy, data)  # acted in bfloat16, learns in float32: what rounding does to one log-density
    assert 1e-4 < mixed.first_ratio_error < 0.5
    assert mixed.diagnostics["ratio_error"] > 1e-4


def test_first_ratio_error_is_of_the_first_minibatch_only() -> None:
    policy = blind_policy()
    data = scored(trajectory(policy, random_contexts(64)))
    report = update(policy, data, lr=3e-3, epochs=2)
    assert report.first_ratio_error < 1e-4 < 0.01 < report.diagnostics["ratio_error"]


# ---- contexts


def test_cached_contexts_and_encoding_again_give_the_same_loss() -> None:
    policy = tiny_policy()
    seen = observations(12)
    with torch.no_grad():
        contexts = policy.encode(seen)
    again = trajectory(policy, seen, chunks=2)
    cached = replace(again, inputs=contexts.numpy())
    reports = [update(policy, scored(made), minibatch=6) for made in (cached, again)]
    for name in ("policy_loss", "value_loss", "kl"):
        values = [report.diagnostics[name] for report in reports]
        assert values[0] == pytest.approx(values[1], abs=1e-5), name
    assert max(report.first_ratio_error for report in reports) < 1e-4


def test_encoding_again_trains_the_backbone_and_cached_contexts_do_not() -> None:
    policy = add_adapters(tiny_policy(), LoraSection(parts=["decoder", "backbone"], rank=2), seed=0)
    made = trajectory(policy, observations(8))
    with torch.no_grad():
        cached = replace(made, inputs=policy.encode(observations(8)).numpy())
    for data, moves in ((cached, False), (made, True)):
        before = trained_state(policy)
        policy.zero_grad()
        update(policy, scored(data), lr=1e-3, minibatch=8)
        changed = [n for n, v in trained_state(policy).items() if not np.array_equal(v, before[n]) and "lora_B" in n]
        assert any(n.startswith("backbone") for n in changed) == moves
        assert any(n.startswith("decoder") for n in changed)


# ---- learning


def test_learning_rate_zero_changes_nothing() -> None:
    policy = add_adapters(blind_policy(), LoraSection(rank=4), seed=0)
    before = trained_state(policy)
    update(policy, scored(trajectory(policy, random_contexts(32))), epochs=2)
    after = trained_state(policy)
    assert all(np.array_equal(before[name], after[name]) for name in before)


def test_update_raises_the_probability_of_what_was_rewarded() -> None:
    policy = blind_policy()
    made = trajectory(policy, random_contexts(64), whole=True)
    good = np.arange(64)[None] % 2 == 0
    reward = np.where(good[..., None], 1.0, -1.0).astype(np.float32) / HORIZON * np.ones(HORIZON, np.float32)
    nothing = np.zeros((1, 64), np.float32)
    data = scored(replace(made, reward=reward, value=nothing, next_value=nothing, terminated=np.ones((1, 64), bool)))
    ready = prepare(policy, flatten(data, normalise=False), ppo(), (0, 4))
    update(policy, data, lr=3e-4, epochs=3)
    with torch.no_grad():
        given = inputs_of(policy, ready, torch.arange(64))
        value = policy.value(random_contexts(64)).numpy()
    gain = (given.log_prob - given.old_log_prob).numpy()
    assert gain[good[0]].mean() > 0.05 > -0.05 > gain[~good[0]].mean()
    assert value[good[0]].mean() > value[~good[0]].mean()


def test_rounds_of_collecting_and_updating_solve_a_toy_problem() -> None:
    """Two contexts, each rewarded for moving its own way: the decoder has to read them."""
    policy = blind_policy()
    contexts = random_contexts(2, seed=5)
    names = torch.arange(64) % 2
    sign = np.where(names == 0, 1.0, -1.0).astype(np.float32)
    rewards = []
    for number in range(14):
        made = trajectory(policy, contexts.rows(names), seed=number, whole=True)
        final = _executed(policy, contexts.rows(names), seed=number)
        reward = np.zeros((1, 64, HORIZON), np.float32)
        reward[0, :, -1] = sign * final
        nothing, end = np.zeros((1, 64), np.float32), np.ones((1, 64), bool)
        data = scored(replace(made, reward=reward, value=nothing, next_value=nothing, terminated=end))
        update(policy, data, lr=1e-3, epochs=2, minibatch=32)
        rewards.append(reward.sum() / 64)
    assert np.mean(rewards[:2]) < 0.03 and np.mean(rewards[-2:]) > 0.05


def _executed(policy: QwenVLAPolicy, context: TorchContext, seed: int) -> np.ndarray:
    """Mean over steps of the first channel [N] of the chunks that `trajectory` sampled, in metres."""
    n = len(context.mask)
    chunk, _ = policy.sample(context, episode_keys(n, seed=seed), np.zeros(n, np.int64), WIDOWX, LAW)
    return chunk.actions[:, :, 0].mean(1)
