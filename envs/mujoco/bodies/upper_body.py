"""A GR-1-like upper body: a waist of three joints, two arms of seven, simple hands, and a camera in the head.

Joint origins and limits are those of the robot's published description (Fourier `GR1T2.urdf`); hands, shapes, masses
and looks are our own, and joints are driven at a third of their published speeds or less.
"""

from __future__ import annotations

from math import cos, sin, sqrt

import numpy as np

from envs.mujoco.bodies.base import Float64, Fragments
from envs.mujoco.bodies.jointed import Arm, JointedBody
from envs.mujoco.bodies.parts import Gripper, bar, chain_xml, hand_sensors, joint_sensors, placed, servos
from envs.mujoco.chain import Chain, Joint, pose
from envs.mujoco.task import View
from envs.mujoco.widowx import numbers
from rl_finetune.spec import ActionConvention, EmbodimentSpec

SIDES = {"left_": 1, "right_": -1}
"""Side -> sign of its y."""
BASE = (-0.07, 0.0, 0.095)
"""Metres: where the waist turns."""
WAIST = (
    Joint("waist_yaw", (0, 0, 0), (0, 0, 1), -1.05, 1.05, 1.0),
    Joint("waist_pitch", (0, 0, 0.0869), (0, 1, 0), -0.52, 1.22, 1.0),
    Joint("waist_roll", (0.00525, 0, 0.081), (1, 0, 0), -0.7, 0.7, 1.0),
)
TORSO = (-0.00225, 0.0, 0.16035)
"""Metres from the last waist joint to the torso's frame, from which shoulders and head are counted."""
HEAD = (0.002, 0.0, 0.19595)
SLOPE = 0.43275
"""Radians by which the shoulder's first axis is raised."""
GRIPPER = Gripper(reach=0.11, closed=0.01, open=0.046, palm=(0.03, 0.04, 0.016))
DOWNWARD = (sqrt(0.5), 0.0, sqrt(0.5), 0.0)
"""Orientation of the hand on the wrist: x out of the hand, which hangs along -z."""
POSTURE = np.array([-0.9, 0.3, 1.1, 1.4, -0.1, 0.0, 0.0])
"""[7] radians, left arm: elbow out, forearm hanging."""
PULL = (0.03, 0.03, 0.03, 0.03, 0.03, 0.2, 0.4)
"""The wrist's last two joints have little room, so the elbow gives way first."""
MIRROR = np.array([1.0, -1.0, -1.0, 1.0, -1.0, -1.0, 1.0])
BOXES = np.array([[[0.12, 0.385], [-0.04, 0.17], [0.02, 0.22]], [[0.12, 0.385], [-0.17, 0.04], [0.02, 0.22]]])
"""[2, 3, 2] metres: where each tool works; 4 cm beyond the middle."""
TURN, LEAN, BOW, MIDDLE = 0.4, 0.32, 1.55, 0.2525
"""The waist yaws by this share of the direction to the middle of both tools, and pitches by `LEAN` radians and by `BOW`
more for each metre by which that lies beyond x = `MIDDLE`."""
SPREAD = 0.08
"""Metres in x by which the tools may differ for every point of the boxes to be in reach of both."""


def arm_joints(side: str) -> tuple[Joint, ...]:
    """The seven hinges of one arm, counted from the torso's frame."""
    s = SIDES[side]
    up, back = ((cos(SLOPE / 2), each * s * sin(SLOPE / 2), 0.0, 0.0) for each in (1, -1))
    roll, wrist = sorted((-0.57 * s, 2.53 * s)), sorted((-0.87 * s, 0.96 * s))
    return (
        Joint(f"{side}shoulder_pitch", (0, 0.10128 * s, 0.046651), (0, 1, 0), -2.79, 1.92, 2.0, up),
        Joint(f"{side}shoulder_roll", (0, 0.09515 * s, 0), (1, 0, 0), roll[0], roll[1], 2.0, back),
        Joint(f"{side}shoulder_yaw", (0, 0.04 * s, -0.0709), (0, 0, 1), -2.97, 2.97, 2.0),
        Joint(f"{side}elbow_pitch", (0, 0.0010503 * s, -0.1786), (0, 1, 0), -2.27, 2.27, 2.0),
        Joint(f"{side}wrist_yaw", (0, 0, -0.05945), (0, 0, 1), -2.97, 2.97, 4.0),
        Joint(f"{side}wrist_roll", (0, 0, -0.19115), (1, 0, 0), wrist[0], wrist[1], 4.0),
        Joint(f"{side}wrist_pitch", (0, 0, 0), (0, 1, 0), -0.61, 0.61, 4.0),
    )


def arm(side: str) -> Arm:
    """One of the two arms, its base the last waist link."""
    tool = pose((0, 0, 0), DOWNWARD) @ pose((GRIPPER.reach, 0, 0))
    posture = POSTURE if SIDES[side] > 0 else POSTURE * MIRROR
    return Arm(Chain(arm_joints(side), np.eye(4), tool, posture, PULL), GRIPPER)


