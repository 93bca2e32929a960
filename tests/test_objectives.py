"""Objectives against numbers worked out by hand, against a second implementation, and against what theory says of their
gradients (flow_rl: tests 5, 7 and 8)."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from builders import blind_policy, episode_keys, noisy_policy, random_contexts, trajectory
from torch import Tensor

from learners.advantages import credit, score
from learners.batch import flatten
from learners.objectives import OBJECTIVES
from learners.objectives.base import DensityInputs, LossInputs, LossOutputs, PairInputs, TransitionInputs
from learners.objectives.nft import goodness
from learners.update import Recipe, minibatch_loss, prepare, run_update
from learners.values import return_scale, value_loss
from rl_finetune.config.describe import members
from rl_finetune.config.objectives import ClippedSection, ObjectiveSection
from rl_finetune.config.schema import CriticSection, TrainConfig
from rl_finetune.policy.flow import euler_grid, gaussian_log_prob, ode_step, sde_step
from rl_finetune.policy.laws import FlowNoise, FlowSDE, Law
from rl_finetune.types import Trajectory

SECTIONS = {
    name: section
    for name, section in members(TrainConfig.model_fields["objective"]).items()
    if issubclass(section, ObjectiveSection)
}
CLIPPED = sorted(name for name, section in SECTIONS.items() if issubclass(section, ClippedSection))
DENSITY = sorted(name for name, section in SECTIONS.items() if section.view == "density")
PAIRS = sorted(name for name, section in SECTIONS.items() if section.view == "pairs")
RATIOS = [*CLIPPED, "fpo", "fpo_plus"]
"""Objectives that compare likelihoods, or what stands for them."""
E = math.e


def settings(name: str, **changes: Any) -> ObjectiveSection:
    return SECTIONS[name](**changes)


def loss(name: str, given: LossInputs, **changes: Any) -> LossOutputs:
    return OBJECTIVES[name](given, settings(name, **changes))


def value(name: str, given: LossInputs, **changes: Any) -> float:
    return loss(name, given, **changes).loss.item()


def density(log_ratio: Any, advantage: Any, *, start: Any = None) -> DensityInputs:
    """Decisions with these log-ratios to the policy that acted; `start` is the log-ratio at the start of the update."""
    log_prob = torch.as_tensor(log_ratio)
    old = torch.zeros_like(log_prob).detach()
    return DensityInputs(log_prob, old, old if start is None else torch.as_tensor(start), torch.as_tensor(advantage))


def column(values: Any) -> Tensor:
    """[B, P] -> [B, P, 1, 1], or [B] -> [B, 1, 1]; float64."""
    return torch.as_tensor(values, dtype=torch.float64)[..., None, None]


def pairs(velocity: Any, old: Any, *, sample: Any, eps: Any, tau: Any, advantage: Any) -> PairInputs:
    """One action step and channel: velocities, noise and times [B, P], chunks and advantages [B]."""
    mask = torch.ones(len(sample), 1, 1, dtype=torch.bool)
    tau, advantage = (torch.as_tensor(v, dtype=torch.float64) for v in (tau, advantage))
    return PairInputs(column(velocity), column(old), column(sample), column(eps), tau, mask, advantage)


def moves(mean: Any, old: Any, x_next: Any, std: Any, advantage: Any) -> TransitionInputs:
    """One action step and channel, all [B]."""
    mask = torch.ones(len(mean), 1, 1, dtype=torch.bool)
    advantage = torch.as_tensor(advantage, dtype=torch.float64)
    return TransitionInputs(column(mean), column(old), column(x_next), column(std), mask, advantage)


def slope(name: str, given: LossInputs, field: str, **changes: Any) -> Tensor:
    """Gradient of the loss in one of its inputs, without axes of one action step and channel."""
    leaf = getattr(given, field).clone().requires_grad_(True)
    (found,) = torch.autograd.grad(loss(name, replace(given, **{field: leaf}), **changes).loss, leaf)
    return found if found.ndim == 1 else found.squeeze((-2, -1))


# ---- clipped ratios: PPO, GRPO, RLOO

RATIO = torch.tensor([1.5, 0.5, 1.5, 0.5, 4.0])
ADVANTAGE = torch.tensor([1.0, 1.0, -1.0, -1.0, -1.0])


@pytest.mark.parametrize("name", CLIPPED)
def test_clip_and_dual_clip_by_hand(name: str) -> None:
    gains = 1.2 + 0.5 - 1.5 - 0.8
    given, first = density(RATIO.log(), ADVANTAGE), density(RATIO[:4].log(), ADVANTAGE[:4])
    assert value(name, given, dual_clip=None) == pytest.approx(-(gains - 4.0) / 5)
    assert value(name, given, dual_clip=3.0) == pytest.approx(-(gains - 3.0) / 5)
    assert value(name, first) == pytest.approx(-gains / 4)
    assert value(name, first, clip=0.9, dual_clip=None) == pytest.approx(-(1.5 + 0.5 - 1.5 - 0.5) / 4)


@pytest.mark.parametrize("name", CLIPPED)
def test_gradient_stops_where_the_clip_holds(name: str) -> None:
    """Better than allowed (0), as bad as allowed (3), worse than the dual clip (4): none. The others: -rho A / n."""
    np.testing.assert_allclose(
        slope(name, density(RATIO.log(), ADVANTAGE), "log_prob"), [0, -0.1, 0.3, 0, 0], atol=1e-6
    )


@pytest.mark.parametrize("name", CLIPPED)
def test_diagnostics_by_hand(name: str) -> None:
    ratios = [1.5, 0.9, 1.0, 0.5]
    diagnostics = loss(name, density(torch.tensor(ratios).log().requires_grad_(True), [1.0, 1, 1, 1])).diagnostics
    found = {name: value.item() for name, value in diagnostics.items()}
    assert found["clip_fraction"] == 0.25
    assert found["kl"] == pytest.approx(sum(r - 1 - math.log(r) for r in ratios) / 4, rel=1e-5)
    assert found["ratio_error"] == pytest.approx(0.5)
    if name != "decoupled_ppo":  # there it counts weights
        assert found["effective_samples"] == pytest.approx(3.9**2 / (1.5**2 + 0.9**2 + 1 + 0.25) / 4)
    assert not any(value.requires_grad for value in diagnostics.values())


@pytest.mark.parametrize("name", CLIPPED)
def test_clip_fraction_counts_decisions_without_gradient(name: str) -> None:
    """Better than allowed, as bad as allowed, worse than the dual clip; ratios that move back to 1 are not clipped."""
    ratios = torch.tensor([1.5, 0.5, 1.5, 0.5, 4.0, 1.1, 0.9]).log()
    given = density(ratios, [1.0, 1.0, -1.0, -1.0, -1.0, 1.0, -1.0])
    for dual_clip, count in ((3.0, 3), (None, 2)):
        silent = (slope(name, given, "log_prob", dual_clip=dual_clip) == 0).sum().item()
        assert loss(name, given, dual_clip=dual_clip).diagnostics["clip_fraction"].item() == pytest.approx(count / 7)
        assert silent == count


@pytest.mark.parametrize("name", ["fpo", "fpo_plus"])
def test_clip_fraction_of_pairs_counts_those_without_gradient(name: str) -> None:
    """Ratios 1.5, .5, 1.5, .5: the first is better than allowed; the last is as bad as allowed, which FPO++ goes on to
    pull back."""
    v = (1 - torch.tensor([1.5, 0.5, 1.5, 0.5], dtype=torch.float64).log()).sqrt()[:, None]
    given = pairs(v, torch.ones(4, 1), sample=[0.0] * 4, eps=torch.zeros(4, 1), tau=torch.full((4, 1), 0.5),
                  advantage=[1.0, 1.0, -1.0, -1.0])  # fmt: skip
    count = {"fpo": 2, "fpo_plus": 1}[name]
    assert (slope(name, given, "velocity", clip=0.05) == 0).sum() == count
    assert loss(name, given, clip=0.05).diagnostics["clip_fraction"].item() == count / 4


def test_kl_estimates_the_divergence_from_the_policy_that_acted() -> None:
    """Between N(0, 1), which acted, and N(0.3, 1) it is 0.3^2 / 2."""
    x = torch.randn(400_000, generator=torch.Generator().manual_seed(0))
    found = loss("ppo", density(0.3 * x - 0.3**2 / 2, torch.zeros(len(x)))).diagnostics
    assert found["kl"].item() == pytest.approx(0.045, rel=0.02)


@pytest.mark.parametrize("name", CLIPPED)
def test_wild_ratios_stay_finite(name: str) -> None:
    given = density([500.0, -500.0], [1.0, -1.0], start=[-500.0, 500.0])
    assert math.isfinite(value(name, given)) and slope(name, given, "log_prob").isfinite().all()


# ---- decoupled PPO


def test_decoupled_is_ppo_to_the_bit_at_zero_lag() -> None:
    rng = torch.Generator().manual_seed(0)
    log_ratio, advantage = torch.randn(2, 200, generator=rng)
    old = torch.randn(200, generator=rng) * 100
    given = DensityInputs(old + log_ratio, old, old.clone(), advantage)
    one, other = loss("ppo", given), loss("decoupled_ppo", given)
    assert torch.equal(one.loss, other.loss)
    assert torch.equal(slope("ppo", given, "log_prob"), slope("decoupled_ppo", given, "log_prob"))
    for name in ("clip_fraction", "kl", "ratio_error"):
        assert torch.equal(one.diagnostics[name], other.diagnostics[name])
    assert other.diagnostics["stale_weight"] == 1 and other.diagnostics["stale_dropped"] == 0


def test_decoupled_with_lag_by_hand() -> None:
    """Weights pi_prox / pi_behaviour 0.5, 2, 3 (dropped), 0.8; ratios pi / pi_prox 1.5, 0.9, 1, 1.5, clipped at 1.2."""
    weight, ratio = torch.tensor([0.5, 2.0, 3.0, 0.8]), torch.tensor([1.5, 0.9, 1.0, 1.5])
    given = density((weight * ratio).log(), [2.0, 1.0, 5.0, -1.0], start=weight.log())
    gains = 0.5 * 1.2 * 2 + 2 * 0.9 * 1 + 0 - 0.8 * 1.5 * 1
    out = loss("decoupled_ppo", given, max_weight=2.001)
    assert out.loss.item() == pytest.approx(-gains / 4)
    assert out.diagnostics["stale_weight"].item() == pytest.approx((0.5 + 2 + 0.8) / 4)
    assert out.diagnostics["stale_dropped"].item() == pytest.approx(0.25)
    assert out.diagnostics["effective_samples"].item() == pytest.approx(3.3**2 / (0.25 + 4 + 0.64) / 4)
    np.testing.assert_allclose(
        slope("decoupled_ppo", given, "log_prob", max_weight=2.001), [0, -2 * 0.9 / 4, 0, 0.8 * 1.5 / 4], atol=1e-6
    )


def test_weights_above_two_are_dropped() -> None:
    given = density([0.0, 0.0], [1.0, 1.0], start=[math.log(1.999), math.log(2.001)])
    found = loss("decoupled_ppo", given).diagnostics
    assert found["stale_weight"].item() == pytest.approx(1.999 / 2) and found["stale_dropped"] == 0.5


def test_all_dropped_is_a_loss_of_zero() -> None:
    out = loss("decoupled_ppo", density([1.0, 1.0], [1.0, -1.0], start=[5.0, 5.0]))
    assert out.loss == 0 and out.diagnostics["effective_samples"] == 0


# ---- credit in groups

GROUPS = [[1.0, 0.0, 1.0, 0.0], [0.0, 0.0, 0.0, 0.0]], [[0.0, 0.0, 1.0, 1.0], [1.0, 1.0, 0.0, 0.0]]
"""Two actors with four environments each, in pairs that share their scene; two episodes of one chunk, by whether they
succeeded. Scene 0 is played by the first actor's first pair and by the second's first one."""


def played() -> list[Trajectory]:
    policy, found = blind_policy(), []
    for success in GROUPS:
        won = np.array(success, np.float32)
        reward = np.zeros((2, 4, 8), np.float32)
        reward[..., 3] = won
        made = trajectory(policy, random_contexts(8), chunks=2, reward=reward)
        keys = replace(episode_keys(4), group=2)
        found.append(replace(made, terminated=np.ones((2, 4), bool), success=won > 0, keys=keys))
    return found


def test_group_advantages_by_hand() -> None:
    """First episodes: scene 0 has returns 1 0 | 0 0, scene 1 has 1 0 | 1 1. Second ones: 0 0 | 1 1 and 0 0 | 0 0."""
    scored = credit(played(), settings("grpo"))
    low, high = math.sqrt(3 / 16), 0.5
    expected = [[[0.75, -0.25, 0.25, -0.75], [-0.5, -0.5, 0, 0]], [[-0.25, -0.25, 0.25, 0.25], [0.5, 0.5, 0, 0]]]
    for part, wanted in zip(scored, expected, strict=True):
        wanted = np.array(wanted) / np.array([[low], [high]])
        np.testing.assert_allclose(part.advantage, wanted, rtol=1e-4)
        assert (part.used == (wanted != 0)).all()
        assert not part.returns.any()
    assert sum(len(flatten([part], normalise=False)) for part in scored) == 12  # the undecided group says nothing


def test_leave_one_out_advantages_by_hand() -> None:
    """Against the mean of the other three of the group."""
    scored = credit(played(), settings("rloo"))
    np.testing.assert_allclose(scored[0].advantage, [[1, -1 / 3, 1 - 2 / 3, -1], [-2 / 3, -2 / 3, 0, 0]], rtol=1e-5)
    np.testing.assert_allclose(scored[1].advantage, [[-1 / 3, -1 / 3, 1 / 3, 1 / 3], [2 / 3, 2 / 3, 0, 0]], rtol=1e-5)


# ---- negative-aware fine-tuning


def test_goodness_by_hand() -> None:
    advantage = torch.tensor([-5.0, -1.0, -0.5, 0.0, 0.5, 1.0, 5.0])
    np.testing.assert_allclose(goodness(advantage, 1.0), [0, 0, 0.25, 0.5, 0.75, 1, 1])
    np.testing.assert_allclose(goodness(advantage, 2.0), [0, 0.25, 0.375, 0.5, 0.625, 0.75, 1])


def test_diffusion_nft_by_hand() -> None:
    """v+- = 1 +- 1; in x = 0 at tau = 1/2 they predict chunks -1 and 0, and the chunk was 1/2. r = 3/4."""
    given = pairs([[3.0]], [[1.0]], sample=[0.5], eps=[[-0.5]], tau=[[0.5]], advantage=[0.5])
    assert given.x.item() == 0 and given.target.item() == -1
    assert value("diffusion_nft", given, beta=0.5, adaptive_weight=False) == 0.75 * 1.5**2 + 0.25 * 0.5**2
    out = loss("diffusion_nft", given, beta=0.5)
    assert out.loss.item() == 0.75 * 1.5**2 / 1.5 + 0.25 * 0.5**2 / 0.5
    assert out.diagnostics["goodness"].item() == 0.75 and out.diagnostics["velocity_drift"].item() == 2


def test_adaptive_weight_is_of_each_pair_and_sign_and_has_no_gradient() -> None:
    """Errors of v+ are (3, 1) and 0 in two pairs, of v- (1, 3) and 0; a weight of at least 1e-5 divides the latter."""
    nothing, one = torch.zeros(1, 2, 1, 2, dtype=torch.float64), torch.ones(1, 2, dtype=torch.float64)
    v = torch.tensor([[[[-1.0, 1.0]], [[0.0, 0.0]]]], dtype=torch.float64, requires_grad=True)
    eps = torch.tensor([[[[2.0, 2.0]], [[0.0, 0.0]]]], dtype=torch.float64)
    given = PairInputs(
        v, nothing, torch.zeros(1, 1, 2, dtype=torch.float64), eps, one, torch.ones(1, 1, 2, dtype=torch.bool),
        torch.tensor([0.5], dtype=torch.float64),
    )  # fmt: skip
    found = loss("diffusion_nft", given).loss
    assert found.item() == pytest.approx((0.75 * 5 / 2 + 0.25 * 5 / 2) / 2)
    found.backward()
    # d/dv of mean(e^2) / 2 with e+ = eps - v and e- = eps + v; halved, for there are two pairs and one is silent.
    slopes = [0.75 * -e / 2 + 0.25 * f / 2 for e, f in ((3, 1), (1, 3))]
    assert v.grad is not None and v.grad[0, 0, 0].tolist() == pytest.approx([s / 2 for s in slopes])
    assert not v.grad[0, 1].any()


def test_adaptive_weight_makes_the_gradient_go_with_tau_in_place_of_its_square() -> None:
    """Where velocities are wrong by as much at every tau: .05 weighs 13 times more against .65 than it did."""
    share = {}
    for adaptive in (True, False):
        at = [pairs([[1.0]], [[1.0]], sample=[0.5], eps=[[-0.5]], tau=[[tau]], advantage=[1.0]) for tau in (0.05, 0.65)]
        slopes = [slope("diffusion_nft", given, "velocity", adaptive_weight=adaptive).item() for given in at]
        share[adaptive] = slopes[0] / slopes[1]
    assert share[True] == pytest.approx(1 / 13) and share[False] == pytest.approx(1 / 13**2)


def test_step_nft_by_hand() -> None:
    """Means 1 +- 1/2 against a next state of 3, standard deviation 1/2; r = 1/4."""
    given = moves([2.0], [1.0], [3.0], [0.5], [-0.5])
    out = loss("step_nft", given, beta=0.5)
    assert out.loss.item() == pytest.approx(0.25 * 3**2 + 0.75 * 5**2)
    assert out.diagnostics["goodness"].item() == 0.25 and out.diagnostics["velocity_drift"].item() == 1


def test_step_nft_counts_in_standard_deviations() -> None:
    given = moves([2.0, -1.0], [1.0, 0.5], [3.0, 0.0], [0.5, 0.2], [-0.5, 0.9])
    wide = replace(given, std=2 * given.std)
    assert value("step_nft", wide) == pytest.approx(value("step_nft", given) / 4)
    scaled = {name: 7 * getattr(given, name) for name in ("mean", "old_mean", "x_next", "std")}
    assert value("step_nft", replace(given, **scaled)) == pytest.approx(value("step_nft", given))


PLAIN: dict[str, dict[str, Any]] = {"diffusion_nft": {"adaptive_weight": False}, "step_nft": {}}
"""Settings under which a loss is the plain blend of two squared errors."""


def at_old(name: str, advantage: float) -> tuple[LossInputs, str]:
    """A decision of that advantage at v = v_old, and the input that trains. The better velocity or mean is lower by 2,
    and tau = 1/2 or std = 2."""
    if name == "step_nft":
        return moves([1.0], [1.0], [-1.0], [2.0], [advantage]), "mean"
    return pairs([[1.0]], [[1.0]], sample=[0.5], eps=[[-0.5]], tau=[[0.5]], advantage=[advantage]), "velocity"


NFT = pytest.mark.parametrize("name", ["diffusion_nft", "step_nft"])


@NFT
def test_nft_gradient_at_the_old_velocity_by_hand(name: str) -> None:
    """(2 r - 1) 2 beta (v_old - v*) tau^2, or over std^2: towards good chunks, away from bad ones, zero at r = 1/2."""
    scale = 0.5**2 if name == "diffusion_nft" else 1 / 2**2
    for advantage, sign in {1.0: 1, 0.5: 0.5, 0.0: 0, -0.5: -0.5, -1.0: -1, -9.0: -1}.items():
        given, field = at_old(name, advantage)
        found = slope(name, given, field, beta=0.7, **PLAIN[name]).item()
        assert found == pytest.approx(sign * 2 * 0.7 * 2 * scale), advantage


@NFT
@pytest.mark.parametrize(("advantage", "best"), [(1.0, -4.0), (-1.0, 4.0), (0.0, 0.0), (0.5, -2.0)])
def test_nft_is_least_where_the_change_is_in_proportion_to_the_goodness(
    name: str, advantage: float, best: float
) -> None:
    """D = (2 r - 1) (v* - v_old) / beta; here v* - v_old = -2 and beta = 1/2."""
    given, field = at_old(name, advantage)
    there = replace(given, **{field: getattr(given, field) + best})
    assert slope(name, there, field, beta=0.5, **PLAIN[name]).item() == pytest.approx(0, abs=1e-12)
    for near in (-0.1, 0.1):
        beside = replace(given, **{field: getattr(there, field) + near})
        assert value(name, beside, beta=0.5, **PLAIN[name]) > value(name, there, beta=0.5, **PLAIN[name])


# ---- flow policy optimisation


def fpo_example(advantage: float) -> PairInputs:
    """Losses 1 and 4 have become 0 and 1: log-ratios 1 and 3, on the mean 2."""
    return pairs([[1.0, 1.0]], [[0.0, 0.0]], sample=[0.0], eps=[[1.0, 2.0]], tau=[[0.5, 0.5]], advantage=[advantage])


def test_fpo_takes_the_ratio_of_the_mean_over_pairs() -> None:
    assert value("fpo", fpo_example(2.0), clip=0.05) == pytest.approx(-1.05 * 2)
    assert value("fpo", fpo_example(-2.0), clip=0.05) == pytest.approx(E**2 * 2)
    assert loss("fpo", fpo_example(1.0)).diagnostics["ratio_error"].item() == pytest.approx(E**2 - 1)


def test_fpo_plus_takes_a_ratio_for_each_pair() -> None:
    assert value("fpo_plus", fpo_example(2.0), clip=0.05) == pytest.approx(-1.05 * 2)
    gains = [-rho * 2 - 2 / (2 * 0.05) * (rho - 1) ** 2 for rho in (E, E**3)]
    assert value("fpo_plus", fpo_example(-2.0), clip=0.05) == pytest.approx(-sum(gains) / 2)
    assert value("fpo_plus", fpo_example(2.0), clip=0.9) == pytest.approx(-1.9 * 2)
    assert loss("fpo_plus", fpo_example(1.0)).diagnostics["ratio_error"].item() == pytest.approx(E**3 - 1)


@pytest.mark.parametrize("name", ["fpo", "fpo_plus"])
@pytest.mark.parametrize(("old", "new", "ratio"), [(3.0, 0.0, E**3), (0.0, 3.0, E**-3), (1.5, 1.0, E**1.25)])
def test_differences_of_losses_are_clamped_at_three(name: str, old: float, new: float, ratio: float) -> None:
    """Losses of 9, 2.25 and 1; for a bad chunk no clip interferes."""
    given = pairs([[new]], [[old]], sample=[0.0], eps=[[0.0]], tau=[[0.5]], advantage=[-1.0])
    penalty = (ratio - 1) ** 2 / (2 * 0.2) if name == "fpo_plus" else 0
    assert value(name, given, clip=0.2) == pytest.approx(
        max(ratio, 0.8) + penalty if name == "fpo" else ratio + penalty
    )
    clamped = abs(old**2 - new**2) > 3
    assert (slope(name, given, "velocity", clip=0.2).item() == 0) == (clamped or (name == "fpo" and ratio < 0.8))


@pytest.mark.parametrize(("ratio", "gain"), [(0.9, 1.0), (0.95, 0.0), (1.0, -1.0), (1.05, -2.0), (1.1, -3.0)])
def test_penalty_of_fpo_plus_pulls_bad_ratios_back(ratio: float, gain: float) -> None:
    """d gain / d rho = A - |A| (rho - 1) / e, with A = -1, e = 0.05: below 1 - e it turns round, where a clip would be
    silent. The loss is v^2 here, so that d loss / d v = 2 v rho gain."""
    v = math.sqrt(1 - math.log(ratio))
    given = pairs([[v]], [[1.0]], sample=[0.0], eps=[[0.0]], tau=[[0.5]], advantage=[-1.0])
    assert slope("fpo_plus", given, "velocity", clip=0.05).item() == pytest.approx(2 * v * ratio * gain, abs=1e-9)
    silent = ratio < 0.95
    assert (slope("fpo", given, "velocity", clip=0.05).item() == 0) == silent


@pytest.mark.parametrize("name", ["fpo", "fpo_plus"])
@pytest.mark.parametrize("advantage", [1.0, -1.0])
def test_one_clip_serves_bodies_of_any_width(name: str, advantage: float) -> None:
    """Every number moves as far: ratio, clip and loss are the same for 7, 56 and 304 numbers, padded or not."""
    found = []
    for horizon, channels, padding in ((1, 7, 0), (1, 7, 9), (8, 7, 9), (16, 19, 0)):
        shape, mask = (1, 1, horizon, channels + padding), torch.zeros(1, horizon, channels + padding, dtype=torch.bool)
        mask[..., :channels] = True
        v = torch.full(shape, 0.98, dtype=torch.float64)
        given = PairInputs(
            v, torch.ones_like(v), torch.zeros_like(v[0]), torch.zeros_like(v), torch.full((1, 1), 0.5), mask,
            torch.tensor([advantage], dtype=torch.float64),
        )  # fmt: skip
        out = loss(name, given, clip=0.05)
        found.append((out.loss.item(), out.diagnostics["clip_fraction"].item(), out.diagnostics["kl"].item()))
    ratio = math.exp(1 - 0.98**2)  # 1.0404: a clip over the sum of 56 numbers would hold it at 1.05
    assert all(each == pytest.approx(found[0], rel=1e-9) for each in found) and found[0][1] == 0
    penalty = (ratio - 1) ** 2 / (2 * 0.05) if name == "fpo_plus" and advantage < 0 else 0
    assert found[0][0] == pytest.approx(-advantage * ratio + penalty)


@pytest.mark.parametrize("name", ["fpo", "fpo_plus"])
@pytest.mark.parametrize("seed", range(3))
def test_repeated_channels_change_nothing(name: str, seed: int) -> None:
    given = random_pairs(seed)
    fields = ("velocity", "old_velocity", "sample", "eps", "mask")
    thrice = replace(given, **{field: torch.cat([getattr(given, field)] * 3, -1) for field in fields})
    one, other = loss(name, given), loss(name, thrice)
    assert other.loss.item() == pytest.approx(one.loss.item(), rel=1e-12)
    for key, number in one.diagnostics.items():
        assert other.diagnostics[key].item() == pytest.approx(number.item(), rel=1e-6), key


@pytest.mark.parametrize("name", ["fpo", "fpo_plus"])
def test_good_ratios_are_clipped_by_both(name: str) -> None:
    for ratio, moving in ((0.5, True), (1.04, True), (1.06, False)):
        v = math.sqrt(1 - math.log(ratio))
        given = pairs([[v]], [[1.0]], sample=[0.0], eps=[[0.0]], tau=[[0.5]], advantage=[1.0])
        assert slope(name, given, "velocity", clip=0.05).item() == pytest.approx(2 * v * ratio * moving)


# ---- advantage-conditioned


def test_recap_is_the_flow_matching_loss() -> None:
    """Errors 1 and 3 of the first chunk, 2 and 0 of the second."""
    given = pairs([[2.0, 5.0], [0.0, 1.0]], np.zeros((2, 2)), sample=[0.0, 1.0], eps=[[1.0, 2.0], [3.0, 2.0]],
                  tau=[[0.1, 0.6], [0.3, 0.9]], advantage=[1.0, -1.0])  # fmt: skip
    out = loss("recap", given)
    assert out.loss.item() == pytest.approx(((1 + 9) / 2 + (4 + 0) / 2) / 2) == out.diagnostics["flow_loss"].item()


def test_recap_sees_advantages_through_the_context_alone() -> None:
    given = random_pairs(0)
    other = replace(given, advantage=-3 * given.advantage, old_velocity=given.old_velocity + 1)
    assert torch.equal(loss("recap", given).loss, loss("recap", other).loss)
    assert torch.equal(slope("recap", given, "velocity"), slope("recap", other, "velocity"))


# ---- a second implementation, written from the formulas, and finite differences of it


def random_pairs(seed: int, b: int = 6, p: int = 3, h: int = 2, k: int = 3) -> PairInputs:
    """Velocities near the old ones, so that ratios fall on both sides of clips; a random mask."""
    rng = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=rng, dtype=torch.float64)

    old, mask = normal(b, p, h, k), torch.rand(b, h, k, generator=rng) < 0.7
    mask[:, 0, 0] = True
    return PairInputs(
        old + 0.05 * normal(b, p, h, k), old, normal(b, h, k), normal(b, p, h, k),
        torch.rand(b, p, generator=rng, dtype=torch.float64), mask, normal(b),
    )  # fmt: skip


def random_moves(seed: int, b: int = 6, h: int = 2, k: int = 3) -> TransitionInputs:
    given, rng = random_pairs(seed, b, 1, h, k), torch.Generator().manual_seed(seed)
    std = 0.1 + torch.rand(b, 1, 1, generator=rng, dtype=torch.float64)
    mean, old = given.velocity[:, 0], given.old_velocity[:, 0]
    return TransitionInputs(mean, old, given.sample, std, given.mask, given.advantage)


def numpy_loss(name: str, given: PairInputs | TransitionInputs, v: np.ndarray, config: Any) -> float:
    """The loss as flow_rl has it, a decision and a pair at a time."""
    total = 0.0
    for i, (valid, advantage) in enumerate(zip(given.mask.numpy(), given.advantage.tolist(), strict=True)):
        if isinstance(given, TransitionInputs):
            total += step_nft_by_formula(given, i, v[i], valid, advantage, config)
            continue
        weighs = given.velocity.detach().numpy()  # the adaptive weight stays where velocities are moved
        found = [by_formula(name, given, i, j, v[i, j], valid, config, weighs) for j in range(v.shape[1])]
        total += whole_decision(name, found, advantage, config)
    return total / len(given.advantage)


def by_formula(
    name: str, g: PairInputs, i: int, j: int, v: np.ndarray, valid: np.ndarray, config: Any, weighs: np.ndarray
) -> Any:
    """What one pair contributes: a log-ratio, both errors, or one."""
    a, eps, tau, old = g.sample[i].numpy(), g.eps[i, j].numpy(), g.tau[i, j].item(), g.old_velocity[i, j].numpy()
    if name in ("fpo", "fpo_plus"):
        return ((old - (eps - a))[valid] ** 2).mean() - ((v - (eps - a))[valid] ** 2).mean()
    if name == "recap":
        return ((v - (eps - a))[valid] ** 2).mean()
    x, change = (1 - tau) * a + tau * eps, config.beta * (v - old)
    kept, unmoved = config.beta * (weighs[i, j] - old), (x - tau * old - a)
    errors = [((unmoved - s * tau * change)[valid], (unmoved - s * tau * kept)[valid]) for s in (1, -1)]
    return tuple((error**2).mean() / (np.abs(now).mean() if config.adaptive_weight else 1) for error, now in errors)


def whole_decision(name: str, found: list[Any], advantage: float, config: Any) -> float:
    if name == "recap":
        return float(np.mean(found))
    if name == "diffusion_nft":
        r = 0.5 + 0.5 * np.clip(advantage / config.advantage_clip, -1, 1)
        return float(np.mean([r * plus + (1 - r) * minus for plus, minus in found]))
    changes = [float(np.mean(found))] if name == "fpo" else found
    gains = []
    for rho in np.exp(np.clip(changes, -3, 3)):
        if name == "fpo_plus" and advantage < 0:
            gains.append(rho * advantage - abs(advantage) / (2 * config.clip) * (rho - 1) ** 2)
        else:
            gains.append(min(rho * advantage, np.clip(rho, 1 - config.clip, 1 + config.clip) * advantage))
    return -float(np.mean(gains))


def step_nft_by_formula(
    g: TransitionInputs, i: int, mean: np.ndarray, valid: np.ndarray, advantage: float, config: Any
) -> float:
    old, following, std = g.old_mean[i].numpy(), g.x_next[i].numpy(), g.std[i].item()
    r = 0.5 + 0.5 * np.clip(advantage / config.advantage_clip, -1, 1)
    plus, minus = ((((old + s * config.beta * (mean - old) - following)[valid] / std) ** 2).mean() for s in (1, -1))
    return float(r * plus + (1 - r) * minus)


LIKELIHOOD_FREE = [*PAIRS, "step_nft"]


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("name", LIKELIHOOD_FREE)
def test_loss_and_gradient_agree_with_a_second_implementation(name: str, seed: int) -> None:
    given, field = (random_moves(seed), "mean") if name == "step_nft" else (random_pairs(seed), "velocity")
    config = settings(name)
    leaf = getattr(given, field).clone().requires_grad_(True)
    out = OBJECTIVES[name](replace(given, **{field: leaf}), config).loss
    out.backward()
    v = leaf.detach().numpy()
    assert out.item() == pytest.approx(numpy_loss(name, given, v, config), rel=1e-9)
    assert leaf.grad is not None
    for place in np.random.default_rng(seed).choice(v.size, 12, replace=False):
        step = np.zeros_like(v)
        step.flat[place] = 1e-6
        finite = (numpy_loss(name, given, v + step, config) - numpy_loss(name, given, v - step, config)) / 2e-6
        assert leaf.grad.flatten()[place].item() == pytest.approx(finite, rel=1e-5, abs=1e-8)


@pytest.mark.parametrize("name", LIKELIHOOD_FREE)
def test_padding_and_steps_that_were_not_executed_say_nothing(name: str) -> None:
    given: Any = random_moves(0) if name == "step_nft" else random_pairs(0)
    fields = ("mean", "x_next") if name == "step_nft" else ("velocity", "eps", "sample")
    spoilt = {}
    for field in fields:
        tensor = getattr(given, field).clone()
        valid = given.mask if tensor.ndim == 3 else given.mask[:, None].expand_as(tensor)
        spoilt[field] = torch.where(valid, tensor, torch.full_like(tensor, 1e3))
    assert value(name, replace(given, **spoilt)) == pytest.approx(value(name, given), rel=1e-12)


# ---- values


@pytest.mark.parametrize(
    ("value", "returns", "critic", "expected"),
    [
        (0.5, 1.0, {}, 0.8**2 / 2),  # moved too far towards the target: the clipped error is the larger one
        (0.1, 1.0, {}, 0.9**2 / 2),  # within the clip
        (-0.5, 1.0, {}, 1.5**2 / 2),  # moved away: the plain error is the larger one
        (0.5, 1.0, {"clip": None}, 0.5**2 / 2),
        (-3.0, 1.0, {"huber": 1.0}, 4.0 - 0.5),  # beyond the Huber bound
        (-3.0, 1.0, {"huber": 2.0}, 2 * (4.0 - 1.0)),
        (-30.0, 1.0, {}, 10 * (31.0 - 5.0)),
        (-30.0, 1.0, {"huber": None}, 31.0**2 / 2),
        (30.0, 1.0, {"huber": None, "clip": None}, 29.0**2 / 2),
    ],
)
def test_value_loss_by_hand(value: float, returns: float, critic: dict[str, Any], expected: float) -> None:
    v, old, target = torch.tensor([value]), torch.tensor([0.0]), torch.tensor([returns])
    assert value_loss(v, old, target, CriticSection(**critic), 1.0).item() == pytest.approx(expected)


def test_the_values_clip_is_a_share_of_the_returns_whatever_the_reward_is_multiplied_by() -> None:
    old, returns = torch.tensor([0.0, 0.5, 1.0]), torch.tensor([1.0, 0.0, 1.0])
    assert return_scale(old, returns) == pytest.approx((2 / 3) ** 0.5)
    assert return_scale(returns, torch.zeros(3)) == pytest.approx((2 / 3) ** 0.5)  # values that are to come down to 0
    value, losses = torch.tensor([0.9, 0.1, 0.2]), []
    for times in (1.0, 100.0):
        scale = return_scale(times * old, times * returns)
        losses.append(value_loss(times * value, times * old, times * returns, CriticSection(), scale).item())
    assert losses[1] == pytest.approx(1e4 * losses[0], rel=1e-5)
    assert 0 < return_scale(torch.zeros(2), torch.zeros(2)) < 1e-30  # the Huber bound must be above 0


def test_value_gradient_stops_where_the_clip_holds() -> None:
    value = torch.tensor([0.5, 0.1, -0.5], requires_grad=True)
    value_loss(value, torch.zeros(3), torch.ones(3), CriticSection(), 1.0).backward()
    np.testing.assert_allclose(value.grad, [0, -0.9 / 3, -1.5 / 3], atol=1e-6)


# ---- through an update


def one_pass(name: str, law: Law, critic: CriticSection | None = None) -> tuple[Recipe, list[Any], Any]:
    policy = noisy_policy() if isinstance(law, FlowNoise) else blind_policy()
    config = settings(name, epochs=1, minibatch=16)
    data = [score(trajectory(policy, random_contexts(32), law=law), gamma=0.99, lam=0.95)]
    return Recipe(config, OBJECTIVES[name], law, critic or CriticSection()), data, policy


@pytest.mark.parametrize("law", [FlowSDE(), FlowSDE(levels=(1.0, 0.8, 0.4, 0.2)), FlowNoise()], ids=str)
@pytest.mark.parametrize("name", RATIOS)
def test_ratio_is_one_at_first(name: str, law: Law) -> None:
    recipe, data, policy = one_pass(name, law)
    report = run_update(policy, data, recipe, optimise=lambda loss: None, seed=0, version=0)
    assert report.first_ratio_error < 1e-4 and report.diagnostics["ratio_error"] < 1e-4
    if name == "decoupled_ppo":  # its ratio is to the start of the update, its weight to what acted
        assert report.diagnostics["stale_weight"] == pytest.approx(1, abs=1e-4)
        assert report.diagnostics["effective_samples"] == pytest.approx(1, abs=1e-4)


@pytest.mark.parametrize("name", sorted(set(OBJECTIVES) - set(RATIOS)))
def test_objectives_without_a_ratio_log_none(name: str) -> None:
    if settings(name).advised:
        return  # needs contexts with advice
    recipe, data, policy = one_pass(name, FlowSDE())
    report = run_update(policy, data, recipe, optimise=lambda loss: None, seed=0, version=0)
    assert math.isnan(report.first_ratio_error) and report.diagnostics["velocity_drift"] < 1e-5


@pytest.mark.parametrize("coefficient", [0.0, 0.5])
def test_loss_is_the_objectives_plus_the_weighted_values(coefficient: float) -> None:
    recipe, data, policy = one_pass("ppo", FlowSDE(), CriticSection(coefficient=coefficient))
    ready = prepare(policy, flatten(data, normalise=True), recipe, (0, 0))
    whole, found = minibatch_loss(policy, ready, np.arange(16), recipe)
    assert found["value_loss"] > 0.01
    assert whole.item() == pytest.approx((found["policy_loss"] + coefficient * found["value_loss"]).item())


# ---- policy gradients: one step of a chain is the bandit's policy, with velocity theta and log standard deviation phi

NODES, WEIGHTS = np.polynomial.hermite_e.hermegauss(24)
Z, PROBABILITY = torch.from_numpy(NODES).float(), torch.from_numpy(WEIGHTS / WEIGHTS.sum()).float()
THETA, PHI, LEVELS = 0.4, -1.2, (1.2, 0.7, 0.4, 0.3)


def reward(action: Tensor) -> Tensor:
    return torch.sin(2 * action) - action**2


def sde_moments(theta: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Of step k from 0.3 with the calibrated law's levels."""
    grid = euler_grid(4)
    return sde_step(torch.tensor(0.3), theta, grid[k], grid[k + 1], LEVELS[k])


