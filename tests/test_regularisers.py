"""Terms beside an objective's loss: their numbers by hand, what they cost, and that each does its job in a run."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from builders import blind_policy, noisy_policy, random_contexts, trajectory
from torch import Tensor
from torch.distributions import Normal, kl_divergence

from learners.advantages import score
from learners.batch import flatten
from learners.objectives import OBJECTIVES
from learners.regularisers import cloning_loss, entropy, gaussian_kl, velocity_distance
from learners.update import Prepared, Recipe, minibatch_loss, prepare, run_update, velocities
from rl_finetune.config.describe import members
from rl_finetune.config.schema import LoraSection, RegularisersSection, TrainConfig
from rl_finetune.policy import QwenVLAPolicy
from rl_finetune.policy.adapters import add_adapters, trained_state
from rl_finetune.policy.laws import FlowNoise, FlowSDE, Law
from rl_finetune.types import ScoredTrajectory, UpdateReport

SECTIONS = members(TrainConfig.model_fields["objective"])
DECISIONS, MINIBATCH, EPOCHS = 32, 8, 3
STEPS = EPOCHS * DECISIONS // MINIBATCH


def recipe(
    name: str = "ppo", law: Law | None = None, objective: dict[str, Any] | None = None, **weights: float
) -> Recipe:
    settings: Any = SECTIONS[name](**({"epochs": EPOCHS, "minibatch": MINIBATCH} | (objective or {})))
    return Recipe(settings, OBJECTIVES[name], law or FlowSDE(), regularisers=RegularisersSection(**weights))


def adapted(policy: QwenVLAPolicy | None = None, *, moved: bool = False) -> QwenVLAPolicy:
    """A blind policy, or the one given, with fresh adapters; `moved` ones change what it does. No critic."""
    policy = add_adapters(policy or blind_policy(), LoraSection(rank=4), seed=0)
    if moved:
        rng = torch.Generator().manual_seed(1)
        with torch.no_grad():
            for name, parameter in policy.named_parameters():
                if "lora_B" in name:
                    parameter.copy_(0.05 * torch.randn(parameter.shape, generator=rng))
    policy.critic = "none"
    return policy


def round_of(policy: QwenVLAPolicy, law: Law | None = None, **changes: Any) -> list[ScoredTrajectory]:
    """One chunk an episode; every second one is good unless `changes` say otherwise."""
    good = np.arange(DECISIONS)[None] % 2 == 0
    nothing, reward = np.zeros((1, DECISIONS), np.float32), np.zeros((1, DECISIONS, 8), np.float32)
    reward[..., -1] = np.where(good, 1.0, -1.0)
    fields = dict(
        reward=reward, value=nothing, next_value=nothing, terminated=np.ones((1, DECISIONS), bool), success=good
    )
    made = trajectory(policy, random_contexts(DECISIONS), law=law, whole=True)
    return [score(replace(made, **(fields | changes)), gamma=1.0, lam=1.0)]


def nothing_to_gain() -> dict[str, Any]:
    return {"reward": np.zeros((1, DECISIONS, 8), np.float32)}


def learn(policy: QwenVLAPolicy, data: list[ScoredTrajectory], given: Recipe, lr: float = 1e-3) -> UpdateReport:
    trained = [p for p in policy.parameters() if p.requires_grad]
    adam = torch.optim.Adam(trained, lr=lr)

    def optimise(loss: Tensor) -> None:
        adam.zero_grad()
        loss.backward()
        adam.step()

    return run_update(policy, data, given, optimise=optimise, seed=0, version=0)


def ready(policy: QwenVLAPolicy, data: list[ScoredTrajectory], given: Recipe) -> Prepared:
    return prepare(policy, flatten(data, normalise=True), given, (0, 0))


@torch.no_grad()
def velocity(policy: QwenVLAPolicy, at: Prepared) -> Tensor:
    return velocities(policy, at.view.context(torch.arange(DECISIONS)), at.view.x, at.view.tau)


# ---- by hand

MASK = torch.tensor([[[True, False], [True, True]], [[True, False], [False, False]]])
"""[B = 2, H = 2, K = 2]: three valid entries, and one."""


def test_velocity_distance_by_hand() -> None:
    start = torch.zeros(2, 2, 2, 2)
    v = torch.stack((torch.full((2, 2, 2), 2.0), torch.full((2, 2, 2), 3.0)))
    v[0, 1, 0, 0] = 4.0
    v[:, :, ~MASK[0]] = 1e6
    v[1, :, 1] = 1e6
    first = (3 * 4 + 2 * 4 + 16) / 6  # two points of three entries each
    assert velocity_distance(v, start, MASK).item() == pytest.approx((first + 9) / 2)
    assert velocity_distance(start, start, MASK) == 0


def test_kl_by_hand() -> None:
    """Summed over both transitions and valid entries, a mean over decisions; against torch's own."""
    rng = torch.Generator().manual_seed(0)
    mean, start = torch.randn(2, 2, 2, 2, 2, generator=rng)
    std = 0.1 + torch.rand(2, 2, 2, 2, generator=rng)
    each = kl_divergence(Normal(mean, std), Normal(start, std))
    expected = sum(each[b, j][MASK[b]].sum().item() for b in range(2) for j in range(2)) / 2
    assert gaussian_kl(mean, start, std, MASK).item() == pytest.approx(expected)
    one = torch.ones(1, 1, 1, 1)
    assert gaussian_kl(3 * one, one, one / 2, torch.ones(1, 1, 1, dtype=torch.bool)).item() == 2**2 / (2 * 0.25)


