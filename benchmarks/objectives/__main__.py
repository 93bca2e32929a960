"""Compare objectives and sampling laws: `python -m benchmarks.objectives [STUDY ...] [--processes 2]`.

Studies: tuning, objectives, laws_tuning, laws, grid (all, in that order, by default). One training is one process on
one thread. Results are appended to benchmarks/results/objectives.jsonl, and a training whose record is there is not run
again; tables and pictures are drawn anew at the end (`report` alone draws them from what is there).
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from benchmarks.objectives import pool, records, studies
from benchmarks.objectives.state_policy import build
from benchmarks.objectives.studies import Plan

RESULTS = Path(__file__).resolve().parents[1] / "results" / "objectives.jsonl"
ORDER = ("tuning", "objectives", "laws_tuning", "laws", "grid", "report")


def main() -> int:
    """Run what is missing of the studies asked for, then report."""
    parser = argparse.ArgumentParser(description="compare objectives and sampling laws")
    parser.add_argument("studies", nargs="*", metavar="STUDY", help=f"of {', '.join(ORDER)}; all by default")
    parser.add_argument("--processes", type=int, default=2, help="trainings side by side, one thread each (default 2)")
    parser.add_argument("--only", nargs="+", metavar="NAME", help="trainings of that name (grpo) or number (grpo 3)")
    args = parser.parse_args()
    unknown = set(args.studies) - set(ORDER)
    if unknown:
        parser.error(f"unknown study {sorted(unknown)}: expected some of {', '.join(ORDER)}")
    build(pool.POLICY)
    for study in args.studies or ORDER:
        if study != "report":
            pool.perform([p for p in plans(study) if wanted(p, args.only)], args.processes, RESULTS)
            continue
        from benchmarks.objectives.report import write

        write(records.read(RESULTS), RESULTS.parent)
    return 0


def wanted(plan: Plan, only: list[str] | None) -> bool:
    """Whether `--only` names the plan, by its whole name or without a candidate's number."""
    return only is None or plan.name in only or plan.name.rsplit(" ", 1)[0] in only


def plans(study: str) -> list[Plan]:
    """The study's trainings, given what has been tuned so far."""
    if study == "tuning":
        return studies.tuning()
    make = {
        "objectives": studies.objectives, "laws_tuning": studies.laws_tuning, "laws": studies.laws,
        "grid": studies.grid,
    }[study]  # fmt: skip
    return make(records.read(RESULTS))


if __name__ == "__main__":
    sys.exit(main())