def sde_actions(theta: float, k: int) -> Tensor:
    """Nodes of an expectation over the bandit's policy."""
    mean, std = sde_moments(torch.tensor(theta), k)
    return mean + std * Z


def sde_reward(theta: float, k: int) -> float:
    return (PROBABILITY * reward(sde_actions(theta, k))).sum().item()


def score_of(theta: Tensor, k: int, actions: Tensor) -> Tensor:
    """Log-probability [M] of actions."""
    mean, std = sde_moments(theta, k)
    valid = torch.ones(len(actions), 1, dtype=torch.bool)
    return gaussian_log_prob(actions[:, None], mean.expand(len(actions), 1), std, valid, dims=(-1,))


def policy_gradient(k: int, theta: float = THETA) -> float:
    return (sde_reward(theta + 0.02, k) - sde_reward(theta - 0.02, k)) / 0.04


def weighed(actions: Tensor, baseline: float) -> Tensor:
    """Advantages under which a plain mean over nodes is the expectation."""
    return (reward(actions) - baseline) * PROBABILITY * len(actions)


@pytest.mark.parametrize("dual_clip", [None, 3.0])
@pytest.mark.parametrize("k", range(4))
@pytest.mark.parametrize("name", DENSITY)
def test_policy_gradient_agrees_with_finite_differences(name: str, k: int, dual_clip: float | None) -> None:
    theta, a = torch.tensor(THETA, requires_grad=True), sde_actions(THETA, k)
    log_prob = score_of(theta, k, a)
    old = log_prob.detach()
    given = DensityInputs(log_prob, old, old, weighed(a, sde_reward(THETA, k)))
    loss(name, given, **({"dual_clip": dual_clip} if name in CLIPPED else {})).loss.backward()
    assert theta.grad is not None and -theta.grad.item() == pytest.approx(policy_gradient(k), rel=2e-3)


