"""What every world's task asks for, told by who can do it: success of the scripted expert, of a policy that does
nothing, and of the expert that opens its grippers halfway.

    python -m benchmarks.experts [--episodes 200] [--worlds widowx_pick,franka_stack] [--out benchmarks/results/experts]

Rows that are there already and were not asked for stay; the files are written after each row.

Episodes are keyed by number and nothing is drawn. Beside them: environment steps for each second of processor time,
with pictures of 64 pixels at the chunk boundaries, one process.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path as File

import numpy as np

from envs.expert import expert_chunk
from envs.mujoco.bodies.base import Body
from envs.mujoco.catalogue import WORLDS
from envs.mujoco.cpu import CpuEngine
from envs.mujoco.task import Path, Task
from envs.mujoco.tasks.objects import Objects
from envs.mujoco.tasks.tabletop import Tabletop
from envs.mujoco.world import World
from rl_finetune.metrics.intervals import wilson
from rl_finetune.types import ActionChunk, ImageArray, IntArray, Observation, SeedKeys

SEED = 1
SIDE_BY_SIDE = 50
SIZE = 64
TIMED = 16
"""Worlds whose steps are timed."""
NOTE = """Letting go halfway succeeds where the block was by then close to its plate and came to rest on it: the task
asks where it lies, not how it came there."""
Policy = Callable[[World, Observation, IntArray], ActionChunk]
"""World, observation and control steps so far [N] -> chunk."""


class Blind(CpuEngine):
    """An engine that draws nothing."""

    def draw(self, rows: IntArray, *_: object, **__: object) -> dict[str, ImageArray]:
        """See `Engine.draw`."""
        return {view.tag: np.zeros((len(rows), 1, 1, 3), np.uint8) for view in self._task.views}


@dataclass(frozen=True, slots=True)
class Played:
    """What came of some episodes."""

    success: float
    """Share."""
    low: float
    """Lower end of its 95 % interval (Wilson)."""
    high: float
    """Upper end."""
    steps: float
    """Control steps that an episode took, mean."""
    episodes: int
    """How many."""


@dataclass(frozen=True, slots=True)
class Row:
    """One world in one control mode."""

    world: str
    """Registered name."""
    robot: str
    """Robot tag."""
    time_limit: int
    """Control steps."""
    expert: Played
    """Who knows how."""
    nothing: Played
    """Who stays where it is."""
    drop: Played | None
    """Who lets go halfway; None where nothing is held."""
    steps_a_second: float
    """Control steps for each second of processor time, with pictures at the chunk boundaries."""


def main() -> None:
    """Play, then write the table as JSON and as markdown."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--episodes", type=int, default=200)
    parser.add_argument("--worlds", default=",".join(WORLDS))
    parser.add_argument("--out", default="benchmarks/results/experts")
    chosen = parser.parse_args()
    rows = {(row.world, row.robot): row for row in kept(File(f"{chosen.out}.json"))}
    for name in chosen.worlds.split(","):
        for options in variants(name):
            row = measure(name, options, chosen.episodes)
            rows[row.world, row.robot] = row
            print(line(row), flush=True)
            File(f"{chosen.out}.json").write_text(json.dumps([asdict(each) for each in rows.values()], indent=1) + "\n")
            File(f"{chosen.out}.md").write_text(table(list(rows.values())))


def kept(file: File) -> list[Row]:
    """Rows of an earlier run."""
    if not file.exists():
        return []
    return [
        Row(**{**row, **{who: row[who] and Played(**row[who]) for who in ("expert", "nothing", "drop")}})
        for row in json.loads(file.read_text())
    ]


def variants(name: str) -> list[dict[str, str]]:
    """The options of a world that make other bodies of it."""
    known = {field.name for field in fields(WORLDS[name].options)}
    return [{"control": mode} for mode in ("delta_ee", "joint")] if "control" in known else [{}]


def measure(name: str, options: Mapping[str, str], episodes: int) -> Row:
    """Everything about one world."""
    task = WORLDS[name].task(WORLDS[name].options(**options))
    expert = play(task, by_expert, episodes)
    nothing = play(task, staying, episodes)
    drop = play(task, letting_go(task.body, expert.steps / 2), episodes) if isinstance(task, Objects) else None
    return Row(name, task.spec.embodiment.tag, task.spec.time_limit, expert, nothing, drop, speed(task))


