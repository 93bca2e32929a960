"""Trials as the page shows them: blinded until somebody has decided."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, cast

from rl_finetune.promotion.report import EvidencePoint, TrialArm, TrialNote, TrialsView
from rl_finetune.promotion.trials import Book
from rl_finetune.promotion.trials.history import Attempt, History
from rl_finetune.promotion.trials.plan import Letters, Plan
from rl_finetune.promotion.trials.sequential import Design, Tally


def view(book: Book) -> TrialsView:
    """What may be shown. Letters are drawn anew for every pair: as long as they are sealed there is nothing to count by
    letter, and no side is named."""
    plan, attempts, decided = book.plan(), book.results(), book.decided()
    design = plan.design
    test = (
        f"Sequential sign test on pairs: chance of at most {100 * design.alpha:g} % to promote a candidate that is not "
        f"better, of {100 * design.beta:g} % to miss one that is better by {100 * design.gain:g} points."
    )
    notes = tuple(_note(plan, attempt) for attempt in attempts if attempt.result.note or attempt.outcome == "abort")
    if decided is None:
        return TrialsView((), (), design.pairs, test, notes=notes, taken=book.status().pairs)
    detail = cast(Mapping[str, Any], decided["detail"])
    letters = Letters(**detail["letters"])
    pairs = _history(plan, attempts).pairs(letters)[: Tally(**detail["tally"]).pairs]
    arms = tuple(
        TrialArm(side, len(pairs), told["successes"], told["aborts"], told["interventions"], name)
        for side, name in (("candidate", plan.candidate), ("incumbent", plan.incumbent))
        for told in (detail["sides"][side],)
    )
    low, high = detail["interval"]
    sure = f"[{low:+.1f}, {high:+.1f}] at {100 - 200 * design.alpha:g} %, whenever trials are stopped"
    decision = f"{decided['outcome']}: {decided['reason']}; {sure}"
    return TrialsView(arms, points(design, pairs), design.pairs, test, decision, notes, len(pairs))


def points(design: Design, pairs: Sequence[tuple[bool, bool]]) -> tuple[EvidencePoint, ...]:
    """Pairs won less pairs lost after each pair, between the differences at which the test would have stopped."""
    found, tally = [], Tally()
    for number, (candidate, incumbent) in enumerate(pairs, start=1):
        tally = tally.plus(int(candidate) - int(incumbent))
        low, high = stops(design, tally)
        found.append(EvidencePoint(number, float(tally.wins - tally.losses), low, high))
    return tuple(found)


def stops(design: Design, tally: Tally) -> tuple[float, float]:
    """Differences (wins less losses) at which so many decisive and tied pairs end the test against and for the
    candidate; infinite where none does."""
    decisive, ties = tally.wins + tally.losses, tally.ties
    low, high = -math.inf, math.inf
    for wins in range(decisive + 1):
        call = design.look(Tally(wins, decisive - wins, ties))
        if call == "better":
            high = min(high, 2 * wins - decisive)
        elif call is not None:
            low = max(low, 2 * wins - decisive)
    return float(low), float(high)


def _history(plan: Plan, attempts: Sequence[Attempt]) -> History:
    by_trial: dict[int, list[Attempt]] = {}
    for attempt in attempts:
        by_trial.setdefault(attempt.trial, []).append(attempt)
    return History(plan, by_trial)


def _note(plan: Plan, attempt: Attempt) -> TrialNote:
    prefix = "" if attempt.outcome in ("success", "failure") else f"{attempt.outcome}: "
    return TrialNote(
        attempt.trial, plan.trial(attempt.trial).letter, prefix + (attempt.result.note or "no reason given")
    )
