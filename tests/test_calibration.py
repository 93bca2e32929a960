"""The calibrated law: levels by hand, contributions in closed form, and the dial against what is executed."""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from builders import blind_policy, episode_keys, noisy_policy, random_contexts, tiny_policy
from torch import Tensor, nn

import envs
from actors.calibration import measured_with, unmeasured
from rl_finetune.config import TrainConfig, dump, load
from rl_finetune.config.objectives import PPOSection
from rl_finetune.config.schema import EnvSection, ExplorationSection, RolloutSection
from rl_finetune.errors import UserError
from rl_finetune.policy import QwenVLAPolicy
from rl_finetune.policy.calibration import Calibration, calibrate, contributions, distance, plan
from rl_finetune.policy.config import WIDOWX
from rl_finetune.policy.laws import ODE, FlowNoise, FlowSDE, Law, law_for, law_of
from rl_finetune.policy.noise_net import NoiseNet
from rl_finetune.policy.sampler import draw_noise
from rl_finetune.types import SeedKeys

JOINTS = replace(WIDOWX, action=replace(WIDOWX.action, control="joint"))

# ---- the plan


def overall(levels: tuple[float, ...], odds: tuple[float, ...], slopes: np.ndarray) -> float:
    return math.sqrt(sum(p * (a * s) ** 2 for a, p, s in zip(levels, odds, slopes, strict=True)))


def test_steps_that_can_all_get_there_are_drawn_alike() -> None:
    slopes = np.array([0.1, 0.05, 0.2, 0.08])
    levels, odds = plan(slopes, 0.04, 2.0)
    assert levels == pytest.approx((0.4, 0.8, 0.2, 0.5)) and odds == pytest.approx((0.25,) * 4)


def test_a_bounded_step_is_drawn_less_and_the_others_make_up_for_it() -> None:
    """One step gives 0.02 at most; the others' c solves (0.02^3 + 3 c^3) / (0.02 + 3 c) = 0.04^2."""
    slopes = np.array([0.1, 0.01, 0.2, 0.4])
    (c,) = [r.real for r in np.roots([3, 0, -3 * 0.0016, 0.02**3 - 0.02 * 0.0016]) if r.real > 0.02]
    levels, odds = plan(slopes, 0.04, 2.0)
    assert levels == pytest.approx((c / 0.1, 2.0, c / 0.2, c / 0.4))
    total = 0.02 + 3 * c
    assert odds == pytest.approx((c / total, 0.02 / total, c / total, c / total))
    assert c > 0.04 and overall(levels, odds, slopes) == pytest.approx(0.04, rel=1e-9)


def test_all_steps_bounded_is_as_far_as_it_goes() -> None:
    """c = (0.1, 0.2): sqrt((0.1^3 + 0.2^3) / 0.3) = sqrt(0.03)."""
    levels, odds = plan(np.array([0.05, 0.1]), math.sqrt(0.03) * (1 - 1e-12), 2.0)
    assert levels == pytest.approx((2, 2)) and odds == pytest.approx((1 / 3, 2 / 3))
    with pytest.raises(UserError) as caught:
        plan(np.array([0.05, 0.1]), 0.2, 2.0)
    assert str(caught.value) == (
        "this policy's exploration cannot be made that wide: got exploration.executed_std=0.2; "
        "expected at most 0.1732 with levels up to 2; lower executed_std, or raise exploration.max_level"
    )


def test_any_plan_keeps_its_promises() -> None:
    rng = np.random.default_rng(0)
    bounded = 0
    for _ in range(100):
        slopes, most = rng.uniform(0.01, 0.3, rng.integers(2, 11)), rng.uniform(0.5, 3)
        target = rng.uniform(0.1, 0.99) * overall((most,) * len(slopes), tuple(slopes / slopes.sum()), slopes)
        levels, odds = plan(slopes, target, most)
        c = np.array(levels) * slopes
        assert min(levels) > 0 and max(levels) <= most * (1 + 1e-12)
        assert overall(levels, odds, slopes) == pytest.approx(target, rel=1e-9)
        np.testing.assert_allclose(odds, c / c.sum())
        free = np.array(levels) < most * (1 - 1e-9)
        assert np.ptp(c[free]) < 1e-9 and (c[~free] <= c[free].min(initial=np.inf) + 1e-9).all()
        bounded += (~free).any()
    assert 20 < bounded < 95


