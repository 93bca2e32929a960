"""Flow matching and its sampling laws on cases that can be solved by hand (flow_rl: tests 1-4 and 6, traps 1-5)."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch
from builders import blind_policy, episode_keys, random_contexts
from torch import Tensor

from rl_finetune.policy.config import WIDOWX
from rl_finetune.policy.flow import (
    coloured,
    euler_grid,
    flow_matching_loss,
    gaussian_log_prob,
    interpolate,
    ode_step,
    sde_sigma,
    sde_step,
    whitened,
)
from rl_finetune.policy.laws import FlowSDE
from rl_finetune.policy.sampler import Noise, draw_noise, sample_flow_sde, sample_ode, score
from rl_finetune.types import SeedKeys

MEAN, STD = 0.6, 0.35
"""Of Gaussian data, for which the velocity is known."""
LEVEL = 0.5


def exact_velocity(x, tau):
    """E[eps - x0 | x] for x0 ~ N(MEAN, STD^2): linear regression of eps - x0 on x."""
    gain = (tau - (1 - tau) * STD**2) / ((1 - tau) ** 2 * STD**2 + tau**2)
    return -MEAN + gain * (x - (1 - tau) * MEAN)


def velocity(x: Tensor, tau: Tensor) -> Tensor:
    """The same for a batch [N, H, K] at [N]."""
    return exact_velocity(x, tau[:, None, None])


def affine(step: Callable[[float], float]) -> tuple[float, float]:
    """Slope and intercept of an affine map."""
    return step(1.0) - step(0.0), step(0.0)


def moments(num_steps: int, stochastic: set[int]) -> tuple[float, float]:
    """Closed form: every step is x' = A x + b + std z, so mean and variance follow a recursion from N(0, 1)."""
    mean, variance = 0.0, 1.0
    for k in range(num_steps):
        tau, following = 1 - k / num_steps, 1 - (k + 1) / num_steps
        delta, noise, drift = 1 / num_steps, 0.0, 0.0
        if k in stochastic:
            noise = LEVEL**2 * tau / (1 - (following if k == 0 else tau))
            drift = noise * delta / (2 * tau)

        def move(x: float, tau=tau, following=following, drift=drift) -> float:
            v = exact_velocity(x, tau)
            return (x - tau * v) * (1 - following) + (x + (1 - tau) * v) * (following - drift)

        slope, offset = affine(move)
        mean, variance = slope * mean + offset, slope**2 * variance + noise * delta
    return mean, variance


def draws(rows: int, step: int, seed: int = 0) -> Noise:
    rng = torch.Generator().manual_seed(seed)
    shape = (rows, 8, 8)
    start, transition = torch.randn(shape, generator=rng), torch.randn(shape, generator=rng)
    return Noise(start, transition[:, None], torch.full((rows,), step))


def assert_moments(x: Tensor, mean: float, variance: float) -> None:
    """Within 4.5 standard errors."""
    n = x.numel()
    assert abs(x.mean().item() - mean) < 4.5 * math.sqrt(variance / n)
    assert abs(x.var().item() - variance) < 4.5 * variance * math.sqrt(2 / n)


@pytest.mark.parametrize("num_steps", [2, 4, 10, 100])
def test_ode_samples_have_the_moments_of_the_closed_form(num_steps: int) -> None:
    samples = sample_ode(velocity, draws(2000, 0).start, num_steps)
    assert_moments(samples, *moments(num_steps, set()))


@pytest.mark.parametrize(
    ("num_steps", "step"),
    [(2, 0), (2, 1), (4, 0), (4, 1), (4, 2), (4, 3), (10, 0), (10, 5), (10, 9), (100, 0), (100, 50), (100, 99)],
)
def test_hybrid_samples_have_the_moments_of_the_closed_form(num_steps: int, step: int) -> None:
    moved = sample_flow_sde(
        velocity, draws(1000, step), FlowSDE(num_steps, LEVEL), torch.ones(1000, 8, 8, dtype=torch.bool)
    )
    assert_moments(moved.sample, *moments(num_steps, {step}))


