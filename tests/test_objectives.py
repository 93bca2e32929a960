"""Objectives against numbers worked out by hand, and their gradient against finite differences (flow_rl: test 5)."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from learners.objectives import OBJECTIVES
from learners.objectives.base import LossInputs
from learners.objectives.ppo import policy_loss, ppo_loss, value_loss
from rl_finetune.config.schema import PPOSection
from rl_finetune.policy.flow import euler_grid, gaussian_log_prob, sde_step


def inputs(log_ratio: list[float] | Tensor, advantage: list[float] | Tensor, **changes: Any) -> LossInputs:
    """Decisions with these ratios; their value is right."""
    log_prob = torch.as_tensor(log_ratio)
    zero = torch.zeros(len(log_prob))
    return replace(LossInputs(log_prob, zero, torch.as_tensor(advantage), zero, zero, zero), **changes)


RATIO = torch.tensor([1.5, 0.5, 1.5, 0.5, 4.0])
ADVANTAGE = torch.tensor([1.0, 1.0, -1.0, -1.0, -1.0])


def test_policy_loss_by_hand() -> None:
    gains = 1.2 + 0.5 - 1.5 - 0.8
    assert policy_loss(RATIO, ADVANTAGE, PPOSection(dual_clip=None)).item() == pytest.approx(-(gains - 4.0) / 5)
    assert policy_loss(RATIO, ADVANTAGE, PPOSection(dual_clip=3.0)).item() == pytest.approx(-(gains - 3.0) / 5)
    assert policy_loss(RATIO[:4], ADVANTAGE[:4], PPOSection()).item() == pytest.approx(-gains / 4)
    wide = policy_loss(RATIO[:4], ADVANTAGE[:4], PPOSection(clip=0.9, dual_clip=None))
    assert wide.item() == pytest.approx(-(1.5 + 0.5 - 1.5 - 0.5) / 4)


def test_gradient_stops_where_the_clip_holds() -> None:
    """Better than allowed (0), as bad as allowed (3), worse than the dual clip (4): no gradient. The others: -A / n."""
    ratio = RATIO.clone().requires_grad_(True)
    policy_loss(ratio, ADVANTAGE, PPOSection()).backward()
    np.testing.assert_allclose(ratio.grad, [0, -0.2, 0.2, 0, 0], atol=1e-7)


@pytest.mark.parametrize(
    ("value", "returns", "huber", "expected"),
    [
        (0.5, 1.0, 10.0, 0.8**2 / 2),  # moved too far towards the target: the clipped error is the larger one
        (0.1, 1.0, 10.0, 0.9**2 / 2),  # within the clip
        (-0.5, 1.0, 10.0, 1.5**2 / 2),  # moved away: the plain error is the larger one
        (-3.0, 1.0, 1.0, 4.0 - 0.5),  # beyond the Huber bound
    ],
)
def test_value_loss_by_hand(value: float, returns: float, huber: float, expected: float) -> None:
    v, old, target = torch.tensor([value]), torch.tensor([0.0]), torch.tensor([returns])
    assert value_loss(v, old, target, PPOSection(huber=huber)).item() == pytest.approx(expected)


def test_value_gradient_stops_where_the_clip_holds() -> None:
    value = torch.tensor([0.5, 0.1, -0.5], requires_grad=True)
    value_loss(value, torch.zeros(3), torch.ones(3), PPOSection()).backward()
    np.testing.assert_allclose(value.grad, [0, -0.9 / 3, -1.5 / 3], atol=1e-6)


def test_loss_is_the_policys_plus_the_weighted_values() -> None:
    given = inputs([0.0, 0.0], [1.0, 2.0], value=torch.tensor([0.1, 0.1]), returns=torch.tensor([1.0, 1.0]))
    out = ppo_loss(given, PPOSection(value_coefficient=0.5))
    assert out.loss.item() == pytest.approx(-1.5 + 0.5 * 0.9**2 / 2)
    assert out.diagnostics["policy_loss"].item() == pytest.approx(-1.5)
    assert out.diagnostics["value_loss"].item() == pytest.approx(0.9**2 / 2)


def test_diagnostics_by_hand() -> None:
    ratios = [1.5, 0.9, 1.0, 0.5]
    given = inputs([math.log(r) for r in ratios], [0.0] * 4)
    found = {name: value.item() for name, value in ppo_loss(given, PPOSection()).diagnostics.items()}
    assert found["clip_fraction"] == 0.5
    assert found["kl"] == pytest.approx(sum(r - 1 - math.log(r) for r in ratios) / 4, rel=1e-5)
    assert found["ratio_error"] == pytest.approx(0.5)
    assert found["effective_samples"] == pytest.approx(3.9**2 / (1.5**2 + 0.9**2 + 1 + 0.25) / 4)
    assert not any(value.requires_grad for value in ppo_loss(given, PPOSection()).diagnostics.values())


def test_kl_estimates_the_divergence_from_the_policy_that_acted() -> None:
    """Between N(0, 1), which acted, and N(0.3, 1) it is 0.3^2 / 2."""
    x = torch.randn(400_000, generator=torch.Generator().manual_seed(0))
    given = inputs(0.3 * x - 0.3**2 / 2, torch.zeros(len(x)))
    assert ppo_loss(given, PPOSection()).diagnostics["kl"].item() == pytest.approx(0.045, rel=0.02)


def test_wild_ratios_stay_finite() -> None:
    given = inputs(torch.tensor([500.0, -500.0]).requires_grad_(True), [1.0, -1.0])
    out = ppo_loss(given, PPOSection())
    out.loss.backward()
    assert out.loss.isfinite() and given.log_prob.grad is not None and given.log_prob.grad.isfinite().all()


# ---- a one-step bandit whose policy is one Flow-SDE transition with velocity theta

NODES, WEIGHTS = np.polynomial.hermite_e.hermegauss(24)
PROBABILITY = torch.from_numpy(WEIGHTS / WEIGHTS.sum()).float()


def actions(theta: float, step: int) -> Tensor:
    """Nodes of an expectation over the bandit's policy."""
    grid = euler_grid(4)
    mean, std = sde_step(torch.tensor(0.3), torch.tensor(theta), grid[step], grid[step + 1], 0.5)
    return mean + std * torch.from_numpy(NODES).float()