ARMATURE = (0.06, 0.06, 0.05, 0.05, 0.02, 0.02, 0.02)
STIFFNESS = (1500.0, 1500.0, 1000.0, 1000.0, 400.0, 400.0, 400.0)
WAIST_ARMATURE, WAIST_STIFFNESS = (0.3, 0.3, 0.3), (12000.0, 12000.0, 12000.0)
DEFAULTS = """
<default>
  <default class="gr1">
    <joint damping="1"/>
    <geom contype="0" conaffinity="0" rgba="0.3 0.32 0.36 1" density="800"/>
  </default>
</default>"""
EYE, FOVY, LOOK = (0.0, 0.0, 0.47), 30.0, 1.22
"""The camera on the head's mast: metres from the head's frame, field of view in degrees, radians below the torso's
horizon. The workspace fills the picture; from between the shoulders the forearms would hide half of it. The view leans
with the torso."""


def shapes(row: int, sign: int) -> str:
    """Geoms of the link after arm joint `row`."""
    return (
        bar((0, 0, 0), (0, 0.09515 * sign, 0), 0.04),
        bar((0, 0, 0), (0, 0.04 * sign, -0.0709), 0.04),
        bar((0, 0, 0), (0, 0, -0.1786), 0.032),
        bar((0, 0, 0), (0, 0, -0.05945), 0.028),
        bar((0, 0, 0), (0, 0, -0.19115), 0.024),
        '<geom type="sphere" size="0.024"/>',
        bar((0, 0, 0), (0, 0, -0.04), 0.02),
    )[row]


class UpperBody(JointedBody):
    """Joint control at 20 Hz."""

    embodiment = EmbodimentSpec(
        tag="gr1",
        arms="dual arms",
        views=("ego",),
        waist=True,
        action=ActionConvention(
            channels=19, horizon=16, control="joint", rotation="none", gripper="open_positive", rate=20.0
        ),
    )
    waist = Chain(WAIST, pose(BASE), pose(TORSO), np.zeros(3))
    arms = tuple(arm(side) for side in SIDES)
    boxes = BOXES
    timestep = 0.01
    cameras = (View("ego", "head"),)
    eye_fovy = FOVY

    def bend(self, now: Float64, tools: Float64, pace: Float64 | None) -> Float64:
        """See `JointedBody.bend`: the rule stands at `TURN`."""
        middle = tools.mean(2)
        want = np.zeros_like(middle)
        want[..., 0] = TURN * np.arctan2(middle[..., 1], middle[..., 0] - BASE[0])
        want[..., 1] = LEAN + BOW * (middle[..., 0] - MIDDLE)
        if pace is None:
            return want
        bent, at = np.empty_like(want), now[:, 0]
        for step in range(want.shape[1]):
            at = bent[:, step] = at + np.clip(want[:, step] - at, -pace, pace)
        return bent

    def fragments(self) -> Fragments:
        """See `Body.fragments`."""
        arms = "".join(_arm_xml(side) for side in SIDES)
        joints = [each.chain.joints for each in self.arms]
        gripper = [servos(j, STIFFNESS) + GRIPPER.actuators(side) for side, j in zip(SIDES, joints, strict=True)]
        eye = '<framepos objtype="camera" objname="head"/><framequat objtype="camera" objname="head"/>'
        return Fragments(
            defaults=DEFAULTS,
            assets="",
            tree=_torso_xml(arms),
            actuators=servos(WAIST, WAIST_STIFFNESS) + "".join(gripper),
            equality="",
            sensors="".join(map(hand_sensors, SIDES)) + "".join(map(joint_sensors, (WAIST, *joints))) + eye,
        )


def _arm_xml(side: str) -> str:
    hand = placed(f"{side}hand", (0, 0, 0), DOWNWARD, GRIPPER.xml(side))
    return chain_xml(arm_joints(side), lambda row: shapes(row, SIDES[side]), hand, ARMATURE)


def _torso_xml(arms: str) -> str:
    eye = f'<camera name="head" pos="{numbers(EYE)}" xyaxes="0 -1 0 {sin(LOOK)} 0 {cos(LOOK)}" fovy="{FOVY}"/>'
    mast = bar((-0.02, 0, 0.06), (-0.03, 0, EYE[2]), 0.012)
    head = placed("head", HEAD, (1, 0, 0, 0), f'<geom type="sphere" pos="-0.02 0 0.06" size="0.075"/>{mast}{eye}')
    chest = bar((0, -0.07, 0), (0, 0.07, 0), 0.08)
    torso = placed("torso", TORSO, (1, 0, 0, 0), chest + arms + head)
    links = (bar((0, 0, 0), (0, 0, 0.0869), 0.06), bar((0, 0, 0), (0, 0, 0.081), 0.06), bar((0, 0, 0), TORSO, 0.06))
    waist = chain_xml(WAIST, links.__getitem__, torso, WAIST_ARMATURE)
    return placed("pelvis", BASE, (1, 0, 0, 0), f'<frame childclass="gr1">{waist}</frame>')
