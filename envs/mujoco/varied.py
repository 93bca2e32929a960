"""Any task, varied: its beginnings are perturbed by a suite or randomised, its actions may arrive late or with noise.

    key -> inner.begin -> perturb, randomise -> Start(variation, facts + delay, noise, sway; mocap + distractors)
    now -> without these additions -> inner.drive, judge, describe, ...

The inner task never learns of it. Everything random is drawn at the beginning, so that it follows from the key.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np

from envs.base import Disturbance
from envs.mujoco import kinematics as kin
from envs.mujoco import randomisation, suites
from envs.mujoco.options import Randomised, Suite
from envs.mujoco.task import Drive, EpisodeKey, Float64, Judged, Now, Start, Task, Things
from envs.mujoco.tasks.tabletop import PARKED
from envs.mujoco.variation import Property, Rgb, Shape, Variation
from envs.mujoco.widowx import numbers
from rl_finetune.types import BoolArray, FloatArray

SWAY = 6
"""Facts that tell how the camera has been moved: shift, turn."""


@dataclass(frozen=True, slots=True)
class Wish:
    """What is to be varied."""

    suite: Suite = "none"
    """Perturbation suite."""
    kinds: tuple[Randomised, ...] = ()
    """Kinds of randomisation."""
    strength: float = 1.0
    """Of the randomisation."""

    def __bool__(self) -> bool:
        return self.suite != "none" or bool(self.kinds)

    @property
    def needs(self) -> frozenset[Property]:
        """What an engine must be able to vary."""
        asked: dict[Property, bool] = {
            "looks": self.suite in ("colour", "background", "lighting", "all") or "visual" in self.kinds,
            "shapes": self.suite in ("instance", "all"),
            "dynamics": bool({"mass", "friction"} & {*self.kinds}),
        }
        return frozenset(name for name, is_asked in asked.items() if is_asked)


class Varied(Task):
    """The task `inner`, varied as wished."""

    def __init__(self, inner: Task, wish: Wish) -> None:
        """Wrap a task.

        Raises:
            UserError: the task has nothing that could be varied in this way.
        """
        randomisation.check(inner, wish.kinds, wish.strength)
        self.inner, self.wish = inner, wish
        self.spec, self.views, self.memory, self.measured = inner.spec, inner.views, inner.memory, inner.measured
        self.timestep, self.substeps, self.progress = inner.timestep, inner.substeps, inner.progress
        self._axes, self._action = suites.axes(inner, wish.suite), inner.spec.embodiment.action
        if "paraphrase" in self._axes:
            self.spec = replace(inner.spec, tasks=suites.rewordings(inner))
        self._far = inner.elsewhere() if "position" in self._axes else None
        self._litter = suites.LITTER if "distractors" in self._axes else ()
        self._last = self._action.channels if "latency" in wish.kinds else 0
        noisy = "action_noise" in wish.kinds
        self._steps = self.spec.time_limit + self._action.horizon if noisy else 0
        self._facts = 1 + SWAY + self._steps * self._action.channels

    def mjcf(self) -> str:
        """See `Task.mjcf`; distractors come last."""
        shape = self.inner.litter
        if not self._litter or shape is None:
            return self.inner.mjcf()
        size = numbers((shape.half[0], shape.half[2]))
        things = "".join(
            f'<body name="{name}" mocap="true"><geom name="{name}" type="cylinder" size="{size}" '
            f'rgba="{numbers(colour)} 1" contype="2" conaffinity="1"/></body>'
            for name, colour in zip(self._litter, suites.STRANGE.values(), strict=True)
        )
        return self.inner.mjcf().replace("</worldbody>", f"{things}</worldbody>", 1)

    def begin(self, key: EpisodeKey) -> Start:
        """See `Task.begin`."""
        start = (self._far or self.inner).begin(key)
        variation = self._variation(key)
        start = self.inner.reshaped(start, variation.shapes)
        words, mocap = start.instruction, start.mocap
        if "paraphrase" in self._axes:
            words = suites.reworded(self.inner, words, suites.drawing(key, "paraphrase"))
        if self._litter:
            mocap = np.concatenate([mocap, self._strewn(key, start)])
        sway = np.zeros(SWAY) if variation.sway is None else [*variation.sway.shift, *variation.sway.turn]
        noise = np.empty(0)
        if self._steps:
            unit = variation.noise * randomisation.unit_noise(self._action)
            noise = (unit * randomisation.noise_table(key, self._steps, self._action.channels)).ravel()
        facts = np.concatenate([start.facts, [variation.latency], sway, noise])
        aim = np.concatenate([start.aim, np.ones(self._last)])  # nothing has been said: grippers rest open
        return Start(start.qpos, mocap, aim, facts, words, variation)

    def drive(self, now: Now, actions: Float64) -> Drive:
        """See `Task.drive`; what arrives is noisy, and late by some steps in which the targets stay where they are."""
        n, horizon, channels = actions.shape
        own = self._own(now)
        if self._steps:
            noise = now.facts[:, -self._steps * channels :].reshape(n, self._steps, channels)
            steps = now.steps[:, None] + np.arange(horizon)
            actions = actions + noise[np.arange(n)[:, None], steps]
        if self._last:
            actions = self._late(now, own, actions)
        drive = self.inner.drive(own, actions)
        aim = np.concatenate([drive.aim, actions], -1) if self._last else drive.aim
        return Drive(self._with_litter(now, drive.controls), aim)

    def judge(self, now: Now, readings: Float64) -> Judged:
        """See `Task.judge`."""
        return self.inner.judge(self._own(now), readings)

    def describe(self, now: Now) -> FloatArray:
        """See `Task.describe`."""
        return self.inner.describe(self._own(now))

    def expert(self, privileged: FloatArray, disturbed: Disturbance | None = None) -> Float64:
        """See `Task.expert`."""
        return self.inner.expert(privileged, disturbed)

    def staying(self, now: Now, last: Float64) -> Float64 | None:
        """See `Variable.staying`."""
        return self.inner.staying(self._own(now), last)

    def things(self, now: Now) -> Things | None:
        """See `Task.things`."""
        return self.inner.things(self._own(now))

    def measures(self, now: Now, success: BoolArray) -> Mapping[str, FloatArray]:
        """See `Task.measures`."""
        return self.inner.measures(self._own(now), success)

    def seen_at(self, now: Now, points: Float64) -> Float64:
        """See `Task.seen_at`: what a moved camera sees is what the unmoved one sees of points moved the other way."""
        eye = self.inner.fixed_eye()
        if eye is not None:
            _, place, frame = eye
            first = self._inner_facts(now) + 1
            sway = now.facts[:, first : first + SWAY]
            back = kin.matrix_from_quaternion(kin.quaternion_from_vector(-sway[:, 3:]))
            local = np.einsum("ij,npj->npi", frame, points - place) - sway[:, None, :3]
            points = place + np.einsum("ji,njk,npk->npi", frame, back, local)
        return self.inner.seen_at(self._own(now), points)

    def drawn(self, now: Now) -> Float64:
        """See `Task.drawn`."""
        mocap = self.inner.drawn(self._own(now))
        return np.concatenate([mocap, now.mocap[:, mocap.shape[1] :]], 1)

    def _variation(self, key: EpisodeKey) -> Variation:
        found, axes = randomisation.varied(self.inner, key, self.wish.kinds, self.wish.strength), self._axes
        colours: dict[str, Rgb] = dict(found.colours)
        shapes: dict[str, Shape] = {}
        if "colour" in axes:
            colours |= suites.shades(self.inner, suites.drawing(key, "colour"))
        if "background" in axes:
            colours |= suites.backgrounds(self.inner, suites.drawing(key, "background"))
        if "instance" in axes:
            shapes = suites.instances(self.inner, suites.drawing(key, "instance"))
        light = suites.lights(suites.drawing(key, "lighting")) if "lighting" in axes else found.light
        return replace(found, colours=colours, shapes=shapes, light=light)

    def _strewn(self, key: EpisodeKey, start: Start) -> Float64:
        """[D, 7] poses of the distractors."""
        assert self.inner.litter is not None
        poses = np.tile(PARKED, (len(self._litter), 1))
        poses[:, :2] = self.inner.strewn(start, suites.drawing(key, "distractors"), len(poses))
        poses[:, 2] = self.inner.litter.half[2]
        return poses

    def _late(self, now: Now, own: Now, actions: Float64) -> Float64:
        """Actions [N, H, c] moved by each episode's latency, behind ones that hold."""
        last = now.aim[:, -self._last :]
        held = self.inner.staying(own, last)
        assert held is not None  # `randomisation.check`
        delay = now.facts[:, self._inner_facts(now)].astype(np.int64)
        at = np.arange(actions.shape[1]) - delay[:, None]
        moved = actions[np.arange(len(actions))[:, None], np.maximum(at, 0)]
        return np.where((at >= 0)[..., None], moved, held[:, None])

    def _with_litter(self, now: Now, controls: Float64) -> Float64:
        """Controls [N, T, ...] of a model that has the distractors too; they stand still."""
        count = len(self._litter)
        if not count:
            return controls
        bodies = now.mocap.shape[1] - count
        still = now.mocap[:, None, bodies:]
        steps = controls.shape[1]
        head, turns = controls[..., : -4 * bodies], controls[..., -4 * bodies :]
        places, spins = (
            np.broadcast_to(part.reshape(len(now.mocap), 1, -1), (len(now.mocap), steps, part.shape[-1] * count))
            for part in (still[..., :3], still[..., 3:])
        )
        return np.concatenate([head, places, turns, spins], -1)

    def _inner_facts(self, now: Now) -> int:
        return now.facts.shape[1] - self._facts

    def _own(self, now: Now) -> Now:
        """What the inner task knows."""
        facts, aim = now.facts[:, : self._inner_facts(now)], now.aim[:, : now.aim.shape[1] - self._last]
        return replace(now, facts=facts, aim=aim, mocap=now.mocap[:, : now.mocap.shape[1] - len(self._litter)])
