"""What the bodies are built of: chains of links and grippers of primitive shapes, as MJCF text."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from envs.mujoco.chain import Joint
from envs.mujoco.widowx import numbers

PINK, WHITE, DARK = "0.93 0.1 0.85 1", "0.95 0.95 0.95 1", "0.16 0.17 0.19 1"
GRIPPER_DAMPING = 1.0
"""Damping ratio of the fingers."""
THICKNESS = 0.006
"""Half a finger's, metres."""
Point = Sequence[float]


@dataclass(frozen=True, slots=True)
class Gripper:
    """Two fingers that slide along y, in a frame whose x axis points out of the hand."""

    reach: float
    """Metres from the hand's frame to the tool centre point between the fingertips."""
    closed: float
    """Metres from the middle to each finger's centre when it is closed."""
    open: float
    """And when it is open."""
    palm: tuple[float, float, float] = (0.012, 0.045, 0.014)
    """Half sizes in metres of the bar that carries the fingers."""
    stiffness: float = 400.0
    """Newtons a metre with which each finger is held."""
    inertia: float = 0.3
    """Kilograms that the drive adds to each finger. Damping beyond inertia / timestep makes contacts soft: light
    fingers sink into what they hold, and lose it."""

    @property
    def half(self) -> float:
        """Metres that a finger moves to either side of half open, where its joint reads zero."""
        return (self.open - self.closed) / 2

    @property
    def slack(self) -> float:
        """Metres between the middle and each finger's inner face where its joint reads zero."""
        return (self.open + self.closed) / 2 - THICKNESS

    def xml(self, side: str) -> str:
        """Palm, fingers and the site `<side>tool`, in the hand's frame."""
        base = self.reach - 0.0471
        return (
            f'<geom type="box" pos="{base} 0 0" size="{numbers(self.palm)}" rgba="{WHITE}"/>'
            f'<site name="{side}tool" pos="{self.reach} 0 0" group="5"/>'
            + self._finger(f"{side}left", 1)
            + self._finger(f"{side}right", -1)
        )

    def _finger(self, name: str, sign: int) -> str:
        # Fingertips end 3 mm beyond the tool centre point. The servo, not a limit, holds them open: limits cost time.
        middle = sign * (self.open + self.closed) / 2
        return (
            f'<body name="{name}_finger" pos="0 {middle} 0" gravcomp="1">'
            f'<joint name="{name}_finger" type="slide" axis="0 1 0" armature="{self.inertia}" '
            f'range="{-1.2 * self.half} {1.2 * self.half}" solimplimit="0.99 0.999 0.001"/>'
            f'<geom type="box" pos="{self.reach - 0.017} 0 0" size="0.02 {THICKNESS} 0.012" rgba="{PINK}" contype="1" '
            'conaffinity="2" density="600" friction="0.8 0.01 0.0001"/></body>'
        )

    def actuators(self, side: str) -> str:
        """Servos of both fingers; the control of each is the gripper's opening, -1..1."""
        return "".join(
            f'<position joint="{side}{finger}_finger" gear="{sign / self.half}" kp="{self.stiffness * self.half**2}" '
            f'dampratio="{GRIPPER_DAMPING}" ctrlrange="-1 1"/>'
            for finger, sign in (("left", 1), ("right", -1))
        )


def chain_xml(joints: Sequence[Joint], shapes: Callable[[int], str], end: str, armature: Sequence[float]) -> str:
    """Nested bodies of a chain of hinges.

    Args:
        joints: from the base outwards.
        shapes: geoms of the link after joint i, in its frame.
        end: what the last link carries.
        armature: rotor inertia of each joint, kg m^2.
    """
    text = end
    for row in reversed(range(len(joints))):
        joint = joints[row]
        text = (
            f'<body name="{joint.name}" pos="{numbers(joint.origin)}" quat="{numbers(joint.quat)}" gravcomp="1">'
            f'<joint name="{joint.name}" axis="{numbers(joint.axis)}" range="{joint.low} {joint.high}" '
            f'armature="{armature[row]}"/>{shapes(row)}{text}</body>'
        )
    return text


def servos(chain: Sequence[Joint], stiffness: Sequence[float]) -> str:
    """Critically damped position servos; `stiffness` in newton metres a radian."""
    return "".join(
        f'<position joint="{joint.name}" kp="{kp}" dampratio="1" ctrlrange="{joint.low} {joint.high}"/>'
        for joint, kp in zip(chain, stiffness, strict=True)
    )


def bar(start: Point, end: Point, radius: float, rgba: str = "") -> str:
    """A capsule."""
    colour = f' rgba="{rgba}"' if rgba else ""
    return f'<geom type="capsule" fromto="{numbers(start)} {numbers(end)}" size="{radius}"{colour}/>'


def hand_sensors(side: str) -> str:
    """Tool position, tool quaternion and the left finger's joint."""
    return (
        f'<framepos objtype="site" objname="{side}tool"/><framequat objtype="site" objname="{side}tool"/>'
        f'<jointpos joint="{side}left_finger"/>'
    )


def joint_sensors(joints: Sequence[Joint]) -> str:
    """Joint positions, radians."""
    return "".join(f'<jointpos joint="{joint.name}"/>' for joint in joints)


def placed(name: str, origin: Point, quat: Point, content: str) -> str:
    """A body without joints at `origin` (metres) with orientation `quat` (w, x, y, z)."""
    return f'<body name="{name}" pos="{numbers(origin)}" quat="{numbers(quat)}" gravcomp="1">{content}</body>'
