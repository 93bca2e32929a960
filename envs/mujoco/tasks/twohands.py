"""Long things that two hands share: what handing over and inserting have in common."""

from __future__ import annotations

import copy
from abc import abstractmethod
from typing import Self

import numpy as np

from envs.base import Disturbance
from envs.mujoco.task import Float64, Path
from envs.mujoco.tasks.grasping import Hand, either
from envs.mujoco.tasks.objects import ROOM, Objects, Scene, wrap
from envs.mujoco.tasks.plans import Corner, Motion, play
from envs.mujoco.tasks.reach import RIMWARD
from envs.mujoco.tasks.tabletop import COLOURS
from rl_finetune.types import BoolArray, FloatArray

LIGHT = (
    'contype="3" conaffinity="3" condim="4" friction="1.5 0.05 0.0001" density="200" solref="0.02 1" '
    'solimp="0.98 0.999 0.001" priority="1"'
)
MIDDLES, FARTHER = np.array([[0.21, 0.29], [0.06, 0.12]]), np.array([[0.295, 0.32], [0.07, 0.13]])
"""[2, 2] metres: x, and y to either side, of the things' middles in training, and where it never puts them."""
BESIDE = 0.02
"""Metres between a thing's axis and a tool that may be holding it."""
BEYOND = 0.01
"""Metres beyond its ends."""


class TwoHands(Objects):
    """Two hands, and things that lie along the table's x axis, so that fingers close across them."""

    litter_apart = 0.12
    middles = MIDDLES

    def elsewhere(self) -> Self:
        """See `Variable.elsewhere`: things lie farther out, starts are lower."""
        other = copy.copy(self)
        other.middles, other.region = FARTHER, RIMWARD
        return other

    def along(self, scene: Scene) -> Float64:
        """[..., F, hands, 3] where the tools are, in the frame of each thing."""
        apart = scene.tools[..., None, :, :] - scene.places[..., :, None, :]
        return np.einsum("...fji,...fhj->...fhi", scene.frames, apart)

    def held(self, scene: Scene) -> BoolArray:
        """See `Objects.held`: fingers closed across a long thing, anywhere along it."""
        local = self.along(scene)
        beside = np.linalg.norm(local[..., 1:], axis=-1) <= BESIDE
        ends = np.abs(local[..., 0]) <= self.half[:, None, 0] + BEYOND
        return beside & ends & (scene.width[..., None, :] <= self.wide[:, None] + ROOM)

    def poses(self, scene: Scene) -> Float64:
        """[..., F, 4] middle and direction about the vertical of each thing, metres and radians."""
        axis = scene.frames[..., 0]
        return np.concatenate([scene.places, wrap(np.arctan2(axis[..., 1], axis[..., 0]), np.pi)[..., None]], -1)

    def colour_tops(self, scene: Scene, present: BoolArray) -> Float64:
        """[N, 4, 3] middle of the upper face of the thing of each colour, zero where there is none."""
        tops = np.zeros((len(present), len(COLOURS), 3))
        for row, name in enumerate(self.free):
            tops[:, COLOURS.index(name)] = scene.places[:, row] + [0.0, 0.0, self.half[row, 2]]
        return np.where(present[..., None], tops, 0.0)

    @abstractmethod
    def plans(self, hands: tuple[Hand, Hand], own: Float64, offset: Float64) -> tuple[list[Corner], list[Corner]]:
        """What each hand does next, from what is known beyond the hands, `own` [N, ...]."""

    def expert(self, privileged: FloatArray, disturbed: Disturbance | None = None) -> Float64:
        """See `Task.expert`."""
        state, action = privileged.astype(np.float64), self.body.embodiment.action
        own, n = state[:, len(self.privileged_names()) :], len(state)
        tools, fingers = self.tools(self.recall(privileged)), own[:, :4].reshape(n, 2, 2)
        hands = Hand(tools[:, 0], *fingers[:, 0].T), Hand(tools[:, 1], *fingers[:, 1].T)
        offset, pace = np.zeros((n, 3)), np.full(n, self.pace)
        if disturbed is not None:
            offset, pace = disturbed.offset, self.pace * disturbed.pace
        motions = [play(plan, pace, self.rate, action.horizon) for plan in self.plans(hands, own[:, 4:], offset)]
        return self.body.command(self.recalled(privileged, fingers[..., 0]), _together(motions))


def _together(motions: list[Motion]) -> Path:
    return Path(*(np.stack([getattr(m, name) for m in motions], 2) for name in ("places", "opening", "yaw")))


def across(direction: Float64, distance: float) -> Float64:
    """[N, 3] steps of `distance` metres in directions [N] about the vertical."""
    return distance * np.stack([np.cos(direction), np.sin(direction), 0 * direction], -1)


def choose(hand: BoolArray, one: list[Corner], other: list[Corner]) -> tuple[list[Corner], list[Corner]]:
    """Plans of the left and of the right hand, where the left hand follows plan `one` if `hand` [N], else `other`."""
    return either(hand, one, other), either(hand, other, one)
