"""Is a chunk ready before the one before it has run out?"""

from __future__ import annotations

from rl_finetune.config.gates import LatencySection
from rl_finetune.promotion.gates.base import embodiments, held
from rl_finetune.promotion.records import Check, Evidence, LatencyRecord, Outcome
from rl_finetune.promotion.statistics import calls_needed, quantile


def latency_gate(evidence: Evidence, settings: LatencySection) -> tuple[Check, ...]:
    """Two checks an embodiment: p50 and p99 against their shares of control period x horizon.

    Limits are order statistics, so slow calls need follow no distribution, only be independent. With too few calls p99
    has no upper limit at all and holds the candidate. Passing needs every check, so levels are not shared.

    Never `reject`: that is final for a bundle, and being too slow is said of weights and hardware together, busy or
    not. The same weights may be in time on another machine.
    """
    records = {record.embodiment: record for record in evidence.latency}
    found: list[Check] = []
    for tag in dict.fromkeys([*embodiments(evidence), *records]):
        for name, share, part in (("p50", 0.5, settings.median), ("p99", 0.99, settings.p99)):
            if tag not in records or not records[tag].seconds:
                found.append(held("latency", f"{tag}/{name}", "no call was timed", unit="s"))
            else:
                found.append(_check(records[tag], name, share, part, settings.level))
    return tuple(found) or (held("latency", "none", "no call was timed", unit="s"),)


def _check(record: LatencyRecord, name: str, share: float, part: float, level: float) -> Check:
    bound, calls = part * record.control_period * record.horizon, len(record.seconds)
    value, (low, high) = quantile(record.seconds, share, level)
    outcome: Outcome = "promote" if high is not None and high <= bound else "hold"
    said = "shown to be above" if low > bound else "shown to be below" if outcome == "promote" else "not shown below"
    limits = f"at least {1000 * low:.1f}" if high is None else f"[{1000 * low:.1f}, {1000 * high:.1f}]"
    reason = (
        f"{name} {1000 * value:.1f} ms {limits} in {calls} calls: {said} {1000 * bound:.1f} ms, {part:g} of "
        f"{record.horizon} steps of {1000 * record.control_period:g} ms"
    )
    if outcome == "hold":
        reason += f", on {record.hardware or 'hardware that is not named'}"
    if low > bound:
        reason += "; time it again on the robot's hardware, with nothing else running"
    elif high is None:
        reason += f"; at least {calls_needed(share, level)} calls are needed"
    interval = None if high is None else (low, high)
    return Check("latency", f"{record.embodiment}/{name}", outcome, value, interval, bound, "s", reason)