@pytest.mark.parametrize("k", range(4))
def test_decoupled_gradient_on_stale_data_is_that_of_the_weights_at_the_start(k: int) -> None:
    """Actions are of a policy with another velocity; weights make up for it where none is dropped."""
    theta, acted = torch.tensor(THETA, requires_grad=True), THETA + 0.1
    a = sde_actions(acted, k)
    log_prob, behaviour = score_of(theta, k, a), score_of(torch.tensor(acted), k, a)
    given = DensityInputs(log_prob, behaviour, log_prob.detach(), weighed(a, sde_reward(THETA, k)))
    loss("decoupled_ppo", given, max_weight=1e6, dual_clip=None).loss.backward()
    assert theta.grad is not None and -theta.grad.item() == pytest.approx(policy_gradient(k), rel=5e-3)
    assert abs(policy_gradient(k, acted) / policy_gradient(k) - 1) > 0.02


@pytest.mark.parametrize("k", range(4))
def test_first_step_of_step_nft_is_the_policy_gradient(k: int) -> None:
    """At v = v_old its gradient is 2 beta / c times REINFORCE's, where no advantage is clipped."""
    theta, a = torch.tensor(THETA, requires_grad=True), sde_actions(THETA, k)
    mean, std = sde_moments(theta, k)
    means, n = mean.expand(len(a))[:, None, None], len(a)
    given = TransitionInputs(
        means, means.detach(), a[:, None, None], std.expand(n)[:, None, None], torch.ones(n, 1, 1, dtype=torch.bool),
        weighed(a, sde_reward(THETA, k)),
    )  # fmt: skip
    loss("step_nft", given, beta=0.7, advantage_clip=100.0).loss.backward()
    assert theta.grad is not None
    assert -theta.grad.item() * 100 / (2 * 0.7) == pytest.approx(policy_gradient(k), rel=5e-3)


