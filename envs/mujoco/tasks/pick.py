"""Lift the block of one colour off the table; three of four colours are there."""

from __future__ import annotations

import numpy as np

from envs.mujoco.task import Float64
from envs.mujoco.tasks.blocks import EDGE, LIFTED, Blocks, Drawn, Known, Roles
from envs.mujoco.tasks.grasping import either
from envs.mujoco.tasks.objects import Scene
from envs.mujoco.tasks.plans import Corner
from envs.mujoco.tasks.tabletop import COLOURS
from rl_finetune.types import BoolArray

BLOCKS = 3
PHRASES = ("pick up the {c} block", "lift the {c} block", "grasp the {c} block and raise it")
RAISED = LIFTED + EDGE / 2 + 0.03
"""Metres: height to which the expert brings the block's middle."""


class Pick(Blocks):
    """One block of three is named."""

    wordings = ("get the {c} cube off the table", "the {c} one has to go up in the air", "hoist what is {c}")

    def tasks(self) -> tuple[str, ...]:
        """See `Objects.tasks`."""
        return tuple(phrase.format(c=colour) for colour in COLOURS for phrase in PHRASES)

    def lay(self, rng: np.random.Generator) -> Drawn:
        """See `Blocks.lay`."""
        colours = rng.permutation(len(COLOURS))[:BLOCKS]
        phrase = PHRASES[rng.integers(len(PHRASES))]
        return Drawn(colours, np.empty(0, np.int64), -1, phrase.format(c=COLOURS[colours[0]]))

    def good(self, roles: Roles, scene: Scene) -> BoolArray:
        """See `Blocks.good`: the block is in the air, between closed fingers."""
        lifted = self.held(scene).any(-1) & (scene.lowest(self.half) >= LIFTED)
        done: BoolArray = lifted[np.arange(len(lifted)), :, roles.target]
        return done

    def plan(self, known: Known, offset: Float64) -> list[Corner]:
        """See `Blocks.plan`: grasp, then straight up."""
        none, closed = np.zeros(len(known.tool)), np.full(len(known.tool), -1.0)

        def up(place: Float64, yaw: Float64) -> Corner:
            return Corner(np.column_stack([place[:, :2], np.full(len(place), RAISED)]), yaw, closed, none)

        holding = [Corner(known.tool, known.yaw, closed, none), up(known.tool, known.yaw)]
        return either(known.holding, holding, [*self.grasp(known, offset), up(known.block + offset, known.turn)])
