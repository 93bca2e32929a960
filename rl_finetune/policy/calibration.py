"""What noise at each denoising step does to the executed action, and levels that make it what a user asks for.

Flow-SDE's level a says little about the robot: noise before the last step is contracted by what follows, noise at the
last one lands on the robot as it is. Here the dial is the executed-action standard deviation itself: measured
contributions per
step, a bounded level a_k for each, and k* drawn in proportion to what a step contributes (flow_rl, calibrated SDE).
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch

from rl_finetune.errors import UserError
from rl_finetune.policy.laws import ODE, FlowNoise, FlowSDE, Law
from rl_finetune.policy.policy import QwenVLAPolicy, Seen
from rl_finetune.policy.sampler import Noise, draw_noise
from rl_finetune.spec import EmbodimentSpec
from rl_finetune.types import FloatArray, SeedKeys

ROUNDS, DAMPING = 8, 0.7
"""Measurements until levels have settled, and the power of the step taken after each: contributions grow a little
faster than levels, so that whole steps would go too far."""
START_LEVEL = 0.5


@dataclass(frozen=True, slots=True)
class Calibration:
    """Measured levels of one policy in one world."""

    levels: tuple[float, ...]
    """[num_steps] a of each denoising step."""
    odds: tuple[float, ...]
    """[num_steps] probability of each to be the stochastic one."""
    contribution: tuple[float, ...]
    """[num_steps] executed standard deviation that each level gave, action units."""
    executed_std: float
    """Of the whole law, action units."""


@torch.no_grad()
def contributions(policy: QwenVLAPolicy, seen: Seen, keys: SeedKeys, body: EmbodimentSpec, law: Law) -> FloatArray:
    """[num_steps] RMS distance to the ODE's actions when the law is random at one denoising step alone.

    In action units: over translation channels in metres where the body has them (`delta_ee`), else over all. The
    initial noise is the same on both sides, so what is measured is the transition's noise.

    Args:
        policy: acts from `seen`, N observations of the first chunk of the episodes `keys`.
        body: embodiment of all N.
        law: Flow-SDE or Flow-Noise; the ODE contributes nothing.
    """
    if isinstance(law, ODE):
        return np.zeros(law.num_steps, np.float32)
    first = np.zeros(len(keys), np.int64)
    horizon, width = body.action.horizon, policy.config.decoder.action_width
    noise = draw_noise(keys, first, horizon, width, law)
    plain, _ = policy.play(seen, noise, body, ODE(law.num_steps))
    found = []
    for k in range(law.num_steps):
        chunk, _ = policy.play(seen, _only(noise, k, law), body, _at(law, k))
        found.append(distance(chunk.actions, plain.actions, body))
    return np.array(found, np.float32)


def distance(one: FloatArray, other: FloatArray, body: EmbodimentSpec) -> float:
    """RMS difference of actions [N, H, K] in action units, over translation where the body is moved by
    displacements."""
    channels = 3 if body.action.control == "delta_ee" else body.action.channels
    return float(np.sqrt(((one - other)[..., :channels] ** 2).mean()))


def calibrate(
    policy: QwenVLAPolicy,
    seen: Seen,
    keys: SeedKeys,
    body: EmbodimentSpec,
    *,
    num_steps: int,
    executed_std: float,
    max_level: float,
    temperature: float = 1.0,
    correlation: float = 0.0,
) -> Calibration:
    """Levels and odds with which Flow-SDE adds `executed_std` to executed actions, at the temperature and with the
    correlation that it will be used with.

    Raises:
        UserError: no bounded level gets there.
    """
    base = FlowSDE(num_steps, temperature=temperature, correlation=correlation)
    levels = (min(START_LEVEL, max_level),) * num_steps
    for _ in range(ROUNDS):
        reached = contributions(policy, seen, keys, body, replace(base, levels=levels))
        wanted, odds = plan(reached / np.array(levels), executed_std, max_level)
        moved = np.array(levels) * (np.array(wanted) / np.array(levels)) ** DAMPING
        levels = tuple(float(a) for a in np.minimum(moved, max_level))
    reached = contributions(policy, seen, keys, body, replace(base, levels=levels))
    overall = float(np.sqrt((np.array(odds) * reached**2).sum()))
    return Calibration(levels, odds, tuple(float(c) for c in reached), overall)


def plan(slopes: np.ndarray, target: float, max_level: float) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Levels a_k <= max_level and odds p_k for contributions c_k = slope_k a_k, p_k in proportion to c_k, such that the
    root mean square over draws, sqrt(sum p_k c_k^2), is `target`.

    All steps aim at the same contribution; those that cannot get there are drawn less often.

    Raises:
        UserError: even with every level at its bound it is less.
    """
    most = slopes * max_level

    def overall(aim: float) -> float:
        c = np.minimum(aim, most)
        return float(np.sqrt((c**3).sum() / c.sum()))

    low, high = 0.0, float(most.max())
    if overall(high) < target:
        raise UserError(
            "this policy's exploration cannot be made that wide", got=f"exploration.executed_std={target:g}",
            expected=f"at most {overall(high):.4g} with levels up to {max_level:g}",
            do="lower executed_std, or raise exploration.max_level",
        )  # fmt: skip
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if overall(middle) < target else (low, middle)
    c = np.minimum(high, most)
    return tuple((c / slopes).tolist()), tuple((c / c.sum()).tolist())


def _only(noise: Noise, k: int, law: Law) -> Noise:
    if isinstance(law, FlowNoise):
        kept = torch.zeros_like(noise.transition)
        kept[:, k] = noise.transition[:, k]
        return Noise(noise.start, kept, noise.step)
    return Noise(noise.start, noise.transition, torch.full_like(noise.step, k))


def _at(law: FlowSDE | FlowNoise, k: int) -> Law:
    return replace(law, step=k) if isinstance(law, FlowSDE) else law
