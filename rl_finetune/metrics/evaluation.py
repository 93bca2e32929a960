"""Evaluations: one report a world, their mean, and what changed between two of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from rl_finetune.metrics.intervals import Gain, mean_gain, mean_over, paired_gain, student
from rl_finetune.types import EvalReport


@dataclass(frozen=True, slots=True)
class Evaluation:
    """Success of one policy in each of its worlds."""

    worlds: Mapping[str, EvalReport]
    """Label -> report, as many episodes in each."""

    @property
    def overall(self) -> EvalReport:
        """The mean over worlds, each weighing the same; of one world its own report. Episodes stand world after world,
        measures with their worlds."""
        reports = list(self.worlds.values())
        if len(reports) == 1:
            return reports[0]
        success, interval = mean_over([(r.success, r.interval) for r in reports])
        mean_return, return_interval = mean_over([(r.mean_return, r.return_interval) for r in reports])
        return EvalReport(
            successes=tuple(done for r in reports for done in r.successes), seed=reports[0].seed, success=success,
            interval=interval, returns=tuple(value for r in reports for value in r.returns), mean_return=mean_return,
            return_interval=return_interval, mean_steps=sum(r.mean_steps for r in reports) / len(reports),
            policy_version=reports[0].policy_version, failed=sum(r.failed for r in reports),
        )  # fmt: skip

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {label: asdict(report) for label, report in self.worlds.items()}

    @classmethod
    def from_dict(cls, record: Mapping[str, Any]) -> Evaluation:
        """What `to_dict` gave, after JSON."""
        return cls({label: _report(found) for label, found in record.items()})

    def lines(self) -> list[str]:
        """For a person: the mean, then each of several worlds."""
        reports = self.worlds
        if len(reports) == 1:
            return [describe(self.overall)]
        return [
            f"{describe(self.overall)}, mean of {len(reports)} worlds",
            *(f"{label}: {describe(report)}" for label, report in reports.items()),
        ]


@dataclass(frozen=True, slots=True)
class Comparison:
    """Two evaluations on the same episodes of the same worlds."""

    before: Evaluation
    """Of the policy that training started from."""
    after: Evaluation
    """Of the policy that it ended with."""

    @property
    def gains(self) -> dict[str, Gain]:
        """Label -> paired gain."""
        before, after = self.before.worlds, self.after.worlds
        return {label: paired_gain(before[label].successes, after[label].successes) for label in after}

    @property
    def gain(self) -> Gain:
        """Of the mean over worlds."""
        return mean_gain(list(self.gains.values()))

    @property
    def return_gains(self) -> dict[str, tuple[float, tuple[float, float]]]:
        """Label -> mean paired difference of the returns, and its 95 % interval."""
        before, after = self.before.worlds, self.after.worlds
        return {
            label: student([new - old for old, new in zip(before[label].returns, report.returns, strict=True)])
            for label, report in after.items()
        }

    @property
    def return_gain(self) -> tuple[float, tuple[float, float]]:
        """Of the mean over worlds."""
        return mean_over(list(self.return_gains.values()))

    def to_dict(self) -> dict[str, Any]:
        """The evaluation file: both success rates and mean returns and their paired gains, overall and by world, and
        every episode, world after world."""
        before, after = self.before.overall, self.after.overall
        return {
            "episodes": len(after.successes),
            "seed": after.seed,
            **_compared(before, after, self.gain, self.return_gain),
            "successes_before": before.successes,
            "successes_after": after.successes,
            "returns_before": before.returns,
            "returns_after": after.returns,
            "worlds": {
                label: {
                    "episodes": len(report.successes),
                    **_compared(self.before.worlds[label], report, self.gains[label], self.return_gains[label]),
                }
                for label, report in self.after.worlds.items()
            },
        }  # fmt: skip

    def line(self) -> str:
        """For a person, in one line."""
        before, after, gains = self.before, self.after, self.gains
        whole = f"success {before.overall.success:.1%} -> {after.overall.success:.1%}, gain {self.gain}"
        if _graded(before.overall) or _graded(after.overall):
            points, (low, high) = self.return_gain
            whole += f", return {before.overall.mean_return:.4g} -> {after.overall.mean_return:.4g}"
            whole += f", gain {points:+.3g} [{low:+.3g}, {high:+.3g}]"
        if len(gains) == 1:
            return f"{whole} on {len(after.overall.successes)} held-out episodes"
        each = "; ".join(
            f"{label} {before.worlds[label].success:.1%} -> {report.success:.1%}, {gains[label]}"
            for label, report in after.worlds.items()
        )
        episodes = len(after.overall.successes) // len(gains)
        return f"{whole}, mean of {len(gains)} worlds ({each}) on {episodes} held-out episodes each"


def describe(report: EvalReport) -> str:
    """Success with its interval, the mean return where it says more, measures, and what broke down."""
    low, high = report.interval
    first, last = report.return_interval
    worth = f", return {report.mean_return:.4g} [{first:.4g}, {last:.4g}]" if _graded(report) else ""
    measures = "".join(f", {name} {value:.3g}" for name, value in report.measures.items())
    broken = f", {report.failed} broke down" if report.failed else ""
    return f"success {report.success:.1%} [{low:.1%}, {high:.1%}]{worth}{measures}{broken}"


def _graded(report: EvalReport) -> bool:
    """Whether returns say more than success does."""
    return any(value != done for value, done in zip(report.returns, report.successes, strict=True))


def _compared(
    before: EvalReport, after: EvalReport, gain: Gain, return_gain: tuple[float, tuple[float, float]]
) -> dict[str, Any]:
    return {
        "before": _rates(before), "after": _rates(after),
        "gain": {"points": gain.points, "interval": gain.interval, "won": gain.won, "lost": gain.lost},
        "return_gain": {"mean": return_gain[0], "interval": return_gain[1]},
    }  # fmt: skip


def _rates(report: EvalReport) -> dict[str, Any]:
    names = ("success", "interval", "mean_return", "return_interval", "mean_steps", "failed", "measures")
    return {name: getattr(report, name) for name in names}


def _report(record: Mapping[str, Any]) -> EvalReport:
    sequences = {name: tuple(record[name]) for name in ("successes", "interval", "returns", "return_interval")}
    return EvalReport(**{**record, **sequences})
