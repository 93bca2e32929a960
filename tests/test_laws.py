"""Every sampling law on cases that can be solved by hand (flow_rl: tests 1-4 and 7, mistakes 1-5).

`test_flow` has the formulas of one step; here are whole laws, through the code that collects and the code that learns.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from builders import blind_policy, decisions, episode_keys, noisy_policy, random_contexts, trajectory
from torch import Tensor, nn

from learners.advantages import score
from learners.batch import flatten
from learners.objectives import OBJECTIVES
from learners.update import Recipe, minibatch_loss, prepare, run_update, velocities
from learners.views import Densities, Transitions
from rl_finetune.config.objectives import PPOSection
from rl_finetune.policy import QwenVLAPolicy, TorchContext
from rl_finetune.policy.config import WIDOWX
from rl_finetune.policy.flow import whitened
from rl_finetune.policy.laws import ODE, FlowNoise, FlowSDE, Law, times
from rl_finetune.policy.noise_net import NoiseNet
from rl_finetune.policy.sampler import Noise, Velocity, draw_noise, sample, transition_mean
from rl_finetune.types import SeedKeys

LEVELS, ODDS = (1.5, 0.8, 0.4, 0.2), (0.1, 0.4, 0.3, 0.2)
SDES: dict[str, FlowSDE] = {
    "random": FlowSDE(4, 0.5),
    "fixed": FlowSDE(4, 0.5, step=2),
    "levels": FlowSDE(4, levels=LEVELS, odds=ODDS),
    "correlated": FlowSDE(4, 0.5, step=2, correlation=0.8),
}
SCORED: dict[str, FlowSDE | FlowNoise] = {**SDES, "noise": FlowNoise(4)}
LAWS: dict[str, Law] = {**SCORED, "ode": ODE(4)}
scored_laws = pytest.mark.parametrize("law", SCORED.values(), ids=SCORED)
all_laws = pytest.mark.parametrize("law", LAWS.values(), ids=LAWS)

MEAN, STD = 0.6, 0.35
"""Of Gaussian data, for which the velocity is known."""


def policy_for(law: Law) -> QwenVLAPolicy:
    return noisy_policy() if isinstance(law, FlowNoise) else blind_policy()


def noise_for(law: Law, num: int, horizon: int = 8, width: int = 16) -> Noise:
    return draw_noise(episode_keys(num), np.zeros(num, np.int64), horizon, width, law)


def everything(num: int, horizon: int = 8, width: int = 16) -> Tensor:
    return torch.ones(num, horizon, width, dtype=torch.bool)


# ---- moments: Gaussian data, exact velocity


def gain(tau: float) -> float:
    """Slope of the exact velocity E[eps - x0 | x] = -MEAN + gain (x - (1 - tau) MEAN)."""
    return (tau - (1 - tau) * STD**2) / ((1 - tau) ** 2 * STD**2 + tau**2)


def exact(x: Tensor, tau: Tensor) -> Tensor:
    slope = torch.tensor([gain(t) for t in tau.tolist()])[:, None, None]
    return -MEAN + slope * (x - (1 - tau)[:, None, None] * MEAN)


def shaken(tau: float) -> float:
    """Flow-Noise's standard deviation in the tests of moments."""
    return 0.05 + 0.2 * tau


def step_by_hand(law: Law, k: int, stochastic: bool) -> tuple[float, float, float]:
    """x' = slope x + offset + std z at step k."""
    n = law.num_steps
    tau, following, delta = 1 - k / n, 1 - (k + 1) / n, 1 / n

    def velocity(x: float) -> float:
        return -MEAN + gain(tau) * (x - (1 - tau) * MEAN)

    def move(x: float, drift: float) -> float:
        clean, eps = x - tau * velocity(x), x + (1 - tau) * velocity(x)
        return clean * (1 - following) + eps * (following - drift)

    if isinstance(law, FlowSDE) and stochastic:
        level = law.noise_level if law.levels is None else law.levels[k]
        sigma = level * math.sqrt(tau / (1 - (following if k == 0 else tau)))
        drift, std = sigma**2 * delta / (2 * tau), sigma * math.sqrt(delta)
    else:
        drift, std = 0.0, shaken(tau) if isinstance(law, FlowNoise) else 0.0
    return move(1, drift) - move(0, drift), move(0, drift), std


