"""One update as plain torch: which decisions go where, what the first ratio is, and that learning goes uphill."""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import chain
from typing import Any

import numpy as np
import pytest
import torch
from builders import (
    HORIZON,
    blind_policy,
    episode_keys,
    noisy_policy,
    observations,
    random_contexts,
    tiny_policy,
    trajectory,
)
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
from rl_finetune.algorithm.learners import combined
from rl_finetune.config.objectives import (
    DecoupledPPOSection,
    DiffusionNFTSection,
    FPOSection,
    ObjectiveSection,
    PPOSection,
    StepNFTSection,
)
from rl_finetune.config.schema import LoraSection, RegularisersSection
from rl_finetune.policy import FlowSDE, QwenVLAPolicy, TorchContext
from rl_finetune.policy.adapters import add_adapters, trained_state
from rl_finetune.policy.config import WIDOWX
from rl_finetune.policy.laws import ODE, FlowNoise, Law, times
from rl_finetune.policy.sampler import transition_mean
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


def test_the_report_of_an_update_is_of_all_ranks() -> None:
    """A rank has seen no decision of the rover; the worst ratio is on the second."""
    one = UpdateReport(5, {"kl": 0.1, "ratio_error": 0.3, "kl/rover": 0.4, "ratio_error/rover": 0.1}, 1e-6, 2.0)
    other = UpdateReport(5, {"kl": 0.3, "ratio_error": 0.5}, 0.25, 1.0)
    found = combined([one, other])
    assert found.diagnostics == {"kl": 0.2, "ratio_error": 0.5, "kl/rover": 0.4, "ratio_error/rover": 0.1}
    assert (found.policy_version, found.first_ratio_error, found.seconds) == (5, 0.25, 2.0)
    nothing = replace(one, first_ratio_error=math.nan)
    assert math.isnan(combined([nothing, nothing]).first_ratio_error)


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


# ---- terms beside the objective


def adapted(law: Law = LAW) -> QwenVLAPolicy:
    """Adapters that have learned something, and a noise net where the law has one."""
    policy = add_adapters(blind_policy(), LoraSection(rank=4), seed=0)
    policy.noise_net = noisy_policy().noise_net if isinstance(law, FlowNoise) else None
    rng = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in policy.named_parameters():
            if "lora_B" in name:
                parameter.copy_(torch.randn(parameter.shape, generator=rng) * 0.02)
    return policy


def parts_of(policy: QwenVLAPolicy, law: Law, objective: ObjectiveSection, **weights: float) -> dict[str, Tensor]:
    """Loss and what it is logged to be made of, on twelve decisions half of which were part of a success."""
    made = trajectory(policy, random_contexts(12), law=law)
    settings = Recipe(objective, OBJECTIVES[objective.name], law, regularisers=RegularisersSection(**weights))
    batch = replace(flatten(scored(made), normalise=True), success=torch.arange(12) < 6)
    ready = prepare(policy, batch, settings, (0, 0))
    loss, parts = minibatch_loss(policy, ready, np.arange(12), settings)
    return {"loss": loss, **parts}


@pytest.mark.parametrize(
    ("objective", "law", "weights", "sign"),
    [
        (PPOSection(), LAW, {"velocity": 0.3}, 1),
        (FPOSection(), LAW, {"velocity": 0.3}, 1),
        (PPOSection(), LAW, {"kl": 0.3}, 1),
        (StepNFTSection(), LAW, {"kl": 0.3}, 1),
        (PPOSection(), FlowNoise(), {"kl": 0.3}, 1),
        (PPOSection(), LAW, {"cloning": 0.3}, 1),
        (DiffusionNFTSection(), ODE(), {"cloning": 0.3}, 1),
        (PPOSection(), FlowNoise(), {"entropy": 0.3}, -1),
    ],
)
def test_a_term_is_added_by_its_weight(objective: Any, law: Law, weights: dict[str, float], sign: int) -> None:
    policy = adapted(law)
    plain, found = parts_of(policy, law, objective), parts_of(policy, law, objective, **weights)
    (name,) = found.keys() - plain.keys()
    assert found[name].abs() > 1e-4 and not found[name].requires_grad
    torch.testing.assert_close(found["loss"], plain["loss"] + sign * 0.3 * found[name], rtol=1e-5, atol=1e-6)
    gradients = [torch.autograd.grad(p["loss"], trained(policy), allow_unused=True) for p in (plain, found)]
    assert any(a is not None and (a - b).abs().max() > 1e-5 for a, b in zip(*gradients, strict=True))


def trained(policy: QwenVLAPolicy) -> list[Tensor]:
    return [p for name, p in policy.named_parameters() if "lora" in name or name.startswith("noise_net")]


