"""The table that every arm works at: one camera, one workspace, four colours, so that eyes carry over between robots.

Real shadows cost ten times the picture (each redraws a 4096 x 4096 map), yet without any a single camera hardly tells
height from depth. So a dark disc on the table, straight below each tool, stands for the gripper's shadow.
"""

from __future__ import annotations

import numpy as np

from envs.mujoco.bodies.base import Body
from envs.mujoco.bodies.weld import DOWN
from envs.mujoco.camera import frame_of, project
from envs.mujoco.task import Drive, Float64, Now, Start, Task, Things, View
from envs.mujoco.tasks.region import GROUND, HOME, Region, scattered
from envs.mujoco.variation import Shape
from envs.mujoco.widowx import numbers
from rl_finetune.types import BoolArray, FloatArray, IntArray

COLOURS = ("red", "green", "blue", "yellow")
THINGS = (*COLOURS, "tool")
"""What every task gives the places of, for the grounding loss."""
RGBA = {"red": "0.9 0.08 0.08 1", "green": "0.08 0.72 0.15 1", "blue": "0.1 0.2 0.95 1", "yellow": "0.98 0.85 0.05 1"}
CAMERA = "ego"
EYE, UP, FOVY = (0.935, 0.0, 0.921), (-0.7657, 0.0, 0.6431), 26.6
"""Camera position in metres, up direction, vertical field of view in degrees: 50 degrees above the horizon and opposite
the arm. Chosen by counting pixels: the workspace with the gripper in it fills the picture's width, a block covers 57 of
64 x 64 pixels, and 2 % of all blocks (0.7 % of targets) are more than 70 % hidden by the WidowX; other sides hide
more."""
PARKED = np.array([0.0, 0.0, -1.0, 1.0, 0.0, 0.0, 0.0])
"""Pose of a mocap body that is out of the picture."""
HAND_NAMES = {1: ("",), 2: ("left_", "right_")}
LITTER = Shape("cylinder", (0.018, 0.018, 0.022))
LITTER_APART = 0.085
"""Metres between a distractor's centre and that of anything else: an open gripper fits between."""
LITTER_BEYOND = 0.05
"""Metres beyond the workspace to which distractors may stand."""


