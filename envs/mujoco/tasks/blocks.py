"""Coloured blocks that one hand grasps: what picking, putting and stacking share."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Self

import numpy as np

from envs.base import Disturbance
from envs.mujoco.task import EpisodeKey, Float64, Judged, Now, Path, Start, Things
from envs.mujoco.tasks.grasping import AIMED, UP, Hand, approach
from envs.mujoco.tasks.objects import FALLEN, ROOM, Objects, Scene, box, lasting, square_yaw
from envs.mujoco.tasks.plans import Corner, play
from envs.mujoco.tasks.reach import RIMWARD, hand_for, rested, spread, starts
from envs.mujoco.tasks.tabletop import COLOURS, PARKED, RGBA
from envs.mujoco.variation import Shape
from rl_finetune.keys import Stream, generator
from rl_finetune.types import BoolArray, FloatArray, IntArray

EDGE = 0.04
"""Metres: of every block."""
SHAPES = (Shape("cylinder", (0.02, 0.02, 0.02)), Shape("box", (0.028, 0.02, 0.02)))
"""Of the same height, and as wide between fingers."""
LIFTED = 0.05
"""Metres between the table and the lowest corner of a block that counts as lifted."""
HOLD = 0.4
"""Seconds for which success must last."""
YAW = 0.5
"""Radians by which blocks are turned at most: what every body's wrist follows."""
TWIST = 0.58
"""Radians to which the hand turns at most, whatever the block has been pushed to."""


@dataclass(frozen=True, slots=True)
class Roles:
    """What the things are in N episodes: a reading of `Start.facts`."""

    blocks: BoolArray
    """[N, 4] colours of which there is a block."""
    plates: BoolArray
    """[N, 4] colours of which there is a plate."""
    target: IntArray
    """[N] colour of the block to be moved."""
    goal: IntArray
    """[N] colour of what it belongs on; -1 where nothing is meant."""
    hand: IntArray
    """[N] the hand on whose side the block began."""
    spots: Float64
    """[N, 4, 3] tops of the plates, metres."""

    @classmethod
    def of(cls, facts: Float64) -> Roles:
        """From rows of facts [N, F]."""
        blocks, plates, whole, spots = np.split(facts, [4, 8, 11], axis=1)
        target, goal, hand = whole.astype(np.int64).T
        return cls(blocks > 0.5, plates > 0.5, target, goal, hand, spots.reshape(len(facts), 4, 3))


@dataclass(frozen=True, slots=True)
class Drawn:
    """How one episode's table is laid."""

    blocks: IntArray
    """Colours of the blocks; the first is the target."""
    plates: IntArray
    """Colours of the plates."""
    goal: int
    """Colour of what the target belongs on, or -1."""
    instruction: str
    """The task in words."""


@dataclass(frozen=True, slots=True)
class Known:
    """What the expert reads from privileged state, of the acting hand and the named block."""

    tool: Float64
    """[N, 3] metres."""
    yaw: Float64
    """[N] radians by which the hand is turned."""
    width: Float64
    """[N] metres between its fingers."""
    block: Float64
    """[N, 3] middle of the block."""
    turn: Float64
    """[N] radians to which the hand turns to grasp it."""
    goal: Float64
    """[N, 3] where the middle of its lower face belongs."""

    @property
    def holding(self) -> BoolArray:
        """[N] whether the hand has closed around the block."""
        return self.around & (self.width <= EDGE + ROOM)

    @property
    def around(self) -> BoolArray:
        """[N] whether the block is between the fingers."""
        return (np.hypot(*(self.block - self.tool)[:, :2].T) <= AIMED) & (
            np.abs((self.block - self.tool)[:, 2]) <= AIMED
        )


