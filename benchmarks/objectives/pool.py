"""Trainings side by side in processes, one thread each, one record each."""

from __future__ import annotations

import os
import time
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from benchmarks.objectives import records
from benchmarks.objectives.studies import BASE, BUDGET, Plan
from benchmarks.objectives.train import describe, fingerprint, train
from rl_finetune.config import TrainConfig, load

POLICY = Path("runs/bench-objectives/state")


def perform(wanted: list[Plan], processes: int, results: Path) -> None:
    """Run the plans that have no record yet; one line each as it ends, with the time left at the present pace."""
    os.environ.setdefault("MUJOCO_GL", "egl")
    known = {r.key for r in records.read(results)} if results.exists() else set()
    todo = [plan for plan in wanted if key(plan) not in known]
    began = time.monotonic()
    with ProcessPoolExecutor(processes, mp_context=get_context("spawn")) as pool:
        running = [pool.submit(run, plan) for plan in todo]
        for number, future in enumerate(as_completed(running), 1):
            record, line = future.result()
            records.append(results, record)
            left = (time.monotonic() - began) / number * (len(todo) - number)
            print(f"[{number}/{len(todo)}] {line}  {left / 60:.0f} min left", flush=True)


def run(plan: Plan) -> tuple[records.RunRecord, str]:
    """One training, in a worker process."""
    record = train(job(plan), BUDGET, study=plan.study, name=plan.name, settings=dict(plan.settings))
    return record, describe(record)


def key(plan: Plan) -> tuple[str, str, int, str]:
    """Of the record that the plan would make."""
    return plan.study, plan.name, plan.seed, fingerprint(job(plan), BUDGET)


def job(plan: Plan) -> TrainConfig:
    """The plan as a training job."""
    tree: dict[str, Any] = {**BASE, **plan.settings, "run.seed": plan.seed, "policy.path": str(POLICY)}
    return load(TrainConfig, None, [f"{name}={'null' if value is None else value}" for name, value in tree.items()])
