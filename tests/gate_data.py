"""Made-up evidence for tests of the gates: in order but for what is changed."""

from __future__ import annotations

import dataclasses

from rl_finetune.config.gates import GatesSection
from rl_finetune.promotion import judge
from rl_finetune.promotion.records import (
    Evidence,
    LatencyRecord,
    Limits,
    MotionAudit,
    ParityRecord,
    PolicyName,
    WorldRecord,
)

KINDS = ("action", "velocity", "acceleration", "jerk", "workspace", "joint", "self_collision")
LIMITS = Limits((-1.0, -1.0), (1.0, 1.0), (2.0, 2.0), (3.0, 3.0), (4.0, 4.0), ((-1.0, 1.0),) * 3)
NO_SUITES = {"suites": {"required": []}}


def world(name="a", *, both=100, won=50, lost=10, n=200, suite="none", body=None, seed=0, failed=0) -> WorldRecord:
    """`both` succeed in the first episodes, then those that were won, then those that were lost, then neither."""
    neither = n - both - won - lost
    candidate = (True,) * (both + won) + (False,) * (lost + neither)
    incumbent = (True,) * both + (False,) * won + (True,) * lost + (False,) * neither
    return WorldRecord(name, body or f"body_{name}", suite, seed, candidate, incumbent, failed)


def audit(name="a", **changes) -> MotionAudit:
    sound = MotionAudit(
        name, f"body_{name}", 5000, ((-0.5, 0.5),) * 2, (1.0,) * 2, (1.0,) * 2, (1.0,) * 2, measured=KINDS
    )
    return dataclasses.replace(sound, **changes)


def evidence(*worlds: WorldRecord, **changes) -> Evidence:
    """Everything in order but what is changed."""
    worlds = worlds or (world(),)
    labels = {record.world: record.embodiment for record in worlds}
    bodies = list(dict.fromkeys(labels.values()))
    sound = Evidence(
        PolicyName("candidate", "1"), PolicyName("incumbent", "0"), worlds,
        motion=tuple(audit(name, embodiment=body) for name, body in labels.items()),
        latency=tuple(LatencyRecord(body, (0.1,) * 400, 0.1, 10) for body in bodies),
        parity=tuple(ParityRecord(body, 32, (1e-4, 0.0), (0.1, 0.0)) for body in bodies),
        limits=dict.fromkeys(bodies, LIMITS),
    )  # fmt: skip
    return dataclasses.replace(sound, **changes)


def settings(**groups) -> GatesSection:
    groups = {"plan": {"episodes": 200, "suite_episodes": 200}, **NO_SUITES, **groups}
    return GatesSection.model_validate(groups)


def outcomes(found, **groups) -> dict[str, str]:
    """gate:name -> outcome."""
    return {f"{check.gate}:{check.name}": check.outcome for check in judge(found, settings(**groups)).checks}


def reason(found, name: str, **groups) -> str:
    return next(c.reason for c in judge(found, settings(**groups)).checks if f"{c.gate}:{c.name}" == name)
