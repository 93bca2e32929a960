"""What the name of the robot in the prompt is worth: each body is told to be another one, in the same episodes.

    python -m benchmarks.bench_prompts [--config everyone] [--episodes 200]

The worlds and the policy are those of a named training config. Pictures, views, action normalisation and mask stay the
true body's: only the prompt's sentence lies. Results go to benchmarks/results/prompts.json and prompts.md.
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

RESULTS = Path(__file__).resolve().parent / "results"
WRONG = {
    "widowx": "franka_joint", "franka_ee": "franka_joint", "franka_joint": "franka_ee", "aloha": "gr1", "gr1": "aloha",
    "rover": "widowx",
}  # fmt: skip
"""Robot tag -> who it is told to be: another control mode, or the body that is most like it."""
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
    args = parser.parse_args()
    torch.set_num_threads(1)
    job: TrainConfig = load(TrainConfig, args.config, ["env.num_envs=300"])
    player = Player(job.policy, job.env.worlds(), job.evaluation)
    episodes, rows = np.arange(args.episodes), []
    for number, seat in enumerate(player.seats):
        true, told = seat.body.tag, WRONG[seat.body.tag]
        honest, lied = (player.play(number, episodes, prompt_as=tag).success for tag in (None, told))
        gain = paired_gain(honest.tolist(), lied.tolist())
        rates = {"truth": float(honest.mean()), "lie": float(lied.mean())}
        rows.append({"world": seat.world.label, "robot": true, "told": told, **rates, "gain": asdict(gain)})
        print(_line(rows[-1]), end="", flush=True)
    player.close()
    args.out.joinpath("prompts.json").write_text(json.dumps({"policy": job.policy.path, "rows": rows}, indent=2) + "\n")
    args.out.joinpath("prompts.md").write_text(HEADER + "".join(map(_line, rows)))


def _line(row: dict[str, Any]) -> str:
    rates = f"{row['truth']:.1%} | {row['lie']:.1%}"
    return f"| {row['world']} | {row['robot']} | {row['told']} | {rates} | {Gain(**row['gain'])} |\n"


if __name__ == "__main__":
    main()
