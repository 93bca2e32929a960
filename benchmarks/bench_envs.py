"""Environment steps per second: our vector environment against a plain gymnasium one of the same scene, side by side.

    python -m benchmarks.bench_envs out.json [--envs 16] [--seconds 3]

The baseline is what one writes first: `gymnasium.vector.SyncVectorEnv` around an environment that steps MuJoCo and
draws with `mujoco.Renderer` as it comes, every step. Then one thing at a time is changed:

    settings   shadows and reflections off; or all of ours: no multisampling, coarse curved surfaces, and a rasteriser
               that draws in the calling thread
    boundary   one picture a chunk of eight steps instead of one a step
    vector     chunks of all environments stepped by one call into C; then spread over two processes

Every row runs in a process of its own, because the rasteriser reads its thread count once. Physics, scenes, the law of
the actions and the picture size are the same in all rows; a step is one control step of one environment (0.2 s of robot
time). Rotation commands are left out of the baseline, which only makes it faster.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import gymnasium
import mujoco
import numpy as np

import envs
from envs.mujoco import kinematics as kin
from envs.mujoco.bodies.widowx import WidowX
from envs.mujoco.rendering import OFF, Renderer
from envs.mujoco.task import EpisodeKey
from envs.mujoco.tasks.reach import Layout, Reach
from envs.mujoco.tasks.tabletop import CAMERA
from rl_finetune.types import ActionChunk, SeedKeys

ROOT = Path(__file__).resolve().parents[1]
SIZE = 64
ACTION_SCALE = 0.02
BODY = WidowX()
TASK = Reach(BODY, "widowx_reach", image_size=SIZE, tolerance=0.03, time_limit=32)
HORIZON = TASK.spec.embodiment.action.horizon


@dataclass(frozen=True, slots=True)
class Row:
    """One way to run the scene."""

    name: str
    """What stands in the table."""
    vector: str
    """`gymnasium` (one environment at a time) or `ours` (a chunk of all environments in one call)."""
    settings: str
    """Of rendering: MuJoCo's `default`, the same with `no shadows`, or `ours`."""
    every: int
    """Environment steps between two pictures."""
    workers: int = 0
    """Processes beside the caller's."""


ROWS = {
    "baseline": Row("gymnasium, default settings, picture every step", "gymnasium", "default", 1),
    "shadows": Row("gymnasium, no shadows, picture every step", "gymnasium", "no shadows", 1),
    "settings": Row("gymnasium, our settings, picture every step", "gymnasium", "ours", 1),
    "boundary": Row("gymnasium, default settings, picture every chunk", "gymnasium", "default", HORIZON),
    "both": Row("gymnasium, our settings, picture every chunk", "gymnasium", "ours", HORIZON),
    "ours": Row("ours, in this process", "ours", "ours", HORIZON),
    "spread": Row("ours, 2 worker processes", "ours", "ours", HORIZON, workers=2),
}


