"""The main job for several seeds, one after the other, into one table.

    python -m benchmarks.main_job --seeds 0 1 2 [--control]

Each seed is `rl-finetune train run.seed=N run.folder=runs/bench/seed-N`; with `--control` each also runs with learning
rate 0 (configs/control.yaml) into runs/bench/control-N. Minutes are wall-clock time of the whole command: start, both
evaluations and report included. A run is skipped where `main_job.json` already holds its result for the same settings,
the same policy files and the same version of the code; a run folder without a result is removed and begun again.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import platform
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rl_finetune import __version__
from rl_finetune.config import TrainConfig, dump, load

ROOT = Path(__file__).resolve().parents[1]
RUNS = Path("runs/bench")
RESULTS = ROOT / "benchmarks" / "results" / "main_job.json"
HEADER = """\
| run | seed | before [95 %] | after [95 %] | gain in points [95 %] | minutes | worst first ratio error |
|---|---|---|---|---|---|---|
"""

Result = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Plan:
    """One run to be had."""

    config: str
    """Named config: `train` or `control`."""
    seed: int
    """Seed of the run."""

    @property
    def folder(self) -> Path:
        """Where it goes, relative to the repository."""
        return RUNS / f"{'seed' if self.config == 'train' else self.config}-{self.seed}"

    @property
    def overrides(self) -> list[str]:
        """Settings beyond the named config's."""
        return [f"run.seed={self.seed}", f"run.folder={self.folder}"]

    def settings(self) -> TrainConfig:
        """As the command will resolve them."""
        return load(TrainConfig, self.config, self.overrides)


def main() -> int:
    """Run what is missing, collect, print the table; returns the exit code of the first run that failed, or 0."""
    parser = argparse.ArgumentParser(description="the main job for several seeds")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="seeds (default 0 1 2)")
    parser.add_argument("--control", action="store_true", help="also run each seed with learning rate 0")
    args = parser.parse_args()
    configs = ("train", "control") if args.control else ("train",)
    for plan in (Plan(config, seed) for config in configs for seed in args.seeds):
        known = stored()
        if any(_same(plan, result) for result in known):
            print(f"{plan.folder}: result is there", flush=True)
            continue
        code = perform(plan, [r for r in known if (r["config"], r["seed"]) != (plan.config, plan.seed)])
        if code:
            return code
    print(table(stored()), end="")
    return 0


def perform(plan: Plan, others: list[Result]) -> int:
    """Run one plan and store its result beside `others`; returns the command's exit code."""
    shutil.rmtree(ROOT / plan.folder, ignore_errors=True)
    key = fingerprint(plan)
    command = [sys.executable, "-m", "rl_finetune", "train", "--config", plan.config, *plan.overrides]
    begun = time.monotonic()
    code = subprocess.run(command, cwd=ROOT, check=False).returncode
    if code == 0:
        minutes = (time.monotonic() - begun) / 60
        found = [*others, result(plan, key, minutes)]
        write(sorted(found, key=lambda r: (r["config"] != "train", r["seed"])))
    return code


def result(plan: Plan, key: str, minutes: float) -> Result:
    """What the run folder says about the run."""
    folder = ROOT / plan.folder
    evaluation = json.loads((folder / "evaluation.json").read_text())
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return {
        "config": plan.config,
        "seed": plan.seed,
        "fingerprint": key,
        "command": f"rl-finetune train --config {plan.config} {' '.join(plan.overrides)}",
        "machine": {"cpus": os.cpu_count(), "platform": platform.machine(), "load": os.getloadavg()[0]},
        "minutes": minutes,
        "training_minutes": rows[-1]["minutes"],
        "iterations": rows[-1]["iteration"],
        "env_steps": rows[-1]["env_steps"],
        "actors_lost": rows[-1]["actors_lost"],
        "worst_first_ratio_error": max(row["first_ratio_error"] for row in rows),
        **{name: evaluation[name] for name in ("episodes", "before", "after", "gain")},
    }


def fingerprint(plan: Plan) -> str:
    """SHA-256 over the resolved settings, the policy's files and the version of the code."""
    settings = plan.settings()
    digest = hashlib.sha256(f"{__version__}\n{dump(settings)}".encode())
    for file in sorted(p for p in (ROOT / settings.policy.path).rglob("*") if p.is_file()):
        digest.update(file.read_bytes())
    return digest.hexdigest()


def stored() -> list[Result]:
    """Results so far."""
    found: list[Result] = json.loads(RESULTS.read_text())["runs"] if RESULTS.exists() else []
    return found


def write(runs: list[Result]) -> None:
    """Results as JSON and, beside it, as Markdown; each written beside and renamed."""
    RESULTS.parent.mkdir(parents=True, exist_ok=True)
    for path, text in (
        (RESULTS, json.dumps({"runs": runs}, indent=2) + "\n"),
        (RESULTS.with_suffix(".md"), table(runs)),
    ):
        beside = path.with_name(path.name + ".part")
        beside.write_text(text)
        beside.replace(path)


def table(runs: list[Result]) -> str:
    """One line a run."""
    return HEADER + "".join(_line(run) for run in runs)


def _line(run: Result) -> str:
    low, high = run["gain"]["interval"]
    return (
        f"| {run['config']} | {run['seed']} | {_share(run['before'])} | {_share(run['after'])} "
        f"| {run['gain']['points']:+.1f} [{low:+.1f}, {high:+.1f}] "
        f"| {run['minutes']:.1f} | {run['worst_first_ratio_error']:.1e} |\n"
    )


def _share(found: Result) -> str:
    low, high = found["interval"]
    return f"{found['success']:.1%} [{low:.1%}, {high:.1%}]"


def _same(plan: Plan, run: Result) -> bool:
    return (run["config"], run["seed"]) == (plan.config, plan.seed) and run["fingerprint"] == fingerprint(plan)


if __name__ == "__main__":
    sys.exit(main())
