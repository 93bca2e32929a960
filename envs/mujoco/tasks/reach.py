"""Bring a gripper to the block of one colour; the blocks lie still or, as dynamic manipulation, slide across the table.

An episode ends at the first block touched, right or wrong, so looking and listening both count.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import numpy as np

from envs.base import Disturbance
from envs.mujoco import kinematics as kin
from envs.mujoco.bodies.base import Body
from envs.mujoco.task import Drive, EpisodeKey, Float64, Judged, Now, Path, Start, Things
from envs.mujoco.tasks.paths import follow, routes
from envs.mujoco.tasks.region import GROUND, HOME, RIM, Region, rim
from envs.mujoco.tasks.tabletop import COLOURS, LITTER_BEYOND, PARKED, RGBA, THINGS, Tabletop
from envs.mujoco.variation import Shape
from rl_finetune.keys import Stream, generator
from rl_finetune.spec import EnvSpec
from rl_finetune.types import BoolArray, FloatArray, IntArray

BLOCK_EDGE = 0.05
BLOCKS = 3
BLOCK_SPACING = HOME.spacing[0]
START_CLEARANCE = 0.10
APART = 0.04
"""Metres from the table's middle beyond which each of two hands begins."""
PHRASES = ("reach the {c} block", "touch the {c} block", "move the gripper to the {c} block")
WORDINGS = (
    "bring your fingertips to the cube that is {c}", "{c} is the one you want: go there", "put a finger on what is {c}",
)  # fmt: skip
SHAPES = (
    Shape("cylinder", (0.024, 0.024, 0.025)), Shape("sphere", (0.025, 0.025, 0.025)), Shape("box", (0.03, 0.03, 0.013)),
    Shape("box", (0.018, 0.018, 0.025)),
)  # fmt: skip
RIMWARD = Region(beyond=RIM, height=(0.09, 0.115))
CLOSE = Region(spacing=(0.068, 0.088), height=(0.09, 0.115))
"""For blocks that slide, which turn back at the workspace's edge: nearer to each other than in training."""
PACE = 0.225
"""Metres a second at which an expert moves, unless told otherwise."""
LANDING = 0.004
"""Metres above the block's top at which the expert's motion ends: there the fingertips touch it."""
CLOSE_AT = 0.10
"""Metres from the target at which the gripper begins to close."""


@dataclass(frozen=True, slots=True)
class Layout:
    """What lies on the table in N episodes: a reading of `Start.facts`."""

    tops: Float64
    """[N, 4, 3] centre of each colour's upper face at the episode's beginning, metres; zero where absent."""
    present: BoolArray
    """[N, 4]."""
    target: IntArray
    """[N] colour that the instruction names."""
    yaw: Float64
    """[N, 4] rotation about the vertical, radians."""
    speed: Float64
    """[N, 4, 2] metres a second on the table."""

    @classmethod
    def of(cls, facts: Float64) -> Layout:
        """From rows of facts [N, F]."""
        n = len(facts)
        tops, present, target, yaw, speed = np.split(facts, [12, 16, 17, 21], axis=1)
        return cls(tops.reshape(n, 4, 3), present > 0.5, target[:, 0].astype(np.int64), yaw, speed.reshape(n, 4, 2))

    def at(self, seconds: Float64) -> Float64:
        """Tops [N, ..., 4, 3] after `seconds` [N, ...]; a sliding block turns back at the edge of the workspace."""
        extra = seconds.ndim - 1
        shape = (len(seconds), *[1] * extra, 4)
        moved = self.tops[..., :2].reshape(*shape, 2) + self.speed.reshape(*shape, 2) * seconds[..., None, None]
        low, span = GROUND[:, 0], GROUND[:, 1] - GROUND[:, 0]
        phase = np.mod(moved - low, 2 * span)
        inside = np.where(self.speed.reshape(*shape, 2) == 0, moved, low + span - np.abs(phase - span))
        height = np.broadcast_to(self.tops[..., 2].reshape(shape), inside.shape[:-1])
        return np.concatenate([inside, height[..., None]], -1)


