"""A Franka-like arm with seven joints, driven by displacements of its tool or by joint positions.

Joint origins, limits and speeds are those of the robot's published description (`panda.urdf`); shapes, masses and looks
are our own.
"""

from __future__ import annotations

from math import pi, sqrt

import numpy as np

from envs.mujoco import kinematics as kin
from envs.mujoco.bodies.base import Float64, Fragments
from envs.mujoco.bodies.jointed import Arm, JointedBody
from envs.mujoco.bodies.parts import Gripper, bar, chain_xml, hand_sensors, joint_sensors, placed, servos
from envs.mujoco.bodies.weld import Limits, WeldedArm
from envs.mujoco.chain import Chain, Joint, downward, pose
from rl_finetune.spec import ActionConvention, EmbodimentSpec

STRAIGHT, BACK, AHEAD = (1.0, 0.0, 0.0, 0.0), (sqrt(0.5), -sqrt(0.5), 0.0, 0.0), (sqrt(0.5), sqrt(0.5), 0.0, 0.0)
"""No turn, and quarter turns about x."""
JOINTS = (
    Joint("joint1", (0, 0, 0.333), (0, 0, 1), -2.8973, 2.8973, 2.175),
    Joint("joint2", (0, 0, 0), (0, 0, 1), -1.7628, 1.7628, 2.175, BACK),
    Joint("joint3", (0, -0.316, 0), (0, 0, 1), -2.8973, 2.8973, 2.175, AHEAD),
    Joint("joint4", (0.0825, 0, 0), (0, 0, 1), -3.0718, -0.0698, 2.175, AHEAD),
    Joint("joint5", (-0.0825, 0.384, 0), (0, 0, 1), -2.8973, 2.8973, 2.61, BACK),
    Joint("joint6", (0, 0, 0), (0, 0, 1), -0.0175, 3.7525, 2.61, AHEAD),
    Joint("joint7", (0.088, 0, 0), (0, 0, 1), -2.8973, 2.8973, 2.61, AHEAD),
)
BASE = (-0.3, 0.0, 0.0)
GRIPPER = Gripper(reach=0.1034, closed=0.008, open=0.046)
FLANGE = (0.0, 0.0, 0.107)
HAND = tuple(kin.multiply(np.array([np.cos(pi / 8), 0, 0, -np.sin(pi / 8)]), np.array([0, sqrt(0.5), 0, sqrt(0.5)])))
"""Orientation of the hand on the flange: turned by 45 degrees, x out of the hand."""
POSTURE = np.array([0.0, 0.2, 0.0, -2.2, 0.0, 2.4, pi / 4])
CHAIN = Chain(JOINTS, pose(BASE), pose(FLANGE, HAND) @ pose((GRIPPER.reach, 0, 0)), POSTURE)
ARMATURE = (0.1, 0.1, 0.1, 0.1, 0.05, 0.05, 0.05)
STIFFNESS = (4500.0, 4500.0, 3500.0, 3500.0, 2000.0, 2000.0, 2000.0)
BOX = np.array([[0.12, 0.385], [-0.17, 0.17], [0.02, 0.22]])
"""[3, 2] metres: where the tool works."""
WELD = 'solref="0.02 1" solimp="0.95 0.99 0.001"'
DEFAULTS = """
<default>
  <default class="franka">
    <joint damping="1"/>
    <geom contype="0" conaffinity="0" rgba="0.86 0.87 0.9 1" density="700"/>
  </default>
</default>"""
SHAPES = (
    bar((0, 0, -0.19), (0, 0, 0), 0.055),
    bar((0, 0, 0), (0, -0.2, 0), 0.052),
    bar((0, 0, -0.1), (0, 0, 0), 0.05) + bar((0, 0, 0), (0.0825, 0, 0), 0.05),
    bar((0, 0, 0), (-0.0825, 0.09, 0), 0.048),
    bar((0, 0, -0.28), (0, 0, 0), 0.042),
    bar((0, 0, 0), (0.088, 0, 0), 0.04),
    bar((0, 0, 0), FLANGE, 0.033),
)


def spec(control: str) -> EmbodimentSpec:
    """The body in one of its control modes, `delta_ee` or `joint`."""
    welded = control == "delta_ee"
    action = ActionConvention(
        channels=7 if welded else 8, horizon=16, control=control, rotation="axis_angle" if welded else "none",
        gripper="open_positive", rate=10.0,
    )  # fmt: skip
    return EmbodimentSpec("franka_ee" if welded else "franka_joint", "single arm", ("ego",), action)


def tree() -> str:
    """The arm's bodies."""
    hand = placed("hand", FLANGE, HAND, GRIPPER.xml(""))
    foot = '<geom type="cylinder" pos="0 0 0.06" size="0.07 0.06"/>'
    links = chain_xml(JOINTS, SHAPES.__getitem__, hand, ARMATURE)
    return placed("base", BASE, STRAIGHT, f'<frame childclass="franka">{foot}{links}</frame>')


class FrankaEE(WeldedArm):
    """Displacement control at 10 Hz."""

    embodiment = spec("delta_ee")
    actuators = 2
    boxes = BOX[None]
    slack = np.array([GRIPPER.slack])
    limits = Limits(BOX, travel=0.03, turn=0.125, tilt=0.6)
    timestep = 0.01

    def fragments(self) -> Fragments:
        """See `Body.fragments`."""
        target = '<body name="target" mocap="true"><site name="target" group="5"/></body>'
        return Fragments(
            defaults=DEFAULTS, assets="", tree=tree() + target, actuators=GRIPPER.actuators(""),
            equality=f'<weld site1="tool" site2="target" {WELD}/>', sensors=hand_sensors(""),
        )  # fmt: skip

    def rest(self, tools: Float64) -> tuple[Float64, Float64, Float64]:
        """See `Body.rest`."""
        found = CHAIN.solve(POSTURE[None], downward(tools[:1], np.zeros(1)))
        if not found.reached.all():
            raise ValueError(f"tool position {np.round(tools[0], 3)} m is out of reach of a downward-pointing gripper")
        return np.array([*found.angles[0], GRIPPER.half, -GRIPPER.half]), *self.resting(tools)

    def fingers(self, opening: Float64) -> Float64:
        """See `WeldedArm.fingers`."""
        return np.stack([opening, opening], -1)


class FrankaJoint(JointedBody):
    """Joint control at 10 Hz."""

    embodiment = spec("joint")
    arms = (Arm(CHAIN, GRIPPER),)
    boxes = BOX[None]
    timestep = 0.01

    def fragments(self) -> Fragments:
        """See `Body.fragments`."""
        return Fragments(
            defaults=DEFAULTS, assets="", tree=tree(), actuators=servos(JOINTS, STIFFNESS) + GRIPPER.actuators(""),
            equality="", sensors=hand_sensors("") + joint_sensors(JOINTS),
        )  # fmt: skip
