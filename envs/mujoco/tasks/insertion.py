"""Put a peg into a socket in mid-air: the left hand holds the peg, the right hand the socket."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from envs.mujoco.task import EpisodeKey, Float64, Judged, Now, Start, Things
from envs.mujoco.tasks.blocks import LIFTED
from envs.mujoco.tasks.grasping import UP, Hand, approach, either
from envs.mujoco.tasks.objects import FALLEN, ROOM, Scene, lasting
from envs.mujoco.tasks.plans import Corner
from envs.mujoco.tasks.reach import rested, starts
from envs.mujoco.tasks.tabletop import COLOURS, PARKED, RGBA
from envs.mujoco.tasks.twohands import LIGHT, TwoHands, across
from envs.mujoco.variation import Shape
from envs.mujoco.widowx import numbers
from rl_finetune.keys import Stream, generator
from rl_finetune.types import BoolArray, FloatArray

PEG, SOCKET = np.array([0.055, 0.02, 0.02]), np.array([0.055, 0.034, 0.034])
"""Half sizes in metres, of the socket's outside."""
WALL = 0.004
"""Half the thickness of the socket's walls, metres: 6 mm remain on each side of the peg."""
YAW = 0.3
"""Radians by which they are turned at most."""
END = 0.03
"""Metres from its middle at which each is held, at the end that is not needed."""
MEETING = np.array([0.2525, 0.0, 0.14])
"""Metres: what the two meet around."""
AHEAD = np.array([1.0, 0.0, 0.0])
APART = 0.068
"""Metres of each middle from there, before: the peg's tip is then 26 mm outside the socket."""
INSIDE = 0.03
"""Metres of the peg that must be in the socket."""
INTO = 0.045
"""And what the expert brings in."""
READY = 0.012
"""Metres that they may be farther apart than that."""
TRUE, STRAIGHT = 0.004, 0.05
"""Metres beside the axis, and radians, within which the peg may enter."""
HOLD = 0.2
"""Seconds for which success must last."""
HELD = 0.035
"""Metres between a hand and the place where it holds, at most; what is held may hang."""
TARGET = COLOURS.index("red")
PRESENT = np.isin(COLOURS, ("red", "blue"))
PHRASES = ("insert the red peg into the blue socket", "put the red peg into the blue socket",
           "push the red peg into the blue socket")  # fmt: skip