def moments(law: Law, stochastic: int) -> tuple[float, float]:
    """Closed form: mean and variance follow a recursion from N(0, 1)."""
    mean, variance = 0.0, 1.0
    for k in range(law.num_steps):
        slope, offset, std = step_by_hand(law, k, k == stochastic)
        mean, variance = slope * mean + offset, slope**2 * variance + std**2
    return mean, variance


def stretched(law: Law, num_steps: int) -> Law:
    """The same kind of law with another number of steps."""
    if isinstance(law, FlowSDE) and law.levels is not None:
        ramp = np.linspace(1.5, 0.1, num_steps)
        return FlowSDE(num_steps, levels=tuple(ramp.tolist()), odds=tuple((ramp + 1).tolist()))
    changes = {"step": num_steps // 2} if isinstance(law, FlowSDE) and law.step is not None else {}
    return replace(law, num_steps=num_steps, **changes)


@pytest.mark.parametrize("num_steps", [2, 4, 10, 100])
@all_laws
def test_samples_have_the_moments_of_the_closed_form(law: Law, num_steps: int) -> None:
    law = stretched(law, num_steps)
    noise = noise_for(law, 500, 8, 8)
    moved = sample(exact, noise, law, everything(500, 8, 8), lambda x, tau: torch.full_like(x, shaken(tau[0].item())))
    for k in noise.step.unique().tolist():
        x, (mean, variance) = moved.sample[noise.step == k], moments(law, k)
        n = x.numel()
        assert abs(x.mean().item() - mean) < 4.5 * math.sqrt(variance / n)
        assert abs(x.var().item() - variance) < 4.5 * variance * math.sqrt(2 / n)


# ---- densities in one dimension, through the view that an update scores with


class Toy(nn.Module):
    """A curved velocity and a noise net for chunks of one number, in the place of a policy."""

    def __init__(self, seed: int, like: Toy | None = None, amount: float = 0.3) -> None:
        super().__init__()
        rng = torch.Generator().manual_seed(seed)
        self.theta = nn.Parameter(torch.randn(4, generator=rng) * 0.5)
        self.net = NoiseNet(3, 1, 0.08, 0.16, hidden=8)
        for parameter in self.net.parameters():
            nn.init.normal_(parameter, std=0.7, generator=rng)
        if like is not None:
            mixed = zip(self.parameters(), like.parameters(), strict=True)
            with torch.no_grad():
                for mine, theirs in mixed:
                    mine.copy_(theirs + amount * mine)

    def velocity(self, x: Tensor, tau: Tensor) -> Tensor:
        a, b, c, d = self.theta
        return a + b * x + torch.sin(3 * x + c) + d * tau[:, None, None]

    def spread(self, context: TorchContext) -> Velocity:
        return lambda x, tau: self.net(context.pooled, x, tau)


class Patched(Toy):
    """`old` but at the steps `changed` of four, where it is `new`."""

    def __init__(self, old: Toy, new: Toy, changed: tuple[int, ...]) -> None:
        super().__init__(0)
        self.both, self.when = (old, new), torch.tensor([1 - k / 4 for k in changed])

    def velocity(self, x: Tensor, tau: Tensor) -> Tensor:
        return self._choose(tau, *(toy.velocity(x, tau) for toy in self.both))

    def spread(self, context: TorchContext) -> Velocity:
        return lambda x, tau: self._choose(tau, *(toy.spread(context)(x, tau) for toy in self.both))

    def _choose(self, tau: Tensor, old: Tensor, new: Tensor) -> Tensor:
        return torch.where(torch.isin(tau, self.when)[:, None, None], new, old)


def toy_context(num: int) -> TorchContext:
    return TorchContext(
        torch.tensor([0.3, -0.2, 0.5]).expand(num, 1, 3), torch.ones(num, 1, dtype=torch.bool), torch.zeros(3, num, 1)
    )


def log_density(toy: Toy, states: Tensor, step: int, law: Law) -> Tensor:
    """[M] of chains [M, J + 1] that begin at `step`."""
    m = len(states)
    batch = decisions(states[..., None, None], torch.full((m,), step), everything(m, 1, 1), inputs=toy_context(m))
    view, rows = Densities(batch, law), torch.arange(m)
    v = torch.stack([toy.velocity(view.x[:, j], view.tau[:, j]) for j in range(view.x.shape[1])], 1)
    return view.reference(toy, toy_context(m), rows, v)  # type: ignore[arg-type]


def chains(toy: Toy, step: int, law: Law, nodes: int, x: float = 0.3) -> tuple[Tensor, Tensor]:
    """Gauss-Hermite nodes [M, J + 1] and weights [M] of an expectation under the law, begun at x."""
    z, w = (torch.from_numpy(v).float() for v in np.polynomial.hermite_e.hermegauss(nodes))
    states, weight = torch.full((1, 1), x), torch.ones(1)
    for j in range(law.transitions):
        mean, std = one_step(toy, states[:, -1], step + j, law)
        following = (mean[:, None] + std[:, None] * z).reshape(-1, 1)
        states = torch.cat((states.repeat_interleave(nodes, 0), following), 1)
        weight = (weight[:, None] * w / w.sum()).flatten()
    return states.detach(), weight


def one_step(toy: Toy, x: Tensor, k: int, law: Law) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation [M] of the step from x [M], by the formulas of flow_rl."""
    tau, delta = 1 - k / law.num_steps, 1 / law.num_steps
    x, when = x[:, None, None], torch.full((len(x),), tau)
    v = toy.velocity(x, when)
    if isinstance(law, FlowNoise):
        mean, std = x - delta * v, toy.spread(toy_context(len(x)))(x, when)
    else:
        level = law.noise_level if law.levels is None else law.levels[k]
        sigma = level * math.sqrt(tau / (1 - (tau - delta if k == 0 else tau)))
        clean, eps = x - tau * v, x + (1 - tau) * v
        mean = clean * (1 - tau + delta) + eps * (tau - delta - sigma**2 * delta / (2 * tau))
        std = torch.full_like(x, sigma * math.sqrt(delta))
    return mean[:, 0, 0], std[:, 0, 0]


def cases() -> list[Any]:
    """Each Flow-SDE with each step, and Flow-Noise as a whole."""
    each = [pytest.param(law, k, id=f"{name}-{k}") for name, law in SDES.items() for k in range(4)]
    return [*each, pytest.param(FlowNoise(4), 0, id="noise")]


@pytest.mark.parametrize(("law", "step"), cases()[:-1])
def test_density_of_a_stochastic_step_integrates_to_one(law: FlowSDE, step: int) -> None:
    toy = Toy(0)
    mean, std = one_step(toy, torch.tensor([0.3]), step, law)
    x = mean + std * torch.linspace(-8, 8, 2001)
    total = torch.trapezoid(log_density(toy, torch.stack((torch.full_like(x, 0.3), x), 1), step, law).exp(), x)
    assert total.item() == pytest.approx(1, abs=1e-5)


def test_joint_density_of_flow_noise_integrates_to_one() -> None:
    """Two steps from a point: an integral over a plane."""
    toy, law = Toy(0), FlowNoise(2)
    axis = torch.linspace(-3, 3, 121)
    first, second = (v.flatten() for v in torch.meshgrid(axis, axis, indexing="ij"))
    with torch.no_grad():
        density = log_density(toy, torch.stack((torch.full_like(first, 0.3), first, second), 1), 0, law).exp()
    total = torch.trapezoid(torch.trapezoid(density.reshape(121, 121), axis), axis)
    assert total.item() == pytest.approx(1, abs=1e-4)


def expected_ratio(old: Toy, new: Toy, step: int, law: Law, nodes: int) -> tuple[float, float]:
    """Of new over old under old, and how far from one a ratio is on average."""
    states, weight = chains(old, step, law, nodes)
    with torch.no_grad():
        ratio = (log_density(new, states, step, law) - log_density(old, states, step, law)).exp()
    return (weight * ratio).sum().item(), (weight * (ratio - 1).abs()).sum().item()


@pytest.mark.parametrize(("law", "step"), cases()[:-1])
def test_expected_ratio_of_a_stochastic_step_is_one(law: FlowSDE, step: int) -> None:
    old = Toy(0)
    mean, distance = expected_ratio(old, Toy(1, like=old), step, law, 40)
    assert mean == pytest.approx(1, abs=1e-5) and distance > 0.02


@pytest.mark.parametrize("changed", [(0,), (1,), (2,), (3,), (0, 1, 2, 3)])
def test_expected_joint_ratio_of_flow_noise_is_one(changed: tuple[int, ...]) -> None:
    """Where velocity and noise differ at one step of four, and at all."""
    old = Toy(0)
    mean, distance = expected_ratio(old, Patched(old, Toy(1, like=old), changed), 0, FlowNoise(4), 12)
    assert mean == pytest.approx(1, abs=1e-4) and distance > 0.02


@pytest.mark.parametrize(("law", "step"), cases())
def test_expected_score_is_zero(law: Law, step: int) -> None:
    """Also in the noise net's parameters. Exact: log-densities are quadratic in the noise of each step."""
    toy = Toy(0)
    states, weight = chains(toy, step, law, 40 if law.transitions == 1 else 8)
    log_prob = log_density(toy, states, step, law)
    trained = [toy.theta, *(toy.net.parameters() if isinstance(law, FlowNoise) else ())]
    expected = torch.autograd.grad((weight * log_prob).sum(), trained, retain_graph=True)
    half = torch.autograd.grad((weight * log_prob)[states[:, -1] > states[:, -1].median()].sum(), trained)
    for whole, part in zip(expected, half, strict=True):
        assert part.abs().max() > 0.01
        assert whole.abs().max() < 1e-3 * max(1.0, part.abs().max().item())


# ---- sampler and scorer


def rescored(policy: QwenVLAPolicy, law: Law, sampled: Law | None = None) -> tuple[Tensor, Tensor]:
    """[M] log-probabilities as recorded under `sampled` and as an update works them out under `law`, in another order
    of decisions."""
    made = trajectory(policy, random_contexts(48), chunks=3, law=sampled or law)
    batch = flatten([score(made, gamma=0.99, lam=0.95)], normalise=True)
    view, rows = Densities(batch, law), torch.randperm(48, generator=torch.Generator().manual_seed(0))
    context = view.context(rows)
    with torch.no_grad():
        v = velocities(policy, context, view.x[rows], view.tau[rows])
        again = view.reference(policy, context, rows, v)
    return batch.old_log_prob[rows], again


@scored_laws
def test_the_scorer_finds_what_the_sampler_recorded(law: Law) -> None:
    recorded, again = rescored(policy_for(law), law)
    assert recorded.std() > 1
    torch.testing.assert_close(again, recorded, rtol=0, atol=1e-4)


@pytest.mark.parametrize(
    ("sampled", "law"),
    [
        (FlowSDE(4, 0.5), FlowSDE(5, 0.5)),
        (FlowSDE(4, 0.5, step=1), FlowSDE(8, 0.5, step=1)),
        (FlowSDE(4, 0.5), FlowSDE(4, 0.51)),
        (FlowSDE(4, levels=LEVELS), FlowSDE(4, levels=LEVELS[::-1])),
        (FlowSDE(4, levels=LEVELS), FlowSDE(5, levels=(*LEVELS, 0.2))),
        (FlowSDE(4, 0.5), FlowSDE(4, levels=LEVELS)),
        (FlowSDE(4, 0.5), FlowSDE(4, 0.5, correlation=0.3)),
    ],
)
def test_mistake_1_another_law_than_the_samplers_is_detected(sampled: FlowSDE, law: FlowSDE) -> None:
    recorded, again = rescored(blind_policy(), law, sampled)
    assert (again - recorded).abs().max() > 0.1


@pytest.mark.parametrize("steps", [3, 5])
def test_mistake_1_another_grid_does_not_fit_the_chains_of_flow_noise(steps: int) -> None:
    with pytest.raises((RuntimeError, IndexError), match="size"):
        rescored(noisy_policy(), FlowNoise(steps), FlowNoise(4))


def first_update(policy: QwenVLAPolicy, law: Law, *, acting: torch.dtype) -> float:
    """First ratio error of a float32 update on what was collected under the law."""
    recipe = Recipe(PPOSection(epochs=1, minibatch=48), OBJECTIVES["ppo"], law)
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=acting == torch.bfloat16):
        made = trajectory(policy, random_contexts(48), law=law)
    data = [score(made, gamma=0.99, lam=0.95)]
    return run_update(policy, data, recipe, optimise=lambda loss: None, seed=0, version=0).first_ratio_error


