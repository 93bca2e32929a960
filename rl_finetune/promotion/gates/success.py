"""Is the candidate better than the incumbent on the mean over unperturbed worlds?"""

from __future__ import annotations

from rl_finetune.config.gates import SuccessSection
from rl_finetune.promotion.gates.base import POINTS, counted, gain_of, held, unperturbed
from rl_finetune.promotion.records import Check, Evidence, Outcome
from rl_finetune.promotion.statistics import mcnemar

SAID = {
    "promote": "shown to be better",
    "hold": "neither shown to be better nor to be worse",
    "reject": "shown to be worse",
}


def success_gate(evidence: Evidence, settings: SuccessSection) -> tuple[Check, ...]:
    """One check: superiority of the mean gain.

    `promote` if the lower limit is above `settings.gain`, `reject` if the upper one is below 0, else `hold`. Each limit
    is wrong with a chance of `settings.level`, and there is one comparison only: nothing to correct for. A candidate
    that is no better is passed with that chance.
    """
    records = unperturbed(evidence)
    if not records:
        return (held("success", "mean", "no unperturbed episode was played", bound=settings.gain, unit=POINTS),)
    gain = gain_of(records, settings.level)
    low, high = gain.interval
    outcome: Outcome = "promote" if low > settings.gain else "reject" if high < 0 else "hold"
    worlds = f"{len(records)} worlds" if len(records) > 1 else records[0].world
    reason = (
        f"{counted(gain)} of {worlds}, exact one-sided p = {mcnemar(gain.won, gain.lost):.2g}: {SAID[outcome]}"
        f"{f' by {settings.gain:g} points' if settings.gain and outcome != 'reject' else ''}"
    )
    return (Check("success", "mean", outcome, gain.points, gain.interval, settings.gain, POINTS, reason),)