@pytest.mark.parametrize("num_steps", [2, 4, 10, 100])
def test_a_chain_of_sde_steps_has_the_moments_of_the_closed_form(num_steps: int) -> None:
    rng, grid = torch.Generator().manual_seed(1), euler_grid(num_steps)
    x = torch.randn(100_000, generator=rng)
    for tau, following in pairwise(grid):
        mean, std = sde_step(x, exact_velocity(x, tau), tau, following, LEVEL)
        x = mean + std * torch.randn(len(x), generator=rng)
    assert_moments(x, *moments(num_steps, set(range(num_steps))))


def test_many_steps_reach_the_moments_of_the_data() -> None:
    for stochastic in (set(), {0}, {50}, set(range(100))):
        mean, variance = moments(100, stochastic)
        assert mean == pytest.approx(MEAN, abs=1e-6)
        assert math.sqrt(variance) == pytest.approx(STD, rel=0.02)
    gaps = [STD - math.sqrt(moments(n, set())[1]) for n in (100, 200, 400)]
    assert gaps[0] / gaps[1] == pytest.approx(2, rel=0.05) == gaps[1] / gaps[2]  # Euler is of first order


def test_one_sde_step_keeps_the_marginal_to_second_order() -> None:
    """The drift's correction is what makes up for the noise: without it the error would be of first order."""

    def error(delta: float) -> float:
        tau, following = 0.5, 0.5 - delta
        grid = torch.tensor([tau, following], dtype=torch.float64)
        points = torch.tensor([0.0, 1.0], dtype=torch.float64)
        mean, std = sde_step(points, exact_velocity(points, tau), *grid, LEVEL)
        spread = (1 - tau) ** 2 * STD**2 + tau**2
        wanted = (1 - following) ** 2 * STD**2 + following**2
        return float((mean[1] - mean[0]) ** 2 * spread + std**2) - wanted

    assert error(0.02) / error(0.01) == pytest.approx(4, rel=0.15)


def test_standard_deviations_of_four_steps() -> None:
    grid, zero = euler_grid(4), torch.zeros(4, 1)
    _, std = sde_step(zero, zero, grid[:4, None], grid[1:, None], 0.5)
    np.testing.assert_allclose(std[:, 0], [0.5, 0.4330, 0.25, 0.1443], atol=1e-4)


@pytest.mark.parametrize("num_steps", [2, 4, 10, 100])
def test_noise_of_the_first_step_does_not_depend_on_the_number_of_steps(num_steps: int) -> None:
    """Trap 3: clamping tau at the first step would give sigma in the hundreds."""
    grid = euler_grid(num_steps)
    std = sde_sigma(grid[0], grid[1], LEVEL) * (grid[0] - grid[1]).sqrt()
    assert std.item() == pytest.approx(LEVEL, rel=1e-5)


def test_grid_runs_from_noise_to_data() -> None:
    np.testing.assert_array_equal(euler_grid(4), [1, 0.75, 0.5, 0.25, 0])
    assert euler_grid(3).dtype == torch.float32
    with pytest.raises(ValueError, match="got 0, expected at least 1"):
        euler_grid(0)


def test_path_and_velocity_are_consistent() -> None:
    x0, eps, tau = torch.tensor([2.0]), torch.tensor([-1.0]), torch.tensor([0.25])
    x = interpolate(x0, eps, tau)
    assert x.item() == 0.75 * 2 - 0.25
    assert ode_step(x, eps - x0, tau, torch.tensor([0.0])).item() == x0.item()
    np.testing.assert_allclose(sde_step(x, eps - x0, tau, torch.tensor([0.0]), 0.0)[0], x0)


def test_no_noise_is_the_ode() -> None:
    x, v = torch.randn(2, 5, 3, 2, generator=torch.Generator().manual_seed(0))
    grid = euler_grid(4)
    for tau, following in pairwise(grid):
        mean, std = sde_step(x, v, tau, following, 0.0)
        torch.testing.assert_close(mean, ode_step(x, v, tau, following))
        assert std == 0


def test_conventions_of_time_agree() -> None:
    """Test 6: in s = 1 - tau with u = -v the step is Euler-Maruyama of dx = (u + sigma^2 / 2 score) ds + sigma dW."""
    (x, v), grid = torch.randn(2, 7, generator=torch.Generator().manual_seed(0)), euler_grid(4)
    for tau, following in pairwise(grid[1:]):
        s, s_next, u = 1 - tau, 1 - following, -v
        sigma, delta = LEVEL * torch.sqrt((1 - s) / s), s_next - s
        gradient = -(x - s * u) / (1 - s)
        mean, std = sde_step(x, v, tau, following, LEVEL)
        torch.testing.assert_close(mean, x + delta * (u + sigma**2 / 2 * gradient))
        torch.testing.assert_close(std, sigma * delta.sqrt())
        torch.testing.assert_close(ode_step(x, v, tau, following), x + delta * u)


