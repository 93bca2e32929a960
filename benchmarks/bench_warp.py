"""Environment steps per second of the two MuJoCo engines, side by side, over the number of worlds.

    python -m benchmarks.bench_warp out.json [--worlds 64 256 1024] [--size 64] [--device cpu|cuda:0] [--seconds 3]

    physics    a chunk without a picture
    boundary   one picture of every world at the end of the chunk: what training does
    every      one picture of every world after each control step

Both engines are given the same starts and controls, of `widowx_reach`, and run the whole chunk from the same states
again and again. An environment step is one control step of one world (0.2 s of robot time). A row counts full chunks
after one that is not counted, and ends when the device has finished. Every row runs in a process of its own, so that
its peak memory is its own; on a GPU the device's memory is given instead.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from envs.mujoco.catalogue import WORLDS
from envs.mujoco.engine import Engine
from envs.mujoco.task import EpisodeKey, Now, Task

ROOT = Path(__file__).resolve().parents[1]
NAME = "widowx_reach"
PICTURES = ("physics", "boundary", "every")
ENGINES = ("mujoco", "mujoco_warp")


@dataclass(frozen=True, slots=True)
class Row:
    """What was measured in one process."""

    engine: str
    """`mujoco` or `mujoco_warp`."""
    worlds: int
    """N."""
    pictures: str
    """`physics`, `boundary` or `every`."""
    rate: float
    """Environment steps per second."""
    chunks: int
    """Chunks that were counted."""
    seconds: float
    """How long they took."""
    first: float
    """Seconds of building the engine and of the chunk that was not counted, compilation included."""
    megabytes: float
    """Peak memory of the process, or memory taken on the GPU."""
    load: float
    """Processes that wanted a core at the end, on average over a minute: above the cores, others were in the way."""


def main() -> None:
    """Run every row in its own process, print a table, write the JSON."""
    args = _arguments()
    if args.row:
        engine, worlds, pictures = args.row.split(",")
        print(json.dumps(asdict(measure(engine, int(worlds), pictures, args))))
        return
    rows = []
    print(f"{'engine':<12} {'worlds':>6} {'pictures':<9} {'steps/s':>9} {'first s':>8} {'MB':>7} {'load':>5}")
    for worlds in args.worlds:
        for pictures in PICTURES:
            for engine in ENGINES:
                row = _in_own_process(f"{engine},{worlds},{pictures}", args)
                rows.append(row)
                figures = f"{row.rate:9.0f} {row.first:8.1f} {row.megabytes:7.0f} {row.load:5.1f}"
                print(f"{row.engine:<12} {row.worlds:>6} {row.pictures:<9} {figures}", flush=True)
    machine = {"cpus": os.cpu_count(), "platform": platform.machine(), "warp_device": args.device}
    report = {"unit": "environment steps per second", "world": NAME, "image_size": args.size, "machine": machine}
    args.out.write_text(json.dumps(report | {"rows": [asdict(row) for row in rows]}, indent=2) + "\n")


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="environment steps per second of both engines")
    parser.add_argument("out", type=Path, help="JSON file to write")
    parser.add_argument("--worlds", type=int, nargs="+", default=[64, 256, 1024], help="numbers of worlds")
    parser.add_argument("--size", type=int, default=64, help="side of the pictures in pixels (default 64)")
    parser.add_argument("--device", default="cpu", help="warp's device: cpu (default) or cuda:0; mujoco uses one core")
    parser.add_argument("--seconds", type=float, default=3.0, help="measured seconds a row, at least (default 3)")
    parser.add_argument("--row", help=argparse.SUPPRESS)
    return parser.parse_args()


def _in_own_process(row: str, args: argparse.Namespace) -> Row:
    command = [sys.executable, "-m", "benchmarks.bench_warp", str(args.out), "--row", row]
    command += ["--size", str(args.size), "--device", args.device, "--seconds", str(args.seconds)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"row {row!r} failed:\n{done.stderr}")
    return Row(**json.loads(done.stdout.splitlines()[-1]))


def measure(engine: str, worlds: int, pictures: str, args: argparse.Namespace) -> Row:
    """One row, in this process."""
    begun = time.perf_counter()
    world = WORLDS[NAME]
    task = world.task(world.options(image_size=args.size))
    held, finish, memory = _warp(task, worlds, args) if engine == "mujoco_warp" else _mujoco(task, worlds, args)
    chunk = _chunk(held, task, worlds, pictures)
    chunk()
    finish()
    first = time.perf_counter() - begun
    chunks, begun = 0, time.perf_counter()
    while (spent := time.perf_counter() - begun) < args.seconds or not chunks:
        chunk()
        finish()
        chunks += 1
    steps = worlds * task.spec.embodiment.action.horizon * chunks
    return Row(engine, worlds, pictures, steps / spent, chunks, spent, first, memory(), os.getloadavg()[0])


def _chunk(engine: Engine, task: Task, worlds: int, pictures: str) -> Callable[[], None]:
    """A function that runs one chunk from the beginnings of the episodes, and draws."""
    rows, horizon = np.arange(worlds), task.spec.embodiment.action.horizon
    starts = [task.begin(EpisodeKey(0, env, 0)) for env in rows]
    engine.place(rows, starts)
    mocap, aim, facts = (np.stack([getattr(start, name) for start in starts]) for name in ("mocap", "aim", "facts"))
    now = Now(engine.readings(rows), mocap, aim, facts, np.zeros((worlds, task.memory)), np.zeros(worlds, np.int64))
    shape = (worlds, horizon, task.spec.embodiment.action.channels)
    controls = task.drive(now, 0.02 * np.random.default_rng(0).standard_normal(shape)).controls
    drawn = {"physics": (), "boundary": (horizon - 1,), "every": tuple(range(horizon))}[pictures]

    def chunk() -> None:
        engine.advance(controls)
        for step in drawn:
            engine.draw(rows, mocap, step)

    return chunk


Held = tuple[Engine, Callable[[], object], Callable[[], float]]
"""An engine, how to wait for it, and megabytes that it has taken."""


def _mujoco(task: Task, worlds: int, args: argparse.Namespace) -> Held:
    from envs.mujoco.cpu import CpuEngine

    return CpuEngine(task, worlds, args.size), lambda: None, _process_memory


def _warp(task: Task, worlds: int, args: argparse.Namespace) -> Held:
    import warp as wp

    from envs.mujoco.warp import WarpEngine

    device = wp.get_device(args.device)
    free = device.free_memory if device.is_cuda else 0
    engine = WarpEngine(task, worlds, args.size, device=args.device)
    memory = (lambda: (free - device.free_memory) / 1e6) if device.is_cuda else _process_memory
    return engine, lambda: wp.synchronize_device(device), memory


def _process_memory() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3


if __name__ == "__main__":
    main()
