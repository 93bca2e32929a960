"""Perturbation suites: what a trained policy never saw, one axis at a time. Pure functions of a key; numpy only.

Each axis draws from a generator of its own, so `all` shows what each suite shows alone.
"""

from __future__ import annotations

import re
from colorsys import hsv_to_rgb
from typing import Literal, get_args

import numpy as np

from envs.mujoco.options import Suite
from envs.mujoco.task import EpisodeKey, Float64, Task
from envs.mujoco.tasks.tabletop import COLOURS, RGBA
from envs.mujoco.variation import Light, Rgb, Shape, Variable, named_colour
from rl_finetune.errors import UserError
from rl_finetune.keys import Stream, generator

Axis = Literal["colour", "instance", "position", "background", "lighting", "paraphrase", "distractors"]
AXES: tuple[Axis, ...] = get_args(Axis)
SUITES: tuple[Suite, ...] = get_args(Suite)
DARK, LIGHT = (0.4, 0.6), (0.3, 0.5)
"""Shade of a colour: factor towards black, share of white. Neither changes the hue."""
STRANGE = {"purple": (0.45, 0.12, 0.65), "grey": (0.42, 0.42, 0.42), "orange": (0.95, 0.45, 0.05)}
"""Colours that no instruction names."""
LITTER = tuple(f"distractor_{number}" for number in range(len(STRANGE)))
"""Bodies, and their geoms, that a model has only where distractors are asked for."""


def axes(task: Task, suite: Suite) -> tuple[Axis, ...]:
    """The axes that a suite perturbs; `all` are those that the task has.

    Raises:
        UserError: the task has nothing of an axis; names those that it has.
    """
    if suite == "none":
        return ()
    own = tuple(axis for axis in AXES if _has(task, axis))
    if suite == "all":
        return own
    if suite not in own:
        raise UserError(
            f"{task.spec.name!r} cannot be perturbed by {suite!r}", got="nothing that it would change",
            expected=f"one of {own}", do="choose one of these suites",
        )  # fmt: skip
    return (suite,)


def drawing(key: EpisodeKey, axis: Axis) -> np.random.Generator:
    """The generator of one axis in one episode."""
    return generator(key.seed, Stream.SUITE, key.scene, key.episode, AXES.index(axis))


def shades(task: Variable, rng: np.random.Generator) -> dict[str, Rgb]:
    """Colour of each coloured geom, dark or light, of its own hue: the name stays true."""
    return {geom: _shade(rng, np.array(RGBA[_colour(geom)].split()[:3], float)) for geom in task.coloured}


def instances(task: Variable, rng: np.random.Generator) -> dict[str, Shape]:
    """Another shape for each coloured geom that may have one."""
    return {geom: shapes[rng.integers(len(shapes))] for geom, shapes in task.coloured.items() if shapes}


def backgrounds(task: Variable, rng: np.random.Generator) -> dict[str, Rgb]:
    """Strange colours of table, floor or walls: clearly tinted or dark, where training's are light and greyish."""
    return {geom: hsv_to_rgb(rng.random(), rng.uniform(0.3, 0.5), rng.uniform(0.2, 0.6)) for geom in task.backdrop}


def lights(rng: np.random.Generator) -> Light:
    """A lamp that stands low on any side, coloured, brighter or dimmer, with less or more light from everywhere."""
    angle, slope = rng.uniform(0, 2 * np.pi), rng.uniform(0.8, 1.6)
    dim = rng.random() < 0.5
    lamp = rng.uniform(0.7, 1.3, 3) * (rng.uniform(0.5, 0.8) if dim else rng.uniform(1.2, 1.5))
    ambient = np.full(3, rng.uniform(0.5, 0.75) if dim else rng.uniform(1.05, 1.25))
    return Light((slope * np.cos(angle), slope * np.sin(angle), -1.0), rgb(lamp), rgb(ambient))


def reworded(task: Variable, instruction: str, rng: np.random.Generator) -> str:
    """The same request in words that share no template with training's."""
    return _worded(task.wordings[rng.integers(len(task.wordings))], instruction)


def rewordings(task: Task) -> tuple[str, ...]:
    """Everything that `reworded` may say."""
    said = [_worded(wording, instruction) for instruction in task.spec.tasks for wording in task.wordings]
    return tuple(dict.fromkeys(said))


def _worded(wording: str, instruction: str) -> str:
    named = re.findall("|".join(COLOURS), instruction)
    return wording.format(i=instruction, **dict(zip("cd", named, strict=False)))


def rgb(values: Float64) -> Rgb:
    """Three plain numbers."""
    red, green, blue = map(float, values)
    return red, green, blue


def _has(task: Task, axis: Axis) -> bool:
    if axis == "colour":
        return bool(task.coloured)
    if axis == "instance":
        return any(task.coloured.values())
    if axis == "position":
        return task.elsewhere() is not None
    if axis == "background":
        return bool(task.backdrop)
    return axis != "distractors" or task.litter is not None


def _colour(geom: str) -> str:
    found = named_colour(geom, COLOURS)
    assert found is not None, f"coloured geom {geom!r} is named after none of {COLOURS}"
    return found


def _shade(rng: np.random.Generator, plain: Float64) -> Rgb:
    dark = rng.random() < 0.5
    share = rng.uniform(*(DARK if dark else LIGHT))
    return rgb(plain * share if dark else plain + (1 - plain) * share)
