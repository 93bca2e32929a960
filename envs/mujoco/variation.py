"""How one episode differs from what training shows: a record that engines read, and what a task may say about itself.

numpy only. `envs.mujoco.suites` and `envs.mujoco.randomisation` draw such records, `envs.mujoco.varied` hangs them on a
task's beginnings, and an engine applies what it can (`Engine.varies`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from envs.mujoco.task import Now, Start, Task

Float64 = NDArray[np.float64]
Kind = Literal["box", "cylinder", "sphere"]
Rgb = tuple[float, float, float]
Property = Literal["looks", "shapes", "dynamics"]


@dataclass(frozen=True, slots=True)
class Shape:
    """What a thing looks like and is touched as."""

    kind: Kind
    """Box, upright cylinder or ball."""
    half: tuple[float, float, float]
    """Half sizes in metres of the upright box around it."""


@dataclass(frozen=True, slots=True)
class Light:
    """What becomes of the lamp and of the light that comes from everywhere."""

    direction: tuple[float, float, float]
    """Of the lamp's rays in the world's frame, of any length."""
    lamp: Rgb
    """Factors on its colour."""
    ambient: Rgb
    """Factors on the light from everywhere and from the eye."""


@dataclass(frozen=True, slots=True)
class Sway:
    """How a camera that is fixed to the world has been moved; both in its own frame (right, up, backward)."""

    camera: str
    """Its name."""
    shift: tuple[float, float, float]
    """Metres."""
    turn: tuple[float, float, float]
    """Radians, axis-angle."""


@dataclass(frozen=True, slots=True)
class Variation:
    """All that is varied in one episode; the default varies nothing."""

    colours: Mapping[str, Rgb] = field(default_factory=dict)
    """Geom, or body of several -> colour."""
    tint: tuple[float, float, float, float] | None = None
    """Colour that is mixed into the robot's own, and its share."""
    shapes: Mapping[str, Shape] = field(default_factory=dict)
    """Geom -> shape, standing on what it stood on."""
    light: Light | None = None
    """Lamp and ambient light."""
    sway: Sway | None = None
    """A camera's."""
    mass: float = 1.0
    """Factor on mass and inertia of free things."""
    friction: float = 1.0
    """Factor on the friction of free things and of what the robot touches with."""
    latency: int = 0
    """Control steps by which each chunk's actions arrive late."""
    noise: float = 0.0
    """Standard deviation of the action noise in the units of `randomisation.unit_noise`."""


FALLBACK = ("here is your job now: {i}", "{i}, please, and nothing else")
"""Wordings for tasks that have no own: `{i}` is the instruction."""


class Variable:
    """What a task says about itself so that it can be varied. Every answer has a default: nothing can be."""

    coloured: Mapping[str, tuple[Shape, ...]] = {}
    """Geoms, or bodies of several, that instructions call by a colour (with which their names begin), and the other
    shapes that each may have."""
    backdrop: tuple[str, ...] = ()
    """Geoms that are neither the robot nor a thing: table, floor, walls."""
    wordings: tuple[str, ...] = FALLBACK
    """Instructions that share no template with those of training: `{c}` and `{d}` are the colours in the order in which
    the instruction names them."""
    litter: Shape | None = None
    """Size of a distractor."""

    def elsewhere(self) -> Task | None:
        """The same task with things and starts where training never puts them."""
        return None

    def reshaped(self, start: Start, shapes: Mapping[str, Shape]) -> Start:
        """`start` with what follows from the new shapes of coloured geoms (the height of their tops)."""
        return start

    def strewn(self, start: Start, rng: np.random.Generator, count: int) -> Float64:
        """[count, 2] x and y in metres of distractors that are in nobody's way; far off where there is no room.

        Only for tasks with `litter`.
        """
        raise NotImplementedError

    def fixed_eye(self) -> tuple[str, Float64, Float64] | None:
        """Name, place [3] and rows right, up, backward [3, 3] of the first view's camera, where it is fixed."""
        return None

    def staying(self, now: Now, last: Float64) -> Float64 | None:
        """Action [N, c] that leaves the controller's targets where they stand, the last one [N, c] having arrived; None
        where nothing is controlled in time."""
        return None


def named_colour(geom: str, palette: tuple[str, ...]) -> str | None:
    """The colour that a geom's name begins with."""
    return next((colour for colour in palette if geom.split("_")[0] == colour), None)