def test_kl_does_not_move_the_standard_deviation() -> None:
    mean, std = (torch.ones(2, 1, 2, 2, requires_grad=True) for _ in range(2))
    gaussian_kl(mean, torch.zeros(2, 1, 2, 2), std, MASK).backward()
    assert std.grad is None and mean.grad is not None
    np.testing.assert_allclose(mean.grad[:, 0], MASK / 2)


def test_cloning_by_hand() -> None:
    """Errors 1 and 1 in the first channel of the first chunk, 4 in its second; the other chunk was no success."""
    sample, eps = torch.zeros(2, 2, 2), torch.ones(2, 2, 2)
    v = torch.tensor([[[2.0, 9.0], [0.0, 3.0]], [[5.0, 5.0], [5.0, 5.0]]])
    first = ((1 + 1) / 2 + 4) / 2
    success = torch.tensor([True, False])
    assert cloning_loss(v, sample, eps, MASK, success).item() == pytest.approx(first / 2)
    assert cloning_loss(v, sample, eps, MASK, ~success).item() == pytest.approx(16 / 2)
    assert cloning_loss(v, sample, eps, MASK, torch.zeros(2, dtype=torch.bool)) == 0


def test_entropy_by_hand() -> None:
    std = torch.tensor([0.1, 0.2]).reshape(2, 1, 1, 1).expand(2, 3, 2, 2)
    each = [math.log(s) + (1 + math.log(2 * math.pi)) / 2 for s in (0.1, 0.2)]
    assert entropy(std, MASK).item() == pytest.approx(sum(each) / 2)
    assert entropy(std, MASK).item() == pytest.approx(Normal(0, std[:, 0, 0, 0]).entropy().mean().item())
    spoilt = torch.where(MASK[:, None], std, torch.full_like(std, 9.0))
    assert entropy(spoilt, MASK).item() == pytest.approx(sum(each) / 2)


# ---- where they come from and what they cost


class Passes:
    """Counts passes of the decoder."""

    def __init__(self, policy: QwenVLAPolicy) -> None:
        self.count = 0
        policy.decoder.register_forward_hook(self._one)

    def _one(self, *_: Any) -> None:
        self.count += 1


REFERENCE = DECISIONS // MINIBATCH
"""Passes that ask every decision once."""