def test_distances_are_to_the_policy_without_its_adapters() -> None:
    fresh = add_adapters(blind_policy(), LoraSection(rank=4), seed=0)
    found = parts_of(fresh, LAW, PPOSection(), velocity=1, kl=1)
    assert found["velocity_distance"] == 0 and found["start_kl"] == 0
    policy, start = adapted(), blind_policy()
    made = trajectory(policy, random_contexts(12))
    settings = replace(ppo(), regularisers=RegularisersSection(velocity=1, kl=1))
    ready = prepare(policy, flatten(scored(made), normalise=True), settings, (0, 0))
    rows = torch.arange(12)
    x, tau, context = ready.view.x, ready.view.tau, ready.view.context(rows)
    with torch.no_grad():
        ours, theirs = velocities(policy, context, x, tau), velocities(start, context, x, tau)
    assert ready.start_velocity is not None
    torch.testing.assert_close(ready.start_velocity, theirs, rtol=0, atol=1e-5)
    _, parts = minibatch_loss(policy, ready, np.arange(12), settings)
    mask = ready.batch.mask
    square = torch.where(mask, (ours - theirs)[:, 0] ** 2, 0)
    each = square.sum((1, 2)) / mask.sum((1, 2))
    assert parts["velocity_distance"].item() == pytest.approx(each.mean().item(), rel=1e-4)
    law, step = FlowSDE(), ready.batch.step
    one, std = transition_mean(ours, x, *times(law, step), step, law)
    other, _ = transition_mean(theirs, x, *times(law, step), step, law)
    assert std is not None
    kl = torch.where(mask[:, None], (one - other) ** 2 / (2 * std**2), 0).sum((1, 2, 3)).mean()
    assert parts["start_kl"].item() == pytest.approx(kl.item(), rel=1e-4)


def test_entropy_is_of_the_noise_net() -> None:
    """log std + (1 + log 2 pi) / 2 a number; a fresh net has the geometric mean of its bounds."""
    policy = adapted(FlowNoise())
    assert policy.noise_net is not None
    torch.nn.init.zeros_(policy.noise_net.out.weight)
    torch.nn.init.zeros_(policy.noise_net.out.bias)
    found = parts_of(policy, FlowNoise(), PPOSection(), entropy=1)["entropy"].item()
    assert found == pytest.approx(np.log(0.08 * 0.16) / 2 + (1 + np.log(2 * np.pi)) / 2, rel=1e-5)


def test_cloning_is_of_successes_only() -> None:
    policy = adapted()
    made = trajectory(policy, random_contexts(12))
    settings = replace(ppo(), regularisers=RegularisersSection(cloning=1))
    found = []
    for spoil in (0.0, 5.0):
        batch = replace(flatten(scored(made), normalise=True), success=torch.arange(12) % 2 == 0)
        odd = (torch.arange(12) % 2 == 1)[:, None, None]
        batch = replace(batch, sample=batch.sample + spoil * odd)
        ready = prepare(policy, batch, settings, (0, 0))
        found.append(minibatch_loss(policy, ready, np.arange(12), settings)[1]["cloning"].item())
    assert found[0] == found[1] > 0.1
    nobody = replace(flatten(scored(made), normalise=True), success=torch.zeros(12, dtype=torch.bool))
    ready = prepare(policy, nobody, settings, (0, 0))
    assert minibatch_loss(policy, ready, np.arange(12), settings)[1]["cloning"] == 0


@pytest.mark.parametrize(
    ("objective", "weights", "passes"),
    [
        (PPOSection(), {}, [1, 1]),
        (DecoupledPPOSection(), {}, [2, 1]),
        (PPOSection(), {"velocity": 1, "kl": 1}, [2, 1]),
        (PPOSection(), {"cloning": 1}, [2, 2]),
        (FPOSection(pairs=4), {"velocity": 1}, [12, 4]),
        (DiffusionNFTSection(pairs=2), {}, [4, 2]),
    ],
)
def test_one_pass_through_the_decoder_serves_all(
    objective: ObjectiveSection, weights: dict[str, float], passes: list[int]
) -> None:
    """Of the first minibatch, what is worked out once included, and of each further one."""
    policy, calls = adapted(), list[int]()
    data = scored(trajectory(policy, random_contexts(12)))
    policy.decoder.register_forward_hook(lambda *_: calls.append(1))
    objective = objective.model_copy(update={"epochs": 2, "minibatch": 12})
    settings = Recipe(objective, OBJECTIVES[objective.name], LAW, regularisers=RegularisersSection(**weights))
    seen: list[int] = []
    run_update(policy, data, settings, optimise=lambda loss: seen.append(len(calls)), seed=0, version=0)
    assert [seen[0], seen[1] - seen[0]] == passes
