"""The letters opened: what the trials say of the candidate, with every number."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from math import log

from rl_finetune.promotion.records import Outcome, PolicyName
from rl_finetune.promotion.registry.grounds import Grounds
from rl_finetune.promotion.trials.history import Ending, History
from rl_finetune.promotion.trials.plan import Letters
from rl_finetune.promotion.trials.sequential import Call, Tally, interval, log_wealth

_STOPPED: tuple[Ending, ...] = ("abort", "intervention")


@dataclass(frozen=True, slots=True)
class TaskTally:
    """One task's pairs."""

    task: str
    """Its name."""
    tally: Tally
    """How its pairs ended."""
    lost: bool
    """Shown to be worse in this task: at level alpha over all tasks together."""


@dataclass(frozen=True, slots=True)
class Side:
    """What one policy did, in the pairs that the test read."""

    successes: int
    """Trials that count as won."""
    aborts: int
    """Attempts that were aborted, in all trials."""
    interventions: int
    """Attempts in which somebody stepped in, in all trials."""


@dataclass(frozen=True, slots=True)
class Decision:
    """The end of the trials."""

    candidate: PolicyName
    """Who wanted to be promoted."""
    incumbent: PolicyName
    """Who was acting."""
    outcome: Outcome
    """What follows."""
    reason: str
    """In words, with the numbers."""
    call: Call | None
    """Why the trials stopped; None where somebody ended them."""
    tally: Tally
    """Pairs that the test read."""
    interval: tuple[float, float]
    """Limits of the difference in points, at level 1 - 2 alpha, valid whenever the trials were stopped."""
    tasks: tuple[TaskTally, ...]
    """By task."""
    sides: Mapping[str, Side]
    """`candidate` and `incumbent`."""
    corrections: int
    """Results that were corrected."""
    if_aborts_failed: Outcome
    """What would follow if every abort were a lost trial."""
    alpha: float
    """Chance to promote one that is not better."""
    beta: float
    """Chance to miss one that is better by `gain`."""
    gain: float
    """Smallest gain worth finding, as a share."""
    planned: int
    """Pairs that might have been played."""
    commitment: str
    """What was committed to before the first trial ..."""
    letters: Letters
    """... and what opens it."""
    count: int
    """Entries of the ledger before this one."""
    head: str
    """Hash of the last of them."""
    by: str
    """Who asked for it."""
    note: str
    """What they wrote."""

    @property
    def grounds(self) -> Grounds:
        """What the registry accepts; every other field, and `points` of difference, is its detail."""
        detail = {**asdict(self), "points": self.tally.points}
        for named in ("candidate", "incumbent", "outcome", "reason"):
            del detail[named]
        return Grounds("decision", self.candidate, self.incumbent, self.outcome, self.reason, detail)


def decide(history: History, letters: Letters, by: str, note: str) -> Decision:
    """What follows from the history; a stop before the evidence sufficed promotes and rejects nobody."""
    plan, pairs = history.plan, history.pairs(letters)
    tally, call = plan.design.read(_differences(pairs))
    pairs = pairs[: tally.pairs]
    tasks = _tasks(history, pairs)
    outcome = _outcome(call, tasks)
    harsh = history.pairs(letters, aborts_fail=True)
    strictly, strict = plan.design.read(_differences(harsh))
    if_aborts_failed = _outcome(strict, _tasks(history, harsh[: strictly.pairs]))
    return Decision(
        candidate=plan.candidate, incumbent=plan.incumbent, outcome=outcome, call=call, tally=tally, tasks=tasks,
        reason=_reason(call, tally, plan.design.gain, tasks), interval=interval(tally, plan.design.alpha),
        sides=_sides(history, letters, pairs), corrections=history.corrections,
        if_aborts_failed=if_aborts_failed, alpha=plan.design.alpha, beta=plan.design.beta,
        gain=plan.design.gain, planned=plan.design.pairs, commitment=plan.commitment, letters=letters,
        count=history.count, head=history.head, by=by, note=note,
    )  # fmt: skip


def _differences(pairs: Sequence[tuple[bool, bool]]) -> list[int]:
    return [int(candidate) - int(incumbent) for candidate, incumbent in pairs]


def _tasks(history: History, pairs: Sequence[tuple[bool, bool]]) -> tuple[TaskTally, ...]:
    tallies = {pair.task: Tally() for pair in history.plan.pairs}
    for pair, difference in zip(history.plan.pairs, _differences(pairs), strict=False):
        tallies[pair.task] = tallies[pair.task].plus(difference)
    bar = log(len(tallies) / history.plan.design.alpha)
    return tuple(
        TaskTally(task, t, lost=bool(log_wealth(t.losses, t.wins, t.ties, 0.0) >= bar)) for task, t in tallies.items()
    )


def _outcome(call: Call | None, tasks: Sequence[TaskTally]) -> Outcome:
    if call == "worse":
        return "reject"
    return "promote" if call == "better" and not any(task.lost for task in tasks) else "hold"


def _reason(call: Call | None, tally: Tally, gain: float, tasks: Sequence[TaskTally]) -> str:
    numbers = (
        f"{tally.wins} of {tally.pairs} pairs won, {tally.losses} lost, {tally.ties} tied ({tally.points:+.1f} points)"
    )
    lost = [task.task for task in tasks if task.lost]
    if call == "better" and lost:
        return f"better on the whole, but worse in {', '.join(lost)}: {numbers}"
    words = {
        "better": "better than the incumbent",
        "worse": "worse than the incumbent",
        "short": f"not better by {100 * gain:g} points",
        "unreachable": "not shown to be better, and the remaining pairs could not show it",
        None: "ended before the evidence sufficed",
    }
    return f"{words[call]}: {numbers}"


def _sides(history: History, letters: Letters, pairs: Sequence[tuple[bool, bool]]) -> dict[str, Side]:
    def of(side: str, wins: int) -> Side:
        aborts, steps = (
            sum(letters.plays(history.plan.trial(attempt.trial)) == side for attempt in history.every(ending))
            for ending in _STOPPED
        )
        return Side(wins, aborts, steps)

    return {
        "candidate": of("candidate", sum(candidate for candidate, _ in pairs)),
        "incumbent": of("incumbent", sum(incumbent for _, incumbent in pairs)),
    }