@pytest.mark.parametrize(
    ("name", "weights", "extra"),
    [
        ("ppo", {}, 0),
        ("ppo", {"velocity": 1.0}, REFERENCE),
        ("ppo", {"kl": 1.0}, REFERENCE),
        ("ppo", {"velocity": 1.0, "kl": 1.0}, REFERENCE),  # they share what the start said
        ("ppo", {"cloning": 1.0}, STEPS),  # it has points of its own
        ("decoupled_ppo", {}, REFERENCE),
        ("decoupled_ppo", {"velocity": 1.0}, 2 * REFERENCE),  # weights at the start of the update, and of the run
    ],
)
def test_decoder_passes_of_an_update(name: str, weights: dict[str, float], extra: int) -> None:
    """One a minibatch, and what the terms that are on ask for."""
    policy = adapted()
    data = round_of(policy)
    passes = Passes(policy)
    run_update(policy, data, recipe(name, **weights), optimise=lambda loss: None, seed=0, version=0)
    assert passes.count == STEPS + extra


def test_entropy_costs_no_pass() -> None:
    policy, law = noisy_policy(), FlowNoise()
    data, counts = round_of(policy, law), []
    passes = Passes(policy)
    for weight in (0.0, 1.0):
        passes.count = 0
        run_update(policy, data, recipe(law=law, entropy=weight), optimise=lambda loss: None, seed=0, version=0)
        counts.append(passes.count)
    assert counts == [4 * STEPS, 4 * STEPS]  # four transitions a chain


def test_zero_weights_leave_no_trace() -> None:
    policy = adapted(moved=True)
    data = round_of(policy)
    at = ready(policy, data, recipe())
    assert at.start_velocity is None and at.cloning is None and at.reference is None
    loss, found = minibatch_loss(policy, at, np.arange(8), recipe())
    assert loss == found["policy_loss"] and not {"velocity_distance", "start_kl", "cloning", "entropy"} & found.keys()


@pytest.mark.parametrize("name", ["ppo", "step_nft", "fpo"])
def test_start_is_the_policy_without_its_adapters(name: str) -> None:
    """Not the weights at the start of the update; and the adapters are on again afterwards."""
    policy, plain = adapted(moved=True), blind_policy()
    data, given = round_of(policy), recipe(name, velocity=1.0)
    at = ready(policy, data, given)
    assert at.start_velocity is not None
    torch.testing.assert_close(at.start_velocity, velocity(plain, at), rtol=0, atol=1e-5)
    apart = (velocity(policy, at) - at.start_velocity)[at.batch.mask[:, None].expand_as(at.start_velocity)]
    assert apart.abs().max() > 0.05
    _, found = minibatch_loss(policy, at, np.arange(DECISIONS), given)
    assert found["velocity_distance"].item() == pytest.approx((apart**2).mean().item(), rel=1e-4)


def test_kl_is_that_of_the_scored_transitions() -> None:
    """Each with the mean and the standard deviation of its own step."""
    policy, given = adapted(moved=True), recipe(kl=1.0)
    at = ready(policy, round_of(policy), given)
    view: Any = at.view
    rows, context = torch.arange(DECISIONS), at.view.context(torch.arange(DECISIONS))
    with torch.no_grad():
        mean, std = view.moments(policy, context, rows, velocity(policy, at))
        start, _ = view.moments(policy, context, rows, velocity(blind_policy(), at))
        each = kl_divergence(Normal(mean, std), Normal(start, std))[:, 0]
    expected = (each * at.batch.mask).sum((1, 2)).mean().item()
    _, found = minibatch_loss(policy, at, np.arange(DECISIONS), given)
    assert expected > 0.01 and found["start_kl"].item() == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("weight", [0.5, 2.0])
def test_terms_add_up(weight: float) -> None:
    """Loss = policy + critic + sum of weight x term, with entropy rewarded."""
    policy, law = adapted(noisy_policy(), moved=True), FlowNoise()
    policy.critic = "linear"
    given = recipe(law=law, velocity=weight, kl=weight, cloning=weight, entropy=weight)
    at = ready(policy, round_of(policy, law), given)
    loss, found = minibatch_loss(policy, at, np.arange(8), given)
    terms = found["velocity_distance"] + found["start_kl"] + found["cloning"] - found["entropy"]
    expected = found["policy_loss"] + found["value_loss"] + weight * terms
    assert min(found[name] for name in ("velocity_distance", "start_kl", "cloning", "value_loss")) > 0
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)