def noise_chain(theta: Tensor, phi: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Two steps of Flow-Noise from 0.3 at all pairs of nodes: end, log-probability of the chain, probability [M]."""
    grid, x, log_prob = euler_grid(2), torch.full((1,), 0.3), torch.zeros(1)
    probability = torch.ones(1)
    for k in range(2):
        mean, std = ode_step(x, torch.sin(3 * x) + theta, grid[k], grid[k + 1]), torch.exp(phi - 0.3 * k).expand(len(x))
        nxt = (mean[:, None] + std[:, None] * Z).reshape(-1, 1)
        spread = [v.repeat_interleave(len(Z))[:, None] for v in (mean, std)]
        fixed = nxt.detach()
        log_prob = log_prob.repeat_interleave(len(Z)) + gaussian_log_prob(
            fixed, *spread, torch.ones_like(fixed, dtype=torch.bool), dims=(-1,)
        )
        x, probability = fixed[:, 0], (probability[:, None] * PROBABILITY).flatten()
    return x, log_prob, probability


@pytest.mark.parametrize("name", DENSITY)
def test_policy_gradient_of_flow_noise_agrees_with_finite_differences(name: str) -> None:
    """In the velocity and in the learned standard deviation."""

    def expected(theta: float, phi: float) -> float:
        end, _, probability = noise_chain(torch.tensor(theta), torch.tensor(phi))
        return (probability * reward(end)).sum().item()

    theta, phi = (torch.tensor(v, requires_grad=True) for v in (THETA, PHI))
    end, log_prob, probability = noise_chain(theta, phi)
    advantage = (reward(end) - expected(THETA, PHI)) * probability * len(end)
    old = log_prob.detach()
    loss(name, DensityInputs(log_prob, old, old, advantage)).loss.backward()
    h = 0.02
    finite = [
        (expected(THETA + h, PHI) - expected(THETA - h, PHI)) / (2 * h),
        (expected(THETA, PHI + h) - expected(THETA, PHI - h)) / (2 * h),
    ]
    assert min(abs(f) for f in finite) > 0.01
    found = [-leaf.grad.item() for leaf in (theta, phi) if leaf.grad is not None]
    assert found == pytest.approx(finite, rel=5e-3)


# ---- likelihood-free objectives: which way they push the policy of a whole chain

WIDTH, CENTRE = 0.4, 0.2
"""Standard deviation and mean of what the policy does."""


def quantiles(count: int) -> Tensor:
    """Nodes of equal probability of a standard normal; float64."""
    return torch.special.ndtri((torch.arange(count, dtype=torch.float64) + 0.5) / count)


def velocity(theta: Tensor, x: Tensor, tau: Tensor) -> Tensor:
    """Exact for data N(CENTRE, WIDTH^2), plus theta . (1, x, tau)."""
    gain = (tau - (1 - tau) * WIDTH**2) / ((1 - tau) ** 2 * WIDTH**2 + tau**2)
    return -CENTRE + gain * (x - (1 - tau) * CENTRE) + theta[0] + theta[1] * x + theta[2] * tau


def executed(theta: Tensor, start: Tensor) -> Tensor:
    x = start
    for tau in (1.0, 0.75, 0.5, 0.25):
        x = x - 0.25 * velocity(theta, x, torch.tensor(tau, dtype=torch.float64))
    return x


REWARDS = {
    "right": lambda a: (a > 0.3).double(),
    "left": lambda a: torch.sigmoid(-10 * a),
    "narrow": lambda a: -((a - 0.2) ** 2),
    "far": lambda a: -((a - 1.0) ** 2),
}


def true_gradient(reward: Any) -> Tensor:
    """Of the expected reward in theta = 0, by finite differences."""
    start, found = quantiles(4000), []
    for i in range(3):
        step = torch.zeros(3, dtype=torch.float64)
        step[i] = 0.05
        found.append((reward(executed(step, start)).mean() - reward(executed(-step, start)).mean()) / 0.1)
    return torch.stack(found)


@pytest.mark.parametrize("goal", REWARDS)
@pytest.mark.parametrize("name", ["diffusion_nft", "fpo", "fpo_plus"])
def test_likelihood_free_updates_point_uphill(name: str, goal: str) -> None:
    theta = torch.zeros(3, dtype=torch.float64, requires_grad=True)
    a = executed(theta.detach(), quantiles(200))
    gained = REWARDS[goal](a)
    advantage = (gained - gained.mean()) / gained.std()
    taus, eps = (torch.arange(10, dtype=torch.float64) + 0.5) / 10, quantiles(20)
    tau, noise = (v.flatten().expand(len(a), -1) for v in torch.meshgrid(taus, eps, indexing="ij"))
    x = (1 - tau) * a[:, None] + tau * noise
    v = velocity(theta, x, tau)[..., None, None]
    given = PairInputs(
        v, v.detach(), a[:, None, None], noise[..., None, None], tau, torch.ones(len(a), 1, 1, dtype=torch.bool),
        advantage,
    )  # fmt: skip
    (found,) = torch.autograd.grad(loss(name, given).loss, theta)
    assert torch.nn.functional.cosine_similarity(-found, true_gradient(REWARDS[goal]), dim=0) > 0.9
