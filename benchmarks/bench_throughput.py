"""Environment steps per second of every simulated world, by picture size and processes.

    python -m benchmarks.bench_throughput benchmarks/results/throughput.json [--worlds aloha_reach] [--envs 32]

Two ways of drawing: `chunk`, as training does it (all views at the chunk boundary), and `step`, a picture of the first
view at every control step as well, for comparison with simulators that draw so. Rows run one after
the other in processes of their own. Actions are small, so that episodes last.

`REFERENCE` holds what was measured on two cores of the same kind of machine before this project began, with one picture
a step and two processes: a primitive-geom arm, and ALOHA with its mesh models. The bar is to be as fast.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import numpy as np

import envs
from envs.mujoco.catalogue import WORLDS
from rl_finetune.types import ActionChunk, SeedKeys

SIZES = (64, 96, 128, 224)
REFERENCE = {
    ("widowx_reach", 64): 4730, ("widowx_reach", 96): 3801, ("widowx_reach", 128): 3160, ("widowx_reach", 224): 2089,
    ("aloha_reach", 64): 1539, ("aloha_reach", 128): 1611, ("aloha_reach", 224): 624,
}  # fmt: skip
"""(world, pixels) -> steps/s with two processes and pictures at every step."""
SCALE = {"delta_ee": 0.01, "waypoint": 0.05, "joint": 0.0, "trace": 0.1}
"""Standard deviation of random actions, in the convention's units; joints hold their place."""


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the table."""

    world: str
    size: int
    workers: int
    """Processes beside the caller's."""
    drawing: str
    """`chunk` or `step`."""
    rate: float = 0.0
    """Environment steps a second."""

    @property
    def reference(self) -> int | None:
        """What the row is to be as fast as."""
        return REFERENCE.get((self.world, self.size)) if self.workers == 2 and self.drawing == "step" else None


def rows(worlds: Sequence[str]) -> list[Row]:
    """Every size for worlds that have a reference, 64 px for all others."""
    referred = {world for world, _ in REFERENCE}
    return [
        Row(world, size, workers, drawing)
        for world in worlds
        for size in (SIZES if world in referred else SIZES[:1])
        for workers in (1, 2)
        for drawing in ("chunk", "step")
    ]


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description="environment steps per second of every world")
    parser.add_argument("out", type=Path, help="JSON file to write; the table goes beside it as .md")
    parser.add_argument("--seconds", type=float, default=3.0, help="measured seconds a row (default 3)")
    parser.add_argument("--envs", type=int, default=32, help="environments in every row (default 32)")
    parser.add_argument("--worlds", default=",".join(WORLDS), help="comma-separated; rows of others stay (default all)")
    parser.add_argument("--row", nargs=4, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.row:
        world, size, workers, drawing = args.row
        print(measure(Row(world, int(size), int(workers), drawing), args.envs, args.seconds))
        return
    load, worlds = os.getloadavg()[0], args.worlds.split(",")
    found = [row for row in _stored(args.out) if row.world not in worlds]
    for row in rows(worlds):
        rate = _apart(row, args)
        found.append(Row(row.world, row.size, row.workers, row.drawing, rate))
        against = "" if row.reference is None else f"  {rate / row.reference:.2f} x the reference"
        print(f"{row.world:18} {row.size:4} px  {row.workers} proc  {row.drawing:5} {rate:9.0f}{against}", flush=True)
    found.sort(key=lambda row: list(WORLDS).index(row.world))
    payload = {
        "unit": "environment steps per second", "envs": args.envs, "seconds": args.seconds,
        "machine": {"cpus": os.cpu_count(), "platform": platform.machine(), "load": load},
        "rows": [asdict(row) | {"reference": row.reference} for row in found],
    }  # fmt: skip
    args.out.write_text(json.dumps(payload, indent=2) + "\n")
    args.out.with_suffix(".md").write_text(table(found))


def _stored(file: Path) -> list[Row]:
    """Rows of earlier calls."""
    names = [field.name for field in fields(Row)]
    rows = json.loads(file.read_text())["rows"] if file.exists() else []
    return [Row(**{name: row[name] for name in names}) for row in rows]


def table(found: list[Row]) -> str:
    """Markdown: a line a world and size."""
    rate = {(r.world, r.size, r.workers, r.drawing): r.rate for r in found}
    lines = [
        "| world | pixels | every chunk, 1 process | 2 | every step, 1 process | 2 | reference | ratio |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for world, size in dict.fromkeys((r.world, r.size) for r in found):
        cells = [f"{rate[world, size, n, d]:,.0f}" for d in ("chunk", "step") for n in (1, 2)]
        given = REFERENCE.get((world, size))
        ratio = f"**{rate[world, size, 2, 'step'] / given:.2f}**" if given else ""
        lines.append(f"| {world} | {size} | {' | '.join(cells)} | {given or ''} | {ratio} |")
    return "\n".join(lines) + "\n"


def measure(row: Row, num_envs: int, seconds: float) -> float:
    """Environment steps per second, after one warm-up chunk."""
    with envs.make(row.world, num_envs, workers=0 if row.workers == 1 else row.workers, image_size=row.size) as env:
        env.filming = row.drawing == "step"
        env.reset(SeedKeys(0, np.arange(num_envs), np.zeros(num_envs, np.int64)))
        chunks = _actions(row, num_envs)
        env.step_chunk(next(chunks))
        steps, spent, begun = 0, 0.0, time.perf_counter()
        while spent < seconds:
            steps += int(env.step_chunk(next(chunks)).steps_executed.sum())
            spent = time.perf_counter() - begun
    return steps / spent


def _actions(row: Row, num_envs: int) -> Iterator[ActionChunk]:
    """Small random actions; of joints, those that hold an arm where it began."""
    with envs.make(row.world, num_envs) as env:
        seen = env.reset(SeedKeys(0, np.arange(num_envs), np.zeros(num_envs, np.int64)))
        convention, rng = env.spec.embodiment.action, np.random.default_rng(0)
        shape = (num_envs, convention.horizon, convention.channels)
        held = np.zeros(shape)
        if convention.control == "joint" and seen.privileged is not None:
            held = np.repeat(env.expert(seen)[:, :1], convention.horizon, 1)
    while True:
        actions = held + SCALE[convention.control] * rng.standard_normal(shape)
        yield ActionChunk(actions.astype(np.float32), np.ones(shape, bool))


def _apart(row: Row, args: argparse.Namespace) -> float:
    """Measured in processes of its own. Worker processes do not film: where two processes draw every step, two
    measurements run at once, each with half of the environments."""
    filmed = row.drawing == "step" and row.workers == 2
    single, share = ("1", args.envs // 2) if filmed else (str(row.workers), args.envs)
    command = [sys.executable, "-m", "benchmarks.bench_throughput", str(args.out), "--seconds", str(args.seconds)]
    command += ["--envs", str(share), "--row", row.world, str(row.size), single, row.drawing]
    running = [
        subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=os.environ | {"MUJOCO_GL": "egl"})
        for _ in range(2 if filmed else 1)
    ]
    said = [process.communicate(timeout=300)[0] for process in running]
    if any(process.returncode for process in running):
        raise RuntimeError(f"row {row} failed")
    return sum(float(text.splitlines()[-1]) for text in said)


if __name__ == "__main__":
    main()
