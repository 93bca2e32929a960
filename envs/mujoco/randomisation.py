"""Domain randomisation for training: small changes of looks and dynamics. Pure functions of a key; numpy only.

Ranges stop short of the perturbation suites', so that these stay out of distribution. Each kind draws from a generator
of its own: adding one leaves the others' draws as they were.
"""

from __future__ import annotations

from colorsys import hsv_to_rgb
from typing import get_args

import numpy as np

from envs.mujoco.options import Randomised
from envs.mujoco.suites import rgb
from envs.mujoco.task import EpisodeKey, Float64, Task
from envs.mujoco.variation import Light, Sway, Variation
from rl_finetune.errors import UserError
from rl_finetune.keys import Stream, generator
from rl_finetune.spec import ActionConvention

KINDS: tuple[Randomised, ...] = get_args(Randomised)
LATEST = 2
"""Control steps by which actions arrive late at most, at strength 1."""
HEAVIER, ROUGHER = 1.0, 0.5
"""Mass and friction vary between 1 / (1 + this) and 1 + this, at strength 1."""
ROBOT = 0.35
"""Share of a random colour in the robot's, at most."""
SHIFT, TURN = 0.012, 0.012
"""Metres and radians by which a fixed camera is moved along and about each axis, at most."""


def varied(task: Task, key: EpisodeKey, kinds: tuple[Randomised, ...], strength: float) -> Variation:
    """What is random about one episode."""
    rngs = {
        kind: generator(key.seed, Stream.RANDOMISATION, key.scene, key.episode, KINDS.index(kind)) for kind in kinds
    }
    looks = _looks(task, rngs["visual"], strength) if "visual" in kinds else Variation()
    return Variation(
        colours=looks.colours, tint=looks.tint, light=looks.light, sway=looks.sway,
        mass=_factor(rngs["mass"], HEAVIER * strength) if "mass" in kinds else 1.0,
        friction=_factor(rngs["friction"], ROUGHER * strength) if "friction" in kinds else 1.0,
        latency=int(rngs["latency"].integers(round(LATEST * strength) + 1)) if "latency" in kinds else 0,
        noise=float(rngs["action_noise"].uniform(0.0, strength)) if "action_noise" in kinds else 0.0,
    )  # fmt: skip


def noise_table(key: EpisodeKey, steps: int, channels: int) -> Float64:
    """[steps, channels] standard normal numbers of one episode."""
    return generator(key.seed, Stream.ACTION_NOISE, key.scene, key.episode).standard_normal((steps, channels))


def unit_noise(action: ActionConvention) -> Float64:
    """[c] standard deviation of the action noise at `Variation.noise` = 1, in each channel's units: 4 mm and 20 mrad
    for a tool's displacement, 5 mrad for joints, 2 cm and 40 mrad for waypoints, 1 % of the picture for traces."""
    units = {"delta_ee": [0.004] * 3 + [0.02] * 4, "joint": [0.005], "waypoint": [0.02, 0.02, 0.04], "trace": [0.01]}
    return np.resize(np.array(units[action.control]), action.channels)


def check(task: Task, kinds: tuple[Randomised, ...], strength: float) -> None:
    """Refuse what would change nothing.

    Raises:
        UserError: a latency as long as a chunk, or one for a task without controls in time.
    """
    horizon, timeless = task.spec.embodiment.action.horizon, task.spec.embodiment.action.control == "trace"
    if "latency" in kinds and (round(LATEST * strength) >= horizon or timeless):
        raise UserError(
            f"{task.spec.name!r} cannot be driven this late", got=f"{round(LATEST * strength)} control steps",
            expected=f"less than a chunk of {horizon}, of actions that are controls",
            do="leave 'latency' out of randomise, or lower the strength",
        )  # fmt: skip


def _looks(task: Task, rng: np.random.Generator, strength: float) -> Variation:
    colours = {
        geom: hsv_to_rgb(rng.random(), rng.uniform(0, 0.2 * strength), rng.uniform(0.66 - 0.2 * strength, 0.75))
        for geom in task.backdrop
    }
    tint = (*rng.uniform(0.0, 1.0, 3), ROBOT * strength * rng.random())
    angle, slope = rng.uniform(0, 2 * np.pi), rng.uniform(0, 0.6 * strength)
    lamp, ambient = 1 + strength * rng.uniform(-0.2, 0.15, 3), np.full(3, 1 + strength * rng.uniform(-0.2, 0.04))
    light = Light((float(slope * np.cos(angle)), float(slope * np.sin(angle)), -1.0), rgb(lamp), rgb(ambient))
    shift, turn = strength * SHIFT * rng.uniform(-1, 1, 3), strength * TURN * rng.uniform(-1, 1, 3)
    eye = task.fixed_eye()
    sway = None if eye is None else Sway(eye[0], rgb(shift), rgb(turn))
    return Variation(colours=colours, tint=tint, light=light, sway=sway)


def _factor(rng: np.random.Generator, more: float) -> float:
    return float(np.exp(rng.uniform(-1, 1) * np.log1p(more)))
