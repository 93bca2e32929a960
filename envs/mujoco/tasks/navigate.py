"""Navigation by instruction: drive to the named box and stop there. numpy only.

Stopping is commanded, not only suffered: a base that is held up by a box, or passes by, has not stopped.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from envs.base import Disturbance
from envs.mujoco.bodies import rover
from envs.mujoco.camera import OUTSIDE, project
from envs.mujoco.options import LARGEST, WorldOptions, one_of, within
from envs.mujoco.task import Drive, EpisodeKey, Float64, Judged, Now, Start, Task, Things, View
from envs.mujoco.tasks import pilot, rooms
from envs.mujoco.tasks.region import scattered
from envs.mujoco.tasks.tabletop import COLOURS, THINGS
from envs.mujoco.tasks.ways import FAR, shortest, through
from envs.mujoco.variation import Shape
from rl_finetune.spec import EnvSpec
from rl_finetune.types import BoolArray, FloatArray

NAME = "rover_navigate"
TIME_LIMIT = 64
"""Control steps for each room."""
NEAREST, FARTHEST = 0.55, rooms.SPACING / 2
"""Metres, bounds of the tolerance: bases touch a box's corner at 0.42; two boxes never claim the same place."""
INSIDE = 0.1
"""Metres within the tolerance at which the expert stops."""
STILL, STILL_TURN = 0.1, 0.3
"""Metres and radians of one control step, commanded, below which the base is told to stand still."""
STOP = 3
"""Control steps in a row that make a stop."""
LOOK_AHEAD = 0.5
"""Metres before the base at which its own point lies on the floor, where its camera sees it."""
ASIDE, BESIDE_WALL, ALONG = 0.6, 0.25, 40
"""Metres of a distractor's middle from ways, boxes and outer walls; points of a way's leg that are looked at."""
SHAPES = (
    Shape("cylinder", (0.175, 0.175, 0.175)), Shape("sphere", (0.175, 0.175, 0.175)), Shape("box", (0.2, 0.2, 0.11)),
    Shape("box", (0.12, 0.12, 0.3)),
)  # fmt: skip
WORDINGS = ("find the crate that is {c} and wait beside it", "{c} is your destination: park there",
            "roll up to whatever is {c} and halt")  # fmt: skip
TRAVELLED, CAME_NEAR, STOOD = range(3)
"""What the judge remembers: metres driven, whether the base was ever within the tolerance, still steps in a row."""


@dataclass(frozen=True, slots=True)
class NavigateOptions(WorldOptions):
    """What a user may choose about the environment."""

    rooms: int = 1
    """Rooms in a row, 1 to 3, with a doorway between neighbours."""
    visible_start: bool = True
    """Whether the box that is meant is in the first picture; with several rooms it may be anywhere all the same."""
    tolerance: float = 0.6
    """Distance in metres between the centres of base and box that counts as there."""
    progress: float = 0.0
    """Reward for each metre by which a chunk brings the base nearer (through walls), beside 1 for success."""

    def __post_init__(self) -> None:
        WorldOptions.__post_init__(self)
        one_of("rooms", self.rooms, (1, 2, 3))
        within("tolerance", self.tolerance, NEAREST, FARTHEST, "metres")
        within("progress", self.progress, 0.0, LARGEST, "reward a metre")


def spec(options: NavigateOptions) -> EnvSpec:
    """What the environment promises."""
    places = [f"{thing}_{axis}" for thing in ("tool", "target") for axis in "xyz"]
    boxes = [f"{colour}_{field}" for colour in COLOURS for field in ("x", "y", "z", "present")]
    base = ["base_x", "base_y", "base_cos", "base_sin"]
    doors = [f"door_{number}_y" for number in range(1, options.rooms)]
    return EnvSpec(
        name=NAME,
        embodiment=rover.EMBODIMENT,
        image_size=options.image_size,
        time_limit=TIME_LIMIT * options.rooms,
        privileged=tuple(places + boxes + base + doors),
        tasks=tuple(phrase.format(c=colour) for colour in COLOURS for phrase in rooms.PHRASES),
        expert=True,
        things=THINGS,
    )