def main() -> None:
    """Run every row in its own process, print a table, write the JSON."""
    parser = argparse.ArgumentParser(description="environment steps per second, side by side")
    parser.add_argument("out", type=Path, help="JSON file to write")
    parser.add_argument("--envs", type=int, default=16, help="environments in every row (default 16)")
    parser.add_argument("--seconds", type=float, default=3.0, help="measured seconds a row (default 3)")
    parser.add_argument("--row", choices=ROWS, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.row:
        print(measure(ROWS[args.row], args.envs, args.seconds))
        return
    rates = {key: _in_own_process(key, args) for key in ROWS}
    args.out.write_text(json.dumps(report(rates, args.envs, args.seconds), indent=2) + "\n")
    print(f"{'steps/s':>9} {'ratio':>7}  {args.envs} environments, {SIZE} px")
    for key, row in ROWS.items():
        print(f"{rates[key]:9.0f} {rates[key] / rates['baseline']:7.1f}  {row.name}")


def report(rates: dict[str, float], num_envs: int, seconds: float) -> dict[str, Any]:
    """What is written: every row, the total ratio, and the factors it is made of (they multiply to it)."""
    steps = ("baseline", "settings", "both", "ours", "spread")
    return {
        "unit": "environment steps per second",
        "machine": {"cpus": os.cpu_count(), "platform": platform.machine(), "load": os.getloadavg()[0]},
        "envs": num_envs,
        "image_size": SIZE,
        "seconds": seconds,
        "rows": [
            asdict(row) | {"rate": rates[key], "ratio": rates[key] / rates["baseline"]} for key, row in ROWS.items()
        ],
        "ratio": rates["spread"] / rates["baseline"],
        "factors": {
            name: rates[after] / rates[before]
            for name, before, after in zip(
                ("settings", "boundary", "one_call", "processes"), steps, steps[1:], strict=False
            )
        },
        "boundary_alone": rates["boundary"] / rates["baseline"],
    }


def _in_own_process(key: str, args: argparse.Namespace) -> float:
    command = [sys.executable, "-m", "benchmarks.bench_envs", str(args.out), "--row", key]
    command += ["--envs", str(args.envs), "--seconds", str(args.seconds)]
    variables = {name: value for name, value in os.environ.items() if name != "LP_NUM_THREADS"}
    done = subprocess.run(
        command, cwd=ROOT, env=variables | {"MUJOCO_GL": "egl"}, capture_output=True, text=True, timeout=120
    )
    if done.returncode:
        raise RuntimeError(f"row {key!r} failed:\n{done.stderr}")
    return float(done.stdout.splitlines()[-1])


def measure(row: Row, num_envs: int, seconds: float) -> float:
    """Environment steps per second of one row, after one warm-up chunk."""
    chunk = _ours(row, num_envs) if row.vector == "ours" else _gymnasium(row, num_envs)
    chunk()
    steps, begun = 0, time.perf_counter()
    while (spent := time.perf_counter() - begun) < seconds or not steps:
        steps += chunk()
    return steps / spent


def _ours(row: Row, num_envs: int) -> Callable[[], int]:
    """A function that steps one chunk and returns the number of environment steps in it."""
    env = envs.make("widowx_reach", num_envs, workers=row.workers, image_size=SIZE)
    env.reset(SeedKeys(0, np.arange(num_envs), np.zeros(num_envs, np.int64)))
    rng, mask = np.random.default_rng(0), np.ones((num_envs, HORIZON, 7), bool)

    def chunk() -> int:
        actions = (ACTION_SCALE * rng.standard_normal(mask.shape)).astype(np.float32)
        return int(env.step_chunk(ActionChunk(actions, mask)).steps_executed.sum())

    return chunk


def _gymnasium(row: Row, num_envs: int) -> Callable[[], int]:
    """A function that steps every environment eight times and returns the number of environment steps."""
    if row.settings != "ours":
        os.environ.pop("LP_NUM_THREADS", None)  # our package set it when it was imported; Mesa has not read it yet
    env = gymnasium.vector.SyncVectorEnv([lambda: PlainReach(row.settings, row.every)] * num_envs)
    env.reset(seed=list(range(num_envs)))
    rng = np.random.default_rng(0)

    def chunk() -> int:
        for _ in range(HORIZON):
            env.step((ACTION_SCALE * rng.standard_normal((num_envs, 7))).astype(np.float32))
        return HORIZON * num_envs

    return chunk


class PlainReach(gymnasium.Env[np.ndarray, np.ndarray]):
    """The reach scene with one arm, stepped and drawn from Python."""

    def __init__(self, settings: str, every: int) -> None:
        """Build the scene with `Row.settings`, to be drawn every `every` steps."""
        self.observation_space = gymnasium.spaces.Box(0, 255, (SIZE, SIZE, 3), np.uint8)
        self.action_space = gymnasium.spaces.Box(-1, 1, (7,), np.float32)
        self._model = mujoco.MjModel.from_xml_string(TASK.mjcf())
        self._data = mujoco.MjData(self._model)
        self._ours = Renderer(self._model, SIZE) if settings == "ours" else None
        self._theirs = None if settings == "ours" else mujoco.Renderer(self._model, SIZE, SIZE)
        if self._theirs is not None and settings == "no shadows":
            self._theirs.scene.flags[[int(flag) for flag in OFF]] = False
        self._every, self._seed, self._episode = every, 0, 0
        self._picture = np.zeros((SIZE, SIZE, 3), np.uint8)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        """Begin the next scene."""
        super().reset(seed=seed)
        self._seed = self._seed if seed is None else seed
        start, data = TASK.begin(EpisodeKey(0, self._seed, self._episode)), self._data
        self._episode, self._steps = self._episode + 1, 0
        mujoco.mj_resetData(self._model, data)
        data.qpos[:] = start.qpos
        data.mocap_pos[:], data.mocap_quat[:] = start.mocap[:, :3], start.mocap[:, 3:]
        mujoco.mj_forward(self._model, data)
        self._layout = Layout.of(start.facts[None])
        return self._draw(), {}

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        """Move for one control step."""
        data, model = self._data, self._model
        if self._steps % HORIZON == 0:
            self._origin = data.site("tool").xpos.copy()
        limits = WidowX.limits
        target = np.clip(self._origin + action[:3], limits.box[:, 0], limits.box[:, 1])
        data.mocap_pos[0] += kin.limit_length(target - data.mocap_pos[0], limits.travel)
        data.ctrl[:] = BODY.fingers(np.clip(action[6], -1.0, 1.0))
        mujoco.mj_step(model, data, nstep=TASK.substeps)
        mujoco.mj_kinematics(model, data)
        self._steps += 1
        gaps = np.linalg.norm(self._layout.tops[0] - data.site("tool").xpos, axis=1)
        touched = self._layout.present[0] & (gaps <= TASK.tolerance)
        over, cut = bool(touched.any()), self._steps >= TASK.spec.time_limit
        if self._steps % self._every == 0 or over:
            self._picture = self._draw()
        return self._picture, float(touched[self._layout.target[0]]), over, cut and not over, {}

    def _draw(self) -> np.ndarray:
        self._data.mocap_pos[-1] = [*self._data.site("tool").xpos[:2], 0.001]
        mujoco.mj_kinematics(self._model, self._data)
        if self._theirs is not None:
            self._theirs.update_scene(self._data, CAMERA)
            picture: np.ndarray = self._theirs.render()
            return picture
        assert self._ours is not None
        picture = np.empty_like(self._picture)
        self._ours.draw(self._data, CAMERA, picture)
        return picture


if __name__ == "__main__":
    main()