@scored_laws
def test_first_ratio_is_one_and_acting_in_bfloat16_moves_it_a_little(law: Law) -> None:
    policy = policy_for(law)
    assert first_update(policy, law, acting=torch.float32) < 1e-4
    assert 1e-4 < first_update(policy, law, acting=torch.bfloat16) < 0.5


# ---- padding


def frozen(x: Tensor, tau: Tensor) -> Tensor:
    return torch.full_like(x, 0.1)


def density(batch: Any, law: Law, velocity: Tensor, spread: Velocity = frozen) -> Tensor:
    """[M] through the view, from velocities [M, J, H, K]."""
    policy: Any = type("Fixed", (), {"spread": lambda self, context: spread})()
    return Densities(batch, law).reference(policy, batch.inputs, torch.arange(len(batch)), velocity)


@scored_laws
def test_mistake_4_padding_and_steps_that_were_not_executed_add_nothing(law: Law) -> None:
    mask = everything(6) & (torch.arange(16) < 7) & (torch.arange(8) < 3)[:, None]
    moved = sample(frozen, noise_for(law, 6), law, mask, frozen)
    v = torch.full_like(moved.states[:, 1:], 0.1, requires_grad=True)
    plain = density(decisions(moved.states, moved.step, mask), law, v)
    spoilt = moved.states.masked_fill(~mask[:, None], math.nan)
    assert torch.equal(density(decisions(spoilt, moved.step, mask), law, v), plain)
    cut = decisions(moved.states[:, :, :3, :7], moved.step, mask[:, :3, :7])
    torch.testing.assert_close(density(cut, law, v[:, :, :3, :7]), plain)
    torch.testing.assert_close(moved.log_prob.sum(1), plain)
    assert not moved.log_prob[:, 3:].any()
    plain.sum().backward()
    scored = mask[:, None].expand_as(v)
    assert v.grad is not None and v.grad[scored].all() and not v.grad[~scored].any()