class Navigate(Task):
    """The task for `envs.mujoco.world.World`. Facts: target, metres of the shortest way, doorways."""

    timestep = rover.TIMESTEP
    substeps = rover.SUBSTEPS
    views = (View(rover.CAMERA, rover.CAMERA),)
    memory = 3
    measured = ("oracle_success", "spl", "distance")
    coloured: Mapping[str, tuple[Shape, ...]] = dict.fromkeys(COLOURS, SHAPES)
    wordings = WORDINGS
    litter = Shape("cylinder", (0.1, 0.1, 0.2))
    along_walls = False

    def __init__(self, options: NavigateOptions) -> None:
        self.options, self.spec, self.progress = options, spec(options), options.progress
        self.backdrop = ("floor", "west", "east", "south", "north", *rooms.inner_walls(options.rooms))

    def mjcf(self) -> str:
        """See `Task.mjcf`."""
        return rooms.rooms_xml(self.options.rooms)

    def begin(self, key: EpisodeKey) -> Start:
        """See `Task.begin`."""
        visible = self.options.visible_start and self.options.rooms == 1
        scene = rooms.draw_scene(key, self.options.rooms, visible, along_walls=self.along_walls)
        facts = np.array([scene.target, scene.way - self.options.tolerance, *scene.doors])
        return Start(scene.start, rooms.mocaps(scene), scene.start, facts, scene.instruction)

    def elsewhere(self) -> Navigate:
        """See `Variable.elsewhere`."""
        other = copy.copy(self)
        other.along_walls = True
        return other

    def staying(self, now: Now, last: Float64) -> Float64:
        """See `Variable.staying`."""
        return np.zeros_like(last)

    def strewn(self, start: Start, rng: np.random.Generator, count: int) -> Float64:
        """See `Variable.strewn`: beside the shortest way, so that the box that is meant stays in sight too."""
        target, doors = start.facts[:1].astype(np.int64), start.facts[None, 2:]
        present = start.mocap[1:5, 2] > 0
        boxes = np.where(present[:, None], start.mocap[1:5, :2], FAR)
        around = rooms.ground(self.options.rooms, doors, boxes[None], target)
        _, way = shortest(start.qpos[None, :2], boxes[target], around)
        corners = np.concatenate([start.qpos[None, :2], way[0]])
        line = corners[:-1, None] + np.diff(corners, axis=0)[:, None] * np.linspace(0, 1, ALONG)[:, None]
        half = np.array([self.options.rooms, 1.0]) * rooms.ROOM / 2 - BESIDE_WALL
        others = np.concatenate([line.reshape(-1, 2), boxes[present]])
        return scattered(rng, np.stack([-half, half], -1), others, ASIDE, count)

    def drive(self, now: Now, actions: Float64) -> Drive:
        """See `Task.drive`; the actions are waypoints in the base's frame at the first frame."""
        pose = now.readings[:, :3]
        course = rover.follow(pose, actions)
        speeds = np.concatenate([course.speeds, course.speeds[:, -1:]], 1)
        # One step late, so that the sensors, which show the beginning of a step, show the command of that moment.
        aim = np.concatenate([pose[:, None], course.poses], 1)
        n, steps = aim.shape[:2]
        mocap = np.broadcast_to(now.mocap[:, None], (n, steps, *now.mocap.shape[1:])).copy()
        mocap[:, :, 0, :2], mocap[:, :, 0, 3:] = aim[..., :2], rooms.upright(aim[..., 2])
        poses = [mocap[..., :3].reshape(n, steps, -1), mocap[..., 3:].reshape(n, steps, -1)]
        every = self.substeps
        return Drive(np.concatenate([speeds, *poses], -1), course.poses[:, every - 1 :: every])

    def judge(self, now: Now, readings: Float64) -> Judged:
        """See `Task.judge`."""
        path = np.concatenate([now.readings[:, None, :2], readings[..., :2]], 1)
        target, near = self._target(now), self._near(now, readings[..., :2])
        at_target = near[np.arange(len(near)), :, target]
        memory = np.empty((*readings.shape[:2], self.memory))
        legs = np.linalg.norm(np.diff(path, axis=1), axis=-1)
        memory[..., TRAVELLED] = now.memory[:, None, TRAVELLED] + np.cumsum(legs, 1)
        came = np.concatenate([now.memory[:, None, CAME_NEAR] > 0, at_target], 1)
        memory[..., CAME_NEAR] = np.logical_or.accumulate(came, 1)[:, 1:]
        still, stood = _still(now, readings), now.memory[:, STOOD]
        for step in range(readings.shape[1]):
            stood = memory[:, step, STOOD] = np.where(still[:, step], stood + 1, 0)
        stopped = memory[..., STOOD] >= STOP
        return Judged(stopped & at_target, stopped & near.any(-1) & ~at_target, memory)

    def describe(self, now: Now) -> FloatArray:
        """See `Task.describe`; all but the base's own pose and the doorways is in the base's frame."""
        pose, boxes = now.readings[:, :3], now.mocap[:, 1:5, :3]
        present = _present(now)
        flat = np.where(present[..., None], rover.to_base(pose, boxes[..., :2]), 0.0)
        seen = np.concatenate([flat, np.where(present, boxes[..., 2], 0.0)[..., None], present[..., None]], -1)
        target = seen[np.arange(len(seen)), self._target(now), :3]
        turn = np.stack([np.cos(pose[:, 2]), np.sin(pose[:, 2])], -1)
        parts = [np.zeros_like(target), target, seen.reshape(len(seen), -1), pose[:, :2], turn, now.facts[:, 2:]]
        return np.concatenate(parts, -1).astype(np.float32)

    def expert(self, privileged: FloatArray, disturbed: Disturbance | None = None) -> Float64:
        """See `Task.expert`."""
        state, first = privileged.astype(np.float64), self.spec.privileged.index
        x, y, cos, sin = state[:, first("base_x") : first("base_sin") + 1].T
        pose, doors = np.stack([x, y, np.arctan2(sin, cos)], -1), state[:, first("base_sin") + 1 :]
        boxes = state[:, first("red_x") : first("base_x")].reshape(-1, len(COLOURS), 4)
        target = state[:, None, first("target_x") : first("target_y") + 1]
        # which box it is, is to be seen from where it stands
        meant = np.linalg.norm(boxes[..., :2] - target, axis=-1) + FAR * (boxes[..., 3] == 0)
        goal = rover.to_room(pose, target)[:, 0]
        places = np.where(boxes[..., 3:] > 0, rover.to_room(pose, boxes[..., :2]), FAR)
        _, way = shortest(pose[:, :2], goal, rooms.ground(self.options.rooms, doors, places, meant.argmin(-1)))
        speed = np.full(len(state), pilot.SPEED)
        if disturbed is not None:
            speed = speed * disturbed.pace
            way = way + disturbed.offset[:, None, :2]
        gap = self.options.tolerance - INSIDE
        return pilot.waypoints(pose, way, gap, speed, self.spec.embodiment.action.horizon)

    def things(self, now: Now) -> Things:
        """See `Task.things`; the base's own point lies on the floor before it."""
        pose = now.readings[:, :3]
        own = rover.to_room(pose, np.broadcast_to([LOOK_AHEAD, 0.0], (len(pose), 1, 2)))
        points = np.concatenate([now.mocap[:, 1:5, :3], np.pad(own, ((0, 0), (0, 0), (0, 1)))], 1)
        present = np.pad(_present(now), ((0, 0), (0, 1)), constant_values=True)
        return Things(THINGS, points, present, self._target(now))

    def seen_at(self, now: Now, points: Float64) -> Float64:
        """See `Task.seen_at`; what an inner wall hides is nowhere in the picture."""
        place, frame = rover.eye(now.readings[:, :3])
        seen, eye = np.ones(points.shape[:2], bool), place[:, None, :2]
        for plane, door in zip(rooms.planes(self.options.rooms), now.facts[:, 2:].T, strict=True):
            seen &= through(eye, points[..., :2], plane, door[:, None], rooms.DOOR / 2)
        return np.where(seen[..., None], project(place, frame, rover.FOVY, points), OUTSIDE)

    def measures(self, now: Now, success: BoolArray) -> Mapping[str, FloatArray]:
        """`oracle_success` (0 or 1), `spl` (arXiv 1807.06757) and `distance`, the way that is left to the
        target's centre in metres."""
        least, target = now.facts[:, 1], self._target(now)
        boxes = np.where(_present(now)[..., None], now.mocap[:, 1:5, :2], FAR)
        goal, here = boxes[np.arange(len(boxes)), target], now.readings[:, :2]
        left, _ = shortest(here, goal, rooms.ground(self.options.rooms, now.facts[:, 2:], boxes, target))
        left = np.where(np.isfinite(left), left, np.linalg.norm(goal - here, axis=-1))
        spl = success * least / np.maximum(least, now.memory[:, TRAVELLED])
        values = {"oracle_success": now.memory[:, CAME_NEAR], "spl": spl, "distance": left}
        return {name: value.astype(np.float32) for name, value in values.items()}

    def _target(self, now: Now) -> np.ndarray:
        return now.facts[:, 0].astype(np.int64)

    def _near(self, now: Now, places: Float64) -> BoolArray:
        """[N, H, 4] whether places [N, H, 2] are within the tolerance of each box."""
        apart = np.linalg.norm(places[:, :, None] - now.mocap[:, None, 1:5, :2], axis=-1)
        near: BoolArray = (apart <= self.options.tolerance) & _present(now)[:, None]
        return near


def _present(now: Now) -> BoolArray:
    present: BoolArray = now.mocap[:, 1:5, 2] > 0
    return present


def _still(now: Now, readings: Float64) -> BoolArray:
    """[N, H] whether each control step's command was to stand still; every chunk's command begins at the base."""
    aims = np.concatenate([now.readings[:, None, :3], rover.commanded(readings)], 1)
    moved = np.linalg.norm(np.diff(aims[..., :2], axis=1), axis=-1)
    turned = np.abs(rover.wrap(np.diff(aims[..., 2], axis=1)))
    still: BoolArray = (moved < STILL) & (turned < STILL_TURN)
    return still
