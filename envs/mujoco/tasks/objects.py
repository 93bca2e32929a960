"""A table with things that can be grasped, pushed and dropped: free bodies that only friction holds in a gripper.

Things of the table's four colours; which of them an episode has is drawn with its key. The others lie on a floor under
the table, out of sight, where contacts cost least.
"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass

import numpy as np

from envs.mujoco import kinematics as kin
from envs.mujoco.bodies.base import Body
from envs.mujoco.bodies.weld import DOWN, turned
from envs.mujoco.task import Drive, Float64, Now, Start
from envs.mujoco.tasks.reach import PACE
from envs.mujoco.tasks.tabletop import HAND_NAMES, THINGS, Tabletop
from envs.mujoco.widowx import numbers
from rl_finetune.spec import EnvSpec
from rl_finetune.types import BoolArray, FloatArray

FLOOR = -0.5
"""Metres: height of the floor on which things lie that an episode does not have."""
FALLEN = -0.03
"""Metres: a thing whose centre is lower has fallen off the table."""
NEAR = 0.03
"""Metres between a tool and the middle of what it may be holding."""
ROOM = 0.006
"""Metres by which closed fingers may be wider apart than what they hold."""
RELEASE = 0.012
"""Metres by which they must be wider apart to have let go."""
CONTACT = (
    'contype="3" conaffinity="3" condim="4" friction="1 0.01 0.0001" density="1000" solref="0.02 1" '
    'solimp="0.98 0.999 0.001" priority="1"'
)


@dataclass(frozen=True, slots=True)
class Scene:
    """Where the free things and the hands are, in readings [..., R]."""

    places: Float64
    """[..., F, 3] middles of the free things, metres."""
    frames: Float64
    """[..., F, 3, 3] their rotations; columns are their axes."""
    tools: Float64
    """[..., hands, 3] metres."""
    yaw: Float64
    """[..., hands] radians by which the tools are turned about the vertical."""
    width: Float64
    """[..., hands] metres between the fingers."""

    def lowest(self, half: Float64) -> Float64:
        """[..., F] height of the lowest corner of each thing, a box of half sizes `half` [F, 3]."""
        return self.places[..., 2] - (np.abs(self.frames[..., 2, :]) * half).sum(-1)

    def between(self, half: Float64, near: float = NEAR) -> BoolArray:
        """[..., F, hands] whether each thing is where each hand would hold it, by its middle."""
        return np.linalg.norm(self.places[..., :, None, :] - self.tools[..., None, :, :], axis=-1) <= near


class Objects(Tabletop):
    """A body at a table with free things."""

    free: tuple[str, ...]
    """Names of the free bodies."""
    half: Float64
    """[F, 3] half sizes of the boxes around them, metres."""
    wide: Float64
    """[F] metres between the fingers that hold each."""
    memory = 1

    def __init__(self, body: Body, name: str, *, image_size: int, time_limit: int, pace: float = PACE) -> None:
        """Describe the task.

        Args:
            body: who acts.
            name: registered name.
            image_size: side of the pictures in pixels.
            time_limit: control steps.
            pace: metres a second at which the expert moves.
        """
        super().__init__(body)
        self.rate, self.pace = body.embodiment.action.rate, pace
        self.spec = EnvSpec(
            name, body.embodiment, image_size, time_limit, (*self.privileged_names(), *self.own_names()), self.tasks(),
            expert=True, things=THINGS,
        )  # fmt: skip

    @abstractmethod
    def tasks(self) -> tuple[str, ...]:
        """Every instruction."""

    @abstractmethod
    def own_names(self) -> tuple[str, ...]:
        """Names of what is known beyond `privileged_names`; what is known of the hands comes first."""

    @abstractmethod
    def shape(self, name: str) -> str:
        """MJCF geoms of one free body, in its own frame."""

    def fixtures(self) -> str:
        """MJCF of mocap bodies that lie on the table."""
        return ""

    def props(self) -> str:
        """See `Tabletop.props`."""
        floor = (
            f'<geom name="floor" type="box" pos="0.2 0 {FLOOR - 0.02}" size="0.6 0.6 0.02" contype="2" conaffinity="3" '
            'condim="1" priority="2"/>'
        )
        things = "".join(f'<body name="{name}"><freejoint/>{self.shape(name)}</body>' for name in self.free)
        return floor + things + self.fixtures()

    def sensors(self) -> str:
        """See `Tabletop.sensors`: position and orientation of every free body."""
        return "".join(
            f'<framepos objtype="xbody" objname="{name}"/><framequat objtype="xbody" objname="{name}"/>'
            for name in self.free
        )

    def laid(self, places: Float64, yaw: Float64, present: BoolArray) -> Float64:
        """Joint positions [7 F] of things at `places` [F, 3], turned by `yaw` [F]; those not `present` [F] parked."""
        parked = np.stack([0.1 * np.arange(len(places)), 0 * yaw, FLOOR + self.half[:, 2]], -1)
        spin = kin.quaternion_from_vector(yaw[:, None] * np.array([0.0, 0.0, 1.0]))
        still = np.array([1.0, 0.0, 0.0, 0.0])
        where, how = np.where(present[:, None], places, parked), np.where(present[:, None], spin, still)
        return np.concatenate([where, how], -1).ravel()

    def occupied(self, start: Start) -> Float64:
        """See `Tabletop.occupied`: free things too."""
        things = start.qpos[len(start.qpos) - 7 * len(self.free) :].reshape(-1, 7)
        return np.concatenate([super().occupied(start), things[things[:, 2] > FALLEN, :2]])

    def scene(self, readings: Float64) -> Scene:
        """What `readings` [..., R] say."""
        body, lead = self.body, readings.shape[:-1]
        hands = readings[..., : 8 * body.hands].reshape(*lead, body.hands, 8)
        first = body.readings
        things = readings[..., first : first + 7 * len(self.free)].reshape(*lead, len(self.free), 7)
        return Scene(
            places=things[..., :3],
            frames=kin.matrix_from_quaternion(things[..., 3:]),
            tools=hands[..., :3],
            yaw=turned(hands[..., 3:7])[..., 2],
            width=2 * (hands[..., 7] + body.slack),
        )

    def held(self, scene: Scene) -> BoolArray:
        """[..., F, hands] whether fingers are closed around each thing."""
        width = scene.width[..., None, :] <= self.wide[:, None] + ROOM
        return scene.between(self.half) & width

    def drive(self, now: Now, actions: Float64) -> Drive:
        """See `Task.drive`; what is fixed stays where it is."""
        fixed = now.mocap[:, None, self.body.mocaps : now.mocap.shape[1] - self.body.hands]
        shape = (len(actions), actions.shape[1] * self.substeps, *fixed.shape[2:])
        return self.assemble(now, actions, np.broadcast_to(fixed, shape))

    def hand_names(self) -> tuple[str, ...]:
        """Names of what experts know of the hands."""
        return tuple(f"{hand}{each}" for hand in HAND_NAMES[self.body.hands] for each in ("yaw", "width"))

    def hand_state(self, scene: Scene) -> Float64:
        """[N, 2 hands] in the order of `hand_names`."""
        return np.stack([scene.yaw, scene.width], -1).reshape(len(scene.yaw), -1)

    def recalled(self, privileged: FloatArray, yaw: Float64) -> Float64:
        """Readings as in `recall`, with hands turned by `yaw` [N, hands]."""
        readings = self.recall(privileged)
        for hand in range(self.body.hands):
            spin = kin.quaternion_from_vector(yaw[:, hand, None] * np.array([0.0, 0.0, 1.0]))
            readings[:, 8 * hand + 3 : 8 * hand + 7] = kin.multiply(spin, DOWN)
        return readings


def lasting(memory: Float64, good: BoolArray) -> Float64:
    """[N, H] for how many control steps in a row `good` [N, H] has held, `memory` [N] of them before."""
    count, now = np.zeros(good.shape), memory
    for step in range(good.shape[1]):
        now = count[:, step] = np.where(good[:, step], now + 1, 0)
    return count


def square_yaw(frames: Float64) -> Float64:
    """[...] turn about the vertical, -pi/4..pi/4, of cubes with rotations `frames` [..., 3, 3] that lie on any face."""
    flattest = np.abs(frames[..., 2, :]).argmin(-1)[..., None, None]
    axis = np.take_along_axis(frames, np.broadcast_to(flattest, (*frames.shape[:-1], 1)), -1)[..., 0]
    return wrap(np.arctan2(axis[..., 1], axis[..., 0]), np.pi / 2)


def wrap(angle: Float64, period: float) -> Float64:
    """Angles brought into -period/2..period/2."""
    return np.mod(angle + period / 2, period) - period / 2


def box(name: str, half: Float64, rgba: str, contact: str = CONTACT) -> str:
    """A box geom."""
    return f'<geom name="{name}" type="box" size="{numbers(half)}" rgba="{rgba}" {contact}/>'
