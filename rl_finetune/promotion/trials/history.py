"""What the ledger of trials tells: attempts, what they count as, and what is open."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, get_args

from pydantic import TypeAdapter

from rl_finetune.durable import Json
from rl_finetune.errors import UserError
from rl_finetune.promotion.registry.ledger import Entry
from rl_finetune.promotion.trials.plan import LETTERS, Letter, Letters, Plan, Trial

Ending = Literal["success", "failure", "abort", "intervention"]
"""How an attempt ended. `abort`: for a reason that has nothing to do with the policy. `intervention`: somebody had to
stop or help the policy."""
ENDINGS: tuple[Ending, ...] = get_args(Ending)
LONGEST_TEXT = 2000
"""Characters of a note."""


@dataclass(frozen=True, slots=True)
class Result:
    """What an operator tells of one attempt."""

    trial: int
    """Number of the trial."""
    letter: str
    """Who played, as the operator knows it: a guard against a mix-up of trials."""
    outcome: str
    """`success`, `failure`, `abort` or `intervention`."""
    operator: str
    """Who watched."""
    note: str = ""
    """What should be remembered."""
    seconds: float | None = None
    """How long it took."""
    clip: str = ""
    """Path of a film."""
    robot: str = ""
    """Which robot."""


@dataclass(frozen=True, slots=True)
class Correction:
    """An earlier result was wrong. The earlier entry stays."""

    entry: int
    """Index of the result's entry in the ledger."""
    outcome: str
    """What it should have been."""
    operator: str
    """Who says so."""
    reason: str
    """Why."""


@dataclass(frozen=True, slots=True)
class Attempt:
    """A result with its corrections applied."""

    entry: int
    """Index of its entry."""
    hash: str
    """Hash of that entry."""
    trial: int
    """Number of the trial."""
    outcome: str
    """As it counts now."""
    result: Result
    """As it was recorded."""


@dataclass(frozen=True, slots=True)
class History:
    """The ledger, read once."""

    plan: Plan
    """What is played."""
    attempts: Mapping[int, Sequence[Attempt]] = field(default_factory=dict)
    """Trial -> its attempts, in order."""
    corrections: int = 0
    """Corrections of results."""
    served: int = 0
    """Times that a server asked whom a letter means."""
    decision: Mapping[str, Json] | None = None
    """The decision as grounds for the registry, where there is one."""
    count: int = 0
    """Entries."""
    head: str = ""
    """Hash of the last entry."""

    def success(self, number: int, *, aborts_fail: bool = False) -> bool | None:
        """What a trial counts as: its first attempt that was played to an end. None as long as it is open.

        `aborts_fail` counts every abort as lost, to see how much hangs on them.
        """
        played = {"success": True, "failure": False}
        if self.plan.interventions == "failure":
            played["intervention"] = False
        for index, attempt in enumerate(self.attempts.get(number, ()), start=1):
            if attempt.outcome in played:
                return played[attempt.outcome]
            if aborts_fail or index >= self.plan.attempts:
                return False
        return None

    def first_open(self) -> Trial | None:
        """The earliest trial that counts as nothing yet: an aborted one comes again before its pair goes on."""
        for number in self.plan.trials:
            if self.success(number) is None:
                return self.plan.trial(number, 1 + len(self.attempts.get(number, ())))
        return None

    def pairs(self, letters: Letters, *, aborts_fail: bool = False) -> list[tuple[bool, bool]]:
        """(candidate, incumbent) of the pairs in planned order, up to the first that is open."""
        found = []
        for pair in self.plan.pairs:
            first, second = (2 * pair.number - 1, 2 * pair.number)
            a, b = (self.success(number, aborts_fail=aborts_fail) for number in (first, second))
            if a is None or b is None:
                break
            ahead = letters.plays(self.plan.trial(first)) == "candidate"
            found.append((a, b) if ahead else (b, a))
        return found

    def every(self, ending: Ending) -> list[Attempt]:
        """All attempts that ended so."""
        return [a for number in sorted(self.attempts) for a in self.attempts[number] if a.outcome == ending]


_RESULT: TypeAdapter[Result] = TypeAdapter(Result)
_CORRECTION: TypeAdapter[Correction] = TypeAdapter(Correction)


def read(entries: Sequence[Entry], plan: Plan) -> History:
    """The history that a verified ledger tells; its first entry is the plan."""
    attempts: dict[int, list[Attempt]] = {}
    overruled: dict[int, str] = {}
    counts = {"served": 0, "correction": 0}
    decision: Mapping[str, Json] | None = None
    for entry in entries:
        if entry.kind == "correction":
            correction = _CORRECTION.validate_python(dict(entry.body))
            overruled[correction.entry] = correction.outcome
        if entry.kind in counts:
            counts[entry.kind] += 1
        if entry.kind == "decision":
            decision = entry.body
        if entry.kind == "result":
            result = _RESULT.validate_python(dict(entry.body))
            attempts.setdefault(result.trial, []).append(
                Attempt(entry.index, entry.hash, result.trial, result.outcome, result)
            )
    corrected = {
        number: tuple(Attempt(a.entry, a.hash, a.trial, overruled.get(a.entry, a.outcome), a.result) for a in tries)
        for number, tries in attempts.items()
    }
    return History(plan, corrected, counts["correction"], counts["served"], decision, len(entries), entries[-1].hash)


def check(result: Result, upcoming: Trial, history: History) -> None:
    """Refuse what is not the result of the trial that is played now.

    Raises:
        UserError: unknown letter or outcome, no operator, a time that is none, a trial out of turn or told already.
    """
    letter: Letter = upcoming.letter
    if result.trial != upcoming.number:
        known = history.success(result.trial) is not None
        raise UserError(
            "a result is there already" if known else "not this trial's turn", got=f"trial {result.trial}",
            expected=f"trial {upcoming.number}, letter {letter}",
            do="correct the earlier entry if it was wrong" if known else "play the trials in the order of the sheet",
        )  # fmt: skip
    if result.letter != letter:
        what = "the letter is another trial's" if result.letter in LETTERS else "unknown letter"
        raise UserError(what, got=result.letter, expected=f"{letter} in trial {upcoming.number}",
                        do="make sure that the robot was driven by that letter; if not, record an abort")  # fmt: skip
    check_words(result.outcome, result.operator, result.note)
    if result.seconds is not None and not (math.isfinite(result.seconds) and result.seconds >= 0):
        raise UserError("no duration", got=result.seconds, expected="seconds, 0 or more", do="leave it out")


def check_words(outcome: str, operator: str, text: str) -> None:
    """Refuse an unknown outcome, a nameless operator and endless text.

    Raises:
        UserError: one of them.
    """
    if outcome not in ENDINGS:
        raise UserError("unknown outcome", got=outcome, expected=" | ".join(ENDINGS), do="choose one of them")
    if not operator.strip():
        raise UserError("result without an operator", got=repr(operator), expected="a name", do="say who watched")
    if len(text) > LONGEST_TEXT:
        raise UserError("note too long", got=f"{len(text)} characters", expected=f"at most {LONGEST_TEXT}",
                        do="keep the rest elsewhere and name the place")  # fmt: skip