class Reach(Tabletop):
    """Three of four coloured blocks on the table, one of them named."""

    coloured: Mapping[str, tuple[Shape, ...]] = dict.fromkeys(COLOURS, SHAPES)
    wordings = WORDINGS

    def __init__(
        self,
        body: Body,
        name: str,
        *,
        image_size: int,
        tolerance: float,
        time_limit: int,
        pace: float = PACE,
        block_speed: float = 0.0,
        progress: float = 0.0,
    ) -> None:
        """Describe the task.

        Args:
            body: who reaches.
            name: registered name.
            image_size: side of the pictures in pixels.
            tolerance: metres between a tool and the top of a block that count as reached.
            time_limit: control steps.
            pace: metres a second at which the expert moves.
            block_speed: metres a second at which blocks slide, at most; 0 leaves them where they are.
            progress: see `Task.progress`.
        """
        super().__init__(body)
        self.tolerance, self.block_speed, self.progress = tolerance, block_speed, progress
        self.speed = pace / body.embodiment.action.rate
        self.spec = EnvSpec(
            name=name, embodiment=body.embodiment, image_size=image_size, time_limit=time_limit,
            privileged=(*self.privileged_names(), *(self._speed_names() if block_speed else ())),
            tasks=tuple(phrase.format(c=colour) for colour in COLOURS for phrase in PHRASES),
            expert=True, things=THINGS,
        )  # fmt: skip

    def _speed_names(self) -> tuple[str, ...]:
        return ("target_speed_x", "target_speed_y")

    def props(self) -> str:
        """See `Tabletop.props`: kinematic blocks, which nothing pushes."""
        half = BLOCK_EDGE / 2
        return "".join(
            f'<body name="{colour}" mocap="true"><geom name="{colour}" type="box" size="{half} {half} {half}" '
            f'rgba="{RGBA[colour]}" contype="2" conaffinity="1"/></body>'
            for colour in COLOURS
        )

    def begin(self, key: EpisodeKey) -> Start:
        """See `Task.begin`."""
        rng = generator(key.seed, Stream.SCENE, key.scene, key.episode)
        colours = rng.permutation(len(COLOURS))[:BLOCKS]
        tops = np.zeros((len(COLOURS), 3))
        tops[colours] = spread(rng, region=self.region)
        present = np.zeros(len(COLOURS), bool)
        present[colours] = True
        target = int(colours[rng.integers(BLOCKS)])
        phrase = PHRASES[rng.integers(len(PHRASES))]
        yaw = rng.uniform(-np.pi / 4, np.pi / 4, len(COLOURS))
        qpos, aim, own = rested(self.body, lambda: starts(rng, tops[colours], self.body.boxes, self.region))
        speed = self._speeds(rng)
        facts = np.concatenate([tops.ravel(), present, [target], yaw, speed.ravel()])
        layout = Layout.of(facts[None])
        blocks = _poses(layout, layout.at(np.zeros(1)))[0]
        shadows = np.tile(PARKED, (self.body.hands, 1))
        mocap = np.concatenate([own.reshape(-1, 7), blocks, shadows])
        return Start(qpos, mocap, aim, facts, phrase.format(c=COLOURS[target]))

    def elsewhere(self) -> Reach:
        """See `Variable.elsewhere`."""
        other = copy.copy(self)
        other.region = CLOSE if self.block_speed else RIMWARD
        return other

    def reshaped(self, start: Start, shapes: Mapping[str, Shape]) -> Start:
        """See `Variable.reshaped`: tops are as high as the shapes."""
        facts = start.facts.copy()
        tops = facts[: 3 * len(COLOURS)].reshape(-1, 3)
        for number, colour in enumerate(COLOURS):
            if colour in shapes and tops[number, 2] > 0:
                tops[number, 2] = 2 * shapes[colour].half[2]
        return replace(start, facts=facts)

    def strewn(self, start: Start, rng: np.random.Generator, count: int) -> Float64:
        """See `Variable.strewn`: outside the workspace where blocks slide all over it."""
        if not self.block_speed:
            return super().strewn(start, rng, count)
        outside = GROUND + self.litter_apart / 2 * np.array([-1.0, 1.0])
        while True:
            places = rim(rng, outside, LITTER_BEYOND / 2, count)
            apart = np.linalg.norm(places[:, None] - places, axis=-1)[np.triu_indices(count, 1)]
            if apart.min(initial=np.inf) >= self.litter_apart:
                return places

    def _speeds(self, rng: np.random.Generator) -> Float64:
        if not self.block_speed:
            return np.zeros((len(COLOURS), 2))
        angle, share = rng.uniform(0, 2 * np.pi, len(COLOURS)), rng.uniform(0.5, 1.0, len(COLOURS))
        return self.block_speed * share[:, None] * np.stack([np.cos(angle), np.sin(angle)], -1)

    def drive(self, now: Now, actions: Float64) -> Drive:
        """See `Task.drive`."""
        n, steps = len(actions), actions.shape[1] * self.substeps
        layout = Layout.of(now.facts)
        if not self.block_speed:
            still = now.mocap[:, None, self.body.mocaps : self.body.mocaps + len(COLOURS)]
            return self.assemble(now, actions, np.broadcast_to(still, (n, steps, len(COLOURS), 7)))
        seconds = self._seconds(now.steps)[:, None] + np.arange(1, steps + 1) * self.timestep
        return self.assemble(now, actions, _poses(layout, layout.at(seconds)))

    def judge(self, now: Now, readings: Float64) -> Judged:
        """See `Task.judge`: any tool at any block ends the episode."""
        n, h = readings.shape[:2]
        layout = Layout.of(now.facts)
        tops = layout.at(self._seconds(now.steps[:, None] + np.arange(1, h + 1)))
        tools = self.tools(readings)
        distance = np.sqrt(((tools[:, :, :, None] - tops[:, :, None]) ** 2).sum(-1)).min(2)
        touched = layout.present[:, None] & (distance <= self.tolerance)
        right = touched[np.arange(n), :, layout.target]
        return Judged(right, touched.any(-1) & ~right, np.zeros((n, h, 0)))

    def _seconds(self, steps: IntArray) -> Float64:
        return steps / self.body.embodiment.action.rate

    def describe(self, now: Now) -> FloatArray:
        """See `Task.describe`."""
        layout, tops = self._seen(now)
        known = self.privileged(now, tops, layout.present, layout.target, self._hand(now, layout))
        if not self.block_speed:
            return known
        speed = layout.speed[np.arange(len(tops)), layout.target].astype(np.float32)
        return np.concatenate([known, speed], -1)

    def things(self, now: Now) -> Things:
        """See `Task.things`."""
        layout, tops = self._seen(now)
        return self.label(now, tops, layout.present, layout.target, self._hand(now, layout))

    def _seen(self, now: Now) -> tuple[Layout, Float64]:
        layout = Layout.of(now.facts)
        return layout, np.where(layout.present[..., None], layout.at(self._seconds(now.steps)), 0.0)

    def _hand(self, now: Now, layout: Layout) -> IntArray:
        """[N] the hand that shall reach: the one on whose side of the table the target began."""
        beginning = layout.tops[np.arange(len(now.facts)), layout.target]
        return hand_for(beginning[:, 1], self.body.hands)

    def expert(self, privileged: FloatArray, disturbed: Disturbance | None = None) -> Float64:
        """See `Task.expert`: rise where it is too low, travel above the target, descend onto it; other hands rest."""
        state, action = privileged.astype(np.float64), self.body.embodiment.action
        readings = self.recall(privileged)
        tools = self.tools(readings)
        acting = np.abs(tools - state[:, None, :3]).sum(-1).argmin(1)
        block = self._ahead(state) if self.block_speed else state[:, 3:6]
        goal, pace = block + np.array([0.0, 0.0, LANDING]), np.full(len(state), self.speed)
        if disturbed is not None:
            goal, pace = goal + disturbed.offset, self.speed * disturbed.pace
        moving = follow(routes(state[:, :3], goal), pace, action.horizon)
        paths = np.repeat(tools[:, None], action.horizon, 1)
        paths[np.arange(len(state)), :, acting] = moving
        left = np.sqrt(((moving - block[:, None]) ** 2).sum(-1))
        opening = np.ones((*moving.shape[:2], self.body.hands))
        opening[np.arange(len(state)), :, acting] = np.clip(2 * left / CLOSE_AT - 1, -1, 1)
        return self.body.command(readings, Path(paths, opening))

    def _ahead(self, state: Float64) -> Float64:
        """Where the target's top will be when the tool gets there, at most a chunk from now, edges left aside."""
        action = self.body.embodiment.action
        distance = np.sqrt(((state[:, 3:6] - state[:, :3]) ** 2).sum(-1, keepdims=True))
        seconds = np.minimum(distance / (self.speed * action.rate), action.horizon / action.rate)
        ahead = np.clip(state[:, 3:5] + state[:, -2:] * seconds, GROUND[:, 0], GROUND[:, 1])
        return np.concatenate([ahead, state[:, 5:6]], -1)


