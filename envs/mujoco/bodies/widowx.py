"""The WidowX 250 S arm: published joint layout and limits, primitive shapes, our own masses and looks."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from envs.mujoco import kinematics as kin
from envs.mujoco.bodies.base import Float64, Fragments
from envs.mujoco.bodies.weld import Limits, WeldedArm
from envs.mujoco.widowx import FINGER_CLOSED, FINGER_OPEN, actuators_xml, arm_xml, defaults_xml
from rl_finetune.spec import ActionConvention, EmbodimentSpec

WIDOWX = EmbodimentSpec(
    tag="widowx",
    arms="single arm",
    views=("ego",),
    action=ActionConvention(
        channels=7, horizon=8, control="delta_ee", rotation="axis_angle", gripper="open_positive", rate=5.0
    ),
)
TOOL_BOX = np.array([[0.12, 0.385], [-0.17, 0.17], [0.02, 0.22]])
"""[3, 2] metres: where the tool may be sent."""


@dataclass(frozen=True, slots=True)
class Fingers:
    """How the fingers are driven."""

    stiffness: float
    """Newtons a metre with which each is held."""
    damping: float
    """Newtons for each metre a second, beside the joint's own."""
    inertia: float
    """Kilograms that the drive adds to each."""


FINGER_THICKNESS = 0.006
"""Half of it, metres."""
FINGERS, GRASPING_FINGERS = Fingers(60.0, 0.0, 0.02), Fingers(200.0, 6.6, 0.2)
"""Heavy drives rather than strong damping: damping beyond inertia / timestep makes contacts soft."""
GRASPING_TIMESTEP = 0.01
"""Seconds."""
WELD = 'solref="0.05 1" solimp="0.95 0.99 0.001"'


class WidowX(WeldedArm):
    """Displacement control at 5 Hz."""

    embodiment = WIDOWX
    actuators = 2
    boxes = TOOL_BOX[None]
    slack = np.array([-FINGER_THICKNESS])
    limits = Limits(TOOL_BOX, travel=0.06, turn=0.25, tilt=0.6)
    timestep = 0.025

    def __init__(self, *, grasping: bool = False) -> None:
        """Describe the arm.

        Args:
            grasping: firm fingers and finer physics steps, for things that are held by friction.
        """
        self.grasping = grasping
        self.timestep = GRASPING_TIMESTEP if grasping else WidowX.timestep

    def fragments(self) -> Fragments:
        """See `Body.fragments`."""
        sensors = (
            '<framepos objtype="site" objname="tool"/><framequat objtype="site" objname="tool"/>'
            '<jointpos joint="left_finger"/>'
        )
        fingers = GRASPING_FINGERS if self.grasping else FINGERS
        target = '<body name="target" mocap="true"><site name="target" group="5"/></body>'
        return Fragments(
            defaults=defaults_xml(fingers.inertia), assets="", tree=arm_xml() + target,
            actuators=actuators_xml(fingers.stiffness, fingers.damping),
            equality=f'<weld site1="tool" site2="target" {WELD}/>', sensors=sensors,
        )  # fmt: skip

    def rest(self, tools: Float64) -> tuple[Float64, Float64, Float64]:
        """See `Body.rest`."""
        qpos = np.array([*kin.downward_pose(tools[0]), FINGER_OPEN, -FINGER_OPEN])
        return qpos, *self.resting(tools)

    def fingers(self, opening: Float64) -> Float64:
        """See `WeldedArm.fingers`."""
        left = FINGER_CLOSED + (FINGER_OPEN - FINGER_CLOSED) * (opening + 1) / 2
        return np.stack([left, -left], -1)
