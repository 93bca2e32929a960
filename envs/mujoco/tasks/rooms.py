"""Rooms in a row with doorways and coloured boxes: how one is drawn, and its MJCF. numpy only."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from envs.mujoco.bodies import rover
from envs.mujoco.task import EpisodeKey, Float64
from envs.mujoco.tasks.region import rim
from envs.mujoco.tasks.tabletop import COLOURS, RGBA
from envs.mujoco.tasks.ways import FAR, Ground, shortest
from rl_finetune.keys import Stream, generator
from rl_finetune.types import BoolArray

ROOM = 4.0
"""Metres, length and width of a room."""
WALL, TALL = 0.1, 4.0
"""Metres, thickness and height of the walls."""
DOOR = 1.0
"""Metres, width of a doorway."""
DOORS_AT = 1.2
"""Metres that a doorway's middle lies off the middle of its wall, at most."""
BOX = 0.35
"""Metres, edge of a box."""
BOXES = 3
SPACING = 1.4
"""Metres between the centres of two boxes, at least."""
BESIDE_WALL, BESIDE_DOOR = 0.4, 0.8
"""Metres from a box's centre to an outer and an inner wall: within reach through no wall, and no doorway blocked."""
START_CLEARANCE = 1.0
"""Metres from the start to any box's centre."""
GLANCE = 0.5
"""Radians off the heading at which a visible target may stand."""
NEARER = 0.1
"""Metres by which boxes may stand nearer to outer walls where training never puts them."""
PHRASES = ("go to the {c} box, then stop", "drive to the {c} box and stop there", "stop next to the {c} box")
BURIED = np.array([0.0, 0.0, -2.0])


@dataclass(frozen=True, slots=True)
class Scene:
    """Everything random about one episode."""

    boxes: Float64
    """[4, 2] centre of each palette colour's box in metres; `FAR` where absent."""
    yaw: Float64
    """[4] rotation of each box, radians."""
    present: BoolArray
    """[4] which colours are there."""
    doors: Float64
    """[rooms - 1] y of the middle of each doorway, metres."""
    target: int
    """Index into `COLOURS` of the box that the instruction names."""
    instruction: str
    """The task in words."""
    start: Float64
    """[3] x, y and heading of the base."""
    way: float
    """Length of the shortest way from the start to the target's centre, metres."""


def planes(rooms: int) -> Float64:
    """x [rooms - 1] of the inner walls; the row of rooms is centred on the origin."""
    return ROOM * (np.arange(1, rooms, dtype=np.float64) - rooms / 2)


def ground(rooms: int, doors: Float64, boxes: Float64, target: np.ndarray) -> Ground:
    """What stands in the way to the boxes `target` [N], given doors [N, D] and boxes [N, 4, 2]."""
    around = np.where((np.arange(len(COLOURS)) == target[:, None])[..., None], FAR, boxes)
    return Ground(np.array([rooms, 1.0]) * ROOM / 2, planes(rooms), doors, around)


def draw_scene(key: EpisodeKey, rooms: int, visible: bool, *, along_walls: bool = False) -> Scene:
    """The scene of one episode: a pure function of its key. With `visible` the target is in the picture at first; with
    `along_walls` the boxes stand nearer to the outer walls than they otherwise ever do."""
    rng = generator(key.seed, Stream.SCENE, key.scene, key.episode)
    colours = rng.permutation(len(COLOURS))[:BOXES]
    target = int(colours[rng.integers(BOXES)])
    phrase = PHRASES[rng.integers(len(PHRASES))]
    yaw = rng.uniform(-np.pi / 4, np.pi / 4, len(COLOURS))
    present = np.isin(np.arange(len(COLOURS)), colours)
    boxes = np.full((len(COLOURS), 2), FAR)
    while True:  # a layout that breaks a rule is drawn again whole
        doors = rng.uniform(-DOORS_AT, DOORS_AT, rooms - 1)
        boxes[colours] = _along_walls(rng, rooms) if along_walls else _places(rng, BOXES, rooms, BESIDE_WALL)
        start = _places(rng, 1, rooms, BESIDE_WALL)
        turn = rng.uniform(-1, 1)
        if not _spread(boxes[colours], start, rooms):
            continue
        way, corners = shortest(start, boxes[[target]], ground(rooms, doors[None], boxes[None], np.array([target])))
        straight = np.array_equal(corners[0, 0], boxes[target])
        if np.isfinite(way[0]) and (straight or not visible):
            break
    ahead = np.arctan2(*(boxes[target] - start[0])[::-1])
    heading = ahead + GLANCE * turn if visible else np.pi * turn
    instruction = phrase.format(c=COLOURS[target])
    return Scene(boxes, yaw, present, doors, target, instruction, np.append(start[0], heading), float(way[0]))


def _places(rng: np.random.Generator, count: int, rooms: int, margin: float) -> Float64:
    half = np.array([rooms, 1.0]) * ROOM / 2 - margin
    return rng.uniform(-half, half, (count, 2))