class Insertion(TwoHands):
    """A red peg on the left, a blue socket on the right."""

    coloured: Mapping[str, tuple[Shape, ...]] = {"red": (), "blue": ()}
    wordings = ("join the {c} rod and the {d} tube", "{c} shall end up inside {d}")
    free = ("red", "blue")
    half = np.stack([PEG, SOCKET])
    wide = 2 * half[:, 1]

    def tasks(self) -> tuple[str, ...]:
        """See `Objects.tasks`."""
        return PHRASES

    def own_names(self) -> tuple[str, ...]:
        """See `Objects.own_names`."""
        things = (f"{thing}_{each}" for thing in ("peg", "socket") for each in ("x", "y", "z", "yaw"))
        return (*self.hand_names(), *things)

    def shape(self, name: str) -> str:
        """See `Objects.shape`: a box, or four walls."""
        if name == "red":
            return f'<geom type="box" size="{numbers(PEG)}" rgba="{RGBA[name]}" {LIGHT}/>'
        side = SOCKET[1] - WALL
        walls = [((0, 0, sign * side), (SOCKET[0], SOCKET[1], WALL)) for sign in (1, -1)]
        walls += [((0, sign * side, 0), (SOCKET[0], WALL, SOCKET[1] - 2 * WALL)) for sign in (1, -1)]
        return "".join(
            f'<geom type="box" pos="{numbers(place)}" size="{numbers(size)}" rgba="{RGBA[name]}" {LIGHT}/>'
            for place, size in walls
        )

    def begin(self, key: EpisodeKey) -> Start:
        """See `Task.begin`."""
        rng = generator(key.seed, Stream.SCENE, key.scene, key.episode)
        spots = rng.uniform(self.middles[:, 0], self.middles[:, 1], (2, 2)) * [[1.0, 1.0], [1.0, -1.0]]
        places, yaw = np.column_stack([spots, self.half[:, 2]]), rng.uniform(-YAW, YAW, 2)
        qpos, aim, own = rested(self.body, lambda: starts(rng, places, self.body.boxes, self.region))
        mocap = np.concatenate([own.reshape(-1, 7), np.tile(PARKED, (2, 1))])
        things = self.laid(places, yaw, np.ones(2, bool))
        return Start(np.concatenate([qpos, things]), mocap, aim, np.zeros(1), PHRASES[rng.integers(len(PHRASES))])

    def judge(self, now: Now, readings: Float64) -> Judged:
        """See `Task.judge`: the peg's tip is deep enough in the socket, each in its own hand, both in the air."""
        scene = self.scene(readings)
        held, high = self.held(scene), (scene.lowest(self.half) >= LIFTED).all(-1)
        good = inserted(scene) & held[..., 0, 0] & held[..., 1, 1] & high
        count = lasting(now.memory[:, 0], good)
        fallen = scene.places[..., 2].min(-1) < FALLEN
        return Judged(count >= round(HOLD * self.rate), fallen, count[..., None])

    def describe(self, now: Now) -> FloatArray:
        """See `Task.describe`."""
        n, scene = len(now.facts), self.scene(now.readings)
        tops = self.colour_tops(scene, np.tile(PRESENT, (n, 1)))
        left = np.zeros(n, np.int64)
        known = self.privileged(now, tops, np.tile(PRESENT, (n, 1)), left + TARGET, left)
        return np.concatenate([known, self.hand_state(scene), self.poses(scene).reshape(n, 8)], -1).astype(np.float32)

    def things(self, now: Now) -> Things:
        """See `Task.things`."""
        left = np.zeros(len(now.facts), np.int64)
        present = np.tile(PRESENT, (len(left), 1))
        return self.label(now, self.colour_tops(self.scene(now.readings), present), present, left + TARGET, left)

    def plans(self, hands: tuple[Hand, Hand], own: Float64, offset: Float64) -> tuple[list[Corner], list[Corner]]:
        """See `TwoHands.plans`: fetch both, bring them face to face, push them together."""
        poses = own.reshape(-1, 2, 4)
        places, turns = poses[..., :3], poses[..., 3]
        ends = np.stack([places[:, 0] - across(turns[:, 0], END), places[:, 1] + across(turns[:, 1], END)], 1)
        faced = _faced(places, turns)
        holds = [_holds(hand, ends[:, row], self.wide[row]) for row, hand in enumerate(hands)]
        half = np.where(faced & holds[0] & holds[1], (PEG[0] + SOCKET[0] - INTO) / 2, APART)[:, None]
        goals = [MEETING - half * AHEAD, MEETING + half * AHEAD]
        plans = []
        for row, hand in enumerate(hands):
            bring = _bring(hand, places[:, row], turns[:, row], goals[row])
            fetch = approach(hand, ends[:, row] + offset, turns[:, row], self.wide[row])
            plans.append(either(holds[row], bring, fetch))
        return plans[0], plans[1]


def inserted(scene: Scene) -> BoolArray:
    """[...] whether the peg's tip is `INSIDE` metres or more inside the socket."""
    tip = scene.places[..., 0, :] + PEG[0] * scene.frames[..., 0, :, 0]
    local = np.einsum("...ji,...j->...i", scene.frames[..., 1, :, :], tip - scene.places[..., 1, :])
    deep = (local[..., 0] >= INSIDE - SOCKET[0]) & (local[..., 0] <= SOCKET[0])
    within: BoolArray = deep & (np.abs(local[..., 1:]).max(-1) <= SOCKET[1] - 2 * WALL)
    return within


def _holds(hand: Hand, end: Float64, wide: float) -> BoolArray:
    """[N] whether the hand has closed around a thing near its `end` [N, 3]."""
    return (np.linalg.norm(hand.tool - end, axis=-1) <= HELD) & (hand.width <= wide + ROOM)


def _faced(places: Float64, turns: Float64) -> BoolArray:
    """[N] whether peg and socket lie on one line, or have begun to slide into one another."""
    apart = places[:, 1] - places[:, 0]
    straight = np.abs(turns).max(-1) <= STRAIGHT
    return straight & (np.abs(apart[:, 1:]).max(-1) <= TRUE) & (apart[:, 0] <= 2 * APART + READY)


def _bring(hand: Hand, place: Float64, turn: Float64, goal: Float64) -> list[Corner]:
    """Raise the thing at `place` [N, 3] and bring it to `goal` [N, 3], straightened."""
    none = np.zeros(len(turn))
    held, c, s = hand.tool - place, np.cos(turn), np.sin(turn)
    straight = np.stack([c * held[:, 0] + s * held[:, 1], c * held[:, 1] - s * held[:, 0], held[:, 2]], -1)
    there = goal + straight
    low = place[:, 2] < LIFTED + 0.02
    raised = np.where(low[:, None], hand.tool * [1.0, 1.0, 0.0] + UP * there[:, 2:], hand.tool)
    return [hand.here(-1.0), Corner(raised, hand.yaw, none - 1, none), Corner(there, hand.yaw - turn, none - 1, none)]
