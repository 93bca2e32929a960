"""Success under each perturbation suite, of the scripted expert in every world, or of a policy in those it knows.

    python -m benchmarks.bench_suites [--worlds widowx_reach,...] [--episodes 50]
    python -m benchmarks.bench_suites --policy checkpoints/qwen-vla-tiny [--adapter runs/train/adapter]
    python -m benchmarks.bench_suites --sheet docs/pictures/suites.png [--worlds widowx_reach]

The expert shows that a suite can be solved; a policy, how much of what it learned carries over. All columns are
episodes of the same numbers. `randomised` is no suite: all kinds of domain randomisation that the world has, at
strength 1. Results go to `suites.json` beside those of earlier calls, and to `suites.md`.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

import envs
from envs.expert import expert_chunk
from envs.mujoco.catalogue import WORLDS
from envs.mujoco.randomisation import KINDS
from envs.mujoco.suites import SUITES
from rl_finetune.errors import UserError
from rl_finetune.metrics.intervals import wilson
from rl_finetune.types import BoolArray, SeedKeys

RESULTS = Path(__file__).resolve().parent / "results"
SEED = 1_000_003
COLUMNS = (*SUITES, "randomised")
BATCH = 50
"""Environments side by side."""


def main() -> None:
    """Play, print and write."""
    parser = argparse.ArgumentParser(description="success under perturbation")
    parser.add_argument("--worlds", default="", help="comma-separated; all, or those that the policy knows")
    parser.add_argument("--suites", default=",".join(COLUMNS), help=f"comma-separated among {COLUMNS}")
    parser.add_argument("--episodes", type=int, default=BATCH, help=f"of each (default {BATCH})")
    parser.add_argument("--policy", help="folder of a policy; without it the expert plays")
    parser.add_argument("--adapter", help="folder of a trained adapter for it")
    parser.add_argument("--sheet", type=Path, help="only draw one scene of the first world in every column")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of suites.json and suites.md")
    args = parser.parse_args()
    if args.sheet:
        sheet(args.worlds.split(",")[0] or next(iter(WORLDS))).save(args.sheet, optimize=True)
        return
    who = "expert" if args.policy is None else " + ".join(filter(None, (args.policy, args.adapter)))
    file = args.out / "suites.json"
    found: dict[str, Any] = json.loads(file.read_text()) if file.exists() else {}
    for world in args.worlds.split(",") if args.worlds else _known(args.policy):
        for suite in args.suites.split(","):
            done = _played(world, suite, args)
            if done is None:
                continue
            low, high = wilson(int(done.sum()), len(done))
            row = {"success": float(done.mean()), "interval": [low, high], "episodes": len(done)}
            found.setdefault(who, {}).setdefault(world, {})[suite] = row
            print(f"{who} {world} {suite}: {row['success']:.1%} [{low:.1%}, {high:.1%}] of {len(done)}", flush=True)
            file.write_text(json.dumps(found, indent=2) + "\n")
    (args.out / "suites.md").write_text(table(found))


def options(world: str, suite: str) -> dict[str, Any]:
    """Of one column."""
    if suite != "randomised":
        return {"perturb": suite}
    timeless = envs.spec(world).embodiment.action.control == "trace"
    return {"randomise": [kind for kind in KINDS if not (timeless and kind == "latency")]}


def table(found: dict[str, Any]) -> str:
    """Markdown: a table for each who, a row for each world, successes in per cent."""
    lines = []
    for who, worlds in found.items():
        episodes = sorted({row["episodes"] for suites in worlds.values() for row in suites.values()})
        lines += [f"## {who}", "", f"Success in per cent, {' or '.join(map(str, episodes))} episodes each.", ""]
        lines += ["| world | " + " | ".join(COLUMNS) + " |", "|---" * (len(COLUMNS) + 1) + "|"]
        for world, suites in worlds.items():
            cells = [f"{100 * suites[name]['success']:.0f}" if name in suites else "-" for name in COLUMNS]
            lines.append(f"| {world} | {' | '.join(cells)} |")
        lines.append("")
    return "\n".join(lines)


def sheet(world: str, size: int = 224, wide: int = 5) -> Image.Image:
    """The same scene in every column, `wide` pictures a row, each under its name."""
    strip = 14
    rows = -(-len(COLUMNS) // wide)
    page = Image.new("RGB", (wide * size, rows * (size + strip)), "white")
    for number, suite in enumerate(COLUMNS):
        with envs.make(world, 1, image_size=size, **options(world, suite)) as env:
            view = env.spec.embodiment.views[0]
            seen = env.reset(SeedKeys(SEED, np.zeros(1, np.int64), np.zeros(1, np.int64))).images[view][0]
        left, top = number % wide * size, number // wide * (size + strip)
        page.paste(Image.fromarray(seen), (left, top + strip))
        ImageDraw.Draw(page).text((left + 3, top + 1), suite, fill="black")
    return page


def _played(world: str, suite: str, args: argparse.Namespace) -> BoolArray | None:
    """[episodes] successes; None where the world has no such suite."""
    try:
        if args.policy is None:
            return expert(world, options(world, suite), args.episodes)
        return _policy(world, options(world, suite), args)
    except UserError as error:
        if "cannot be perturbed" not in str(error):
            raise
        return None


def expert(world: str, chosen: dict[str, Any], episodes: int) -> BoolArray:
    """[episodes] whether the scripted expert succeeds."""
    found = []
    for ids in np.array_split(np.arange(episodes), -(-episodes // BATCH)):
        with envs.make(world, len(ids), **chosen) as env:
            seen = env.reset(SeedKeys(SEED, ids, np.zeros_like(ids)))
            done, open_ = np.zeros(len(ids), bool), np.ones(len(ids), bool)
            while open_.any():
                out = env.step_chunk(expert_chunk(env, seen))
                done |= out.success & open_
                open_ &= ~(out.terminated | out.truncated)
                seen = out.observation
        found.append(done)
    return np.concatenate(found)


def _policy(world: str, chosen: dict[str, Any], args: argparse.Namespace) -> BoolArray:
    from actors.player import Player
    from rl_finetune.config.schema import EvaluationSection, PolicySection
    from rl_finetune.config.worlds import World

    ids = np.arange(min(BATCH, args.episodes))
    player = Player(
        PolicySection(path=args.policy, adapter=args.adapter), [World(world, world, chosen, ids, None)],
        EvaluationSection(seed=SEED, episodes=args.episodes),
    )  # fmt: skip
    done: BoolArray = player.play(0, np.arange(args.episodes)).success
    player.close()
    return done


def _known(policy: str | None) -> list[str]:
    """Worlds whose body the policy knows; all for the expert."""
    if policy is None:
        return list(WORLDS)
    from rl_finetune.policy import QwenVLAPolicy

    tags = {body.tag for body in QwenVLAPolicy.from_pretrained(policy, with_backbone=False).config.embodiments}
    return [world for world in WORLDS if envs.spec(world).embodiment.tag in tags]


if __name__ == "__main__":
    main()