# ---- each does its job


def drift(name: str, **weights: float) -> float:
    """RMS change of the velocity in the data's points after an update."""
    policy = adapted()
    objective = {"epochs": 6} | ({"pairs": 1} if name == "fpo" else {})
    data, given = round_of(policy), recipe(name, objective=objective, **weights)
    at, before = ready(policy, data, given), blind_policy()
    learn(policy, data, given)
    return (velocity(policy, at) - velocity(before, at)).square().mean().sqrt().item()


@pytest.mark.parametrize(
    ("name", "term"), [("ppo", "velocity"), ("ppo", "kl"), ("fpo", "velocity"), ("step_nft", "kl")]
)
def test_a_huge_weight_keeps_the_policy_at_its_start(name: str, term: str) -> None:
    free = drift(name)
    assert drift(name, **{term: 1e4}) < free / 5


def test_an_update_goes_back_to_the_start() -> None:
    """From adapters that have moved, with nothing to gain."""
    policy = adapted(moved=True)
    data, given = round_of(policy, **nothing_to_gain()), recipe(objective={"epochs": 8}, velocity=1.0)
    at = ready(policy, data, given)
    assert at.start_velocity is not None
    apart = [(velocity(policy, at) - at.start_velocity).square().mean().item()]
    learn(policy, data, given)
    apart.append((velocity(policy, at) - at.start_velocity).square().mean().item())
    assert apart[1] < apart[0] / 2


def test_cloning_raises_the_likelihood_of_successful_chunks_only() -> None:
    """Successes were chunks of ones, failures of minus ones, and advantages say nothing."""
    policy = adapted()
    good = np.arange(DECISIONS)[None] % 2 == 0
    sample = np.where(good[..., None, None], 1.0, -1.0).astype(np.float32) * np.ones((8, 16), np.float32)
    data = round_of(policy, sample=sample, **nothing_to_gain())
    given, judge = recipe(cloning=1.0, objective={"epochs": 6}), recipe("fpo", objective={"pairs": 8})
    at = ready(policy, data, judge)

    def losses() -> Tensor:
        """[M] flow-matching loss, which bounds the negative log-likelihood of a chunk."""
        target = at.view.eps - at.batch.sample[:, None]  # type: ignore[attr-defined]
        error = (velocity(policy, at) - target) ** 2
        return (error * at.batch.mask[:, None]).sum((1, 2, 3)) / at.batch.mask.sum((1, 2)) / 8

    before = losses()
    learn(policy, data, given)
    better = (before - losses()).reshape(-1, 2)
    assert (better[:, 0] > 0.05).all() and (better[:, 1] < 0).all()


def test_cloning_without_a_success_changes_nothing() -> None:
    policy = adapted()
    before = trained_state(policy)
    data = round_of(policy, success=np.zeros((1, DECISIONS), bool), **nothing_to_gain())
    learn(policy, data, recipe(cloning=1.0))
    assert all(np.array_equal(before[name], value) for name, value in trained_state(policy).items())


def test_entropy_widens_flow_noise() -> None:
    policy, law = noisy_policy(), FlowNoise()
    policy.critic = "none"
    data, given = round_of(policy, law, **nothing_to_gain()), recipe(law=law, entropy=1.0)
    assert policy.noise_net is not None
    context = random_contexts(DECISIONS).pooled

    @torch.no_grad()
    def std() -> Tensor:
        assert policy.noise_net is not None
        return policy.noise_net(context, torch.zeros(DECISIONS, 8, 16), torch.full((DECISIONS,), 0.5))[..., :7]

    before = std()
    assert before.mean() < 0.13
    learn(policy, data, given, lr=1e-2)
    assert (std() > before).float().mean() > 0.95 and std().mean() > 0.15