@all_laws
def test_mistake_4_padding_enters_the_network(law: Law) -> None:
    policy, context, noise = policy_for(law), random_contexts(6), noise_for(law, 6)
    other = replace(noise, start=torch.where(torch.arange(16) < 7, noise.start, noise.start + 1))
    one, moved = policy.play(context, noise, WIDOWX, law)
    two, _ = policy.play(context, other, WIDOWX, law)
    assert (np.abs(one.actions - two.actions)[..., :7].max(axis=(1, 2)) > 1e-3).all()
    assert moved.states[..., 7:].all() and moved.sample[..., 7:].all()


# ---- randomness


def test_mistake_2_every_sample_draws_its_own_step_by_the_odds() -> None:
    """Chi-square with three degrees of freedom: 16.3 is passed once in a thousand."""
    for law, odds in (
        (SDES["random"], (1, 1, 1, 1)),
        (SDES["levels"], ODDS),
        (FlowSDE(4, odds=(3, 0, 1, 4)), (3, 0, 1, 4)),
    ):
        counts = torch.bincount(noise_for(law, 4000, 1, 1).step, minlength=4).numpy()
        expected = 4000 * np.array(odds) / sum(odds)
        drawn = expected > 0
        assert counts[~drawn].sum() == 0
        assert ((counts - expected)[drawn] ** 2 / expected[drawn]).sum() < 16.3
    assert (noise_for(SDES["fixed"], 50, 1, 1).step == 2).all()
    assert (noise_for(replace(SDES["levels"], step=3), 50, 1, 1).step == 3).all()


