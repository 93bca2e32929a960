"""Records as Markdown. Every mean and median is over seeds; a run's success is on all held-out episodes.

Two intervals stand side by side. The one over seeds says how another training would end; it has width 0 where all seeds
end alike. The pooled one (Wilson's, all episodes of all seeds) says how exactly the episodes measure what was trained.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from benchmarks.objectives.records import RunRecord, by_name, candidates, grid, mean_std, mean_success
from benchmarks.objectives.studies import merit
from rl_finetune.metrics.intervals import wilson

# fmt: off
_T_95 = (
    12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160, 2.145, 2.131,
    2.120, 2.110, 2.101, 2.093, 2.086, 2.080, 2.074, 2.069, 2.064, 2.060, 2.056, 2.052, 2.048, 2.045, 2.042,
)
# fmt: on
"""97.5 % quantiles of Student's t for 1, 2, ... degrees of freedom; beyond the table the last one, a little wide."""
BOOTSTRAPS = 10_000
"""Resamples of the seeds."""


@dataclass(frozen=True, slots=True)
class StepsRatio:
    """How many times the environment steps of another it takes to reach a level."""

    value: float
    """Median over seeds of the one over that of the other; below 1 the first is faster."""
    interval: tuple[float, float]
    """95 % bootstrap interval, from 0 to infinity where the seeds leave it open."""
    seeds: int
    """Seeds that both ran."""

    def __str__(self) -> str:
        low, high = ("∞" if math.isinf(end) else f"{end:.2f}" for end in self.interval)
        return f"{self.value:.2f} [{low}, {high}]"


def objectives_table(records: Iterable[RunRecord], level: float = 0.8) -> str:
    """One line an objective, best first."""
    rows = [
        (
            f"| {name} | {_percent(mean_success(runs))} {_interval(runs)} | {_pooled(runs)} "
            f"| {_percent(min(_success(runs)))} | {100 * statistics.fmean(r.success - r.before for r in runs):+.1f} "
            f"| {_steps(runs, level)} | {statistics.median(r.seconds for r in runs):,.0f} | {_millimetres(runs)} |\n"
        )
        for name, runs in sorted(by_name(records, "objectives").items(), key=lambda item: _rank(item, level))
    ]
    return _head(
        "objective", "success [95 % over seeds]", "pooled [95 %]", "worst seed", "gain in points",
        f"env steps to {100 * level:.0f} %; seeds that reach it", "seconds a run", "executed std, mm",
    ) + "".join(rows)  # fmt: skip


def grid_table(records: Iterable[RunRecord]) -> str:
    """Where noise enters (lines) against its level (columns): success ± half the 95 % interval over seeds (mm)."""
    found = grid(records)
    lines = []
    for k in found.rows:
        cells = [_cell(found.cells.get((k, a), [])) for a in found.columns]
        lines.append(f"| {k} | {' | '.join(cells)} |\n")
    return _head("k", *(f"a = {a}" for a in found.columns)) + "".join(lines)


def tuning_table(records: Iterable[RunRecord]) -> str:
    """Every candidate; of each objective and law the chosen one first and in bold.

    What they are chosen by is `studies.merit`. Settings that the candidates of one share are left out.
    """
    lines = []
    for tuned, ranked in candidates(records, merit).items():
        names = {name: None for candidate in ranked for name in candidate.settings}
        varied = [n for n in names if len(ranked) == 1 or len({_value(c.settings.get(n, "unset")) for c in ranked}) > 1]
        for place, candidate in enumerate(ranked):
            settings = ", ".join(f"`{n}={_value(candidate.settings.get(n, 'unset'))}`" for n in varied)
            mark, runs = "" if place else "**", candidate.runs
            lines.append(
                f"| {tuned} | {mark}{settings}{mark} | {mark}{_percent(mean_success(runs))}{mark} "
                f"| {_pooled(runs)} | {_percent(candidate.merit)} | {len(runs)} |\n"
            )
    return _head("tuned", "settings", "success", "pooled [95 %]", "chosen by", "seeds") + "".join(lines)


def laws_table(records: Iterable[RunRecord], baseline: str = "flow_sde") -> str:
    """One line a sampling law, the baseline first, then best first; ratios below 1 are faster than the baseline."""
    laws = by_name(records, "laws")
    every = [record for runs in laws.values() for record in runs]
    lines = []
    for name, runs in sorted(laws.items(), key=lambda item: (item[0] != baseline, _rank(item, 0.8))):
        speed = []
        for level in (0.8, 0.9):
            ratio = paired_steps_ratio(every, name, baseline, level) if name != baseline else None
            speed += [_steps(runs, level), "1" if name == baseline else str(ratio or "n/a")]
        lines.append(
            f"| {name} | {_percent(mean_success(runs))} {_interval(runs)} | {_pooled(runs)} | {_millimetres(runs)} "
            f"| {statistics.median(r.decisions for r in runs):,.0f} | {' | '.join(speed)} |\n"
        )
    return _head(
        "law", "success [95 % over seeds]", "pooled [95 %]", "executed std, mm", "decisions",
        "env steps to 80 %; seeds that reach it", f"ratio to {baseline} [95 %]",
        "env steps to 90 %; seeds that reach it", f"ratio to {baseline} [95 %]",
    ) + "".join(lines)  # fmt: skip


