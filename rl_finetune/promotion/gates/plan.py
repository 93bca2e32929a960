"""Is the evidence what it should be? Asked before any gate, and never switched off."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable

from rl_finetune.config.gates import PlanSection
from rl_finetune.errors import UserError
from rl_finetune.promotion.gates.base import unperturbed
from rl_finetune.promotion.records import NONE, Check, Evidence, Limits, MotionAudit, WorldRecord
from rl_finetune.promotion.registry.limits import check_limits

REDO = "gather the evidence again"


def check_sound(evidence: Evidence) -> None:
    """Refuse evidence that contradicts itself: no number of it would mean anything.

    Raises:
        UserError: a record stands twice, episodes do not pair or are no successes and failures, a world has two bodies,
            a number is negative, infinite or none, limits are impossible, or lists over channels differ in length.
    """
    _once("world and suite", [(record.world, record.suite) for record in evidence.worlds])
    _once("world's motion", [audit.world for audit in evidence.motion])
    _once("embodiment's latency", [record.embodiment for record in evidence.latency])
    _once("embodiment's parity", [record.embodiment for record in evidence.parity])
    bodies: dict[str, str] = {}
    said = [(record.world, record.embodiment) for record in evidence.worlds]
    for world, body in (*said, *((audit.world, audit.embodiment) for audit in evidence.motion)):
        if bodies.setdefault(world, body) != body:
            got = f"{bodies[world]} and {body}"
            raise UserError(f"world {world} has two bodies", got=got, expected="one", do=REDO)
    for record in evidence.worlds:
        _check_world(record)
    for audit in evidence.motion:
        _check_motion(audit, evidence.limits.get(audit.embodiment, Limits()))
    for call in evidence.latency:
        _check_numbers(f"latency of {call.embodiment}", (*call.seconds, call.control_period))
        if call.control_period == 0 or call.horizon < 1:
            got = f"{call.horizon} steps of {call.control_period} s"
            raise UserError(f"chunk of {call.embodiment}", got=got, expected="a duration above 0", do=REDO)
    for pair in evidence.parity:
        _check_numbers(f"parity of {pair.embodiment}", (*pair.worst, *pair.scale))
        if len(pair.scale) != len(pair.worst):
            got, expected = f"{len(pair.scale)} channels", len(pair.worst)
            raise UserError(f"parity of {pair.embodiment}: scale", got=got, expected=expected, do=REDO)


def plan_checks(evidence: Evidence, settings: PlanSection) -> tuple[Check, ...]:
    """Whether the evidence is what was planned; each that is not holds the candidate.

    Fewer episodes than planned, other seeds in one record than in another, worlds that broke down too often, a suite in
    a world without unperturbed episodes, a body that the candidate would drive and that no world has, and a candidate
    that is the incumbent.
    """
    records = evidence.worlds
    planned = [settings.episodes if record.suite == NONE else settings.suite_episodes for record in records]
    fewest = min((len(record.candidate) for record in records), default=0)
    short = [
        f"{_label(record)} has {len(record.candidate)} of {number}"
        for record, number in zip(records, planned, strict=True)
        if len(record.candidate) < number
    ]
    seeds = sorted({record.seed for record in records})
    broken = [
        f"{_label(record)} broke down in {record.failed} of {len(record.candidate)}"
        for record in records
        if record.failed > settings.failed * len(record.candidate)
    ]
    base = {record.world for record in unperturbed(evidence)}
    stray = sorted({record.world for record in records} - base)
    bare = [f"{world} was only played under perturbation" for world in stray]
    played = {record.embodiment for record in unperturbed(evidence)}
    unseen = [tag for tag in evidence.drives if tag not in played and tag not in settings.unplayed]
    unknown = [f"{tag} is among what it can drive, and was not played" for tag in unseen]
    same = [evidence.candidate.digest] if evidence.candidate.digest == evidence.incumbent.digest else []
    return (
        _held_if("episodes", short, fewest, min(planned, default=0)),
        _held_if("seeds", [f"records have the seeds {seeds}"] if len(seeds) > 1 else [], len(seeds), 1),
        _held_if("breakdowns", broken, sum(record.failed for record in records), 0),
        _held_if("worlds", bare, len(base), len(base) + len(stray)),
        _held_if("bodies", unknown, len(played), len(played) + len(unseen)),
        _held_if("candidate", [f"it is the incumbent: {digest}" for digest in same], 0, 0),
    )


SOUND = {
    "episodes": "as many as planned, or more, in every record",
    "seeds": "one for all records",
    "breakdowns": "few enough",
    "worlds": "each was played unperturbed",
    "bodies": "all that it can drive were played, as far as that is known and not excused",
    "candidate": "other weights than the incumbent's",
}


def _held_if(name: str, faults: list[str], value: int, planned: int) -> Check:
    reason = "; ".join(faults) or SOUND[name]
    return Check("plan", name, "hold" if faults else "promote", float(value), None, float(planned), "", reason)


def _label(record: WorldRecord) -> str:
    return record.world if record.suite == NONE else f"{record.world} under {record.suite}"


def _once(what: str, names: Iterable[object]) -> None:
    for name, times in Counter(names).items():
        if times > 1:
            raise UserError(f"evidence holds a {what} twice", got=f"{name} {times} times", expected="once", do=REDO)


def _check_world(record: WorldRecord) -> None:
    n, label = len(record.candidate), _label(record)
    if n == 0 or len(record.incumbent) != n:
        got = f"{n} of the candidate, {len(record.incumbent)} of the incumbent"
        raise UserError(f"episodes of {label} do not pair", got=got, expected="as many of both, at least 1", do=REDO)
    strange = {type(outcome).__name__ for outcome in (*record.candidate, *record.incumbent)} - {"bool"}
    if strange:
        raise UserError(f"successes of {label}", got=sorted(strange), expected="true or false only", do=REDO)
    lost = n - sum(record.candidate), n - sum(record.incumbent)
    if not 0 <= record.failed <= min(lost):
        got, expected = f"{record.failed} breakdowns, {lost} lost episodes", "breakdowns among those that both lost"
        raise UserError(f"breakdowns of {label}", got=got, expected=expected, do=REDO)


def _check_motion(audit: MotionAudit, limits: Limits) -> None:
    what = f"motion in {audit.world}"
    _check_numbers(what, (*audit.velocity, *audit.acceleration, *audit.jerk), signed=False)
    _check_numbers(what, tuple(end for pair in audit.actions for end in pair), signed=True)
    counts = [audit.self_collisions, audit.changed, *audit.over.values(), *audit.interventions.values()]
    if audit.steps < 0 or min(counts) < 0 or max(counts) > audit.steps:
        raise UserError(what, got=f"{max(counts)} of {audit.steps} steps", expected="a share of them", do=REDO)
    reasons = audit.interventions.values()
    if (audit.changed and not audit.guarded) or not max(reasons, default=0) <= audit.changed <= sum(reasons):
        got = f"{audit.changed} changed steps for {sum(reasons)} reasons"
        raise UserError(what, got=got, expected="one or more for each, behind the envelope only", do=REDO)
    check_limits(audit.embodiment, limits, len(audit.actions))


def _check_numbers(what: str, values: tuple[float, ...], *, signed: bool = False) -> None:
    for value in values:
        if not math.isfinite(value) or (value < 0 and not signed):
            expected = "finite numbers" if signed else "finite numbers, none below 0"
            raise UserError(what, got=value, expected=expected, do=REDO)
