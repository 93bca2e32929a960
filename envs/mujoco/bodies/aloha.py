"""Two ViperX 300 S arms that face each other across the table, as ALOHA has them, with a camera on each wrist.

Joint origins and limits are those of the arm's published description (Interbotix `vx300s.urdf`); shapes, masses and
looks are our own.
"""

from __future__ import annotations

from dataclasses import replace
from math import pi, sqrt

import numpy as np

from envs.mujoco.bodies.base import Fragments
from envs.mujoco.bodies.jointed import Arm, JointedBody
from envs.mujoco.bodies.parts import DARK, Gripper, bar, chain_xml, hand_sensors, joint_sensors, placed, servos
from envs.mujoco.chain import Chain, Joint, pose
from envs.mujoco.task import View
from rl_finetune.spec import ActionConvention, EmbodimentSpec

SIDES = ("left_", "right_")
"""The left arm stands at positive y."""
JOINTS = (
    Joint("waist", (0, 0, 0.079), (0, 0, 1), -pi, pi, pi),
    Joint("shoulder", (0, 0, 0.04805), (0, 1, 0), -1.85, 1.256, pi),
    Joint("elbow", (0.05955, 0, 0.3), (0, 1, 0), -1.76, 1.6, pi),
    Joint("forearm_roll", (0.2, 0, 0), (1, 0, 0), -pi, pi, pi),
    Joint("wrist_angle", (0.1, 0, 0), (0, 1, 0), -1.867, 2.234, pi),
    Joint("wrist_rotate", (0.069744, 0, 0), (1, 0, 0), -pi, pi, pi),
)
GRIPPER = Gripper(reach=0.064375, closed=0.021, open=0.057, palm=(0.012, 0.06, 0.014), stiffness=800.0, inertia=0.6)
HAND = (0.042825, 0.0, 0.0)
"""Metres from the last joint to the gripper's frame."""
STAND = 0.45
"""Metres from the table's middle line to each arm's base."""
BASES = {"left_": (0.25, STAND, 0.0), "right_": (0.25, -STAND, 0.0)}
FACING = {"left_": (sqrt(0.5), 0.0, 0.0, -sqrt(0.5)), "right_": (sqrt(0.5), 0.0, 0.0, sqrt(0.5))}
POSTURES = {side: np.array([0.0, 0.0, 0.4, 0.0, 1.2, turn]) for side, turn in (("left_", -pi / 2), ("right_", pi / 2))}
"""[6] radians; the fingers open along the world's y axis."""
BOXES = np.array([[[0.12, 0.385], [-0.04, 0.17], [0.02, 0.22]], [[0.12, 0.385], [-0.17, 0.04], [0.02, 0.22]]])
"""[2, 3, 2] metres: where each tool works; 4 cm beyond the middle."""
ARMATURE = (0.06, 0.06, 0.06, 0.02, 0.02, 0.01)
STIFFNESS = (1500.0, 1500.0, 1200.0, 400.0, 400.0, 150.0)
DEFAULTS = f"""
<default>
  <default class="aloha">
    <joint damping="0.5"/>
    <geom contype="0" conaffinity="0" rgba="{DARK}" density="1000"/>
  </default>
</default>"""
SHAPES = (
    bar((0, 0, -0.03), (0, 0, 0.03), 0.038),
    bar((0, 0, 0), (0, 0, 0.3), 0.024) + bar((0, 0, 0.3), (0.05955, 0, 0.3), 0.022),
    bar((0, 0, 0), (0.2, 0, 0), 0.022),
    bar((0, 0, 0), (0.1, 0, 0), 0.02),
    bar((0, 0, 0), (0.069744, 0, 0), 0.018),
    bar((0, 0, 0), HAND, 0.016),
)
EYE = '<camera name="cam_{side}wrist" pos="-0.03 0 0.1" xyaxes="0 -1 0 0.643 0 0.766" fovy="70"/>'
"""Behind and beside the fingers, looking at them from 40 degrees aside."""


def arm(side: str) -> Arm:
    """One of the two arms."""
    joints = tuple(replace(joint, name=side + joint.name) for joint in JOINTS)
    tool = pose((HAND[0] + GRIPPER.reach, 0, 0))
    return Arm(Chain(joints, pose(BASES[side], FACING[side]), tool, POSTURES[side]), GRIPPER)


class Aloha(JointedBody):
    """Joint control at 50 Hz."""

    embodiment = EmbodimentSpec(
        tag="aloha",
        arms="dual arms",
        views=("ego", "cam_left_wrist", "cam_right_wrist"),
        action=ActionConvention(
            channels=14, horizon=16, control="joint", rotation="none", gripper="open_positive", rate=50.0
        ),
    )
    arms = tuple(arm(side) for side in SIDES)
    boxes = BOXES
    timestep = 0.01
    cameras = (View("cam_left_wrist", "cam_left_wrist"), View("cam_right_wrist", "cam_right_wrist"))

    def fragments(self) -> Fragments:
        """See `Body.fragments`."""
        sides = list(zip(SIDES, self.arms, strict=True))
        return Fragments(
            defaults=DEFAULTS,
            assets="",
            tree="".join(_tree(side, each) for side, each in sides),
            actuators="".join(servos(each.chain.joints, STIFFNESS) + GRIPPER.actuators(side) for side, each in sides),
            equality="",
            sensors="".join(map(hand_sensors, SIDES)) + "".join(joint_sensors(each.chain.joints) for each in self.arms),
        )


def _tree(side: str, each: Arm) -> str:
    hand = placed(f"{side}gripper", HAND, (1, 0, 0, 0), GRIPPER.xml(side) + EYE.format(side=side))
    foot = '<geom type="box" pos="0 0 0.02" size="0.06 0.05 0.02"/>'
    links = chain_xml(each.chain.joints, SHAPES.__getitem__, hand, ARMATURE)
    return placed(f"{side}base", BASES[side], FACING[side], f'<frame childclass="aloha">{foot}{links}</frame>')
