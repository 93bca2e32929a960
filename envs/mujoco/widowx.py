"""The WidowX 250 S arm as MJCF text: published joint layout and limits, primitive shapes, our own masses and looks."""

from __future__ import annotations

from collections.abc import Iterable

from envs.mujoco.kinematics import (
    ELBOW,
    FOREARM_X,
    GRIPPER_X,
    JOINT_LIMITS,
    JOINTS,
    SHOULDER_Z,
    TOOL_X,
    WAIST_Z,
    WRIST_ANGLE_X,
    WRIST_ROTATE_X,
)

FINGER_OPEN, FINGER_CLOSED = 0.037, 0.015
"""Distance of each finger from the gripper's middle, metres (published limits)."""


def defaults_xml(inertia: float) -> str:
    """Defaults of the arm; `inertia` is the armature in kilograms of the fingers' drives."""
    return f"""
<default>
  <default class="arm">
    <joint damping="0.5" armature="0.01"/>
    <geom contype="0" conaffinity="0" rgba="0.16 0.17 0.19 1" density="1200"/>
    <default class="hand">
      <geom contype="1" conaffinity="2" rgba="0.93 0.1 0.85 1" density="600" friction="0.6"/>
      <joint type="slide" axis="0 1 0" damping="6" armature="{inertia}"/>
    </default>
  </default>
</default>"""


def arm_xml() -> str:
    """The arm's body tree, base at the world's origin, with the site `tool` between its fingertips."""
    fingers = _finger("left", 1) + _finger("right", -1)
    hand = _link(
        "gripper",
        (GRIPPER_X, 0, 0),
        '<geom type="box" pos="0.004 0 0" size="0.012 0.045 0.014" rgba="0.95 0.95 0.95 1"/>'
        f'<site name="tool" pos="{TOOL_X} 0 0" group="5"/>' + fingers,
        joint=None,
    )
    rotate = _link("wrist_rotate", (WRIST_ROTATE_X, 0, 0), _bar((0, 0, 0), (GRIPPER_X, 0, 0), 0.014) + hand)
    wrist = _link("wrist_angle", (WRIST_ANGLE_X, 0, 0), _bar((0, 0, 0), (WRIST_ROTATE_X, 0, 0), 0.016) + rotate)
    roll = _link("forearm_roll", (FOREARM_X, 0, 0), _bar((0, 0, 0), (WRIST_ANGLE_X, 0, 0), 0.018) + wrist)
    elbow = _link("elbow", ELBOW, _bar((0, 0, 0), (FOREARM_X, 0, 0), 0.02) + roll)
    column = _bar((0, 0, 0), (0, 0, ELBOW[2]), 0.022) + _bar((0, 0, ELBOW[2]), ELBOW, 0.02)
    shoulder = _link("shoulder", (0, 0, SHOULDER_Z), column + elbow)
    waist = _link("waist", (0, 0, WAIST_Z), _bar((0, 0, -0.02), (0, 0, SHOULDER_Z), 0.035) + shoulder)
    foot = '<geom type="cylinder" pos="0 0 0.025" size="0.055 0.025"/>'
    return f'<body name="base" childclass="arm" gravcomp="1">{foot}{waist}</body>'


def actuators_xml(stiffness: float, damping: float) -> str:
    """Position servos of the two fingers, newtons a metre and newtons for each metre a second; the arm itself follows
    the tool's target and has none."""
    return "".join(
        f'<position joint="{side}_finger" kp="{stiffness}" kv="{damping}" ctrlrange="{low} {high}"/>'
        for side, low, high in (("left", FINGER_CLOSED, FINGER_OPEN), ("right", -FINGER_OPEN, -FINGER_CLOSED))
    )


def _link(name: str, origin: tuple[float, float, float], content: str, joint: str | None = "hinge") -> str:
    hinge = "" if joint is None else _hinge(name)
    return f'<body name="{name}" pos="{numbers(origin)}" gravcomp="1">{hinge}{content}</body>'


def _hinge(name: str) -> str:
    axis = {"waist": "0 0 1", "forearm_roll": "1 0 0", "wrist_rotate": "1 0 0"}.get(name, "0 1 0")
    return f'<joint name="{name}" axis="{axis}" range="{numbers(JOINT_LIMITS[JOINTS.index(name)])}"/>'


def _finger(side: str, sign: int) -> str:
    low, high = sorted((sign * FINGER_CLOSED, sign * FINGER_OPEN))
    # Fingertips end 3 mm beyond the tool centre point, which lies between them.
    return (
        f'<body name="{side}_finger" gravcomp="1" childclass="hand">'
        f'<joint name="{side}_finger" range="{low} {high}"/>'
        f'<geom type="box" pos="0.0335 0 0" size="0.02 0.006 0.012"/></body>'
    )


def _bar(start: tuple[float, float, float], end: tuple[float, float, float], radius: float) -> str:
    return f'<geom type="capsule" fromto="{numbers(start)} {numbers(end)}" size="{radius}"/>'


def numbers(values: Iterable[float]) -> str:
    """Numbers as MJCF writes them."""
    return " ".join(repr(float(value)) for value in values)
