"""Hand a bar over in mid-air: the hand on whose side it lies picks it up, the other one ends up holding it alone."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from envs.mujoco.task import EpisodeKey, Float64, Judged, Now, Start, Things
from envs.mujoco.tasks.blocks import HOLD, LIFTED
from envs.mujoco.tasks.grasping import AIMED, UP, Hand, approach, either
from envs.mujoco.tasks.objects import FALLEN, RELEASE, ROOM, box, lasting
from envs.mujoco.tasks.plans import Corner
from envs.mujoco.tasks.reach import rested, starts
from envs.mujoco.tasks.tabletop import COLOURS, PARKED, RGBA
from envs.mujoco.tasks.twohands import LIGHT, TwoHands, across, choose
from envs.mujoco.variation import Shape
from rl_finetune.keys import Stream, generator
from rl_finetune.types import BoolArray, FloatArray, IntArray

BAR = np.array([0.06, 0.02, 0.02])
"""Half sizes in metres."""
SHAPES = (Shape("box", (0.07, 0.02, 0.02)), Shape("box", (0.053, 0.02, 0.02)))
"""Longer and shorter bars."""
WIDE = 0.04
YAW = 0.3
"""Radians by which they are turned at most."""
END = 0.035
"""Metres from the middle at which each hand holds: the giver towards the base line, the receiver away from it."""
MEETING = np.array([0.2525, 0.0, 0.14])
"""Metres: where the bar changes hands, by its middle."""
WAITING = 0.1
"""Metres to the receiver's side of the meeting, where it waits."""
AWAY = 0.06
"""Metres between the bar and a hand that has left it."""
HELD = 0.03
"""Metres between a hand and its end of the bar, at most, while it holds it; the bar may hang."""
LANDED = 0.01
"""Metres: a bar whose lowest corner is lower lies on the table again."""
PAUSE = 0.4
"""Seconds in which a gripper opens."""
PHRASES = ("hand over the {c} bar", "pass the {c} bar to the other hand", "give the {c} bar from one hand to the other")


class Transfer(TwoHands):
    """Two bars of different colours, one on each side; one is named. The judge remembers whether it left the table."""

    coloured: Mapping[str, tuple[Shape, ...]] = dict.fromkeys(COLOURS, SHAPES)
    wordings = ("the {c} rod shall change hands", "let the gripper that is empty end up with what is {c}")
    free = COLOURS
    half = np.tile(BAR, (4, 1))
    wide = np.full(4, WIDE)
    memory = 2

    def tasks(self) -> tuple[str, ...]:
        """See `Objects.tasks`."""
        return tuple(phrase.format(c=colour) for colour in COLOURS for phrase in PHRASES)

    def own_names(self) -> tuple[str, ...]:
        """See `Objects.own_names`."""
        return (*self.hand_names(), "bar_x", "bar_y", "bar_z", "bar_yaw", "giver")

    def shape(self, name: str) -> str:
        """See `Objects.shape`."""
        return box(name, BAR, RGBA[name], LIGHT)

    def begin(self, key: EpisodeKey) -> Start:
        """See `Task.begin`; facts are the colours on the left and on the right, and the side of the named one."""
        rng = generator(key.seed, Stream.SCENE, key.scene, key.episode)
        colours, giver = rng.permutation(4)[:2], int(rng.integers(2))
        places, yaw = np.zeros((4, 3)), np.zeros(4)
        spots = rng.uniform(self.middles[:, 0], self.middles[:, 1], (2, 2)) * [[1.0, 1.0], [1.0, -1.0]]
        places[colours], yaw[colours] = np.column_stack([spots, np.full(2, BAR[2])]), rng.uniform(-YAW, YAW, 2)
        qpos, aim, own = rested(self.body, lambda: starts(rng, places[colours], self.body.boxes, self.region))
        things = self.laid(places, yaw, np.isin(np.arange(4), colours))
        mocap = np.concatenate([own.reshape(-1, 7), np.tile(PARKED, (2, 1))])
        phrase = PHRASES[rng.integers(len(PHRASES))].format(c=COLOURS[colours[giver]])
        return Start(np.concatenate([qpos, things]), mocap, aim, np.array([*colours, giver], np.float64), phrase)

    def judge(self, now: Now, readings: Float64) -> Judged:
        """See `Task.judge`."""
        target, giver, present = _roles(now.facts)
        rows, scene = np.arange(len(target)), self.scene(readings)
        held, low = self.held(scene), scene.lowest(self.half)
        mine, height = held[rows, :, target], low[rows, :, target]
        local = np.abs(self.along(scene)[rows, :, target, giver]) - BAR
        apart = np.linalg.norm(np.maximum(local, 0.0), axis=-1) >= AWAY
        received = mine[rows, :, 1 - giver] & ~mine[rows, :, giver] & apart & (height >= LIFTED)
        given = _given(now.memory[:, 1], mine[rows, :, giver] & (height >= LIFTED), height < LANDED)
        count = lasting(now.memory[:, 0], received & (given > 0))
        other = present & (np.arange(4) != target[:, None])
        wrong = (held.any(-1) & (low >= LIFTED) & other[:, None]).any(-1)
        fallen = scene.places[rows, :, target, 2] < FALLEN
        return Judged(count >= round(HOLD * self.rate), wrong | fallen, np.stack([count, given], -1))

    def describe(self, now: Now) -> FloatArray:
        """See `Task.describe`."""
        target, giver, present = _roles(now.facts)
        scene = self.scene(now.readings)
        known = self.privileged(now, self.colour_tops(scene, present), present, target, giver)
        bar = self.poses(scene)[np.arange(len(target)), target]
        return np.concatenate([known, self.hand_state(scene), bar, giver[:, None]], -1).astype(np.float32)

    def things(self, now: Now) -> Things:
        """See `Task.things`."""
        target, giver, present = _roles(now.facts)
        return self.label(now, self.colour_tops(self.scene(now.readings), present), present, target, giver)

    def plans(self, hands: tuple[Hand, Hand], own: Float64, offset: Float64) -> tuple[list[Corner], list[Corner]]:
        """See `TwoHands.plans`."""
        bar, turn, left = own[:, :3], own[:, 3], own[:, 4] < 0.5
        giver, receiver = _swap(left, hands), _swap(~left, hands)
        ends = bar - across(turn, END), bar + across(turn, END)
        gives, takes = _holds(giver, ends[0]), _holds(receiver, ends[1])
        met = np.linalg.norm(bar - MEETING, axis=-1) <= AIMED
        side = np.where(left, -1.0, 1.0)
        fetch = approach(giver, ends[0] + offset, turn, WIDE)
        give = either(takes, _leave(giver, -side), either(gives, _bring(giver, bar, turn), fetch))
        grasp = either(met, approach(receiver, ends[1] + offset, turn, WIDE), _wait(receiver, side))
        take = either(takes, [receiver.here(-1.0)], either(gives, grasp, _wait(receiver, side)))
        return choose(left, give, take)


