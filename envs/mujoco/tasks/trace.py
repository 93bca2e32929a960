"""Trajectory prediction: say in one chunk along which points of the picture the gripper would go to the named block.

Nothing moves but an unseen pen, a mocap body whose x and y are the picture's u and v. The truth is the straight way in
the picture, in equal steps; an answer is scored by its average and its final displacement error (ADE, FDE; Alahi et al.
2016, "Social LSTM").
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from envs.base import Disturbance
from envs.mujoco.bodies.base import Body
from envs.mujoco.task import Drive, EpisodeKey, Float64, Judged, Now, Start, Task, Things
from envs.mujoco.tasks.reach import Layout, Reach
from envs.mujoco.tasks.tabletop import COLOURS, THINGS
from envs.mujoco.variation import Shape
from rl_finetune.spec import ActionConvention, EmbodimentSpec, EnvSpec
from rl_finetune.types import BoolArray, FloatArray

HORIZON = 8
PHRASES = ("trace the way to the {c} block", "draw the path to the {c} block", "show how to get to the {c} block")
TRACER = EmbodimentSpec(
    tag="tracer",
    arms="",
    views=("ego",),
    action=ActionConvention(channels=2, horizon=HORIZON, control="trace", rotation="none", gripper="none", rate=5.0),
)
PEN = '<body name="pen" mocap="true"><site name="pen" group="5"/></body>'


class Trace(Task):
    """One-chunk episodes over the scenes of a reach task."""

    memory = 2
    measured = ("ade", "fde")
    backdrop, litter = Reach.backdrop, Reach.litter
    wordings = ("sketch a line that ends at the {c} cube", "mark where a hand would travel if it wanted what is {c}")

    def __init__(self, body: Body, name: str, *, image_size: int, tolerance: float) -> None:
        """Describe the task.

        Args:
            body: who stands in the picture; it does not move.
            name: registered name.
            image_size: side of the picture in pixels.
            tolerance: picture widths; ADE and FDE within it are a success.
        """
        self._scene = Reach(body, name, image_size=image_size, tolerance=0.03, time_limit=HORIZON)
        self.tolerance, self.coloured = tolerance, self._scene.coloured
        self.timestep, self.substeps, self.views = self._scene.timestep, 1, self._scene.views
        self.spec = EnvSpec(
            name=name, embodiment=TRACER, image_size=image_size, time_limit=HORIZON,
            privileged=(*self._scene.spec.privileged, "from_u", "from_v", "to_u", "to_v"),
            tasks=tuple(phrase.format(c=colour) for colour in COLOURS for phrase in PHRASES),
            expert=True, things=THINGS,
        )  # fmt: skip

    def mjcf(self) -> str:
        """See `Task.mjcf`: the scene's, and the pen as its last mocap body and its last sensor."""
        scene = self._scene.mjcf()
        with_pen = scene.replace("</worldbody>", f"{PEN}</worldbody>")
        return with_pen.replace("</sensor>", '<framepos objtype="site" objname="pen"/></sensor>')

    def begin(self, key: EpisodeKey) -> Start:
        """See `Task.begin`."""
        start = self._scene.begin(key)
        target = int(Layout.of(start.facts[None]).target[0])
        words = PHRASES[(key.scene + key.episode) % len(PHRASES)].format(c=COLOURS[target])
        pen = np.array([0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0])
        return Start(start.qpos, np.concatenate([start.mocap, pen[None]]), start.aim, start.facts, words)

    def elsewhere(self) -> Trace:
        """See `Variable.elsewhere`."""
        other = copy.copy(self)
        other._scene = self._scene.elsewhere()
        return other

    def reshaped(self, start: Start, shapes: Mapping[str, Shape]) -> Start:
        """See `Variable.reshaped`."""
        return self._scene.reshaped(start, shapes)

    def strewn(self, start: Start, rng: np.random.Generator, count: int) -> Float64:
        """See `Variable.strewn`."""
        return self._scene.strewn(replace(start, mocap=start.mocap[:-1]), rng, count)

    def drive(self, now: Now, actions: Float64) -> Drive:
        """See `Task.drive`: only the pen moves."""
        n, h = actions.shape[:2]
        still = np.zeros((n, h, self._scene.body.embodiment.action.channels))
        controls = self._scene.body.drive(now.readings, now.aim, still, 1)[0]
        mocap = np.repeat(now.mocap[:, None], h + 1, 1)
        # A sensor shows the mocap bodies of its own physics step already: one behind, the pen is read where it was sent
        mocap[:, 1:, -1, :2] = np.clip(actions, -1.0, 2.0)
        flat = [mocap[..., :3].reshape(n, h + 1, -1), mocap[..., 3:].reshape(n, h + 1, -1)]
        ctrl = np.concatenate([controls, controls[:, -1:]], 1)
        return Drive(np.concatenate([ctrl, *flat], -1), np.repeat(now.aim[:, None], h, 1))

    def judge(self, now: Now, readings: Float64) -> Judged:
        """See `Task.judge`: memory is the sum of errors so far, and the last one."""
        pen = readings[..., -3:-1]
        begin, end = self._ends(now)
        share = (np.arange(1, HORIZON + 1) / HORIZON)[:, None]
        error = np.sqrt(((pen - begin[:, None] - (end - begin)[:, None] * share) ** 2).sum(-1))
        memory = np.stack([np.cumsum(error, axis=1), error], -1)
        last = np.arange(HORIZON) == HORIZON - 1
        close = (memory[..., 0] / HORIZON <= self.tolerance) & (error <= self.tolerance)
        return Judged(last & close, last & ~close, memory)

    def measures(self, now: Now, success: BoolArray) -> Mapping[str, FloatArray]:
        """See `Task.measures`: in picture widths."""
        return {"ade": (now.memory[:, 0] / HORIZON).astype(np.float32), "fde": now.memory[:, 1].astype(np.float32)}

    def describe(self, now: Now) -> FloatArray:
        """See `Task.describe`."""
        return np.concatenate([self._scene.describe(now), *self._ends(now)], -1).astype(np.float32)

    def things(self, now: Now) -> Things:
        """See `Task.things`."""
        return self._scene.things(now)

    def seen_at(self, now: Now, points: Float64) -> Float64:
        """See `Task.seen_at`."""
        return self._scene.seen_at(now, points)

    def drawn(self, now: Now) -> Float64:
        """See `Task.drawn`."""
        return np.concatenate([self._scene.drawn(now_without_pen(now)), now.mocap[:, -1:]], 1)

    def expert(self, privileged: FloatArray, disturbed: Disturbance | None = None) -> Float64:
        """See `Task.expert`."""
        begin, end = privileged[:, None, -4:-2].astype(np.float64), privileged[:, None, -2:].astype(np.float64)
        if disturbed is not None:
            end = end + disturbed.offset[:, None, :2]
        return begin + (end - begin) * (np.arange(1, HORIZON + 1) / HORIZON)[:, None]

    def _ends(self, now: Now) -> tuple[Float64, Float64]:
        """Where the way begins and ends in the picture, [N, 2] each."""
        things = self._scene.things(now)
        points = self._scene.seen_at(now, things.points)
        return points[:, -1], points[np.arange(len(points)), things.target]


def now_without_pen(now: Now) -> Now:
    """The scene's own state."""
    return Now(now.readings, now.mocap[:, :-1], now.aim, now.facts, now.memory, now.steps)