# ---- contributions in closed form


class Straight(nn.Module):
    """A decoder whose velocity is gain(tau) x - 0.3, so that chains are affine in their noise."""

    def prepare(self, *_: object) -> None:
        return None

    def forward(self, prepared: None, x: Tensor, tau: Tensor) -> Tensor:
        return slope(tau)[:, None, None] * x - 0.3


def slope(tau):
    return 0.4 + 0.5 * tau


def straight_policy() -> QwenVLAPolicy:
    policy = blind_policy()
    policy.decoder = Straight()  # type: ignore[assignment]
    policy.noise_net = NoiseNet(128, 16, 0.08, 0.16)  # fresh: sqrt(0.08 0.16) everywhere
    return policy


def by_hand(law: Law, num: int) -> list[float]:
    """RMS over displacements of what the noise of each step becomes in the end, in metres."""
    noise = draw_noise(episode_keys(num), np.zeros(num, np.int64), 8, 16, law)
    n, x, found = law.num_steps, noise.start.numpy()[..., :3].astype(float), []
    after = np.cumprod([1.0, *(1 - slope(j / n) / n for j in range(1, n))])[::-1]  # of the ODE behind step k
    for k in range(n):
        tau, z = 1 - k / n, noise.transition.numpy()[:, k if isinstance(law, FlowNoise) else 0, :, :3]
        v = slope(tau) * x - 0.3
        if isinstance(law, FlowNoise):
            moved = math.sqrt(0.08 * 0.16) * z
        else:
            level = law.noise_level if law.levels is None else law.levels[k]
            sigma = level * math.sqrt(tau / (1 - (tau - 1 / n if k == 0 else tau)))
            moved = sigma * math.sqrt(1 / n) * z - (x + (1 - tau) * v) * sigma**2 / (2 * tau * n)
        found.append(float(np.sqrt((moved**2).mean())) * after[k] * 0.1)  # quantiles of +-0.1 m
        x = x - v / n
    return found


@pytest.mark.parametrize(
    "law",
    [
        FlowSDE(4, 0.5),
        FlowSDE(4, 0.5, step=2),
        FlowSDE(4, levels=(1.5, 0.8, 0.4, 0.2), odds=(0.1, 0.4, 0.3, 0.2)),
        FlowSDE(7, 0.3),
        FlowNoise(4),
    ],
)
def test_contributions_of_a_linear_velocity(law: Law) -> None:
    found = contributions(straight_policy(), random_contexts(16), episode_keys(16), WIDOWX, law)
    assert found.shape == (law.num_steps,) and found.dtype == np.float32
    np.testing.assert_allclose(found, by_hand(law, 16), rtol=1e-4)


@pytest.mark.parametrize("law", [FlowSDE(4, 0.5), FlowSDE(4, levels=(0.3, 0.5, 0.7, 0.9))])
def test_contributions_are_those_of_laws_with_a_fixed_step(law: FlowSDE) -> None:
    """On a curved velocity, against what such a law executes."""
    policy, context, keys, zero = blind_policy(), random_contexts(16), episode_keys(16), np.zeros(16, np.int64)
    plain = policy.act(context, keys, zero, WIDOWX, 1.0, 4).actions
    direct = [policy.sample(context, keys, zero, WIDOWX, replace(law, step=k))[0].actions for k in range(4)]
    expected = [np.sqrt(((actions - plain)[..., :3] ** 2).mean()) for actions in direct]
    np.testing.assert_allclose(contributions(policy, context, keys, WIDOWX, law), expected, rtol=1e-5)
    assert min(b / a for a, b in pairwise(sorted(expected))) > 1.01


def test_the_ode_contributes_nothing() -> None:
    found = contributions(noisy_policy(), random_contexts(4), episode_keys(4), WIDOWX, ODE(6))
    assert found.tolist() == [0.0] * 6