class Tabletop(Task):
    """A body at the table; what lies on it is the subclass's."""

    backdrop = ("table",)
    litter = LITTER
    litter_apart = LITTER_APART
    region: Region = HOME

    def __init__(self, body: Body) -> None:
        """Stand `body` at the table."""
        self.body = body
        self.timestep = body.timestep
        self.substeps = round(1 / (body.embodiment.action.rate * self.timestep))
        carried = {view.tag: view for view in body.cameras}
        self.views = tuple(carried.get(tag, View(tag, tag)) for tag in body.embodiment.views)

    def props(self) -> str:
        """MJCF of what lies on the table: free bodies and, after them, mocap bodies."""
        raise NotImplementedError

    def sensors(self) -> str:
        """MJCF of sensors of what lies on the table; they follow the body's."""
        return ""

    def mjcf(self) -> str:
        """See `Task.mjcf`; the mocap bodies are the robot's, the table's, and a shadow for each tool."""
        part = self.body.fragments()
        shadows = "".join(
            f'<body name="shadow{hand}" mocap="true"><geom type="cylinder" size="0.03 0.0005" rgba="0.3 0.28 0.26 1" '
            'contype="0" conaffinity="0"/></body>'
            for hand in range(self.body.hands)
        )
        return f"""
<mujoco model="{self.spec.name}">
  <compiler angle="radian" autolimits="true"/>
  <option timestep="{self.timestep}" integrator="implicitfast" iterations="10" ls_iterations="10" jacobian="dense">
    <flag island="disable"/>
  </option>
  <visual>
    <headlight ambient="0.45 0.45 0.45" diffuse="0.3 0.3 0.3" specular="0 0 0"/>
    <map znear="0.02" zfar="6"/>
  </visual>
  {part.defaults}
  <asset>{part.assets}</asset>
  <worldbody>
    <light pos="0.6 -0.3 1.2" dir="-0.3 0.3 -1" directional="true" diffuse="0.5 0.5 0.5" specular="0 0 0"/>
    <camera name="{CAMERA}" pos="{numbers(EYE)}" xyaxes="0 1 0 {numbers(UP)}" fovy="{FOVY}"/>
    <geom name="table" type="box" pos="0.2 0 -0.02" size="0.6 0.6 0.02" rgba="0.66 0.62 0.57 1" contype="2"
          conaffinity="3" priority="2"/>
    {part.tree}
    {self.props()}
    {shadows}
  </worldbody>
  <contact>{part.contacts}</contact>
  <equality>{part.equality}</equality>
  <actuator>{part.actuators}</actuator>
  <sensor>{part.sensors}{self.sensors()}</sensor>
</mujoco>"""

    def assemble(self, now: Now, actions: Float64, props: Float64) -> Drive:
        """The body's chunk with the table's mocap bodies `props` [N, H * substeps, B, 7] beside it."""
        body, (n, h) = self.body, actions.shape[:2]
        ctrl, own, aim = body.drive(now.readings, now.aim, actions, self.substeps)
        shadows = np.broadcast_to(PARKED, (n, h * self.substeps, body.hands, 7))
        mocap = np.concatenate([own, props, shadows], 2)
        flat = [mocap[..., :3].reshape(n, h * self.substeps, -1), mocap[..., 3:].reshape(n, h * self.substeps, -1)]
        controls = np.concatenate([ctrl, *flat], -1)
        return Drive(np.concatenate([controls, controls[:, -1:]], 1), aim)

    def tools(self, readings: Float64) -> Float64:
        """Tool positions [..., hands, 3] in readings [..., R]."""
        hands = readings[..., : 8 * self.body.hands]
        return hands.reshape(*hands.shape[:-1], self.body.hands, 8)[..., :3]

    def drawn(self, now: Now) -> Float64:
        """See `Task.drawn`: each tool's shadow lies below it."""
        mocap, tools = now.mocap.copy(), self.tools(now.readings)
        mocap[:, -self.body.hands :, :2] = tools[..., :2]
        mocap[:, -self.body.hands :, 2] = 0.001
        return mocap

    def seen_at(self, now: Now, points: Float64) -> Float64:
        """See `Task.seen_at`."""
        n = len(points)
        if self.body.eye_fovy:
            pose = now.readings[:, self.body.readings - 7 : self.body.readings]
            return project(pose[:, :3], frame_of(pose[:, 3:]), self.body.eye_fovy, points)
        return project(np.tile(EYE, (n, 1)), np.broadcast_to(_frame(), (n, 3, 3)), FOVY, points)

    def fixed_eye(self) -> tuple[str, Float64, Float64] | None:
        """See `Variable.fixed_eye`."""
        return None if self.body.eye_fovy else (CAMERA, np.array(EYE), _frame())

    def staying(self, now: Now, last: Float64) -> Float64:
        """See `Variable.staying`."""
        return self.body.staying(now.readings, now.aim, last)

    def occupied(self, start: Start) -> Float64:
        """[M, 2] where things and tools are at first, metres."""
        body = self.body
        things = start.mocap[body.mocaps : len(start.mocap) - body.hands]
        return things[things[:, 2] > PARKED[2], :2]

    def strewn(self, start: Start, rng: np.random.Generator, count: int) -> Float64:
        """See `Variable.strewn`."""
        beyond = np.array([-LITTER_BEYOND, LITTER_BEYOND])
        return scattered(rng, GROUND + beyond, self.occupied(start), self.litter_apart, count)

    def label(self, now: Now, tops: Float64, present: BoolArray, target: IntArray, hand: IntArray) -> Things:
        """Grounding of the four colours and of the acting `hand` [N]."""
        rows = np.arange(len(tops))
        tool = self.tools(now.readings)[rows, hand]
        points = np.concatenate([tops, tool[:, None]], 1)
        return Things(THINGS, points, np.concatenate([present, np.ones((len(rows), 1), bool)], 1), target)

    def privileged_names(self) -> tuple[str, ...]:
        """Names of the state that every table task knows: acting tool, target, blocks, what the body recalls."""
        place = [f"{thing}_{axis}" for thing in ("tool", "target") for axis in "xyz"]
        blocks = [f"{colour}_{each}" for colour in COLOURS for each in ("x", "y", "z", "present")]
        return (*place, *blocks, *self.recalled_names())

    def recalled_names(self) -> tuple[str, ...]:
        """Names of what `recall` needs beside the acting tool: each hand's tool where there are two, and joints."""
        hands = (
            [f"{hand}{axis}" for hand in HAND_NAMES[self.body.hands] for axis in "xyz"] if self.body.hands > 1 else []
        )
        return (*hands, *self.body.joints)

    def privileged(self, now: Now, tops: Float64, present: BoolArray, target: IntArray, hand: IntArray) -> FloatArray:
        """[N, S] in the order of `privileged_names`."""
        rows, body = np.arange(len(tops)), self.body
        tools = self.tools(now.readings)
        blocks = np.concatenate([tops, present[..., None]], -1).reshape(len(rows), -1)
        recalled = [tools.reshape(len(rows), -1)] if body.hands > 1 else []
        joints = now.readings[:, 8 * body.hands : 8 * body.hands + len(body.joints)]
        return np.concatenate([tools[rows, hand], tops[rows, target], blocks, *recalled, joints], -1).astype(np.float32)

    def recall(self, privileged: FloatArray) -> Float64:
        """The body's readings [N, R] as far as `Body.command` needs them: tool positions and joints."""
        body, n = self.body, len(privileged)
        state = privileged.astype(np.float64)
        readings = np.zeros((n, body.readings))
        first = len(self.privileged_names()) - len(self.recalled_names())
        tools = state[:, first : first + 3 * body.hands] if body.hands > 1 else state[:, :3]
        for hand in range(body.hands):
            readings[:, 8 * hand : 8 * hand + 3] = tools[:, 3 * hand : 3 * hand + 3]
            readings[:, 8 * hand + 3 : 8 * hand + 7] = DOWN
        joints = first + (3 * body.hands if body.hands > 1 else 0)
        readings[:, 8 * body.hands : 8 * body.hands + len(body.joints)] = state[:, joints : joints + len(body.joints)]
        return readings


def _frame() -> Float64:
    """Rows right, up, backward [3, 3] of the table's camera."""
    right, up = np.array([0.0, 1.0, 0.0]), np.array(UP) / np.linalg.norm(UP)
    return np.stack([right, up, np.cross(right, up)])