# ---- densities: one channel, one action step, so that integrals can be done numerically


def transition(step: int, v: Tensor | float, x: float = 0.3) -> tuple[Tensor, Tensor]:
    grid = euler_grid(4)
    return sde_step(torch.tensor(x), torch.as_tensor(v), grid[step], grid[step + 1], LEVEL)


def hermite(step: int, v: float) -> tuple[Tensor, Tensor]:
    """Nodes (next states) [M] and weights [M] of an expectation under the transition."""
    z, weight = np.polynomial.hermite_e.hermegauss(40)
    mean, std = transition(step, v)
    return mean + std * torch.from_numpy(z).float(), torch.from_numpy(weight / weight.sum())


def log_density(step: int, v: Tensor | float, x_next: Tensor) -> Tensor:
    """Through `score`, the way an update does it."""
    n = len(x_next)
    return score(
        lambda x, tau: torch.as_tensor(v).expand_as(x),
        torch.stack((torch.full_like(x_next, 0.3), x_next), 1)[..., None, None],
        torch.full((n,), step),
        FlowSDE(4, LEVEL),
        torch.ones(n, 1, 1, dtype=torch.bool),
    )[:, 0]


@pytest.mark.parametrize("step", range(4))
def test_density_integrates_to_one(step: int) -> None:
    mean, std = transition(step, -0.4)
    x = torch.linspace(-8, 8, 4001) * std + mean
    total = torch.trapezoid(log_density(step, -0.4, x).exp(), x)
    assert total.item() == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize("step", range(4))
def test_expected_ratio_is_one(step: int) -> None:
    x, weight = hermite(step, -0.4)
    ratio = (log_density(step, -0.1, x) - log_density(step, -0.4, x)).exp()
    assert (ratio - 1).abs().max() > 0.1
    assert (weight * ratio).sum().item() == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize("step", range(4))
def test_expected_score_is_zero_and_its_variance_is_the_information(step: int) -> None:
    x, weight = hermite(step, -0.4)
    v = torch.full((len(x), 1, 1), -0.4, requires_grad=True)
    (gradient,) = torch.autograd.grad(log_density(step, v, x).sum(), v)
    gradient = gradient[:, 0, 0]
    mean, std = transition(step, torch.tensor([0.0, 1.0]))
    information = ((mean[1] - mean[0]) / std) ** 2
    assert (weight * gradient).sum().item() == pytest.approx(0, abs=1e-4)
    assert (weight * gradient**2).sum().item() == pytest.approx(information.item(), rel=1e-4)


def test_log_density_by_hand() -> None:
    x, mean = torch.tensor([[[1.0, 5.0], [2.0, 5.0]]]), torch.zeros(1, 2, 2)
    mask = torch.tensor([[[True, False], [True, False]]])
    each = [-0.5 * (v / 2) ** 2 - math.log(2) - 0.5 * math.log(2 * math.pi) for v in (1, 2)]
    found = gaussian_log_prob(x, mean, torch.tensor(2.0), mask)
    assert found.item() == pytest.approx(sum(each), rel=1e-6)
    np.testing.assert_allclose(gaussian_log_prob(x, mean, torch.tensor(2.0), mask, dims=(-1,))[0], each, rtol=1e-6)
    half = gaussian_log_prob(x.bfloat16(), mean.bfloat16(), torch.tensor(2.0).bfloat16(), mask)
    assert half.dtype == torch.float32 and half.item() == pytest.approx(sum(each), rel=1e-6)


# ---- traps that other systems fell into


def curved(x: Tensor, tau: Tensor) -> Tensor:
    """A velocity in which every channel, padded ones too, and the time have a say."""
    return torch.sin(3 * x) + tau[:, None, None] * x.mean(dim=-1, keepdim=True) - 0.2