def _along_walls(rng: np.random.Generator, rooms: int) -> Float64:
    half = np.array([rooms, 1.0]) * ROOM / 2 - BESIDE_WALL
    return rim(rng, np.stack([-half, half], -1), NEARER, BOXES)


def _spread(boxes: Float64, start: Float64, rooms: int) -> bool:
    apart = np.linalg.norm(boxes[:, None] - boxes, axis=-1)[np.triu_indices(len(boxes), 1)]
    off_walls = np.abs(np.concatenate([boxes, start])[:, :1] - planes(rooms))
    return bool(
        apart.min() >= SPACING
        and np.linalg.norm(boxes - start, axis=-1).min() >= START_CLEARANCE
        and (off_walls >= BESIDE_DOOR).all()
    )


def mocaps(scene: Scene) -> Float64:
    """[B, 7] poses of the mocap bodies: the commanded pose, the boxes in palette order, two walls for each doorway."""
    poses = np.zeros((1 + len(COLOURS) + 2 * len(scene.doors), 7))
    x, y, heading = scene.start
    poses[0] = [x, y, 0.0, *upright(np.array(heading))]
    standing = np.column_stack([scene.boxes, np.full(len(COLOURS), BOX / 2)])
    poses[1:5, :3] = np.where(scene.present[:, None], standing, BURIED)
    poses[1:5, 3:] = upright(scene.yaw)
    rooms = len(scene.doors) + 1
    for number, (plane, door) in enumerate(zip(planes(rooms), scene.doors, strict=True)):
        for place, side in enumerate((-1, 1)):
            poses[5 + 2 * number + place] = [plane, door + side * (DOOR + ROOM) / 2, TALL / 2, 1, 0, 0, 0]
    return poses


def inner_walls(rooms: int) -> tuple[str, ...]:
    """Names of the walls between rooms, two for each doorway."""
    return tuple(f"wall_{number}" for number in range(2 * (rooms - 1)))


def upright(angle: Float64) -> Float64:
    """Quaternions [..., 4] of rotations about the vertical by `angle` [...] radians."""
    none = np.zeros_like(angle)
    return np.stack([np.cos(angle / 2), none, none, np.sin(angle / 2)], -1)


def rooms_xml(rooms: int) -> str:
    """MJCF of the world."""
    boxes = "".join(_mocap(colour, (BOX / 2, BOX / 2, BOX / 2), RGBA[colour]) for colour in COLOURS)
    # As long as the room is wide, whatever is left of the doorway: what is too much sticks out where nobody sees it.
    inner = "".join(_mocap(name, (WALL / 2, ROOM / 2, TALL / 2), "0.8 0.78 0.72 1") for name in inner_walls(rooms))
    length, width = rooms * ROOM / 2, ROOM / 2
    return f"""
<mujoco model="rover_navigate">
  <compiler angle="radian" autolimits="true"/>
  <option timestep="{rover.TIMESTEP}" integrator="implicitfast" iterations="10" ls_iterations="10" jacobian="dense">
    <flag island="disable"/>
  </option>
  <visual>
    <headlight ambient="0.45 0.45 0.45" diffuse="0.3 0.3 0.3" specular="0 0 0"/>
    <map znear="0.02" zfar="16"/>
  </visual>
  <statistic extent="1"/>
  <worldbody>
    <light pos="0 0 6" dir="-0.3 0.2 -1" directional="true" diffuse="0.5 0.5 0.5" specular="0 0 0"/>
    <geom name="floor" type="box" pos="0 0 -0.05" size="{length} {width} 0.05" rgba="0.5 0.47 0.44 1" contype="0"
          conaffinity="0"/>
    {_outer("west", (-length - WALL / 2, 0), (WALL / 2, width + WALL), "0.75 0.78 0.82 1")}
    {_outer("east", (length + WALL / 2, 0), (WALL / 2, width + WALL), "0.85 0.8 0.74 1")}
    {_outer("south", (0, -width - WALL / 2), (length, WALL / 2), "0.8 0.8 0.8 1")}
    {_outer("north", (0, width + WALL / 2), (length, WALL / 2), "0.72 0.76 0.7 1")}
    {rover.tree_xml()}
    {boxes}
    {inner}
  </worldbody>
  <actuator>{rover.actuators_xml()}</actuator>
  <sensor>{rover.sensors_xml()}</sensor>
</mujoco>"""


def _mocap(name: str, half: tuple[float, float, float], rgba: str) -> str:
    size = " ".join(map(str, half))
    return (
        f'<body name="{name}" mocap="true"><geom name="{name}" type="box" size="{size}" rgba="{rgba}" contype="2" '
        f'conaffinity="1"/></body>'
    )


def _outer(name: str, place: tuple[float, float], half: tuple[float, float], rgba: str) -> str:
    return (
        f'<geom name="{name}" type="box" pos="{place[0]} {place[1]} {TALL / 2}" size="{half[0]} {half[1]} {TALL / 2}" '
        f'rgba="{rgba}" contype="2" conaffinity="1"/>'
    )