def test_distance_is_over_displacements_or_over_all_channels() -> None:
    one, other = np.zeros((2, 8, 16), np.float32), np.zeros((2, 8, 16), np.float32)
    one[..., :3], one[..., 3:7], one[..., 7:] = 0.1, 0.5, 100
    assert distance(one, other, WIDOWX) == pytest.approx(0.1)
    assert distance(one, other, JOINTS) == pytest.approx(math.sqrt((3 * 0.01 + 4 * 0.25) / 7))


# ---- calibration


def measured(policy: QwenVLAPolicy, law: FlowSDE, seed: int, num: int = 256) -> float:
    """Executed standard deviation of a law on other noise than it was calibrated with."""
    context = random_contexts(64).rows(torch.arange(num) % 64)
    keys, zero = episode_keys(num, seed=seed), np.zeros(num, np.int64)
    chunk, _ = policy.sample(context, keys, zero, WIDOWX, law)
    return distance(chunk.actions, policy.act(context, keys, zero, WIDOWX, 1.0, law.num_steps).actions, WIDOWX)


def found_for(policy: QwenVLAPolicy, target: float, max_level: float = 2.0, num_steps: int = 4) -> Calibration:
    return calibrate(
        policy, random_contexts(64), episode_keys(64), WIDOWX,
        num_steps=num_steps, executed_std=target, max_level=max_level,
    )  # fmt: skip


def test_calibration_reaches_the_dial() -> None:
    """On other noise, and so on other draws of the stochastic step, than it was measured on."""
    policy = blind_policy()
    found = found_for(policy, 0.04)
    assert found.executed_std == pytest.approx(0.04, rel=0.01)
    assert found.odds == pytest.approx((0.25,) * 4) and max(found.levels) < 2
    np.testing.assert_allclose(found.contribution, 0.04, rtol=0.02)
    assert max(found.levels) > 2 * min(found.levels)  # one level for all would not have done
    law = FlowSDE(4, levels=found.levels, odds=found.odds)
    assert np.mean([measured(policy, law, seed) for seed in (9, 10)]) == pytest.approx(0.04, rel=0.03)


def test_calibration_reaches_the_dial_where_a_step_is_bounded() -> None:
    policy = blind_policy()
    found = found_for(policy, 0.04, max_level=0.8)
    bounded = np.isclose(found.levels, 0.8, rtol=1e-3)
    assert bounded.tolist() == [False, False, False, True]
    assert found.odds[3] < found.odds[0] == pytest.approx(found.odds[2])
    np.testing.assert_allclose(found.odds, np.array(found.contribution) / sum(found.contribution), rtol=0.02)
    assert found.executed_std == pytest.approx(0.04, rel=0.01)
    law = FlowSDE(4, levels=found.levels, odds=found.odds)
    assert measured(policy, law, 9) == pytest.approx(0.04, rel=0.03)


def test_a_dial_out_of_reach_is_refused() -> None:
    with pytest.raises(UserError, match=r"cannot be made that wide: got exploration\.executed_std=0\.5; .* up to 0\.3"):
        calibrate(
            blind_policy(), random_contexts(4), episode_keys(4), WIDOWX, num_steps=4, executed_std=0.5, max_level=0.3
        )


# ---- in a job


def job(**exploration: Any) -> TrainConfig:
    return TrainConfig(
        exploration=ExplorationSection(**exploration), env=EnvSection(num_envs=6),
        objective=PPOSection(minibatch=8), rollout=RolloutSection(denoising_steps=3),
    )  # fmt: skip


def settled(job: TrainConfig) -> tuple[TrainConfig, Calibration, QwenVLAPolicy]:
    """The job after it was measured in its world."""
    with envs.make("widowx_reach", 6) as env:
        seat = SimpleNamespace(policy=tiny_policy(), env=env, body=WIDOWX)
        return *measured_with(seat, job), seat.policy


@pytest.fixture(scope="module")
def calibrated() -> tuple[TrainConfig, Calibration, QwenVLAPolicy]:
    return settled(job(law="calibrated", executed_std=0.03))


