"""A round differential-drive base with a camera, and the follower that turns waypoints into speeds. numpy only.

    waypoints -> speeds ten times a second (forward, turn) -> arcs of the commanded pose -> velocity servos

The servos act in the base's own frame: forward, sideways (always zero: wheels do not roll that way) and turn. Position
targets in the room's frame were the other choice; they wind up at a wall, and the base shoots off sideways when it
comes free. Rolling wheels would do as well, with contacts to solve in every step.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from envs.mujoco.task import Float64
from rl_finetune.spec import ActionConvention, EmbodimentSpec

TAG = "rover"
RATE = 2.0
HORIZON = 8
TIMESTEP = 0.025
"""Seconds of one physics step."""
SUBSTEPS = round(1 / (RATE * TIMESTEP))
DECISIONS = 5
"""Times in a control step that the follower chooses its speeds."""
RADIUS, HEIGHT = 0.17, 0.2
"""Metres."""
MASS = 10.0
FASTEST, FASTEST_TURN = 0.5, 1.5
"""Metres and radians a second, at most."""
DEAD_BAND = 0.08
"""Metres within which a waypoint is only turned to; without it a sampled policy could never stand still."""
ARRIVED = 0.01
"""Metres at which the base stops steering towards a waypoint, whose bearing then means nothing."""
LAG = 0.05
"""Seconds that forward and turning speed take to follow, both alike, so that the base stays on its arcs."""
GRIP = 10.0
"""How much harder the wheels resist sideways motion than they drive."""
EYE, TILT, FOVY = 0.42, 0.26, 80.0
"""Camera height in metres, angle below the horizon in radians, vertical field of view in degrees: a box stays in sight
from across the room to the place where the base is to stop."""
CAMERA = "ego"

EMBODIMENT = EmbodimentSpec(
    tag=TAG,
    arms="",
    views=(CAMERA,),
    action=ActionConvention(
        channels=3, horizon=HORIZON, control="waypoint", rotation="none", gripper="none", rate=RATE
    ),
    mobile_base=True,
)


def tree_xml() -> str:
    """The base, first in qpos (x, y, heading), and a mocap body that stands where the base was told to be."""
    up, inertia = f"{np.sin(TILT):.6f} 0 {np.cos(TILT):.6f}", MASS * RADIUS**2 / 2
    # Contacts are a sphere's: in the plane it is the same disc, and the cheapest shape there is.
    return f"""
    <body name="base">
      <inertial pos="0 0 {HEIGHT / 2}" mass="{MASS}" diaginertia="{inertia} {inertia} {inertia}"/>
      <joint name="x" type="slide" axis="1 0 0"/>
      <joint name="y" type="slide" axis="0 1 0"/>
      <joint name="heading" type="hinge" axis="0 0 1"/>
      <geom name="bumper" type="sphere" size="{RADIUS}" pos="0 0 {RADIUS}" group="5" contype="1" conaffinity="2"/>
      <geom type="cylinder" size="{RADIUS} {HEIGHT / 2}" pos="0 0 {HEIGHT / 2}" rgba="0.25 0.25 0.28 1" contype="0"
            conaffinity="0"/>
      <geom type="box" size="0.03 0.05 0.02" pos="{RADIUS - 0.03} 0 {HEIGHT}" rgba="0.85 0.1 0.75 1" contype="0"
            conaffinity="0"/>
      <site name="base"/>
      <camera name="{CAMERA}" pos="0 0 {EYE}" xyaxes="0 -1 0 {up}" fovy="{FOVY}"/>
    </body>
    <body name="aim" mocap="true"/>"""


def actuators_xml() -> str:
    """Velocity servos: forward, sideways, turn."""
    drive, turn = MASS / LAG, MASS * RADIUS**2 / 2 / LAG
    return f"""
    <velocity site="base" gear="1 0 0 0 0 0" kv="{drive}"/>
    <velocity site="base" gear="0 1 0 0 0 0" kv="{GRIP * drive}"/>
    <velocity site="base" gear="0 0 0 0 0 1" kv="{turn}"/>"""


def sensors_xml() -> str:
    """Readings: x, y, heading of the base; position and forward axis of the commanded pose."""
    joints = "".join(f'<jointpos joint="{name}"/>' for name in ("x", "y", "heading"))
    return f'{joints}<framepos objtype="body" objname="aim"/><framexaxis objtype="body" objname="aim"/>'


def commanded(readings: Float64) -> Float64:
    """Commanded pose [..., 3] (x, y, heading within -pi..pi) in readings [..., >= 9]."""
    return np.concatenate([readings[..., 3:5], np.arctan2(readings[..., 7], readings[..., 6])[..., None]], -1)


@dataclass(frozen=True, slots=True)
class Course:
    """What the follower makes of a chunk."""

    speeds: Float64
    """[N, H * SUBSTEPS, 3] forward, sideways and turning speed of every physics step, metres and radians a second."""
    poses: Float64
    """[N, H * SUBSTEPS, 3] commanded x, y and heading after every physics step."""


def follow(pose: Float64, waypoints: Float64) -> Course:
    """Drive a unicycle from `pose` [N, 3] along waypoints [N, H, 3] given in the frame of that pose, open-loop.

    A waypoint behind is backed into, one beside is turned to first; each is left behind when its control step is over.
    """
    goals = np.concatenate([to_room(pose, waypoints[..., :2]), pose[:, None, 2:] + waypoints[..., 2:]], -1)
    speeds, poses, now = [], [], pose
    for goal in np.moveaxis(goals, 1, 0):
        worth = np.linalg.norm(goal[:, :2] - now[:, :2], axis=-1) > DEAD_BAND
        for decision in range(DECISIONS):
            left = (DECISIONS - decision) / (DECISIONS * RATE)
            twist = _choose(now, goal, worth, left)
            steps = np.arange(1, SUBSTEPS // DECISIONS + 1, dtype=np.float64) * TIMESTEP
            arc = _arc(now, twist, steps)
            speeds.append(np.repeat(np.insert(twist, 1, 0.0, axis=-1)[:, None], len(steps), axis=1))
            poses.append(arc)
            now = arc[:, -1]
    return Course(np.concatenate(speeds, 1), np.concatenate(poses, 1))


def _choose(now: Float64, goal: Float64, worth: np.ndarray, left: float) -> Float64:
    """Forward and turning speed [N, 2] that should end at `goal` [N, 3] in `left` seconds."""
    away = goal[:, :2] - now[:, :2]
    distance = np.linalg.norm(away, axis=-1)
    driving = worth & (distance > ARRIVED)
    bearing = wrap(np.arctan2(away[:, 1], away[:, 0]) - now[:, 2])
    behind = np.abs(bearing) > np.pi / 2
    askew = wrap(bearing + np.pi * behind)
    forward = np.where(behind, -1.0, 1.0) * distance / left * np.cos(askew) ** 3
    turn = np.where(driving, askew * RATE * DECISIONS, wrap(goal[:, 2] - now[:, 2]) / left)
    speeds = np.stack([np.where(driving, forward, 0.0), turn], -1)
    return np.clip(speeds, [-FASTEST, -FASTEST_TURN], [FASTEST, FASTEST_TURN])


def _arc(start: Float64, twist: Float64, seconds: Float64) -> Float64:
    """Poses [N, T, 3] along circles: from `start` [N, 3] at speeds [N, 2], `seconds` [T] later."""
    forward, turned = twist[:, :1] * seconds, twist[:, 1:] * seconds
    chord = forward * np.sinc(turned / (2 * np.pi))
    heading = start[:, 2:] + turned / 2
    moved = np.stack([chord * np.cos(heading), chord * np.sin(heading), turned], -1)
    poses: Float64 = start[:, None] + moved
    return poses


def to_room(pose: Float64, points: Float64) -> Float64:
    """Points [N, P, 2] of the base's frame in the room's, for bases at `pose` [N, 3]."""
    cos, sin = np.cos(pose[:, 2:]), np.sin(pose[:, 2:])
    x, y = points[..., 0], points[..., 1]
    return np.stack([pose[:, :1] + cos * x - sin * y, pose[:, 1:2] + sin * x + cos * y], -1)


def to_base(pose: Float64, points: Float64) -> Float64:
    """Points [N, P, 2] of the room's frame in the base's, for bases at `pose` [N, 3]."""
    cos, sin = np.cos(pose[:, 2:]), np.sin(pose[:, 2:])
    x, y = points[..., 0] - pose[:, :1], points[..., 1] - pose[:, 1:2]
    return np.stack([cos * x + sin * y, cos * y - sin * x], -1)


def eye(pose: Float64) -> tuple[Float64, Float64]:
    """Place [N, 3] and frame [N, 3, 3] (rows right, up, backward) of the camera on bases at `pose` [N, 3]."""
    cos, sin, none = np.cos(pose[:, 2]), np.sin(pose[:, 2]), np.zeros(len(pose))
    right = np.stack([sin, -cos, none], -1)
    up = np.stack([np.sin(TILT) * cos, np.sin(TILT) * sin, none + np.cos(TILT)], -1)
    return np.column_stack([pose[:, :2], none + EYE]), np.stack([right, up, np.cross(right, up)], 1)


def wrap(angle: Float64) -> Float64:
    """Angles in radians brought into -pi..pi."""
    wrapped: Float64 = (angle + np.pi) % (2 * np.pi) - np.pi
    return wrapped
