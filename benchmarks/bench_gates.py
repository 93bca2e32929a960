"""How often the gates are wrong, and how often they see what is there: the whole verdict, on policies of known success.

    python -m benchmarks.bench_gates [--repetitions 2000] [--cases identical,better] [--episodes 600]

Every repetition draws episodes for both policies in every world and under every suite, at the numbers that the default
settings plan, and asks `judge`, with motion, latency and parity in order. Episodes of the two policies are independent,
which is the hardest case (the same scenes make them go together), except where a case says so. Results go to
`gates.json` and `gates.md`; shares of verdicts have Wilson's 95 % intervals.
"""

from __future__ import annotations

import argparse
import json
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from rl_finetune.config.gates import GatesSection, PlanSection
from rl_finetune.metrics.intervals import wilson
from rl_finetune.promotion import judge
from rl_finetune.promotion.records import (
    NONE,
    Evidence,
    LatencyRecord,
    Limits,
    MotionAudit,
    ParityRecord,
    PolicyName,
    Verdict,
    WorldRecord,
)  # fmt: skip
from rl_finetune.promotion.statistics import draw_pairs

RESULTS = Path(__file__).resolve().parent / "results"
SEED = 0
ONE = (0.45,)
"""The incumbent's success where a gain of 10 points is hardest to see: around one half."""
FIVE = (0.9, 0.75, 0.6, 0.45, 0.3)
"""Of five worlds."""


@dataclass(frozen=True, slots=True)
class Case:
    """Two policies whose success is known."""

    title: str
    before: tuple[float, ...]
    """The incumbent's success in each world."""
    gains: tuple[float, ...]
    """The candidate's gain in each world, as shares; no success exceeds 1."""
    suite_gain: float | None = None
    """Its gain under every suite; None is that of the world."""
    correlation: float = 0.0
    """Of the two policies' successes in the same episode."""
    suite_episodes: int | None = None
    """Of each world under each suite, where they are not as many as planned."""


def _losing(loss: float) -> Case:
    gains = (0.1, 0.1, 0.1, 0.1, -loss)
    return Case(f"5 worlds: +10 points in four, -{100 * loss:g} in one", (0.6,) * 5, gains)


CASES: dict[str, Case] = {
    "identical": Case("1 world: identical", ONE, (0.0,)),
    "identical_sure": Case("1 world: identical, at 98 % success", (0.98,), (0.0,)),
    "identical_paired": Case("1 world: identical, correlation 0.5", ONE, (0.0,), correlation=0.5),
    "identical_five": Case("5 worlds: identical", FIVE, (0.0,) * 5),
    "better": Case("1 world: +10 points", ONE, (0.1,)),
    "better_paired": Case("1 world: +10 points, correlation 0.5", ONE, (0.1,), correlation=0.5),
    "better_unseen": Case("1 world: +10 points, none under suites", ONE, (0.1,), suite_gain=0.0),
    "better_unseen_900": Case(
        "1 world: +10 points, none under suites of 900 episodes", ONE, (0.1,), suite_gain=0.0, suite_episodes=900
    ),
    "better_five": Case("5 worlds: +10 points each", FIVE, (0.1,) * 5),
    "better_five_unseen": Case("5 worlds: +10 points each, none under suites", FIVE, (0.1,) * 5, suite_gain=0.0),
    "slightly_five": Case("5 worlds: +5 points each", FIVE, (0.05,) * 5),
    "loses_2": _losing(0.02),
    "loses_5": _losing(0.05),
    "loses_8": _losing(0.08),
    "loses_10": _losing(0.1),
    "loses_20": _losing(0.2),
    "suites_lost": Case("5 worlds: +10 points each, -10 under suites", (0.6,) * 5, (0.1,) * 5, suite_gain=-0.1),
}


def main() -> None:
    """Simulate, print and write."""
    parser = argparse.ArgumentParser(description="error rates and power of the gates")
    parser.add_argument("--repetitions", type=int, default=2000, help="of each case (default 2000)")
    parser.add_argument("--cases", default=",".join(CASES), help="comma-separated; all")
    parser.add_argument("--episodes", type=int, default=PlanSection().episodes, help="unperturbed, of each world")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of gates.json and gates.md")
    args = parser.parse_args()
    settings = GatesSection(plan=PlanSection(episodes=args.episodes))
    rows = []
    for name in args.cases.split(","):
        began = time.perf_counter()
        rows.append(row(name, simulate(CASES[name], settings, args.repetitions)))
        print(line(rows[-1]), f"{time.perf_counter() - began:.0f} s", flush=True)
    args.out.mkdir(parents=True, exist_ok=True)
    found = {"settings": settings.model_dump(), "repetitions": args.repetitions, "seed": SEED, "cases": rows}
    (args.out / "gates.json").write_text(json.dumps(found, indent=2) + "\n")
    (args.out / "gates.md").write_text(page(rows, settings, args.repetitions))