class Blocks(Objects):
    """Cubes of 4 cm in four colours."""

    coloured: Mapping[str, tuple[Shape, ...]] = dict.fromkeys(COLOURS, SHAPES)
    free = COLOURS
    half = np.full((4, 3), EDGE / 2)
    wide = np.full(4, EDGE)
    plate_top = 0.0

    def own_names(self) -> tuple[str, ...]:
        """See `Objects.own_names`."""
        return (*self.hand_names(), "target_yaw", "goal_x", "goal_y", "goal_z")

    def lay(self, rng: np.random.Generator) -> Drawn:
        """Draw what lies on the table and what is to be done with it."""
        raise NotImplementedError

    def plan(self, known: Known, offset: Float64) -> list[Corner]:
        """The expert's way from where it is; `offset` [N, 3] metres is by how far it misses what it aims at."""
        raise NotImplementedError

    def goals(self, roles: Roles, tops: Float64) -> Float64:
        """[N, 3] where the middle of the target's lower face belongs; `tops` [N, 4, 3] of blocks and plates."""
        return np.zeros((len(tops), 3))

    def good(self, roles: Roles, scene: Scene) -> BoolArray:
        """[N, H] whether the scene [N, H, ...] is what was asked for."""
        raise NotImplementedError

    def elsewhere(self) -> Self:
        """See `Variable.elsewhere`."""
        other = copy.copy(self)
        other.region = RIMWARD
        return other

    def shape(self, name: str) -> str:
        """See `Objects.shape`."""
        return box(name, self.half[0], RGBA[name])

    def laid_plates(self, spots: Float64, plates: BoolArray) -> Float64:
        """[B, 7] mocap poses of the plates."""
        return np.empty((0, 7))

    def begin(self, key: EpisodeKey) -> Start:
        """See `Task.begin`."""
        rng = generator(key.seed, Stream.SCENE, key.scene, key.episode)
        drawn = self.lay(rng)
        colours = np.concatenate([drawn.blocks, drawn.plates])
        tops = np.zeros((4, 3))
        tops[colours] = spread(rng, len(colours), EDGE, self.region)
        yaw = rng.uniform(-YAW, YAW, 4)
        qpos, aim, own = rested(self.body, lambda: starts(rng, tops[colours], self.body.boxes, self.region))
        blocks, plates = np.isin(np.arange(4), drawn.blocks), np.isin(np.arange(4), drawn.plates)
        spots = np.where(plates[:, None], np.column_stack([tops[:, :2], np.full(4, self.plate_top)]), 0.0)
        hand = hand_for(tops[drawn.blocks[:1], 1], self.body.hands)[0]
        facts = np.concatenate([blocks, plates, [drawn.blocks[0], drawn.goal, hand], spots.ravel()])
        things = self.laid(tops - [0.0, 0.0, EDGE / 2], yaw, blocks)
        shadows = np.tile(PARKED, (self.body.hands, 1))
        mocap = np.concatenate([own.reshape(-1, 7), self.laid_plates(spots, plates), shadows])
        return Start(np.concatenate([qpos, things]), mocap, aim, facts, drawn.instruction)

    def judge(self, now: Now, readings: Float64) -> Judged:
        """See `Task.judge`: lifting another block, or dropping one off the table, ends the episode."""
        roles, scene = Roles.of(now.facts), self.scene(readings)
        count = lasting(now.memory[:, 0], self.good(roles, scene))
        named = np.arange(4) == roles.target[:, None]
        high = self.held(scene).any(-1) & (scene.lowest(self.half) >= LIFTED)
        wrong = (high & ~named[:, None]).any(-1)
        needed = roles.blocks & (named | (np.arange(4) == roles.goal[:, None]))
        fallen = (needed[:, None] & (scene.places[..., 2] < FALLEN)).any(-1)
        return Judged(count >= round(HOLD * self.rate), wrong | fallen, count[..., None])

    def describe(self, now: Now) -> FloatArray:
        """See `Task.describe`."""
        roles, scene = Roles.of(now.facts), self.scene(now.readings)
        tops = self.tops(roles, scene)
        known = self.privileged(now, tops, roles.blocks | roles.plates, roles.target, roles.hand)
        turn = square_yaw(scene.frames)[np.arange(len(tops)), roles.target]
        more = [self.hand_state(scene), turn[:, None], self.goals(roles, tops)]
        return np.concatenate([known, *more], -1).astype(np.float32)

    def things(self, now: Now) -> Things:
        """See `Task.things`."""
        roles, scene = Roles.of(now.facts), self.scene(now.readings)
        return self.label(now, self.tops(roles, scene), roles.blocks | roles.plates, roles.target, roles.hand)

    def tops(self, roles: Roles, scene: Scene) -> Float64:
        """[N, 4, 3] middle of the upper face of each block and plate; zero where there is none."""
        tops = np.where(roles.blocks[..., None], scene.places + UP * EDGE / 2, 0.0)
        return tops + roles.spots

    def expert(self, privileged: FloatArray, disturbed: Disturbance | None = None) -> Float64:
        """See `Task.expert`; hands that have nothing to do rest."""
        state, action, hands = privileged.astype(np.float64), self.body.embodiment.action, self.body.hands
        rows, n = np.arange(len(state)), len(state)
        own = state[:, len(self.privileged_names()) :]
        tools, fingers = self.tools(self.recall(privileged)), own[:, : 2 * hands].reshape(n, hands, 2)
        acting = np.abs(tools - state[:, None, :3]).sum(-1).argmin(1)
        known = self._known(state, own[:, 2 * hands :], fingers[rows, acting])
        offset, pace = np.zeros((n, 3)), np.ones(n)
        if disturbed is not None:
            offset, pace = disturbed.offset, disturbed.pace
        motion = play(self.plan(known, offset), self.pace * pace, self.rate, action.horizon)
        places, yaw = np.repeat(tools[:, None], action.horizon, 1), np.repeat(fingers[:, None, :, 0], action.horizon, 1)
        opening = np.ones((n, action.horizon, hands))
        places[rows, :, acting], yaw[rows, :, acting] = motion.places, motion.yaw
        opening[rows, :, acting] = motion.opening
        return self.body.command(self.recalled(privileged, fingers[..., 0]), Path(places, opening, yaw))

    def _known(self, state: Float64, own: Float64, fingers: Float64) -> Known:
        """From the state [N, S], the target's yaw and the goal `own` [N, 4], and `fingers` [N, 2]: yaw and width."""
        block, turn = state[:, 3:6] - [0.0, 0.0, EDGE / 2], np.clip(own[:, 0], -TWIST, TWIST)
        return Known(state[:, :3], fingers[:, 0], fingers[:, 1], block, turn, own[:, 1:4])

    def grasp(self, known: Known, offset: Float64) -> list[Corner]:
        """To the block and around it, then straight up; from the first corner that is still ahead."""
        at = known.block + offset
        at[:, 2] = np.maximum(known.block[:, 2], self.body.boxes[0, 2, 0])
        return approach(Hand(known.tool, known.yaw, known.width), at, known.turn, EDGE)
