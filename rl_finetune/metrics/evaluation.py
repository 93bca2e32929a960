"""Evaluations: one report a world, their mean, and what changed between two of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from rl_finetune.metrics.intervals import Gain, mean_gain, mean_over, paired_gain
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
        return EvalReport(
            successes=tuple(done for r in reports for done in r.successes), seed=reports[0].seed, success=success,
            interval=interval, mean_steps=sum(r.mean_steps for r in reports) / len(reports),
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

    def to_dict(self) -> dict[str, Any]:
        """The evaluation file: both success rates and the paired gain, overall and by world, and every episode, world
        after world."""
        before, after = self.before.overall, self.after.overall
        return {
            "episodes": len(after.successes),
            "seed": after.seed,
            **_compared(before, after, self.gain),
            "successes_before": before.successes,
            "successes_after": after.successes,
            "worlds": {
                label: {
                    "episodes": len(report.successes), **_compared(self.before.worlds[label], report, self.gains[label])
                }
                for label, report in self.after.worlds.items()
            },
        }  # fmt: skip

    def line(self) -> str:
        """For a person, in one line."""
        before, after, gains = self.before, self.after, self.gains
        whole = f"success {before.overall.success:.1%} -> {after.overall.success:.1%}, gain {self.gain}"
        if len(gains) == 1:
            return f"{whole} on {len(after.overall.successes)} held-out episodes"
        each = "; ".join(
            f"{label} {before.worlds[label].success:.1%} -> {report.success:.1%}, {gains[label]}"
            for label, report in after.worlds.items()
        )
        episodes = len(after.overall.successes) // len(gains)
        return f"{whole}, mean of {len(gains)} worlds ({each}) on {episodes} held-out episodes each"


def describe(report: EvalReport) -> str:
    """Success with its interval, measures, and what broke down."""
    low, high = report.interval
    measures = "".join(f", {name} {value:.3g}" for name, value in report.measures.items())
    broken = f", {report.failed} broke down" if report.failed else ""
    return f"success {report.success:.1%} [{low:.1%}, {high:.1%}]{measures}{broken}"


def _compared(before: EvalReport, after: EvalReport, gain: Gain) -> dict[str, Any]:
    return {
        "before": _rates(before), "after": _rates(after),
        "gain": {"points": gain.points, "interval": gain.interval, "won": gain.won, "lost": gain.lost},
    }  # fmt: skip


def _rates(report: EvalReport) -> dict[str, Any]:
    names = ("success", "interval", "mean_steps", "failed", "measures")
    return {name: getattr(report, name) for name in names}


def _report(record: Mapping[str, Any]) -> EvalReport:
    return EvalReport(**{**record, "successes": tuple(record["successes"]), "interval": tuple(record["interval"])})
