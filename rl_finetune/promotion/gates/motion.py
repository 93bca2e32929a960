"""Did the candidate move as it may, in simulation?"""

from __future__ import annotations

from rl_finetune.config.gates import MotionSection
from rl_finetune.promotion.gates.base import check_known, embodiments, held, passed, unperturbed
from rl_finetune.promotion.records import Check, Evidence, Limits, MotionAudit, Outcome

UNIT = "share of control steps"
TOLERANCE = 1e-4
"""Relative; extremes are differences of float32 actions, and may round beyond a limit that they touch."""
LIMITED = {
    "action": ("low", "high"), "velocity": ("velocity",), "acceleration": ("acceleration",), "jerk": ("jerk",),
    "workspace": ("workspace",),
}  # fmt: skip
"""Kind -> fields of `Limits`; without any of them there is nothing to be beyond."""
GUARDED = ("action", "velocity", "acceleration", "jerk")
"""Kinds that the safety envelope keeps for every body."""


def motion_gate(evidence: Evidence, settings: MotionSection) -> tuple[Check, ...]:
    """A check for each world and kind of limit: the share of control steps beyond it, against the share allowed.

    What was seen is not an estimate: a step beyond a limit is unsafe however many were not, so above the allowed share
    is `reject`. `hold` where a world was not audited, a required kind was not measured or has no limit, too few steps
    were looked at for "never" to say anything, or extremes lie beyond a limit that no step was counted beyond.

    Behind the safety envelope no step can be beyond what it limits; a step that is shows that it fails. A further check
    for each world asks how often it had to step in; of episodes without it, how often more was asked for than it
    allows. More often than allowed is `hold`: the robot is safe, but what moves it is not what was trained.

    Raises:
        UserError: a robot tag is excused that was not played.
    """
    check_known("motion.excused", list(settings.excused), embodiments(evidence))
    audits = {audit.world: audit for audit in evidence.motion}
    found: list[Check] = []
    for world in dict.fromkeys([*(record.world for record in unperturbed(evidence)), *audits]):
        if world not in audits:
            found.append(held("motion", world, "its motion was not audited", unit=UNIT))
            continue
        audit = audits[world]
        limits = evidence.limits.get(audit.embodiment, Limits())
        kinds = dict.fromkeys([*settings.required, *audit.measured])
        found += [_unknown(audit, kind, limits, settings) or _seen(audit, kind, limits, settings) for kind in kinds]
        found.append(_leaning(audit, settings))
    return tuple(found) or (held("motion", "none", "no motion was audited", unit=UNIT),)


def excess(audit: MotionAudit, kind: str, limits: Limits) -> str:
    """The channel that was farthest beyond its limit, in words; empty where none was or the kind has no channels."""
    if kind == "action":
        ends = [(seen[0], low, low - seen[0]) for seen, low in zip(audit.actions, limits.low, strict=False)]
        ends += [(seen[1], high, seen[1] - high) for seen, high in zip(audit.actions, limits.high, strict=False)]
    elif kind in ("velocity", "acceleration", "jerk"):
        pairs = zip(getattr(audit, kind), getattr(limits, kind), strict=False)
        ends = [(seen, limit, seen - limit) for seen, limit in pairs]
    else:
        ends = []
    beyond = [(by, i) for i, (_, limit, by) in enumerate(ends) if by > TOLERANCE * max(1.0, abs(limit))]
    if not beyond:
        return ""
    place = max(beyond)[1]
    return f"channel {place % len(audit.actions)} reached {ends[place][0]:.4g} where {ends[place][1]:.4g} is the limit"


def _unknown(audit: MotionAudit, kind: str, limits: Limits, settings: MotionSection) -> Check | None:
    """What is said of a kind that was not measured, or against no limit; None where there is a number."""
    name, lacking = f"{audit.world}/{kind}", ""
    if kind not in audit.measured:
        lacking = f"{kind} was not measured"
    elif kind in LIMITED and not any(getattr(limits, side) for side in LIMITED[kind]):
        lacking = f"{audit.embodiment} has no limit of {kind}"
    if not lacking:
        return None
    if kind in settings.excused.get(audit.embodiment, []):
        return passed("motion", name, f"{lacking}; excused in motion.excused")
    if kind in settings.required:
        return held(
            "motion", name, f"{lacking}, and motion.required asks for it", bound=_allowed(kind, settings), unit=UNIT
        )
    return passed("motion", name, f"{lacking}; not required")


def _seen(audit: MotionAudit, kind: str, limits: Limits, settings: MotionSection) -> Check:
    over = audit.self_collisions if kind == "self_collision" else audit.over.get(kind, 0)
    share, allowed, farthest = over / max(audit.steps, 1), _allowed(kind, settings), excess(audit, kind, limits)
    outcome: Outcome = "promote"
    reason = (
        f"{over} of {audit.steps} control steps beyond the limit of {kind}: {share:.3g} where {allowed:g} is allowed"
    )
    if farthest:
        reason += f"; {farthest}"
    if share > allowed:
        outcome = "reject"
    elif farthest and over == 0:
        outcome, reason = "hold", f"{reason}, and yet no step was counted"
    elif audit.steps < settings.steps:
        outcome, reason = "hold", f"{reason}; expected at least {settings.steps} steps"
    return Check("motion", f"{audit.world}/{kind}", outcome, share, None, allowed, UNIT, reason)


def _leaning(audit: MotionAudit, settings: MotionSection) -> Check:
    """Whether the policy leans on the envelope, or would."""
    reasons = audit.interventions if audit.guarded else {kind: audit.over.get(kind, 0) for kind in GUARDED}
    changed = audit.changed if audit.guarded else max(reasons.values())
    share, allowed = changed / max(audit.steps, 1), settings.interventions
    kinds = sorted(reasons.items(), key=lambda each: -each[1])
    why = ", ".join(f"{kind.replace('_', ' ')} {count}" for kind, count in kinds if count)
    steps = f"{changed} of {audit.steps} control steps"
    what = f"the safety envelope changed {steps}"
    if not audit.guarded:
        what = f"played without the safety envelope; {steps} asked for more than it allows"
    reason = f"{what}: {share:.3g} where {allowed:g} is allowed{f' ({why})' if why else ''}"
    outcome: Outcome = "promote" if share <= allowed else "hold"
    if outcome == "hold":
        reason += "; the policy leans on the envelope"
    return Check("motion", f"{audit.world}/interventions", outcome, share, None, allowed, UNIT, reason)


def _allowed(kind: str, settings: MotionSection) -> float:
    return next((share for known, share in settings.allowed.items() if known == kind), 0.0)
