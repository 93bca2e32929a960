"""The whole scene as MJCF text: table, blocks, camera, light and the target that the tool is tied to.

Real shadows cost ten times the picture (each redraws a 4096 x 4096 map), yet without any a single camera hardly tells
height from depth. So a dark on the table, straight below the tool, stands for the gripper's shadow.
"""

from __future__ import annotations

from envs.mujoco.reach import BLOCK_EDGE, COLOURS
from envs.mujoco.widowx import DEFAULTS, actuators_xml, arm_xml, numbers

TIMESTEP = 0.025
"""Seconds of one physics step; eight make a control step at 5 Hz."""
CAMERA = "ego"
RGBA = {"red": "0.9 0.08 0.08 1", "green": "0.08 0.72 0.15 1", "blue": "0.1 0.2 0.95 1", "yellow": "0.98 0.85 0.05 1"}
EYE, UP, FOVY = (0.935, 0.0, 0.921), (-0.7657, 0.0, 0.6431), 26.6
"""Camera position in metres, up direction, vertical field of view in degrees: 50 degrees above the horizon and opposite
the arm. Chosen by counting pixels: the workspace with the gripper in it fills the picture's width, a block covers 57 of
64 x 64 pixels, and 2 % of all blocks (0.7 % of targets) are more than 70 % hidden by the arm; other sides hide more."""
WELD = 'solref="0.05 1" solimp="0.95 0.99 0.001"'


def scene_xml() -> str:
    """MJCF of the world; mocap bodies are the blocks in palette order, then the tool's target and the tool's shadow."""
    blocks = "".join(_block(colour) for colour in COLOURS)
    return f"""
<mujoco model="widowx_reach">
  <compiler angle="radian" autolimits="true"/>
  <option timestep="{TIMESTEP}" integrator="implicitfast" iterations="10" ls_iterations="10" jacobian="dense">
    <flag island="disable"/>
  </option>
  <visual>
    <headlight ambient="0.45 0.45 0.45" diffuse="0.3 0.3 0.3" specular="0 0 0"/>
    <map znear="0.02" zfar="6"/>
  </visual>
  {DEFAULTS}
  <worldbody>
    <light pos="0.6 -0.3 1.2" dir="-0.3 0.3 -1" directional="true" diffuse="0.5 0.5 0.5" specular="0 0 0"/>
    <camera name="{CAMERA}" pos="{numbers(EYE)}" xyaxes="0 1 0 {numbers(UP)}" fovy="{FOVY}"/>
    <geom name="table" type="box" pos="0.2 0 -0.02" size="0.6 0.6 0.02" rgba="0.66 0.62 0.57 1" contype="2"
          conaffinity="1"/>
    {arm_xml()}
    {blocks}
    <body name="target" mocap="true"><site name="target" group="5"/></body>
    <body name="shadow" mocap="true"><geom type="cylinder" size="0.03 0.0005" rgba="0.3 0.28 0.26 1" contype="0"
          conaffinity="0"/></body>
  </worldbody>
  <equality><weld site1="tool" site2="target" {WELD}/></equality>
  <actuator>{actuators_xml()}</actuator>
  <sensor><framepos objtype="site" objname="tool"/><framequat objtype="site" objname="tool"/></sensor>
</mujoco>"""


def _block(colour: str) -> str:
    half = BLOCK_EDGE / 2
    return (
        f'<body name="{colour}" mocap="true"><geom name="{colour}" type="box" size="{half} {half} {half}" '
        f'rgba="{RGBA[colour]}" contype="2" conaffinity="1"/></body>'
    )