@all_laws
def test_noise_follows_from_the_key_alone(law: Law) -> None:
    """Mistakes 2 and 5: neither company, nor order, nor torch's global state, nor the group has a say."""
    keys, chunk = SeedKeys(3, np.array([4, 9, 2, 7, 11, 5]), np.array([0, 0, 1, 3, 8, 2])), np.array([0, 1, 2, 0, 1, 2])
    whole, order = draw_noise(keys, chunk, 8, 16, law), np.array([5, 0, 3])
    torch.manual_seed(1)
    part = draw_noise(replace(keys.rows(order), group=4), chunk[order], 8, 16, law)
    for name in ("start", "transition", "step"):
        assert torch.equal(getattr(part, name), getattr(whole, name)[order])
    assert whole.transition.shape == (6, law.transitions, 8, 16)
    for tensor in (whole.start, whole.transition):
        assert tensor.dtype == torch.float32
        assert tensor.numel() == 0 or not torch.equal(tensor, tensor.bfloat16().float())


def test_laws_begin_in_the_same_noise_and_share_what_follows() -> None:
    """So a law is compared with the ODE, and levels with other levels, under the same draws; correlation colours
    them."""
    drawn = {name: noise_for(law, 6) for name, law in LAWS.items()}
    assert all(torch.equal(noise.start, drawn["ode"].start) for noise in drawn.values())
    white = {name: whitened(drawn[name].transition, law.correlation) for name, law in SDES.items()}
    assert all(torch.allclose(noise, drawn["random"].transition, atol=1e-5) for noise in white.values())
    cooler = noise_for(FlowSDE(4, 0.5, temperature=0.5), 6)
    assert torch.equal(cooler.start, 0.5 * drawn["ode"].start)
    assert torch.equal(cooler.transition, drawn["random"].transition)
    assert torch.equal(drawn["noise"].transition[:, :1], drawn["random"].transition)
    each = drawn["noise"].transition.flatten(2).transpose(0, 1).flatten(1)
    assert torch.corrcoef(torch.cat((each, drawn["ode"].start.reshape(1, -1)))).fill_diagonal_(0).abs().max() < 0.15


