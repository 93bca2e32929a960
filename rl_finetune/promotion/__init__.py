"""From a checkpoint to a robot, by evidence: gates, trials, registry, server, report."""

from __future__ import annotations

from rl_finetune.config.gates import GatesSection
from rl_finetune.promotion.records import Evidence, Verdict


def judge(evidence: Evidence, settings: GatesSection) -> Verdict:
    """What all gates together say; see `gates.verdict.judge`."""
    # Only here: whoever serves a policy imports this package too, and needs no scipy.
    from rl_finetune.promotion.gates.verdict import judge as ask

    return ask(evidence, settings)


__all__ = ["judge"]
