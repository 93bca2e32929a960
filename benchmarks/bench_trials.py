"""Error rates, power and number of trials of the sequential test of real-robot trials, against one of fixed size.

    python -m benchmarks.bench_trials [--runs 20000] [--gain 20] [--out benchmarks/results]
    python -m benchmarks.bench_trials --quick          # 1,000 runs, prints only

Every scenario is a way to make the outcomes [runs, pairs] of both policies; the tests see nothing else:
  independent    trials of fixed success rates
  by condition   every pair has its own difficulty, which both policies meet
  drift          the robot wears: success falls from pair to pair
  order          whoever plays second succeeds more often; letters in permuted blocks
  two tasks      20 points better in one task and 20 worse in the other
  aborts         blind operators abort half of the failing attempts and try again, three times at most
Results go to `trials.json` and `trials.md`; `trials.svg` draws the exact number of trials by the true gain.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy.stats import binom

from rl_finetune.metrics.intervals import wilson
from rl_finetune.metrics.svg import Chart, line_chart
from rl_finetune.promotion.trials import characteristics as exact
from rl_finetune.promotion.trials.sequential import Design, design

RESULTS = Path(__file__).resolve().parent / "results"
ALPHA, BETA, SEED = 0.05, 0.1, 0
STYLE = (
    "><style>.grid{stroke:#dde1e6}.tick{font:11px system-ui,sans-serif;fill:#59626d}.line{fill:none;stroke:#1f6fb2;"
    'stroke-width:2}.band{fill:#cbe1f2}.hover{display:none}</style><rect width="100%" height="100%" fill="#fff"/>'
)
"""The page's classes, for a drawing on its own."""
Outcomes = tuple[NDArray[np.bool_], NDArray[np.bool_]]
"""[runs, pairs] successes of candidate and incumbent."""
Scenario = Callable[[np.random.Generator, int, int], Outcomes]


@dataclass(frozen=True, slots=True)
class Row:
    """What one test said in one scenario."""

    scenario: str
    test: str
    promoted: float
    """Share of runs."""
    interval: tuple[float, float]
    """Its 95 % interval."""
    rejected: float
    held: float
    trials: float
    """On average; two a pair."""
    ninth: float
    """Nine in ten runs need no more."""


def independent(base: float, gain: float) -> Scenario:
    """Fixed success rates."""
    return lambda rng, runs, pairs: (rng.random((runs, pairs)) < base + gain, rng.random((runs, pairs)) < base)


def by_condition(gain: float) -> Scenario:
    """Difficulty drawn for every pair: the incumbent's rate is evenly spread over what the gain leaves."""

    def play(rng: np.random.Generator, runs: int, pairs: int) -> Outcomes:
        rate = rng.random((runs, pairs)) * (1 - gain)
        return rng.random((runs, pairs)) < rate + gain, rng.random((runs, pairs)) < rate

    return play


def drift(rng: np.random.Generator, runs: int, pairs: int) -> Outcomes:
    """Both succeed in 90 % at first and in 20 % at last."""
    rate = np.linspace(0.9, 0.2, pairs)
    return rng.random((runs, pairs)) < rate, rng.random((runs, pairs)) < rate


