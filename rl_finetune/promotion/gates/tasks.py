"""Is any task lost? Non-inferiority in each unperturbed world."""

from __future__ import annotations

from rl_finetune.config.gates import TasksSection
from rl_finetune.promotion.gates.base import (
    LOSS,
    POINTS,
    against,
    check_known,
    counted,
    estimate,
    gain_of,
    held,
    shared,
    unperturbed,
)  # fmt: skip
from rl_finetune.promotion.records import Check, Evidence, WorldRecord


def tasks_gate(evidence: Evidence, settings: TasksSection) -> tuple[Check, ...]:
    """A check for each world: is the gain above minus its margin?

    Promotion needs all of them. That is an intersection-union test (Berger 1982, Technometrics 24:295-300): a candidate
    that loses as much as its margin in any one task is passed with a chance of `level` at most, without any correction.
    Rejection needs one of them, so there the level is divided by the number of worlds (Bonferroni; Holm's procedure
    begins the same way): a candidate at the margin everywhere is rejected with a chance of `level` at most.

    Raises:
        UserError: a margin is for a world that was not played.
    """
    records = unperturbed(evidence)
    check_known("tasks.margins", list(settings.margins), [record.world for record in records])
    if not records:
        return (held("tasks", "none", "no unperturbed episode was played", unit=POINTS),)
    return tuple(_check(record, settings, len(records)) for record in records)


def _check(record: WorldRecord, settings: TasksSection, worlds: int) -> Check:
    margin, gain = settings.margins.get(record.world, settings.margin), gain_of([record], settings.level)
    outcome = against(estimate(gain), -margin, lambda: estimate(gain_of([record], settings.level / worlds)))
    reason = f"{counted(gain)}: {LOSS[outcome]} more than {margin:g} points"
    reason += shared(outcome, estimate(gain), -margin, worlds)
    return Check("tasks", record.world, outcome, gain.points, gain.interval, -margin, POINTS, reason)