def play(task: Task, policy: Policy, episodes: int) -> Played:
    """The first episodes of as many environments as needed, side by side."""
    won, steps = [], []
    count = min(episodes, SIDE_BY_SIDE)
    world = World(task, Blind(task, count, SIZE), count)
    with world:
        for first in range(0, episodes, count):
            keys = SeedKeys(SEED, np.arange(first, first + count), np.zeros(count, np.int64))
            success, taken = once(world, keys, policy)
            won.append(success)
            steps.append(taken)
    successes = np.concatenate(won)
    low, high = wilson(int(successes.sum()), len(successes))
    return Played(float(successes.mean()), low, high, float(np.concatenate(steps).mean()), len(successes))


def once(world: World, keys: SeedKeys, policy: Policy) -> tuple[np.ndarray, IntArray]:
    """Play one episode in each environment: success [N] and control steps [N]."""
    seen, n = world.reset(keys), world.num_envs
    running, success, steps = np.ones(n, bool), np.zeros(n, bool), np.zeros(n, np.int64)
    while running.any():
        out = world.step_chunk(policy(world, seen, steps))
        success |= running & out.success
        steps += np.where(running, out.steps_executed, 0)
        running &= ~(out.terminated | out.truncated)
        seen = out.observation
    return success, steps


def by_expert(world: World, seen: Observation, steps: IntArray) -> ActionChunk:
    """What the expert does."""
    return expert_chunk(world, seen)


def staying(world: World, seen: Observation, steps: IntArray) -> ActionChunk:
    """Zeros, or where a body is driven by joint positions those that keep its tools where they are."""
    task, action = world.task, world.spec.embodiment.action
    actions = np.zeros((len(seen), action.horizon, action.channels), np.float32)
    if action.control == "joint" and isinstance(task, Tabletop):
        assert seen.privileged is not None
        readings = task.recall(seen.privileged)
        tools = np.repeat(task.tools(readings)[:, None], action.horizon, 1)
        actions[:] = task.body.command(readings, Path(tools, np.ones(tools.shape[:-1])))
    return ActionChunk(actions, np.ones(actions.shape, bool))


def letting_go(body: Body, after: float) -> Policy:
    """The expert, with all grippers open from control step `after` on."""

    def policy(world: World, seen: Observation, steps: IntArray) -> ActionChunk:
        chunk = expert_chunk(world, seen)
        late = steps[:, None] + np.arange(chunk.actions.shape[1]) >= after
        for channel in body.grippers:
            chunk.actions[..., channel] = np.where(late, 1.0, chunk.actions[..., channel])
        return chunk

    return policy


def speed(task: Task) -> float:
    """Control steps for each second of processor time, of environments that the expert drives."""
    spent, done = 0.0, 0
    with World(task, CpuEngine(task, TIMED, SIZE), TIMED) as world:
        seen = world.reset(SeedKeys(SEED, np.arange(TIMED), np.zeros(TIMED, np.int64)))
        for _ in range(4):
            chunk = expert_chunk(world, seen)
            begun = time.process_time()
            out = world.step_chunk(chunk)
            spent += time.process_time() - begun
            done, seen = done + int(out.steps_executed.sum()), out.observation
    return done / spent


def percent(played: Played | None) -> str:
    """A rate and its interval."""
    if played is None:
        return ""
    return f"{100 * played.success:.1f} [{100 * played.low:.1f}, {100 * played.high:.1f}]"


def line(row: Row) -> str:
    """One line of the table."""
    cells = [
        row.world,
        row.robot,
        str(row.expert.episodes),
        percent(row.expert),
        percent(row.nothing),
        percent(row.drop),
    ]
    return f"| {' | '.join(cells)} | {row.expert.steps:.0f} of {row.time_limit} | {row.steps_a_second:.0f} |"


def table(rows: list[Row]) -> str:
    """The whole file."""
    head = (
        "| world | robot | episodes | expert % | nothing % | let go halfway % | expert's steps | steps a CPU second |\n"
    )
    lines = "\n".join(line(row) for row in rows)
    return (
        "# Experts\n\n`python -m benchmarks.experts`: success in per cent with 95 % intervals (Wilson).\n\n"
        f"{head}|---|---|---|---|---|---|---|---|\n{lines}\n\n{NOTE}\n"
    )


if __name__ == "__main__":
    main()
