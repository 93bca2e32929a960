"""SIGKILL during promotion, many times: after each kill the registry must hold the old or the new state, whole.

A child takes a bundle of the shipped policy through all stages and rolls back; it is killed at a random time. Then
every byte is verified, and who acts is compared with how far the ledger tells that it got.

    python -m benchmarks.bench_crash [--quick] [--kills N] [--seed N] [--folder FOLDER]
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import random
import shutil
import tempfile
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path

from rl_finetune.promotion.records import PolicyName
from rl_finetune.promotion.registry.bundle import Bundle, make_bundle
from rl_finetune.promotion.registry.contents import Provenance
from rl_finetune.promotion.registry.grounds import Grounds, Kind
from rl_finetune.promotion.registry.registry import Registry
from rl_finetune.promotion.registry.stages import STAGES, Stage

POLICY = Path(__file__).resolve().parent.parent / "checkpoints" / "qwen-vla-tiny"


def main() -> None:
    """Kill, verify, count; one JSON object at the end, exit code 1 if any state was neither old nor new."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--quick", action="store_true", help="20 kills")
    parser.add_argument("--kills", type=int, default=500)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", type=Path, help="where to work; a temporary folder if not given")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        result = measure(Path(folder), 20 if arguments.quick else arguments.kills, arguments.seed)
    print(json.dumps(result, indent=1))
    raise SystemExit(1 if result["broken"] else 0)


def measure(folder: Path, kills: int, seed: int) -> dict[str, object]:
    """Kill that many children; how many left how many of the six steps done, and what was broken."""
    old, new = (
        make_bundle(POLICY, folder / name, name=name, provenance=Provenance.here()) for name in ("old", "new")
    )  # fmt: skip
    start = Registry(folder / "start")
    _promote(start, folder, old, PolicyName("none", "0" * 64))
    began = time.monotonic()
    _there_and_back(_copy(start, folder / "whole"), folder, new, old.called)
    duration = time.monotonic() - began
    rng, left, broken = random.Random(seed), Counter[int](), list[str]()
    for kill in range(kills):
        registry = _copy(start, folder / "copy")
        child = multiprocessing.get_context("fork").Process(
            target=_there_and_back, args=(registry, folder, new, old.called)
        )
        after = rng.uniform(0, duration)
        child.start()
        child.join(after)
        child.kill()
        child.join()
        try:
            left[_check(registry, old, new)] += 1
        except Exception as error:
            broken.append(f"kill {kill} after {after:.4f} s: {error}")
    return {"kills": kills, "seconds_of_all_steps": round(duration, 3), "steps_done": dict(sorted(left.items())),
            "broken": broken}  # fmt: skip


def _check(registry: Registry, old: Bundle, new: Bundle) -> int:
    audit, status = registry.verify(), registry.status()
    steps = audit.entries - 5
    stages: tuple[Stage | None, ...] = (None, *STAGES)
    stage = next((standing.stage for standing in status.bundles if standing.digest == new.digest), None)
    wanted = new.digest if steps == 5 else old.digest
    if (stage, status.promoted) != (stages[steps], wanted):
        raise AssertionError(f"after {steps} steps {stage}, and {str(status.promoted)[:12]} acts")
    return steps


def _there_and_back(registry: Registry, folder: Path, new: Bundle, incumbent: PolicyName) -> None:
    _promote(registry, folder, new, incumbent)
    registry.rollback(by="benchmark")


def _promote(registry: Registry, folder: Path, bundle: Bundle, incumbent: PolicyName) -> None:
    registry.submit(bundle.folder, by="benchmark")
    kinds: dict[Stage, Kind] = {"simulation-passed": "verdict", "promoted": "decision"}
    for stage in STAGES[1:5]:
        path = None
        if stage in kinds:
            path = folder / f"{bundle.name}-{kinds[stage]}.json"
            Grounds(kinds[stage], bundle.called, incumbent, "promote", "for the benchmark").save(path)
        registry.advance(bundle.digest, stage, by="benchmark", grounds=path)


def _copy(registry: Registry, folder: Path) -> Registry:
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(registry.folder, folder)
    return replace(registry, folder=folder)


if __name__ == "__main__":
    main()
