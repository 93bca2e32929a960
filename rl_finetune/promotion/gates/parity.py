"""Is what will be served what was evaluated?"""

from __future__ import annotations

from rl_finetune.config.gates import ParitySection
from rl_finetune.promotion.gates.base import embodiments, held
from rl_finetune.promotion.records import Check, Evidence, Outcome, ParityRecord

UNIT = "standard deviations"


def parity_gate(evidence: Evidence, settings: ParitySection) -> tuple[Check, ...]:
    """A check for each embodiment: the greatest difference of an action, relative to its channel's own spread.

    Both policies see the same and draw the same noise, so there is nothing to estimate: above the tolerance is
    `reject`; `hold` where an embodiment was not compared, or over too few chunks.
    """
    records = {record.embodiment: record for record in evidence.parity}
    found: list[Check] = []
    for tag in dict.fromkeys([*embodiments(evidence), *records]):
        if tag in records and records[tag].worst:
            found.append(_check(records[tag], settings))
        else:
            reason = "the exported policy was not compared"
            found.append(held("parity", tag, reason, bound=settings.tolerance, unit=UNIT))
    return tuple(found) or (held("parity", "none", "the exported policy was not compared", unit=UNIT),)


def _check(record: ParityRecord, settings: ParitySection) -> Check:
    parts = [gap / max(spread, settings.still) for gap, spread in zip(record.worst, record.scale, strict=True)]
    value, bound = max(parts), settings.tolerance
    channel = parts.index(value)
    outcome: Outcome = "reject" if value > bound else "promote" if record.chunks >= settings.chunks else "hold"
    reason = (
        f"channel {channel} differs by {record.worst[channel]:.3g}, {value:.3g} of its standard deviation, where "
        f"{bound:g} is tolerated; {record.chunks} chunks"
    )
    if record.chunks < settings.chunks:
        reason += f", expected at least {settings.chunks}"
    return Check("parity", record.embodiment, outcome, value, None, bound, UNIT, reason)
