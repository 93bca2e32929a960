"""What gates share: how a gain is held against a bound, and how numbers are worded."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from rl_finetune.errors import UserError
from rl_finetune.metrics.intervals import Gain, mean_gain
from rl_finetune.promotion.records import NONE, Check, Evidence, Outcome, WorldRecord
from rl_finetune.promotion.statistics import Estimate, score_gain

POINTS = "points"
"""Unit of success rates and gains."""
LOSS = {"promote": "shown not to lose", "hold": "not shown not to lose", "reject": "shown to lose"}
"""What a check of non-inferiority says, before "more than so many points"."""


def unperturbed(evidence: Evidence) -> tuple[WorldRecord, ...]:
    """The records of episodes as they are in training, in their order."""
    return tuple(record for record in evidence.worlds if record.suite == NONE)


def embodiments(evidence: Evidence) -> tuple[str, ...]:
    """Robot tags of the worlds, in order, each once."""
    return tuple(dict.fromkeys(record.embodiment for record in evidence.worlds))


def gain_of(records: Sequence[WorldRecord], level: float) -> Gain:
    """Mean gain over records, each weighing the same: Tango's intervals joined by MOVER.

    Raises:
        ValueError: there is no record.
    """
    if not records:
        raise ValueError("records: got none; expected at least 1")
    gains = [score_gain(record.incumbent, record.candidate, level) for record in records]
    return mean_gain(gains) if len(gains) > 1 else gains[0]


def against(estimate: Estimate, bound: float, widened: Callable[[], Estimate]) -> Outcome:
    """`promote` if shown above the bound, `reject` if shown below it, else `hold`.

    Args:
        widened: the estimate whose upper limit stands for all comparisons of the gate together (Bonferroni). Wider
            limits contain the narrower, so it is worked out only where it can matter.
    """
    low, high = estimate[1]
    if low > bound:
        return "promote"
    return "reject" if high < bound and widened()[1][1] < bound else "hold"


def shared(outcome: Outcome, estimate: Estimate, bound: float, among: int) -> str:
    """Why an interval below the bound holds only: it speaks for one comparison, a rejection for all of the gate."""
    only_held = outcome == "hold" and estimate[1][1] < bound
    return f"; for a rejection not clear enough, as one of {among} that are looked at" if only_held else ""


def estimate(gain: Gain) -> Estimate:
    """Its points and their interval."""
    return gain.points, gain.interval


def counted(gain: Gain) -> str:
    """For example `+6.0 points [+2.0, +10.0] in 600 episodes (66 won, 30 lost)`."""
    return f"{gain} in {gain.episodes} episodes ({gain.won} won, {gain.lost} lost)"


def spoken(value: Estimate) -> str:
    """For example `60.0 points [55.1, 64.7]`."""
    points, (low, high) = value
    return f"{points:.1f} points [{low:.1f}, {high:.1f}]"


def passed(gate: str, name: str, reason: str) -> Check:
    """A check that asks nothing, with the reason why."""
    return Check(gate, name, "promote", 0.0, None, 0.0, "", reason)


def held(gate: str, name: str, reason: str, *, value: float = 0.0, bound: float = 0.0, unit: str = "") -> Check:
    """A check that cannot be decided for want of evidence."""
    return Check(gate, name, "hold", value, None, bound, unit, reason)


def check_known(field: str, named: Sequence[str], known: Sequence[str]) -> None:
    """Refuse settings for what the evidence does not hold: a misspelt name would silently be without effect.

    Raises:
        UserError: names the setting and what there is.
    """
    for name in named:
        if name not in known:
            raise UserError(
                f"gates.{field} names what was not played", got=name, expected=f"one of {sorted(set(known))}",
                do="correct the name or remove the line",
            )  # fmt: skip
