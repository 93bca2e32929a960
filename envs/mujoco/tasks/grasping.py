"""How an expert's hand comes around a thing, whatever it is, and how plans are put together."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from envs.mujoco.task import Float64
from envs.mujoco.tasks.objects import RELEASE
from envs.mujoco.tasks.plans import Corner
from rl_finetune.types import BoolArray

UP = np.array([0.0, 0.0, 1.0])
HOVER = 0.06
"""Metres above a thing at which an open gripper passes over it."""
GRIP = 0.6
"""Seconds in which a gripper closes and what it moves comes to rest."""
AIMED = 0.012
"""Metres beside a thing within which the gripper may close."""
TURNED = 0.1
"""Radians between a hand and what it may close around."""


@dataclass(frozen=True, slots=True)
class Hand:
    """One hand of N worlds."""

    tool: Float64
    """[N, 3] metres."""
    yaw: Float64
    """[N] radians by which it is turned about the vertical."""
    width: Float64
    """[N] metres between its fingers."""

    def here(self, opening: float, dwell: Float64 | float = 0.0) -> Corner:
        """Where it is, with the gripper open (+1) or closed (-1), for `dwell` [N] seconds."""
        ones = np.ones(len(self.yaw))
        return Corner(self.tool, self.yaw, opening * ones, dwell * ones)


def approach(hand: Hand, at: Float64, turn: Float64, wide: float) -> list[Corner]:
    """Rise, travel above the place `at` [N, 3], turn to `turn` [N], descend and close; from the first that is left.

    Args:
        hand: where it is now.
        at: where the tool shall close, metres.
        turn: radians about the vertical.
        wide: metres between the fingers that hold the thing.
    """
    zero, grip = np.zeros(len(turn)), np.full(len(turn), GRIP)
    above = at + UP * HOVER
    risen = hand.tool.copy()
    risen[:, 2] = np.maximum(risen[:, 2], above[:, 2])
    near = (np.hypot(*(hand.tool - at)[:, :2].T) <= AIMED) & (np.abs(hand.yaw - turn) <= TURNED)
    near &= hand.width >= wide + RELEASE
    return [
        hand.here(1.0),
        Corner(np.where(near[:, None], hand.tool, risen), hand.yaw, zero + 1, zero),
        Corner(np.where(near[:, None], hand.tool, above), np.where(near, hand.yaw, turn), zero + 1, zero),
        Corner(at, turn, zero - 1, grip),
    ]


def either(when: BoolArray, yes: list[Corner], no: list[Corner]) -> list[Corner]:
    """For each world [N] one of two plans that begin where the hand is; the shorter one waits there for no time."""
    count = max(len(yes), len(no))
    yes, no = [yes[0]] * (count - len(yes)) + yes, [no[0]] * (count - len(no)) + no
    return [
        Corner(
            np.where(when[:, None], a.place, b.place),
            *(np.where(when, getattr(a, each), getattr(b, each)) for each in ("yaw", "opening", "dwell")),
        )
        for a, b in zip(yes, no, strict=True)
    ]