def order(rng: np.random.Generator, runs: int, pairs: int) -> Outcomes:
    """40 % for whoever plays first, 70 % for whoever plays second; blocks of 4."""
    blocks = np.tile([0, 0, 1, 1], (runs, -(-pairs // 4), 1))
    first = rng.permuted(blocks, axis=2).reshape(runs, -1)[:, :pairs].astype(bool)
    early, late = rng.random((runs, pairs)) < 0.4, rng.random((runs, pairs)) < 0.7
    return np.where(first, early, late), np.where(first, late, early)


def two_tasks(rng: np.random.Generator, runs: int, pairs: int) -> Outcomes:
    """Tasks in random order, both in every two pairs."""
    task = rng.permuted(np.tile([0, 1], (runs, -(-pairs // 2), 1)), axis=2).reshape(runs, -1)[:, :pairs]
    return rng.random((runs, pairs)) < np.where(task, 0.7, 0.3), rng.random((runs, pairs)) < 0.5


def aborts(rng: np.random.Generator, runs: int, pairs: int) -> Outcomes:
    """Success rate 50 % for both; what is aborted three times is lost."""

    def ends() -> NDArray[np.bool_]:
        won = np.zeros((runs, pairs), bool)
        waiting = ~won
        for _ in range(3):
            success, dropped = rng.random((runs, pairs)) < 0.5, rng.random((runs, pairs)) < 0.5
            won |= waiting & success
            waiting &= ~success & dropped
        return won

    return ends(), ends()


def scenarios() -> dict[str, Scenario]:
    """By name: first those in which nobody is better, then gains and losses in points."""
    found = {f"+0, independent, {100 * p:.0f} %": independent(p, 0.0) for p in (0.1, 0.3, 0.5, 0.7, 0.9)}
    found |= {"+0, by condition": by_condition(0.0), "+0, drift": drift, "+0, order": order}
    found |= {"+0, two tasks": two_tasks, "+0, aborts": aborts}
    for points in (10, 20, 30, 40):
        for base in (0.2, 0.4):
            found[f"+{points}, independent, {100 * base:.0f} %"] = independent(base, points / 100)
        found[f"+{points}, by condition"] = by_condition(points / 100)
    for points in (10, 20, 40):
        found[f"-{points}, independent, 50 %"] = independent(0.5, -points / 100)
    return found


def sequential(name: str, test: Design, says: NDArray[np.int8], scenario: str, outcomes: Outcomes) -> Row:
    """What a sequential test says of every run."""
    pairs = slice(0, test.pairs)
    difference = outcomes[0][:, pairs].astype(np.int8) - outcomes[1][:, pairs]
    wins, losses = ((difference == sign).cumsum(1) for sign in (1, -1))
    said = says[np.arange(1, test.pairs + 1), wins, losses]
    ends = (said > 0).argmax(1)
    return _row(scenario, name, said[np.arange(len(said)), ends], 2 * (ends + 1))


def fixed(pairs: int, scenario: str, outcomes: Outcomes) -> Row:
    """McNemar's exact test in both directions after so many pairs."""
    candidate, incumbent = (side[:, :pairs] for side in outcomes)
    wins, losses = (candidate & ~incumbent).sum(1), (incumbent & ~candidate).sum(1)
    needed = binom.isf(ALPHA, np.arange(pairs + 1), 0.5) + 1
    bar = needed[wins + losses]
    said = np.where(wins >= bar, 1, np.where(losses >= bar, 2, 3))
    return _row(scenario, "fixed size", said, np.full(len(said), 2 * pairs))


def compare(runs: int, gain: float) -> list[Row]:
    """Every test in every scenario, in the same outcomes."""
    ours = exact.plan(ALPHA, BETA, gain)
    ville = design(ALPHA, BETA, gain, ours.pairs, ville=True)
    tests = {"sequential": (ours, exact.table(ours)), "sequential, bar of Ville": (ville, exact.table(ville))}
    patient = exact.plan(ALPHA, BETA, gain, prove_worse=True)
    proving = {"sequential, proving worse": (patient, exact.table(patient))}
    size = exact.fixed_exact(ALPHA, BETA, gain)
    rows = []
    for number, (name, scenario) in enumerate(scenarios().items()):
        outcomes = scenario(np.random.default_rng([SEED, number]), runs, max(ours.pairs, patient.pairs, size))
        rows += [
            sequential(label, *test, name, outcomes)
            for label, test in (tests | (proving if name[0] == "-" else {})).items()
        ]
        rows.append(fixed(size, name, outcomes))
    return rows


def report(rows: list[Row], gain: float, runs: int) -> str:
    """The table in Markdown, with what is known exactly above it."""
    ours, size = exact.plan(ALPHA, BETA, gain), exact.fixed_exact(ALPHA, BETA, gain)
    known = exact.characteristics(ours, *exact.hardest(gain))
    null = exact.characteristics(ours, 0.25, 0.25)
    lines = [
        "## Trials on robots", "",
        f"alpha {ALPHA:g}, beta {BETA:g}, gain {100 * gain:g} points; {runs:,} simulated evaluations a row. The "
        f"sequential test plays at most {2 * ours.pairs} trials; the exact test of fixed size plays {2 * size} "
        f"(formula: {2 * exact.fixed_pairs(ALPHA, BETA, gain)}). Computed exactly, where pairs are decided most often: "
        f"power {100 * known.better:.1f} % with {2 * known.mean:.0f} trials on average; an equal candidate is "
        f"promoted in {100 * null.better:.1f} %, after {2 * null.mean:.0f} trials.", "",
        "| gain in points, scenario, incumbent | test | promoted [95 %] | rejected | held | trials: mean | 90 % |",
        "|---|---|---|---|---|---|---|",
    ]  # fmt: skip
    lines += [
        f"| {row.scenario} | {row.test} | {100 * row.promoted:.1f} % [{100 * row.interval[0]:.1f}, "
        f"{100 * row.interval[1]:.1f}] | {100 * row.rejected:.1f} % | {100 * row.held:.1f} % | {row.trials:.0f} | "
        f"{row.ninth:.0f} |"
        for row in rows
    ]
    return "\n".join(lines) + "\n"


def drawing(gain: float) -> str:
    """Trials on average and within which nine in ten end (the band's top), by true gain in points; exact."""
    test, points = exact.plan(ALPHA, BETA, gain), list(range(-40, 45, 5))
    found = [exact.characteristics(test, *exact.hardest(point / 100)) for point in points]
    tips = [
        f"{p:+d} points: {2 * f.mean:.0f} trials, promoted {100 * f.better:.1f} %"
        for p, f in zip(points, found, strict=True)
    ]
    chart = Chart(
        "trials on average by true gain in points", points, [2 * f.mean for f in found], tips, width=520, height=220,
        band=[(2 * f.mean, 2.0 * f.ninth) for f in found],
    )  # fmt: skip
    alone = line_chart(chart).replace("<svg ", '<svg xmlns="http://www.w3.org/2000/svg" ').replace(">", STYLE, 1)
    return alone.replace(" hidden>", ' hidden="hidden">')


def main() -> None:
    """Simulate, print, write."""
    parser = argparse.ArgumentParser(description="the sequential test against one of fixed size")
    parser.add_argument("--runs", type=int, default=20_000, help="simulated evaluations of each scenario")
    parser.add_argument("--gain", type=float, default=20.0, help="points that the tests are made to find")
    parser.add_argument("--quick", action="store_true", help="1,000 runs, nothing is written")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of trials.json and trials.md")
    args = parser.parse_args()
    runs = 1000 if args.quick else args.runs
    rows = compare(runs, args.gain / 100)
    text = report(rows, args.gain / 100, runs)
    print(text)
    if not args.quick:
        settings = {"alpha": ALPHA, "beta": BETA, "gain_points": args.gain, "runs": runs, "seed": SEED}
        (args.out / "trials.json").write_text(
            json.dumps({**settings, "rows": [asdict(row) for row in rows]}, indent=1) + "\n"
        )
        (args.out / "trials.md").write_text(text)
        (args.out / "trials.svg").write_text(drawing(args.gain / 100) + "\n")


def _row(scenario: str, test: str, said: NDArray[np.generic], trials: NDArray[np.int64]) -> Row:
    promoted, rejected, held = (int((said == code).sum()) for code in (1, 2, 3))
    runs = len(said)
    return Row(
        scenario, test, promoted / runs, wilson(promoted, runs), rejected / runs, held / runs,
        float(trials.mean()), float(np.quantile(trials, 0.9, method="inverted_cdf")),
    )  # fmt: skip


if __name__ == "__main__":
    main()