def reward(action: Tensor) -> Tensor:
    return torch.sin(2 * action) - action**2


def expected_reward(theta: float, step: int) -> float:
    return (PROBABILITY * reward(actions(theta, step))).sum().item()


@pytest.mark.parametrize("name", sorted(OBJECTIVES))
@pytest.mark.parametrize("dual_clip", [None, 3.0])
@pytest.mark.parametrize("step", range(4))
def test_policy_gradient_agrees_with_finite_differences(name: str, dual_clip: float | None, step: int) -> None:
    theta0, grid = 0.4, euler_grid(4)
    theta = torch.tensor(theta0, requires_grad=True)
    a = actions(theta0, step)
    mean, std = sde_step(torch.tensor(0.3), theta, grid[step], grid[step + 1], 0.5)
    valid = torch.ones(len(a), 1, dtype=torch.bool)
    log_prob = gaussian_log_prob(a[:, None], mean.expand(len(a), 1), std, valid, dims=(-1,))
    advantage = (reward(a) - expected_reward(theta0, step)) * PROBABILITY * len(a)  # the objective takes a plain mean
    given = inputs(log_prob, advantage, old_log_prob=log_prob.detach())
    OBJECTIVES[name](given, PPOSection(dual_clip=dual_clip)).loss.backward()
    finite = (expected_reward(theta0 + 0.02, step) - expected_reward(theta0 - 0.02, step)) / 0.04
    assert theta.grad is not None
    assert -theta.grad.item() == pytest.approx(finite, rel=2e-3)
