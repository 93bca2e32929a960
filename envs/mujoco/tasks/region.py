"""Where things lie on the table at first, and where hands begin: in training, and elsewhere. numpy only."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from envs.mujoco.task import Float64

GROUND = np.array([[0.13, 0.37], [-0.16, 0.16]])
"""[2, 2] metres: x and y in which the centres of things lie."""
RIM = 0.012
"""Metres by which things may lie beyond it where that is asked for: less than any tolerance beyond the tool's box."""
TRIES = 2_000
FAR_OFF = 5.0
"""Metres: where a distractor stands for which there is no room."""


@dataclass(frozen=True, slots=True)
class Region:
    """Rules of a beginning."""

    spacing: tuple[float, float] = (0.09, np.inf)
    """Metres between the centres of two neighbours: the nearest two of all lie within these bounds."""
    height: tuple[float, float] = (0.12, 0.21)
    """Metres above the table at which a tool begins."""
    beyond: float = 0.0
    """Metres beyond `GROUND` in which all things lie; 0 is within it."""

    def centres(self, rng: np.random.Generator, count: int) -> Float64:
        """[count, 2] of things; a set that breaks a rule is drawn again whole."""
        while True:
            centres = (
                rim(rng, GROUND, self.beyond, count)
                if self.beyond
                else rng.uniform(GROUND[:, 0], GROUND[:, 1], (count, 2))
            )
            apart = np.linalg.norm(centres[:, None] - centres[None], axis=-1)[np.triu_indices(count, 1)]
            if self.spacing[0] <= apart.min(initial=np.inf) <= self.spacing[1]:
                return centres


HOME = Region()


def rim(rng: np.random.Generator, ground: Float64, width: float, count: int) -> Float64:
    """[count, 2] places in the frame of `width` metres around `ground` [2, 2]: somewhere along it, then outwards."""
    sides = np.repeat(np.diff(ground)[:, 0], 2)
    side = rng.choice(4, count, p=sides / sides.sum())
    along, out = rng.random(count), rng.uniform(0, width, count)
    places, rows, axis = np.empty((count, 2)), np.arange(count), side // 2
    places[rows, axis] = ground[axis, 0] + along * np.diff(ground)[axis, 0]
    low = side % 2 == 0
    places[rows, 1 - axis] = np.where(low, ground[1 - axis, 0] - out, ground[1 - axis, 1] + out)
    return places


def scattered(rng: np.random.Generator, ground: Float64, others: Float64, apart: float, count: int) -> Float64:
    """[count, 2] places within `ground` [2, 2] at least `apart` metres from each other and from `others` [M, 2]."""
    taken, places = list(others), np.full((count, 2), FAR_OFF)
    for number in range(count):
        for place in rng.uniform(ground[:, 0], ground[:, 1], (TRIES, 2)):
            if np.linalg.norm(np.array(taken) - place, axis=-1).min(initial=np.inf) >= apart:
                places[number] = place
                taken.append(place)
                break
    return places