def paired_steps_ratio(records: Iterable[RunRecord], a: str, b: str, level: float) -> StepsRatio | None:
    """Median environment steps to `level` of `a` over that of `b`, on the seeds both ran.

    A seed that never reaches the level takes forever. The bootstrap draws seeds, each with its run of both; a draw in
    which neither reaches the level leaves the ratio open and counts against either end of the interval.

    Raises:
        ValueError: a name occurs in several studies.

    Returns:
        None without a common seed, and where a median is infinite or that of `b` is 0.
    """
    kept = [record for record in records if record.name in (a, b)]
    for name in (a, b):
        studies = sorted({record.study for record in kept if record.name == name})
        if len(studies) > 1:
            raise ValueError(f"records of {name}: got studies {', '.join(studies)}; expected those of one")
    steps = {name: {r.seed: _reach(r, level) for r in kept if r.name == name} for name in (a, b)}
    seeds = sorted(steps[a].keys() & steps[b].keys())
    if not seeds:
        return None
    pairs = np.array([[steps[a][seed], steps[b][seed]] for seed in seeds])
    above, below = np.median(pairs, axis=0)
    if not math.isfinite(above) or not math.isfinite(below) or below == 0:
        return None
    draws = np.random.default_rng(0).integers(len(seeds), size=(BOOTSTRAPS, len(seeds)))
    medians = np.median(pairs[draws], axis=1)
    with np.errstate(divide="ignore", invalid="ignore"):
        ratios = medians[:, 0] / medians[:, 1]
    low = np.quantile(np.where(np.isnan(ratios), 0.0, ratios), 0.025, method="lower")
    high = np.quantile(np.where(np.isnan(ratios), math.inf, ratios), 0.975, method="higher")
    return StepsRatio(float(above / below), (float(low), float(high)), len(seeds))


def t_half(values: Sequence[float]) -> float:
    """Half of the 95 % t interval of a mean; infinite for one value, which says nothing of the spread."""
    n = len(values)
    if n < 2:
        return math.inf
    return _T_95[min(n - 1, len(_T_95)) - 1] * statistics.stdev(values) / math.sqrt(n)


def t_interval(values: Sequence[float]) -> tuple[float, float]:
    """95 % t interval of the mean of shares, within [0, 1]."""
    mean, half = statistics.fmean(values), t_half(values)
    return max(mean - half, 0.0), min(mean + half, 1.0)


def _rank(item: tuple[str, list[RunRecord]], level: float) -> tuple[float, float, str]:
    """Highest success first, then fewest steps, then by name."""
    name, runs = item
    return -mean_success(runs), statistics.median(_reach(r, level) for r in runs), name


def _success(runs: Sequence[RunRecord]) -> list[float]:
    return [r.success for r in runs]


def _reach(record: RunRecord, level: float) -> float:
    steps = record.steps_to(level)
    return math.inf if steps is None else steps


def _head(*columns: str) -> str:
    return f"| {' | '.join(columns)} |\n{'|---' * len(columns)}|\n"


def _interval(runs: Sequence[RunRecord]) -> str:
    return _share(t_interval(_success(runs))) if len(runs) > 1 else "(one seed)"


def _pooled(runs: Sequence[RunRecord]) -> str:
    return _share(wilson(sum(r.successes for r in runs), sum(r.episodes for r in runs)))


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"


def _share(interval: tuple[float, float]) -> str:
    return f"[{100 * interval[0]:.1f}, {100 * interval[1]:.1f}]"


def _steps(runs: Sequence[RunRecord], level: float) -> str:
    reach = [_reach(r, level) for r in runs]
    median = statistics.median(reach)
    return f"{f'{median:,.0f}' if median < math.inf else 'never'}; {sum(map(math.isfinite, reach))} of {len(runs)}"


def _millimetres(runs: Sequence[RunRecord]) -> str:
    mean = mean_std(runs)
    return f"{1000 * mean:.1f}" if math.isfinite(mean) else "n/a"


def _cell(runs: Sequence[RunRecord]) -> str:
    if not runs:
        return "-"
    half = f" ± {100 * t_half(_success(runs)):.1f}" if len(runs) > 1 else ""
    return f"{_percent(mean_success(runs))}{half} ({_millimetres(runs)} mm)"


def _value(value: Any) -> str:
    text = f"{value:g}" if isinstance(value, float) else "null" if value is None else str(value)
    return text.replace("|", "\\|")
