"""What the name of the robot in the prompt is worth: each body is told to be another one, in the same episodes.

    python -m benchmarks.bench_prompts [--config everyone] [--episodes 200] [--robots rover]

The worlds and the policy are those of a named training config. Pictures, views, action normalisation and mask stay the
true body's: only the prompt's sentence lies. Results go to benchmarks/results/prompts.json and prompts.md; rows of
robots that were not asked for stay there.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch

from actors.player import Player
from rl_finetune.config import TrainConfig, load
from rl_finetune.metrics.intervals import Gain, paired_gain
from rl_finetune.types import IntArray

RESULTS = Path(__file__).resolve().parent / "results"
WRONG = {
    "widowx": ("franka_joint",), "franka_ee": ("franka_joint",), "franka_joint": ("franka_ee",), "aloha": ("gr1",),
    "gr1": ("aloha",), "rover": ("widowx", "franka_joint", "aloha", "gr1"),
}  # fmt: skip
"""Robot tag -> who it is told to be: another control mode, or the body most like it. Nothing is like the rover."""
HEADER = """\
| world | robot | told to be | told the truth | told the lie | difference in points [95 %] |
|---|---|---|---|---|---|
"""


def main() -> None:
    """Play every world twice, print and write."""
    parser = argparse.ArgumentParser(description="success under a wrong embodiment prompt")
    parser.add_argument("--config", default="everyone", help="training config that names policy and worlds")
    parser.add_argument("--episodes", type=int, default=200, help="of each world (default 200)")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of prompts.json and prompts.md")
    parser.add_argument("--robots", default=",".join(WRONG), help="comma-separated tags (default all)")
    args = parser.parse_args()
    torch.set_num_threads(1)
    job: TrainConfig = load(TrainConfig, args.config, ["env.num_envs=300"])
    file, robots = args.out / "prompts.json", args.robots.split(",")
    stored = json.loads(file.read_text())["rows"] if file.exists() else []
    rows = [row for row in stored if row["robot"] not in robots]
    player = Player(job.policy, job.env.worlds(), job.evaluation)
    for number, seat in enumerate(player.seats):
        if seat.body.tag in robots:
            rows += _played(player, number, np.arange(args.episodes))
    player.close()
    rows.sort(key=lambda row: list(WRONG).index(row["robot"]))
    file.write_text(json.dumps({"policy": job.policy.path, "rows": rows}, indent=2) + "\n")
    file.with_suffix(".md").write_text(HEADER + "".join(map(_line, rows)))


def _played(player: Player, number: int, episodes: IntArray) -> list[dict[str, Any]]:
    """A row for each lie that is told in the world of that number."""
    label, tag = player.seats[number].world.label, player.seats[number].body.tag
    honest, rows = player.play(number, episodes).success, []
    for told in WRONG[tag]:
        lied = player.play(number, episodes, prompt_as=told).success
        rates = {"truth": float(honest.mean()), "lie": float(lied.mean())}
        gain = asdict(paired_gain(honest.tolist(), lied.tolist()))
        rows.append({"world": label, "robot": tag, "told": told, **rates, "gain": gain})
        print(_line(rows[-1]), end="", flush=True)
    return rows


def _line(row: dict[str, Any]) -> str:
    rates = f"{row['truth']:.1%} | {row['lie']:.1%}"
    return f"| {row['world']} | {row['robot']} | {row['told']} | {rates} | {Gain(**row['gain'])} |\n"


if __name__ == "__main__":
    main()