def hand_for(side: Float64, hands: int) -> IntArray:
    """[N] the left hand (0) for things at y >= 0, the right one (1) for others; 0 where there is but one."""
    return np.where(side >= 0, 0, 1) if hands == 2 else np.zeros(len(side), np.int64)


def spread(rng: np.random.Generator, count: int = BLOCKS, edge: float = BLOCK_EDGE, region: Region = HOME) -> Float64:
    """Tops [count, 3] of blocks that keep the rules of `region`."""
    return np.column_stack([region.centres(rng, count), np.full(count, edge)])


def rested(body: Body, draw: Callable[[], Float64]) -> tuple[Float64, Float64, Float64]:
    """The body at rest with its tools where `draw` puts them; what it cannot reach (both at once) is drawn again."""
    while True:
        try:
            return body.rest(draw())
        except ValueError:
            continue


def starts(rng: np.random.Generator, tops: Float64, boxes: Float64, region: Region = HOME) -> Float64:
    """Where each tool [hands, 3] begins: above the table, clear of the blocks and, of two, on its own side."""
    tools = np.zeros((len(boxes), 3))
    for hand, box in enumerate(boxes):
        low, high = np.maximum(box[:2, 0], GROUND[:, 0]), np.minimum(box[:2, 1], GROUND[:, 1])
        if len(boxes) == 2:
            low[1], high[1] = (APART, high[1]) if hand == 0 else (low[1], -APART)
        while True:
            tools[hand] = rng.uniform(np.append(low, region.height[0]), np.append(high, region.height[1]))
            if np.linalg.norm(tops - tools[hand], axis=-1).min() >= START_CLEARANCE:
                break
    return tools


def _poses(layout: Layout, tops: Float64) -> Float64:
    """Mocap poses [N, ..., 4, 7] of blocks whose tops are at `tops` [N, ..., 4, 3], as high as a cube's whatever their
    shape: geoms stand on what the cube's stood on."""
    extra = [1] * (tops.ndim - 3)
    n = len(tops)
    turn = kin.quaternion_from_vector(layout.yaw[..., None] * np.array([0.0, 0.0, 1.0])).reshape(n, *extra, 4, 4)
    middles = np.where(np.arange(3) == 2, BLOCK_EDGE / 2, tops)
    poses = np.concatenate([middles, np.broadcast_to(turn, (*tops.shape[:-1], 4))], -1)
    return np.where(layout.present.reshape(n, *extra, 4, 1), poses, PARKED)
