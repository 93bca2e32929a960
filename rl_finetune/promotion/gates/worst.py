"""How bad is the worst task, and the worst embodiment?"""

from __future__ import annotations

from collections.abc import Sequence

from rl_finetune.config.gates import WorstSection
from rl_finetune.metrics.intervals import mean_over, wilson
from rl_finetune.promotion.gates.base import POINTS, against, held, shared, spoken, unperturbed
from rl_finetune.promotion.records import Check, Evidence, WorldRecord
from rl_finetune.promotion.statistics import Estimate, correlation_of, difference, least, z_of

SAID = {"promote": "shown to be above", "hold": "not shown to be above", "reject": "shown to be below"}
WHO = ("candidate", "incumbent")
CHECKS = 4
"""Of this gate: each could reject."""
Groups = dict[str, list[WorldRecord]]
"""Task or robot tag -> its records."""


def worst_gate(evidence: Evidence, settings: WorstSection) -> tuple[Check, ...]:
    """Four checks: the worst task and the worst embodiment, each against the floor and against the incumbent's worst.

    An embodiment's success is the mean over its worlds. Which is worst is not known but estimated, for either policy:
    `statistics.least` has limits that hold nevertheless. Where the same is worst for both, the episodes pair and their
    correlation narrows the interval of the difference. Where no task may lose more than here the gate of tasks says as
    much; this one says more where a task has a wider margin of its own: that task must not become the worst of all.
    Passing needs all four, so levels are not shared; rejecting needs one, so there the level is divided by four.
    """
    records = unperturbed(evidence)
    if not records:
        return (held("worst", "none", "no unperturbed episode was played", unit=POINTS),)
    tasks: Groups = {record.world: [record] for record in records}
    bodies: Groups = {}
    for record in records:
        bodies.setdefault(record.embodiment, []).append(record)
    return (*_checks("task", tasks, settings), *_checks("embodiment", bodies, settings))


def _checks(kind: str, groups: Groups, settings: WorstSection) -> tuple[Check, Check]:
    name, old = (min(groups, key=lambda group: _success(groups[group], who, settings.level)[0]) for who in WHO)
    correlation = correlation_of([(r.candidate, r.incumbent) for r in groups[name]]) if name == old else 0.0

    def gap_at(level: float) -> Estimate:
        mine, other = (_worst(groups, who, level) for who in WHO)
        return difference(mine, other, correlation)

    ours, theirs = (_worst(groups, who, settings.level) for who in WHO)
    few, bar = settings.level / CHECKS, settings.floor
    outcome = against(ours, bar, lambda: _worst(groups, "candidate", few))
    reason = f"{name}: {spoken(ours)}: {SAID[outcome]} {bar:g} points{shared(outcome, ours, bar, CHECKS)}"
    floor = Check("worst", kind, outcome, ours[0], ours[1], bar, POINTS, reason)
    gap, bar = gap_at(settings.level), -settings.margin
    outcome = against(gap, bar, lambda: gap_at(few))
    reason = (
        f"{spoken(ours)}, the incumbent's worst {spoken(theirs)}: {gap[0]:+.1f} {SAID[outcome]} {bar:g} points"
        f"{shared(outcome, gap, bar, CHECKS)}"
    )
    return floor, Check("worst", f"{kind}_against_incumbent", outcome, gap[0], gap[1], bar, POINTS, reason)


def _worst(groups: Groups, who: str, level: float) -> Estimate:
    """Success of the worst group; see `statistics.least`."""
    near, far = ([_success(group, who, at) for group in groups.values()] for at in (level, level / len(groups)))
    return least(near, far)


def _success(records: Sequence[WorldRecord], who: str, level: float) -> Estimate:
    """Mean success over records, in points: Wilson's intervals joined by MOVER."""
    parts: list[Estimate] = []
    for record in records:
        outcomes: tuple[bool, ...] = getattr(record, who)
        low, high = wilson(sum(outcomes), len(outcomes), z_of(level))
        parts.append((100 * sum(outcomes) / len(outcomes), (100 * low, 100 * high)))
    return mean_over(parts)
