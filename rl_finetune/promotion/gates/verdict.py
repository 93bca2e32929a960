"""All gates together."""

from __future__ import annotations

from rl_finetune.config.gates import GatesSection
from rl_finetune.promotion.gates import GATES
from rl_finetune.promotion.gates.base import passed
from rl_finetune.promotion.gates.plan import check_sound, plan_checks
from rl_finetune.promotion.records import OFF, Check, Evidence, Outcome, Verdict

WORST_FIRST: tuple[Outcome, ...] = ("reject", "hold", "promote")


def judge(evidence: Evidence, settings: GatesSection) -> Verdict:
    """Ask every gate; the verdict is the worst outcome.

    A gate that is switched off has no objection, but a check named `off` that says so.

    Raises:
        UserError: the evidence contradicts itself, or settings name what it does not hold.
    """
    check_sound(evidence)
    checks: list[Check] = [*plan_checks(evidence, settings.plan)]
    for name, gate in GATES.items():
        section = getattr(settings, name)
        if section.on:
            checks += gate(evidence, section)
        else:
            checks.append(passed(name, OFF, f"not asked: gates.{name}.on is false"))
    outcomes = {check.outcome for check in checks}
    return Verdict(next(outcome for outcome in WORST_FIRST if outcome in outcomes), tuple(checks))