def _roles(facts: Float64) -> tuple[IntArray, IntArray, BoolArray]:
    """Colour of the named bar [N], the hand on its side [N] and which colours are there [N, 4]."""
    whole = facts.astype(np.int64)
    present = (np.arange(4) == whole[:, :1]) | (np.arange(4) == whole[:, 1:2])
    return whole[np.arange(len(whole)), whole[:, 2]], whole[:, 2], present


def _given(memory: Float64, lifted: BoolArray, landed: BoolArray) -> Float64:
    """[N, H] whether the giver has lifted the bar, which has not lain on the table since."""
    out, now = np.zeros(lifted.shape), memory
    for step in range(lifted.shape[1]):
        now = out[:, step] = np.where(landed[:, step], 0.0, np.where(lifted[:, step], 1.0, now))
    return out


def _swap(first: BoolArray, hands: tuple[Hand, Hand]) -> Hand:
    """The left hand where `first` [N], elsewhere the right one."""
    a, b = hands
    return Hand(
        np.where(first[:, None], a.tool, b.tool), np.where(first, a.yaw, b.yaw), np.where(first, a.width, b.width)
    )


def _holds(hand: Hand, end: Float64) -> BoolArray:
    """[N] whether the hand has closed around the bar near its `end` [N, 3]."""
    return (np.linalg.norm(hand.tool - end, axis=-1) <= HELD) & (hand.width <= WIDE + ROOM)


def _bring(hand: Hand, bar: Float64, turn: Float64) -> list[Corner]:
    """Raise the bar and carry it to the meeting, straightened; the hand goes where its end of the bar must be."""
    none = np.zeros(len(turn))
    straight = hand.yaw - turn
    goal = MEETING - across(none, END) + (hand.tool - bar + across(turn, END))
    raised = np.column_stack([hand.tool[:, :2], np.maximum(hand.tool[:, 2], goal[:, 2])])
    return [hand.here(-1.0), Corner(raised, hand.yaw, none - 1, none), Corner(goal, straight, none - 1, none)]


def _leave(hand: Hand, side: Float64) -> list[Corner]:
    """Open, rise, and draw back to the hand's own `side` [N]."""
    none = np.zeros(len(side))
    risen = np.column_stack([hand.tool[:, :2], np.full(len(side), 0.22)])
    back = risen + np.column_stack([none, 0.1 * side, none])
    return [hand.here(1.0, np.where(hand.width < WIDE + 2 * RELEASE, PAUSE, 0.0)), _open(risen), _open(back)]


def _wait(hand: Hand, side: Float64) -> list[Corner]:
    """Wait beside the meeting, high enough to come down onto the bar's end."""
    place = MEETING + across(np.zeros(len(side)), END) + 0.06 * UP + WAITING * side[:, None] * np.array([0.0, 1.0, 0.0])
    return [hand.here(1.0), _open(place)]


def _open(place: Float64) -> Corner:
    none = np.zeros(len(place))
    return Corner(place, none, none + 1, none)