@pytest.mark.parametrize("num_steps", [2, 3, 4, 7])
def test_trap_1_scorer_and_sampler_share_their_grid(num_steps: int) -> None:
    law = FlowSDE(num_steps, LEVEL)
    noise = draw_noise(episode_keys(64), np.zeros(64, np.int64), 8, 16, law)
    mask = (torch.arange(16) < 7).expand(64, 8, 16)
    moved = sample_flow_sde(curved, noise, law, mask)
    again = score(curved, moved.states, moved.step, law, mask)
    torch.testing.assert_close(again, moved.log_prob, rtol=0, atol=1e-6)
    other = score(curved, moved.states, moved.step, replace(law, num_steps=num_steps + 1), mask)
    assert (other - moved.log_prob).abs().max() > 0.1


def test_trap_2_every_sample_has_its_own_stochastic_step() -> None:
    law = FlowSDE(4)
    steps = draw_noise(episode_keys(2000), np.zeros(2000, np.int64), 1, 1, law).step
    counts = torch.bincount(steps, minlength=4)
    assert ((counts - 500).abs() < 4.5 * math.sqrt(2000 * 0.25 * 0.75)).all()
    assert (draw_noise(episode_keys(9), np.zeros(9, np.int64), 1, 1, replace(law, step=2)).step == 2).all()


def test_trap_2_noise_follows_from_the_key_alone() -> None:
    law, chunk = FlowSDE(4), np.array([0, 1, 2, 0, 1, 2])
    keys = SeedKeys(3, np.array([4, 9, 2, 7, 11, 5]), np.array([0, 0, 1, 3, 8, 2]))
    torch.manual_seed(0)
    whole = draw_noise(keys, chunk, 8, 16, law)
    torch.manual_seed(1)
    order = np.array([5, 0, 3])
    part = draw_noise(keys.rows(order), chunk[order], 8, 16, law)
    for name in ("start", "transition", "step"):
        assert torch.equal(getattr(part, name), getattr(whole, name)[order])
    for other in (
        draw_noise(replace(keys, seed=4), chunk, 8, 16, law),
        draw_noise(replace(keys, env=keys.env + 100), chunk, 8, 16, law),
        draw_noise(replace(keys, episode=keys.episode + 100), chunk, 8, 16, law),
        draw_noise(keys, chunk + 100, 8, 16, law),
    ):
        assert (other.start - whole.start).abs().amax(dim=(1, 2)).min() > 0.5
        assert (other.transition - whole.transition).abs().amax(dim=(1, 2)).min() > 0.5
    assert (whole.start - whole.transition[:, 0]).abs().min(dim=0).values.max() > 0.1


def test_trap_4_padding_is_not_scored_but_enters_the_network() -> None:
    law = FlowSDE(4, LEVEL)
    noise = draw_noise(episode_keys(8), np.zeros(8, np.int64), 8, 16, law)
    mask = (torch.arange(16) < 7).expand(8, 8, 16)
    moved = sample_flow_sde(curved, noise, law, mask)

    def frozen(x: Tensor, tau: Tensor) -> Tensor:
        return torch.full_like(x, 0.1)

    plain = score(frozen, moved.states, moved.step, law, mask)
    spoilt = moved.states.clone()
    spoilt[:, 1].masked_fill_(~mask, math.nan)
    assert torch.equal(score(frozen, spoilt, moved.step, law, mask), plain)
    by_hand = score(frozen, moved.states[..., :7], moved.step, law, mask[..., :7])
    torch.testing.assert_close(plain, by_hand)

    v = torch.full_like(moved.states[:, 0], 0.1, requires_grad=True)
    score(lambda x, tau: v, moved.states, moved.step, law, mask).sum().backward()
    assert v.grad is not None and not v.grad[..., 7:].any() and v.grad[..., :7].all()

    moved_padding = replace(noise, start=torch.where(mask, noise.start, noise.start + 1))
    assert (sample_flow_sde(curved, moved_padding, law, mask).sample - moved.sample)[..., :7].abs().max() > 0.01
    assert moved.states[..., 7:].all()


def test_trap_4_steps_that_were_not_executed_are_not_scored() -> None:
    law = FlowSDE(4, LEVEL)
    noise = draw_noise(episode_keys(4), np.zeros(4, np.int64), 8, 16, law)
    channels = (torch.arange(16) < 7).expand(4, 8, 16)
    moved = sample_flow_sde(curved, noise, law, channels)
    executed = channels & (torch.arange(8) < 3)[:, None]
    scored = score(curved, moved.states, moved.step, law, executed)
    torch.testing.assert_close(scored[:, :3], moved.log_prob[:, :3])
    assert not scored[:, 3:].any()