def test_measured_levels_in_a_config_reproduce_the_law(calibrated: tuple, tmp_path: Path) -> None:
    made, found, policy = calibrated
    assert unmeasured(job(law="calibrated")) and not unmeasured(made)
    (tmp_path / "config.yaml").write_text(dump(made))
    again = load(TrainConfig, str(tmp_path / "config.yaml"), [])
    law = FlowSDE(3, 0.5, None, found.levels, found.odds)
    assert law_of(made) == law_of(again) == law
    assert found.executed_std == pytest.approx(0.03, rel=0.01) and len(set(found.levels)) == 3
    chunks = [
        policy.sample(random_contexts(8), episode_keys(8), np.zeros(8, np.int64), WIDOWX, each)[0].actions
        for each in (law, law_of(again))
    ]
    assert np.array_equal(*chunks)


def test_measuring_is_on_the_first_observations_of_training(calibrated: tuple) -> None:
    made, found, policy = calibrated
    keys = SeedKeys(made.run.seed, np.arange(6), np.zeros(6, np.int64))
    with envs.make("widowx_reach", 6) as env, torch.no_grad():
        seen = policy.look(env.reset(keys))
    again = contributions(policy, seen, keys, WIDOWX, law_of(made))
    np.testing.assert_allclose(again, found.contribution, rtol=1e-4)


def test_measuring_is_at_the_temperature_and_correlation_of_training() -> None:
    made, found, policy = settled(
        job(law="calibrated", executed_std=0.03, temperature=0.3, correlation={"widowx": 0.9}, scale={"gr1": 2.0})
    )
    keys = SeedKeys(made.run.seed, np.arange(6), np.zeros(6, np.int64))
    with envs.make("widowx_reach", 6) as env, torch.no_grad():
        seen = policy.look(env.reset(keys))
    acted = law_for("widowx", law_of(made), made.exploration)
    assert isinstance(acted, FlowSDE) and (acted.temperature, acted.correlation) == (0.3, 0.9)
    np.testing.assert_allclose(contributions(policy, seen, keys, WIDOWX, acted), found.contribution, rtol=1e-4)
    plain = contributions(policy, seen, keys, WIDOWX, FlowSDE(3, levels=found.levels))
    assert np.abs(plain / np.array(found.contribution) - 1).max() > 0.01


@pytest.mark.parametrize("chosen", [{"law": "calibrated", "executed_std": 0.03}, {"odds": "contribution"}], ids=str)
def test_what_is_measured_of_a_scaled_body_is_what_it_does(chosen: dict[str, Any]) -> None:
    made, found, policy = settled(job(**chosen, scale={"widowx": 0.5}))
    acted = law_for("widowx", law_of(made), made.exploration)
    assert isinstance(acted, FlowSDE) and acted.levels == pytest.approx(found.levels)
    if "executed_std" in chosen:
        assert found.executed_std == pytest.approx(0.03, rel=0.01)
    keys = SeedKeys(made.run.seed, np.arange(6), np.zeros(6, np.int64))
    with envs.make("widowx_reach", 6) as env, torch.no_grad():
        reached = contributions(policy, policy.look(env.reset(keys)), keys, WIDOWX, acted)
    np.testing.assert_allclose(reached, found.contribution, rtol=1e-4)


def test_a_law_that_nobody_measured_is_no_law() -> None:
    for open_ in (job(law="calibrated"), job(odds="contribution")):
        with pytest.raises(ValueError, match="not measured yet"):
            law_of(open_)


def test_odds_by_contribution_keep_the_level() -> None:
    made, found, _ = settled(job(odds="contribution", noise_level=0.7))
    law = law_of(made)
    assert isinstance(law, FlowSDE) and found.levels == (0.7,) * 3 == law.levels
    c = np.array(found.contribution)
    np.testing.assert_allclose(law.odds, c / c.sum(), rtol=1e-6)
    assert np.ptp(c) > 0.01 * c.max()
    assert found.executed_std == pytest.approx(math.sqrt((c**3).sum() / c.sum()), rel=1e-6)


def test_odds_by_contribution_keep_levels_that_were_given() -> None:
    made, *_ = settled(job(odds="contribution", levels=[0.9, 0.5, 0.2]))
    law = law_of(made)
    assert isinstance(law, FlowSDE) and law.levels == (0.9, 0.5, 0.2)