@all_laws
def test_mistake_5_chains_are_float32_under_a_bfloat16_decoder(law: Law) -> None:
    policy, noise = policy_for(law), noise_for(law, 8)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        _, moved = policy.sample(random_contexts(8), episode_keys(8), np.zeros(8, np.int64), WIDOWX, law)
    for tensor in (moved.states, moved.log_prob, moved.sample):
        assert tensor.dtype == torch.float32
    assert not torch.equal(moved.sample, moved.sample.bfloat16().float())
    begun = moved.step == 0
    assert torch.equal(moved.states[begun, 0], noise.start[begun])


# ---- levels


def moments_of(law: FlowSDE, steps: list[int]) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation that the scorer gives transitions begun at `steps`."""
    step = torch.tensor(steps)
    x, v = torch.randn(2, len(steps), 1, 1, 1, generator=torch.Generator().manual_seed(0))
    mean, std = transition_mean(v, x, *times(law, step), step, law)
    assert std is not None
    return mean.flatten(), std.flatten()


def test_the_level_of_each_step_is_honoured() -> None:
    """At four steps, sigma sqrt(delta) = a (1, sqrt(3) / 2, 1 / 2, sqrt(1 / 12))."""
    per_level = np.array([1, math.sqrt(3) / 2, 0.5, math.sqrt(1 / 12)])
    steps = [3, 0, 0, 2, 1, 3]
    for law in SDES.values():
        levels = np.array(law.levels or (0.5,) * 4)
        np.testing.assert_allclose(moments_of(law, steps)[1], (levels * per_level)[steps], rtol=1e-6)


def test_the_sampler_moves_by_the_level_of_its_step() -> None:
    law, zero = SDES["levels"], lambda x, tau: torch.zeros_like(x)
    noise = noise_for(law, 64)
    quiet = replace(noise, transition=torch.zeros_like(noise.transition))
    difference = sample(zero, noise, law, everything(64)).states - sample(zero, quiet, law, everything(64)).states
    std = moments_of(law, noise.step.tolist())[1]
    assert not difference[:, 0].any() and len(noise.step.unique()) == 4
    torch.testing.assert_close(difference[:, 1], std[:, None, None] * noise.transition[:, 0], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("num_steps", [2, 4, 10, 100])
def test_mistake_3_the_first_steps_noise_is_its_level_whatever_the_number_of_steps(num_steps: int) -> None:
    law = FlowSDE(num_steps, levels=tuple(np.linspace(0.7, 0.2, num_steps).tolist()))
    assert moments_of(law, [0])[1].item() == pytest.approx(0.7, rel=1e-5)


def test_equal_levels_are_one_level() -> None:
    one, four = FlowSDE(4, 0.5), FlowSDE(4, 9.0, levels=(0.5,) * 4)
    noise = noise_for(one, 32)
    chains_ = [blind_policy().play(random_contexts(32), noise, WIDOWX, law)[1] for law in (one, four)]
    for name in ("states", "log_prob", "sample"):
        torch.testing.assert_close(*(getattr(moved, name) for moved in chains_), rtol=0, atol=1e-5)


@all_laws
def test_what_is_kept_of_a_chain(law: Law) -> None:
    """Flow-SDE: the states at both ends of the stochastic step; Flow-Noise: all; the ODE: the first."""
    noise = noise_for(law, 24)
    _, moved = policy_for(law).play(random_contexts(24), noise, WIDOWX, law)
    assert moved.states.shape == (24, law.transitions + 1, 8, 16)
    at_start, at_end = moved.step == 0, moved.step + law.transitions == 4
    assert torch.equal((moved.states[:, 0] == noise.start).all(2).all(1), at_start)
    assert torch.equal((moved.states[:, -1] == moved.sample).all(2).all(1), at_end)


# ---- the ODE


def test_the_ode_scores_nothing_and_is_what_acts() -> None:
    policy, keys, zero = blind_policy(), episode_keys(6), np.zeros(6, np.int64)
    chunk, moved = policy.sample(random_contexts(6), keys, zero, WIDOWX, ODE(4))
    assert np.array_equal(chunk.actions, policy.act(random_contexts(6), keys, zero, WIDOWX, 1.0, 4).actions)
    assert not moved.log_prob.any() and moved.states.shape == (6, 1, 8, 16)
    with pytest.raises(ValueError, match=r"no transition to score; choose another exploration\.law"):
        Transitions(decisions(moved.states, moved.step, everything(6)), ODE(4))


# ---- Flow-Noise


def test_noise_net_stays_within_its_bounds_and_begins_in_their_middle() -> None:
    torch.manual_seed(0)
    net, pooled, x, tau = (
        NoiseNet(128, 16, 0.08, 0.16),
        random_contexts(32).pooled,
        torch.randn(32, 8, 16),
        torch.rand(32),
    )
    torch.testing.assert_close(net(pooled, x, tau), torch.full((32, 8, 16), math.sqrt(0.08 * 0.16)))
    nn.init.normal_(net.out.weight, std=2)
    std = net(pooled, x, tau)
    assert 0.08 * (1 - 1e-6) <= std.min() < 0.085 and 0.155 < std.max() <= 0.16 * (1 + 1e-6)
    for other in (net(pooled.roll(1, 0), x, tau), net(pooled, x + 1, tau), net(pooled, x, tau / 2)):
        assert (other - std).abs().max() > 1e-3
    padding = torch.cat((x[..., :7], x[..., 7:] + 1), -1)
    assert (net(pooled, padding, tau) - std)[..., :7].abs().max() > 1e-3
    for bias, bound in ((-30.0, 0.08), (30.0, 0.16)):
        nn.init.constant_(net.out.bias, bias)
        nn.init.zeros_(net.out.weight)
        torch.testing.assert_close(net(pooled, x, tau), torch.full((32, 8, 16), bound))


def test_noise_net_is_dropped_at_evaluation() -> None:
    policy, context, keys, zero = noisy_policy(), random_contexts(6), episode_keys(6), np.zeros(6, np.int64)
    with_net = policy.act(context, keys, zero, WIDOWX, 0.6).actions
    explored = policy.sample(context, keys, zero, WIDOWX, FlowNoise(4))[0].actions
    assert policy.noise_net is not None
    nn.init.constant_(policy.noise_net.out.bias, 3.0)
    assert np.array_equal(policy.act(context, keys, zero, WIDOWX, 0.6).actions, with_net)
    assert not np.array_equal(policy.sample(context, keys, zero, WIDOWX, FlowNoise(4))[0].actions, explored)
    policy.noise_net = None
    assert np.array_equal(policy.act(context, keys, zero, WIDOWX, 0.6).actions, with_net)
    with pytest.raises(ValueError, match="Flow-Noise needs the policy's noise net"):
        policy.sample(context, keys, zero, WIDOWX, FlowNoise(4))


def test_an_update_trains_the_noise_net_which_leaves_the_context_alone() -> None:
    policy = noisy_policy()
    made = trajectory(policy, random_contexts(16), law=FlowNoise(4))
    recipe = Recipe(PPOSection(), OBJECTIVES["ppo"], FlowNoise(4))
    batch = flatten([score(made, gamma=0.99, lam=0.95)], normalise=True)
    assert isinstance(batch.inputs, TorchContext) and policy.noise_net is not None
    hidden = batch.inputs.hidden.clone().requires_grad_(True)
    batch = replace(batch, inputs=replace(batch.inputs, hidden=hidden))
    minibatch_loss(policy, prepare(policy, batch, recipe, (0, 0)), np.arange(16), recipe)[0].backward()
    assert all(p.grad is not None and p.grad.any() for p in policy.noise_net.parameters())
    spread = policy.spread(replace(random_contexts(16), hidden=hidden))
    assert spread is not None
    (through,) = torch.autograd.grad(spread(torch.zeros(16, 8, 16), torch.ones(16)).sum(), hidden, allow_unused=True)
    assert through is None