def simulate(case: Case, settings: GatesSection, repetitions: int) -> list[Verdict]:
    """Verdicts on independent draws of the evidence."""
    rng = np.random.default_rng(SEED)
    return [judge(evidence, settings) for evidence in drawn(case, settings, rng, repetitions)]


def drawn(case: Case, settings: GatesSection, rng: np.random.Generator, repetitions: int) -> Iterator[Evidence]:
    """Evidence in which nothing but success can be objected to."""
    plan, suites = settings.plan, (NONE, *settings.suites.required)
    planned = {suite: case.suite_episodes or plan.suite_episodes for suite in suites} | {NONE: plan.episodes}
    fixed = _in_order([f"world_{number}" for number in range(len(case.before))], settings)
    for _ in range(repetitions):
        records = [
            _record(f"world_{number}", suite, case, number, planned[suite], rng)
            for suite in suites
            for number in range(len(case.before))
        ]
        yield Evidence(PolicyName("candidate", "1"), PolicyName("incumbent", "0"), tuple(records), *fixed)


def _record(world: str, suite: str, case: Case, number: int, n: int, rng: np.random.Generator) -> WorldRecord:
    gain = case.gains[number] if suite == NONE or case.suite_gain is None else case.suite_gain
    old = case.before[number]
    new = min(old + gain, 1.0)
    before, after = draw_pairs(rng, (n,), old, new, case.correlation)
    return WorldRecord(world, f"body_{number}", suite, 0, tuple(after.tolist()), tuple(before.tolist()))


def _in_order(
    worlds: Sequence[str], settings: GatesSection
) -> tuple[tuple[MotionAudit, ...], tuple[LatencyRecord, ...], tuple[ParityRecord, ...], dict[str, Limits]]:
    limits = Limits((-1.0,), (1.0,), (1.0,), (1.0,), (1.0,), ((-1.0, 1.0),) * 3)
    kinds = tuple(str(kind) for kind in settings.motion.required)
    tags = [f"body_{number}" for number in range(len(worlds))]
    motion = tuple(
        MotionAudit(world, tag, settings.motion.steps, ((-0.5, 0.5),), (0.5,), (0.5,), (0.5,), measured=kinds)
        for world, tag in zip(worlds, tags, strict=True)
    )
    latency = tuple(LatencyRecord(tag, (0.05,) * 1000, 0.2, 8) for tag in tags)
    parity = tuple(ParityRecord(tag, settings.parity.chunks, (1e-4,), (0.1,)) for tag in tags)
    return motion, latency, parity, dict.fromkeys(tags, limits)


Row = dict[str, object]


def row(name: str, verdicts: Sequence[Verdict]) -> Row:
    """Shares of verdicts, of gates that objected, and of the gate of success that saw a gain."""
    n = len(verdicts)
    outcomes = Counter(verdict.outcome for verdict in verdicts)
    gates = Counter(gate for verdict in verdicts for gate in {check.gate for check in verdict.objections})
    better = sum(check.outcome == "promote" for v in verdicts for check in v.checks if check.gate == "success")
    shares = {
        outcome: [outcomes[outcome] / n, *wilson(outcomes[outcome], n)] for outcome in ("promote", "hold", "reject")
    }
    return {
        "case": name, "title": CASES[name].title, **shares, "seen_better": [better / n, *wilson(better, n)],
        "objected": {gate: count / n for gate, count in sorted(gates.items())},
    }  # fmt: skip


def line(row: Row) -> str:
    """One row of the table, in per cent."""
    cells = [_share(row[name]) for name in ("promote", "hold", "reject", "seen_better")]
    objected = row["objected"]
    assert isinstance(objected, dict)
    against = ", ".join(f"{gate} {100 * share:.1f}" for gate, share in objected.items())
    return f"| {row['title']} | {' | '.join(cells)} | {against or '-'} |"


def page(rows: Sequence[Row], settings: GatesSection, repetitions: int) -> str:
    """Markdown."""
    plan, suites = settings.plan, len(settings.suites.required)
    return "\n".join(
        [
            "# Gates on policies of known success",
            "",
            f"`python -m benchmarks.bench_gates`: {repetitions} simulated evaluations a row, judged by all gates, in",
            f"per cent with 95 % intervals (Wilson). {plan.episodes} episodes of each world, {plan.suite_episodes}",
            f"under each of {suites} suites; the two policies' episodes are independent unless a row says otherwise.",
            "",
            "| policies | promote | hold | reject | gate of success passed | gates that objected |",
            "|---|---|---|---|---|---|",
            *(line(row) for row in rows),
            "",
        ]
    )


def _share(value: object) -> str:
    assert isinstance(value, list)
    share, low, high = (100 * part for part in value)
    return f"{share:.1f} [{low:.1f}, {high:.1f}]"


if __name__ == "__main__":
    main()
