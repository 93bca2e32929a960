"""Does the candidate withstand the perturbations that the incumbent withstands?"""

from __future__ import annotations

from rl_finetune.config.gates import SuitesSection
from rl_finetune.promotion.gates.base import (
    LOSS,
    POINTS,
    against,
    check_known,
    counted,
    estimate,
    gain_of,
    held,
    passed,
    shared,
    unperturbed,
)  # fmt: skip
from rl_finetune.promotion.records import NONE, Check, Evidence, WorldRecord
from rl_finetune.promotion.statistics import counts, score


def suites_gate(evidence: Evidence, settings: SuitesSection) -> tuple[Check, ...]:
    """Two checks a suite: non-inferiority of the mean over worlds, and that no world is shown to lose.

    All suites that were played count, and those required that were not hold the candidate. Levels are shared as in the
    gate of tasks: passing needs every suite (no correction), rejecting needs one (the level is divided by the number of
    suites). The second check needs no proof that a world is safe, which would take as many episodes again; it holds the
    candidate where the loss in a world is shown to exceed the margin, at the level divided by the number of worlds in
    all suites.

    Raises:
        UserError: a margin is for a suite, or an excuse for a world, that was not played.
    """
    worlds = [record.world for record in unperturbed(evidence)]
    played = [record.suite for record in evidence.worlds if record.suite != NONE]
    suites = list(dict.fromkeys([*settings.required, *played]))
    check_known("suites.margins", list(settings.margins), suites)
    check_known("suites.lacking", list(settings.lacking), worlds)
    if not suites:
        return (passed("suites", "none", "no suite is required, and none was played"),)
    found: list[Check] = []
    for suite in suites:
        records = [record for record in evidence.worlds if record.suite == suite]
        expected = [world for world in worlds if suite not in settings.lacking.get(world, [])]
        missing = [world for world in expected if world not in {record.world for record in records}]
        found.append(_mean(suite, records, missing if suite in settings.required else [], settings, len(suites)))
        if len(records) > 1:
            found.append(_worst(suite, records, settings, len(played)))
    return tuple(found)


def _mean(suite: str, records: list[WorldRecord], missing: list[str], settings: SuitesSection, suites: int) -> Check:
    margin = settings.margins.get(suite, settings.margin)
    if not records and not missing:
        return passed("suites", suite, "every world is excused from it in suites.lacking")
    if not records:
        return held("suites", suite, f"was not played in {', '.join(missing)}", bound=-margin, unit=POINTS)
    gain = gain_of(records, settings.level)
    outcome = against(estimate(gain), -margin, lambda: estimate(gain_of(records, settings.level / suites)))
    reason = f"{counted(gain)} of {len(records)} worlds: {LOSS[outcome]} more than {margin:g} points"
    reason += shared(outcome, estimate(gain), -margin, suites)
    if missing:
        outcome = "hold" if outcome == "promote" else outcome
        reason += f"; was not played in {', '.join(missing)}"
    return Check("suites", suite, outcome, gain.points, gain.interval, -margin, POINTS, reason)


def _worst(suite: str, records: list[WorldRecord], settings: SuitesSection, cells: int) -> Check:
    margin, level = settings.margins.get(suite, settings.margin), settings.level / cells
    record = min(records, key=lambda record: _standing(record, -margin))
    gain, world = gain_of([record], level), record.world
    lost = gain.interval[1] < -margin
    said = "shown to lose" if lost else "not shown to lose"
    reason = f"{world}: {counted(gain)}, the interval standing for {cells} at once: {said} more than {margin:g} points"
    return Check(
        "suites", f"{suite}/{world}", "hold" if lost else "promote", gain.points, gain.interval, -margin, POINTS, reason
    )


def _standing(record: WorldRecord, bound: float) -> float:
    """Standard errors by which its gain lies above the bound, in points; the least stands out most."""
    won, lost = counts(record.incumbent, record.candidate)
    return float(score(won, lost, len(record.candidate), bound / 100))
