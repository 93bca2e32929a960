"""A job for several seeds, one after the other, into one table.

    python -m benchmarks.main_job --seeds 0 1 2 [--control] [--job everyone]

Each seed is `rl-finetune train run.seed=N run.folder=runs/bench/train-N`; with `--control` each also runs with learning
rate 0 (configs/control.yaml) into runs/bench/control-N. `--job everyone` takes configs/everyone.yaml, the run of all
bodies, and its control in their place. Minutes are wall-clock time of the whole command: start, both evaluations and
report included. A run is skipped where the results already hold it for the same settings, the same policy files and the
same version of the code; a run folder without a result is removed and begun again.
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
RESULTS = ROOT / "benchmarks" / "results"
JOBS = {"main_job": ("train", "control"), "everyone": ("everyone", "everyone-control")}
"""Job, which names its results -> its configs: the run and its control."""
HEADER = """\
| run | seed | world | before [95 %] | after [95 %] | gain in points [95 %] | minutes | worst first ratio error |
|---|---|---|---|---|---|---|---|
"""

Result = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Plan:
    """One run to be had."""

    config: str
    """Named config, from `JOBS`."""
    seed: int
    """Seed of the run."""

    @property
    def folder(self) -> Path:
        """Where it goes, relative to the repository."""
        return RUNS / f"{self.config}-{self.seed}"

    @property
    def results(self) -> Path:
        """Where its result is kept."""
        (job,) = (name for name, configs in JOBS.items() if self.config in configs)
        return RESULTS / f"{job}.json"

    @property
    def overrides(self) -> list[str]:
        """Settings beyond the named config's."""
        return [f"run.seed={self.seed}", f"run.folder={self.folder}"]

    def settings(self) -> TrainConfig:
        """As the command will resolve them."""
        return load(TrainConfig, self.config, self.overrides)


def main() -> int:
    """Run what is missing, collect, print the table; returns the exit code of the first run that failed, or 0."""
    parser = argparse.ArgumentParser(description="a job for several seeds")
    parser.add_argument("--job", choices=JOBS, default="main_job", help="which (default main_job)")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="seeds (default 0 1 2)")
    parser.add_argument("--control", action="store_true", help="also run each seed with learning rate 0")
    args = parser.parse_args()
    configs = JOBS[args.job][: 2 if args.control else 1]
    plans = [Plan(config, seed) for config in configs for seed in args.seeds]
    for plan in plans:
        known = stored(plan.results)
        if any(_same(plan, result) for result in known):
            print(f"{plan.folder}: result is there", flush=True)
            continue
        code = perform(plan, [r for r in known if (r["config"], r["seed"]) != (plan.config, plan.seed)])
        if code:
            return code
    print(table(stored(plans[0].results)), end="")
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
        write(plan.results, sorted(found, key=lambda r: ("control" in r["config"], r["seed"])))
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
        "worlds": evaluation.get("worlds", {}),
    }


def fingerprint(plan: Plan) -> str:
    """SHA-256 over the resolved settings, the policy's files (its model card aside) and the version of the code."""
    settings = plan.settings()
    digest = hashlib.sha256(f"{__version__}\n{dump(settings)}".encode())
    for file in sorted(p for p in (ROOT / settings.policy.path).rglob("*") if p.is_file() and p.suffix != ".md"):
        digest.update(file.read_bytes())
    return digest.hexdigest()


def stored(results: Path) -> list[Result]:
    """Results so far."""
    found: list[Result] = json.loads(results.read_text())["runs"] if results.exists() else []
    return found


def write(results: Path, runs: list[Result]) -> None:
    """Results as JSON and, beside it, as Markdown; each written beside and renamed."""
    results.parent.mkdir(parents=True, exist_ok=True)
    for path, text in (
        (results, json.dumps({"runs": runs}, indent=2) + "\n"),
        (results.with_suffix(".md"), table(runs)),
    ):
        beside = path.with_name(path.name + ".part")
        beside.write_text(text)
        beside.replace(path)


def table(runs: list[Result]) -> str:
    """A line a run, and one for each of its worlds where it has several."""
    return HEADER + "".join(_line(run, name, found) for run in runs for name, found in _judged(run).items())


def _judged(run: Result) -> dict[str, Result]:
    """Evaluations of a run by name, the whole first."""
    worlds = run.get("worlds", {})
    return {"mean" if len(worlds) > 1 else "": run, **(worlds if len(worlds) > 1 else {})}


def _line(run: Result, name: str, found: Result) -> str:
    low, high = found["gain"]["interval"]
    whole = f"{run['minutes']:.1f} | {run['worst_first_ratio_error']:.1e}" if found is run else " | "
    return (
        f"| {run['config']} | {run['seed']} | {name} | {_share(found['before'])} | {_share(found['after'])} "
        f"| {found['gain']['points']:+.1f} [{low:+.1f}, {high:+.1f}] | {whole} |\n"
    )


def _share(found: Result) -> str:
    low, high = found["interval"]
    return f"{found['success']:.1%} [{low:.1%}, {high:.1%}]"


def _same(plan: Plan, run: Result) -> bool:
    return (run["config"], run["seed"]) == (plan.config, plan.seed) and run["fingerprint"] == fingerprint(plan)


if __name__ == "__main__":
    sys.exit(main())
