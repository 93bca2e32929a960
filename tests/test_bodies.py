"""Several bodies in one update: each passes the decoder alone, and no number of one reaches the loss of another."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields, replace
from typing import Any

import numpy as np
import pytest
import torch
from builders import CHANNELS, HORIZON, QUANTILES, WIDTH, blind_policy, observations, random_contexts, trajectory
from torch import Tensor

from learners.batch import Batch, by_body
from learners.objectives import OBJECTIVES
from learners.update import Prepared, Recipe, loss_inputs, minibatch_loss, mixed_loss, prepare, run_update, velocities
from rl_finetune.config.objectives import (
    DecoupledPPOSection,
    DiffusionNFTSection,
    FPOPlusSection,
    FPOSection,
    GRPOSection,
    ObjectiveSection,
    PPOSection,
    RECAPSection,
    RLOOSection,
    StepNFTSection,
)
from rl_finetune.config.schema import LoraSection, RegularisersSection, TrainConfig
from rl_finetune.config.worlds import EnvSection
from rl_finetune.errors import UserError
from rl_finetune.policy import FlowSDE, QwenVLAPolicy
from rl_finetune.policy.adapters import add_adapters, equip
from rl_finetune.policy.config import WIDOWX
from rl_finetune.policy.normalisation import Quantiles
from rl_finetune.spec import EnvSpec, shared_state
from rl_finetune.types import ScoredTrajectory, Trajectory

ROVER = replace(
    WIDOWX, tag="rover", arms="", mobile_base=True,
    action=replace(WIDOWX.action, channels=3, horizon=5, control="waypoint", rotation="none", gripper="none"),
)  # fmt: skip
ARM, CAR = 12, 8
"""Decisions of each body in a round."""
ALL = [
    section(epochs=1, minibatch=8)
    for section in (
        PPOSection, DecoupledPPOSection, GRPOSection, RLOOSection, DiffusionNFTSection, StepNFTSection, FPOSection,
        FPOPlusSection, RECAPSection,
    )
]  # fmt: skip


def policy_of_two() -> QwenVLAPolicy:
    policy = blind_policy()
    policy.config = replace(policy.config, embodiments=(WIDOWX, ROVER))
    policy.quantiles = QUANTILES | {"rover": Quantiles((-1.0,) * 3, (1.0,) * 3)}
    return policy


def a_round(policy: QwenVLAPolicy, **changes: Any) -> list[ScoredTrajectory]:
    """Twelve decisions of an arm (H = 8, 12 tokens, 7 channels) and eight of a rover (H = 5, 9 tokens, 3 channels)."""
    arm, car = random_contexts(ARM, seed=1), random_contexts(CAR, seed=2, tokens=9)
    advised = [(context.numpy(), context.numpy()) for context in (arm, car)]
    arm_made = trajectory(policy, arm, seed=1, advised=advised[0], **changes)
    car_made = trajectory(policy, car, seed=2, body=ROVER, advised=advised[1], **changes)
    return [scored(arm_made, seed=3), scored(car_made, seed=4)]


def scored(made: Trajectory, seed: int) -> ScoredTrajectory:
    rng, shape = np.random.default_rng(seed), made.value.shape
    advantage, returns = (rng.normal(size=shape).astype(np.float32) for _ in range(2))
    return ScoredTrajectory(made, advantage, returns, np.ones(shape, bool))


def recipe(objective: ObjectiveSection, **terms: float) -> Recipe:
    return Recipe(objective, OBJECTIVES[objective.name], FlowSDE(), regularisers=RegularisersSection(**terms))


def ready_of(policy: QwenVLAPolicy, batches: Sequence[Batch], given: Recipe) -> list[Prepared]:
    return [prepare(policy, batch, given, (0, 0), part) for part, batch in enumerate(batches)]


def gradient(policy: QwenVLAPolicy, loss: Tensor) -> Tensor:
    policy.zero_grad()
    loss.backward()
    return torch.cat([p.grad.flatten() for p in policy.parameters() if p.grad is not None])


# ---- batches


def test_each_body_has_a_batch_of_its_own_shapes_and_its_advantages_have_mean_0_and_deviation_1() -> None:
    data = a_round(policy_of_two())
    data[1] = replace(data[1], advantage=100 * data[1].advantage + 7)  # long episodes: another scale
    arm, car = by_body(data, normalise=True)
    assert (arm.embodiment, tuple(arm.sample.shape)) == ("widowx", (ARM, 8, WIDTH))
    assert (car.embodiment, tuple(car.sample.shape)) == ("rover", (CAR, 5, WIDTH))
    for batch in (arm, car):
        assert float(batch.advantage.mean()) == pytest.approx(0, abs=1e-6)
        assert float(batch.advantage.std()) == pytest.approx(1, rel=1e-6)
    assert not car.mask[..., 3:].any() and car.mask[..., :3].any()


def test_worlds_of_one_body_that_differ_in_pictures_stand_apart_but_share_their_scale() -> None:
    small, large = (
        replace(trajectory(blind_policy(), random_contexts(2, seed=i)), inputs=observations(2, size=size))
        for i, size in enumerate((64, 96))
    )
    used = np.ones((1, 2), bool)
    data = [
        ScoredTrajectory(made, np.array([values], np.float32), made.value, used)
        for made, values in ((small, [0, 2]), (large, [4, 6]))
    ]
    first, second = by_body(data, normalise=True)
    deviation = np.std([0, 2, 4, 6], ddof=1)
    np.testing.assert_allclose(first.advantage, np.array([-3, -1]) / deviation, rtol=1e-5)
    np.testing.assert_allclose(second.advantage, np.array([1, 3]) / deviation, rtol=1e-5)


def test_a_body_with_nothing_to_learn_from_is_left_out_and_one_decision_alone_is_no_division_by_zero() -> None:
    arm, car = a_round(policy_of_two())
    nobody, one = np.zeros((1, ARM), bool), np.arange(CAR)[None] == 5
    (batch,) = by_body([replace(arm, used=nobody), replace(car, used=one)], normalise=True)
    assert (batch.embodiment, len(batch), batch.advantage.tolist()) == ("rover", 1, [0.0])
    everything = by_body([replace(arm, used=nobody), replace(car, used=one & False)], normalise=True)
    assert [len(batch) for batch in everything] == [ARM, CAR]


# ---- the mixed loss


@pytest.mark.parametrize("objective", ALL, ids=lambda o: o.name)
def test_the_mixed_loss_is_the_mean_over_decisions(objective: ObjectiveSection) -> None:
    policy = policy_of_two()
    given = recipe(objective, velocity=0.1)
    ready = ready_of(policy, by_body(a_round(policy), normalise=True), given)
    index = np.array([0, ARM + 1, 5, ARM + 7, 2, 3])  # four of the arm, two of the rover
    mixed, logged = mixed_loss(policy, ready, index, given)
    arm, _ = minibatch_loss(policy, ready[0], np.array([0, 5, 2, 3]), given)
    car, _ = minibatch_loss(policy, ready[1], np.array([1, 7]), given)
    assert mixed.item() == pytest.approx((4 * arm.item() + 2 * car.item()) / 6, rel=1e-6)
    torch.testing.assert_close(gradient(policy, mixed), gradient(policy, (4 * arm + 2 * car) / 6), rtol=1e-4, atol=1e-6)
    whole = (4 * logged["policy_loss/widowx"] + 2 * logged["policy_loss/rover"]) / 6
    torch.testing.assert_close(logged["policy_loss"], whole)


def test_a_minibatch_of_one_body_is_that_bodys() -> None:
    policy = policy_of_two()
    given = recipe(PPOSection())
    ready = ready_of(policy, by_body(a_round(policy), normalise=True), given)
    mixed, logged = mixed_loss(policy, ready, np.array([1, 4]), given)
    alone, _ = minibatch_loss(policy, ready[0], np.array([1, 4]), given)
    assert mixed.item() == alone.item()
    assert {name for name in logged if name.endswith("/rover")} == set()


def test_ranks_together_take_the_step_that_one_would() -> None:
    policy = policy_of_two()
    given = recipe(PPOSection())
    ready = ready_of(policy, by_body(a_round(policy), normalise=True), given)
    index = np.array([0, ARM + 1, 5, ARM + 7, 2, ARM])  # the first rank has arms only, the second rovers only
    whole = gradient(policy, mixed_loss(policy, ready, index, given)[0])
    shares = [gradient(policy, mixed_loss(policy, ready, index[rank::2], given)[0]) for rank in (0, 1)]
    torch.testing.assert_close((shares[0] + shares[1]) / 2, whole, rtol=1e-4, atol=1e-6)


def test_every_rank_takes_as_many_steps_whatever_bodies_its_share_has() -> None:
    steps = []
    for rank in (0, 1):
        policy, taken = policy_of_two(), list[Tensor]()
        run_update(
            policy, a_round(policy), recipe(PPOSection(epochs=3, minibatch=4)), optimise=taken.append, seed=0,
            version=0, rank=rank, world=2,
        )  # fmt: skip
        steps.append(len(taken))
    assert steps == [3 * (ARM + CAR) // 4] * 2


# ---- nothing leaks


def disturbed(batch: Batch) -> Batch:
    """The same with other numbers wherever a target has no valid channel."""
    states, noise = batch.states.clone(), 1e3 * torch.randn(batch.sample.shape)
    states[:, 1:] = torch.where(batch.mask[:, None], states[:, 1:], noise[:, None])
    return replace(batch, states=states)


@pytest.mark.parametrize("objective", ALL, ids=lambda o: o.name)
def test_no_signal_comes_from_a_masked_channel(objective: ObjectiveSection) -> None:
    policy = policy_of_two()
    given = recipe(objective)
    for ready, channels in zip(
        ready_of(policy, by_body(a_round(policy), normalise=True), given), (CHANNELS, 3), strict=True
    ):
        rows = torch.arange(len(ready.batch))
        context = ready.view.context(rows)
        velocity = velocities(policy, context, ready.view.x, ready.view.tau).detach() + 0.05
        velocity.requires_grad_()
        given.loss(loss_inputs(policy, ready, context, rows, velocity), objective).loss.backward()
        assert velocity.grad is not None
        assert (velocity.grad[..., channels:] == 0).all() and (velocity.grad[..., :channels] != 0).any()
        beyond = ~ready.batch.mask.any(-1)
        assert beyond.any() and (velocity.grad.transpose(1, 2)[beyond] == 0).all()


@pytest.mark.parametrize("objective", [o for o in ALL if o.view != "pairs"], ids=lambda o: o.name)
def test_what_stands_in_masked_channels_of_where_a_chain_went_changes_no_loss(objective: ObjectiveSection) -> None:
    policy = policy_of_two()
    given = recipe(objective)
    batches = by_body(a_round(policy), normalise=True)
    rows = [np.arange(ARM), np.arange(CAR)]
    plain, other = (
        [minibatch_loss(policy, part, own, given)[0].item() for part, own in zip(ready, rows, strict=True)]
        for ready in (ready_of(policy, some, given) for some in (batches, [disturbed(b) for b in batches]))
    )
    assert plain == other


@pytest.mark.parametrize("objective", ALL, ids=lambda o: o.name)
def test_nothing_of_one_body_reaches_the_loss_of_another(objective: ObjectiveSection) -> None:
    """Every number of the rover is replaced; what the arm contributes to loss and gradient stays, bit for bit."""
    policy = policy_of_two()
    given = recipe(objective, velocity=0.1, cloning=0.1)
    arm, car = by_body(a_round(policy), normalise=True)
    tensors = {f.name: getattr(car, f.name) for f in fields(Batch) if isinstance(getattr(car, f.name), Tensor)}
    other = replace(car, **{n: 3 * t + 1 for n, t in tensors.items() if t.is_floating_point()})
    index, found = np.array([0, ARM + 1, 5, ARM + 7, 2, 3]), []
    for rest in (car, other):
        ready = ready_of(policy, (arm, rest), given)
        loss, logged = mixed_loss(policy, ready, index, given)
        alone, _ = minibatch_loss(policy, ready[1], np.array([1, 7]), given)
        found.append((logged["policy_loss/widowx"].item(), gradient(policy, loss - alone / 3), loss.item()))
    assert found[0][0] == found[1][0] and found[0][2] != found[1][2]
    torch.testing.assert_close(found[0][1], found[1][1], rtol=1e-3, atol=1e-4)


def test_each_body_has_ratio_one_before_the_first_step() -> None:
    policy = policy_of_two()
    report = run_update(
        policy, a_round(policy), recipe(PPOSection(epochs=1, minibatch=ARM + CAR)), optimise=lambda loss: None, seed=0,
        version=0,
    )  # fmt: skip
    each = [report.diagnostics[f"ratio_error/{tag}"] for tag in ("widowx", "rover")]
    assert report.first_ratio_error == max(each) < 1e-4


def test_padding_a_body_to_the_longest_horizon_would_have_changed_what_was_sampled() -> None:
    """The reason for which bodies pass one by one: joint attention sees padded tokens."""
    policy = policy_of_two()
    context, x, tau = random_contexts(4), torch.randn(4, ROVER.action.horizon, WIDTH), torch.full((4,), 0.5)
    padded = torch.cat((x, torch.zeros(4, HORIZON - ROVER.action.horizon, WIDTH)), 1)
    with torch.no_grad():
        alone, together = policy.velocity(context, x, tau), policy.velocity(context, padded, tau)
    assert (together[:, : ROVER.action.horizon] - alone).abs().max() > 1e-3


# ---- whole updates


@pytest.mark.parametrize("objective", ALL, ids=lambda o: o.name)
def test_every_objective_learns_from_two_bodies_and_two_rounds(objective: ObjectiveSection) -> None:
    policy = add_adapters(policy_of_two(), LoraSection(), seed=0)
    adam = torch.optim.Adam([p for p in policy.parameters() if p.requires_grad], lr=1e-3)

    def optimise(loss: Tensor) -> None:
        adam.zero_grad()
        loss.backward()
        adam.step()

    data = [*a_round(policy), *a_round(policy)]
    report = run_update(
        policy, data, recipe(objective, velocity=0.1, cloning=0.1), optimise=optimise, seed=0, version=0
    )
    d = report.diagnostics
    assert all(np.isfinite(list(d.values()))) and report.policy_version == 1
    assert {"policy_loss/widowx", "policy_loss/rover", "value_loss/rover", "explained_variance/rover"} <= set(d)
    assert d["velocity_distance"] > 0 and "velocity_distance/rover" not in d


def test_fresh_points_of_two_bodies_are_different_ones() -> None:
    policy = policy_of_two()
    same = trajectory(policy, random_contexts(6), body=ROVER)
    twin = replace(same, embodiment="widowx")
    ready = ready_of(policy, by_body([scored(same, 0), scored(twin, 0)], normalise=False), recipe(FPOSection()))
    assert (ready[0].view.x - ready[1].view.x).abs().flatten(2).amax(-1).min() > 0.1


def test_a_privileged_critic_wants_one_kind_of_state() -> None:
    spec = EnvSpec("a", WIDOWX, 64, 32, privileged=("x", "y"))
    other = replace(spec, name="b", privileged=("x", "z"))
    assert (shared_state([spec, spec]), shared_state([spec, other]), shared_state([])) == (2, 0, 0)
    env = EnvSection(mix=[{"name": "a"}, {"name": "b"}])
    job = TrainConfig.model_validate({"critic": {"kind": "privileged"}, "env": env.model_dump()})
    assert equip(blind_policy(), job, 2).privileged_critic is not None
    with pytest.raises(UserError, match=r"one critic could judge: got critic\.kind=privileged with a \+ b; .*linear"):
        equip(blind_policy(), job, 0)