def test_trap_5_noise_and_chain_are_float32_whatever_the_models_type() -> None:
    law = FlowSDE(4, LEVEL)
    noise = draw_noise(episode_keys(8), np.zeros(8, np.int64), 8, 16, law)
    mask = torch.ones(8, 8, 16, dtype=torch.bool)
    for tensor in (noise.start, noise.transition):
        assert tensor.dtype == torch.float32 and not torch.equal(tensor, tensor.bfloat16().float())
    moved = sample_flow_sde(lambda x, tau: curved(x, tau).bfloat16(), noise, law, mask)
    for tensor in (moved.states[:, 0], moved.states[:, 1], moved.sample, moved.log_prob):
        assert tensor.dtype == torch.float32
        assert not torch.equal(tensor, tensor.bfloat16().float())
    policy, context = blind_policy(), random_contexts(8)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        _, moved = policy.sample(context, episode_keys(8), np.zeros(8, np.int64), WIDOWX, replace(law, step=0))
    assert moved.states.dtype == moved.sample.dtype == moved.log_prob.dtype == torch.float32
    assert torch.equal(moved.states[:, 0], noise.start)


def test_loss_by_hand() -> None:
    """Per channel the mean over its valid steps, then the mean over valid channels, then over samples."""
    x0 = torch.tensor([[[1.0, 2.0, 9.0], [3.0, 4.0, 9.0]], [[1.0, 9.0, 9.0], [9.0, 9.0, 9.0]]])
    eps = torch.tensor([[[0.0, 1.0, 9.0], [1.0, 0.0, 9.0]], [[5.0, 9.0, 9.0], [9.0, 9.0, 9.0]]])
    velocity = torch.zeros(2, 2, 3)
    mask = torch.tensor([[[True, True, False], [True, True, False]], [[True, False, False], [False, False, False]]])
    # Targets of sample 0: channel 0 (-1, -2), channel 1 (-1, -4); of sample 1: channel 0 (4).
    first, second = ((1 + 4) / 2 + (1 + 16) / 2) / 2, 16.0
    assert flow_matching_loss(velocity, x0, eps, mask).item() == (first + second) / 2
    velocity[~mask] = 1e6
    assert flow_matching_loss(velocity, x0, eps, mask).item() == (first + second) / 2
    assert flow_matching_loss(eps - x0, x0, eps, mask).item() == 0


def test_correlated_noise_is_an_autoregression_of_unit_variance() -> None:
    """By hand: rho = 0.6, so sqrt(1 - rho^2) = 0.8, and z = (1, 2, -1) becomes 1, 0.6 + 1.6, 1.32 - 0.8."""
    z = torch.tensor([1.0, 2.0, -1.0])[:, None]
    noise = coloured(z, 0.6)
    assert noise.flatten().tolist() == pytest.approx([1.0, 2.2, 0.52])
    assert torch.allclose(whitened(noise, 0.6), z)
    many = coloured(torch.randn(20_000, 8, 1, generator=torch.Generator().manual_seed(0)), 0.6)[..., 0]
    assert torch.allclose(torch.corrcoef(many.T)[0], 0.6 ** torch.arange(8.0), atol=0.03)
    assert torch.allclose(many.var(0), torch.ones(8), atol=0.05)


def test_density_of_correlated_noise_is_the_multivariate_normal_s() -> None:
    """Against torch's own density; where only the first steps were executed, against that of their marginal."""
    rho, std, steps = 0.7, 0.3, 5
    lags = (torch.arange(steps)[:, None] - torch.arange(steps)).abs()
    covariance = (std**2 * rho**lags).double()
    mean, x = torch.zeros(steps, 1), torch.tensor([0.3, -0.1, 0.4, 0.2, -0.5])[:, None]
    for executed in (5, 3):
        mask = (torch.arange(steps) < executed)[:, None]
        exact = torch.distributions.MultivariateNormal(
            torch.zeros(executed).double(), covariance[:executed, :executed]
        ).log_prob(x[:executed, 0].double())
        got = gaussian_log_prob(x, mean, torch.tensor(std), mask, correlation=rho)
        assert float(got) == pytest.approx(float(exact), abs=1e-5)
