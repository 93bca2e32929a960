"""The book of one comparison: planned once, filled trial by trial, closed by a decision. Nothing in it can be edited.

    folder/trials.jsonl        ledger: plan | served | result | correction | decision
    folder/trials.head.json    its anchor
    folder/sealed.json         the letters, readable by the owner of the process alone, bound by the plan's commitment
    folder/decision.json       the decision as the registry takes it (`Grounds`), once there is one

Everything is read from the ledger again at each call, and written under one lock: operator, server and a second
terminal may each have their own `Book`, and who is killed goes on where the ledger ends.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import cast

from pydantic import TypeAdapter

from rl_finetune.config.trials import TrialsSection
from rl_finetune.durable import Json, canonical, held, parsed, replace_file
from rl_finetune.errors import UserError
from rl_finetune.promotion.records import PolicyName
from rl_finetune.promotion.registry.ledger import Ledger
from rl_finetune.promotion.trials import characteristics, decision, plan, sheet
from rl_finetune.promotion.trials.decision import Decision
from rl_finetune.promotion.trials.history import Attempt, Correction, History, Result, check, check_words, read
from rl_finetune.promotion.trials.plan import Letters, Plan, Trial

_PLAN: TypeAdapter[Plan] = TypeAdapter(Plan)


@dataclass(frozen=True, slots=True)
class TrialsStatus:
    """How far the trials are. Says nothing of who leads, nor who is who."""

    next: Trial | None
    """What to play; None where there is nothing left to play."""
    enough: bool
    """Whether the trials have ended: by evidence for or against the candidate, or because all pairs are played."""
    decided: bool
    """Whether the letters were opened."""
    pairs: int
    """Complete pairs."""
    planned: int
    """Most pairs that are played."""
    recorded: int
    """Results, aborts included."""
    aborts: int
    """Attempts that were aborted."""
    interventions: int
    """Attempts in which somebody stepped in."""
    corrections: int
    """Results that were corrected."""
    commitment: str
    """Of the letters."""
    head: str
    """Hash of the ledger's last entry: kept elsewhere, it shows later that nothing before it was changed."""

    def __str__(self) -> str:
        done = f"{self.pairs} of at most {self.planned} pairs, {self.aborts} aborts, {self.interventions} interventions"
        if self.decided:
            return f"{done}; decided"
        if self.next is None:
            return f"{done}; enough: decide"
        again = f", attempt {self.next.attempt}" if self.next.attempt > 1 else ""
        pair = self.next.pair
        return (
            f"{done}; next: trial {self.next.number}{again}, letter {self.next.letter}: {pair.task}, {pair.condition}"
        )


@dataclass(frozen=True, slots=True)
class Book:
    """Trials in a folder."""

    folder: Path
    """Where they lie."""

    @classmethod
    def open(cls, folder: Path) -> Book:
        """Trials that were begun.

        Raises:
            UserError: there are none, or a byte of the ledger is not what was written.
        """
        book = cls(Path(folder))
        history = book._history()
        if history.decision is not None and not book._decision.exists():  # who decided was killed before it was written
            with book._locked():
                book._restore(history)
        return book

    def plan(self) -> Plan:
        """What is played.

        Raises:
            UserError: see `open`.
        """
        return self._history().plan

    def next(self) -> Trial | None:
        """The trial to play now; None once the evidence suffices or everything is played.

        Raises:
            UserError: the ledger or the sealed letters are not what was written.
        """
        return self.status().next

    def status(self) -> TrialsStatus:
        """How far the trials are.

        Raises:
            UserError: the ledger or the sealed letters are not what was written.
        """
        return self._status(self._history())

    def sheet(self, form: str = "markdown") -> str:
        """All trials for an operator to fill in, as `markdown` or `csv`.

        Raises:
            UserError: an unknown form.
        """
        return sheet.write(self._history(), form)

    def record(self, result: Result) -> TrialsStatus:
        """Write down how the next trial went.

        Returns:
            What is to be done now.

        Raises:
            UserError: it is not this trial's turn, it has a result, the letter or outcome is unknown, there is enough
                evidence or a decision, the film is not there; nothing is written then.
        """
        with self._locked():
            history = self._history()
            check(result, self._upcoming(history), history)
            self._ledger.append("result", {**asdict(result), "clip_sha256": _digest(result.clip)})
            return self._status(self._history())

    def results(self) -> tuple[Attempt, ...]:
        """Every attempt in the order of trials, with the index of its entry that a correction names.

        Raises:
            UserError: the ledger is not what was written.
        """
        history = self._history()
        return tuple(attempt for number in history.plan.trials for attempt in history.attempts.get(number, ()))

    def correct(self, correction: Correction) -> TrialsStatus:
        """Overrule an earlier result by a new entry that refers to it; a trial that becomes open is played again.

        Raises:
            UserError: the entry is no result, the outcome is unknown, no reason is given, or there is a decision.
        """
        with self._locked():
            history = self._history()
            _undecided(history)
            check_words(correction.outcome, correction.operator, correction.reason)
            known = {a.entry: a.hash for attempts in history.attempts.values() for a in attempts}
            if correction.entry not in known:
                raise UserError(
                    "no result to correct", got=f"entry {correction.entry}", expected=f"one of {sorted(known)}",
                    do="look the entry up among the results",
                )  # fmt: skip
            if not correction.reason.strip():
                raise UserError("correction without a reason", got="''", expected="why", do="say what was wrong")
            self._ledger.append("correction", {**asdict(correction), "hash": known[correction.entry]})
            return self._status(self._history())

    def bundle_for(self, number: int) -> PolicyName:
        """Whom a server must let act in a trial. Breaks the blinding, hence for the server's process alone: only of the
        trial that is played now, and the ledger keeps that it was asked.

        Raises:
            UserError: it is not this trial's turn.
        """
        with self._locked():
            history = self._history()
            trial = self._upcoming(history)
            if number != trial.number:
                raise UserError("not this trial's turn", got=f"trial {number}", expected=f"trial {trial.number}",
                                do="play the trials in the order of the sheet")  # fmt: skip
            side = self._letters(history.plan).plays(trial)
            self._ledger.append("served", {"trial": number, "attempt": trial.attempt})
            return history.plan.candidate if side == "candidate" else history.plan.incumbent

    def decide(self, by: str, note: str = "", *, early: bool = False) -> Decision:
        """Open the letters and say what follows; no result is taken afterwards.

        Args:
            by: who asks for it.
            note: kept with the decision.
            early: end the trials before the evidence suffices. The outcome is then `hold`.

        Raises:
            UserError: decided already, or trials are left and it is not to be `early`.
        """
        with self._locked():
            history = self._history()
            _undecided(history)
            check_words("success", by, note)
            letters = self._letters(history.plan)
            trial = _waiting(history, letters)
            if trial is not None and not early:
                raise UserError(
                    "the evidence does not suffice yet", got=f"trial {trial.number} is still to be played",
                    expected="no trial left", do="play it, or end early: the outcome is then hold",
                )  # fmt: skip
            reached = decision.decide(history, letters, by, note)
            self._ledger.append("decision", cast(dict[str, Json], parsed(reached.grounds.data)))
            self._restore(self._history())
            return reached

    def decided(self) -> dict[str, Json] | None:
        """The decision as the ledger and `decision.json` have it; None before.

        Raises:
            UserError: the ledger is not what was written.
        """
        found = self._history().decision
        return None if found is None else dict(found)

    @property
    def _ledger(self) -> Ledger:
        return Ledger(self.folder / "trials.jsonl")

    @property
    def _decision(self) -> Path:
        return self.folder / "decision.json"

    @contextmanager
    def _locked(self) -> Iterator[None]:
        if not self.folder.is_dir():
            raise _nothing(self.folder)
        with held(self.folder / ".lock", os.O_RDWR | os.O_CREAT):
            yield

    def _history(self) -> History:
        entries = self._ledger.entries()
        if not entries:
            raise _nothing(self.folder)
        return read(entries, _PLAN.validate_python(dict(entries[0].body)))

    def _letters(self, settled: Plan) -> Letters:
        return plan.unseal(self.folder / "sealed.json", settled)

    def _upcoming(self, history: History) -> Trial:
        _undecided(history)
        trial = _waiting(history, self._letters(history.plan))
        if trial is None:
            raise UserError("no trial is left", got="a further trial", expected="the decision",
                            do="decide: the evidence suffices, or all pairs are played")  # fmt: skip
        return trial

    def _status(self, history: History) -> TrialsStatus:
        decided = history.decision is not None
        letters = self._letters(history.plan)
        trial = None if decided else _waiting(history, letters)
        return TrialsStatus(
            next=trial, enough=trial is None, decided=decided, pairs=len(history.pairs(letters)),
            planned=len(history.plan.pairs), recorded=sum(len(tries) for tries in history.attempts.values()),
            aborts=len(history.every("abort")), interventions=len(history.every("intervention")),
            corrections=history.corrections, commitment=history.plan.commitment, head=history.head,
        )  # fmt: skip

    def _restore(self, history: History) -> None:
        """The ledger is the truth; the file beside it is for others to read."""
        if history.decision is not None and not self._decision.exists():
            replace_file(self._decision, canonical(history.decision) + b"\n")


def begin(folder: Path, candidate: PolicyName, incumbent: PolicyName, settings: TrialsSection) -> Book:
    """Plan trials, draw the letters and commit to them. Who dies in here has begun nothing, or everything.

    Raises:
        UserError: trials were begun there already, both policies are the same, or there is nothing to play.
    """
    if candidate.digest == incumbent.digest:
        raise UserError("candidate and incumbent are the same policy", got=candidate.digest,
                        expected="two bundles", do="name another candidate")  # fmt: skip
    test = characteristics.plan(
        settings.alpha, settings.beta, settings.gain / 100, settings.pairs, settings.prove_worse
    )
    pairs = plan.arrange(settings, test.pairs)
    letters = plan.draw(pairs)
    settled = Plan(candidate, incumbent, pairs, test, settings.interventions, settings.attempts, letters.commitment)
    book = Book(Path(folder))
    book.folder.mkdir(parents=True, exist_ok=True)
    with book._locked():
        if book._ledger.entries():
            raise UserError("trials were begun there already", got=book.folder, expected="a new folder",
                            do="go on with those, or choose another folder")  # fmt: skip
        plan.seal(letters, book.folder / "sealed.json")
        book._ledger.append("plan", cast(dict[str, Json], asdict(settled)))
    return book


def _waiting(history: History, letters: Letters) -> Trial | None:
    """What is to be played, unless the pairs so far end it."""
    differences = (int(candidate) - int(incumbent) for candidate, incumbent in history.pairs(letters))
    _, call = history.plan.design.read(differences)
    return None if call is not None else history.first_open()


def _undecided(history: History) -> None:
    if history.decision is not None:
        raise UserError("the trials are decided", got="a further entry", expected="none after the decision",
                        do="begin new trials in another folder")  # fmt: skip


def _digest(clip: str) -> str | None:
    """SHA-256 of a film, so that it cannot be exchanged later."""
    if not clip:
        return None
    try:
        with Path(clip).open("rb") as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest()
    except OSError as error:
        raise UserError("the film is not there", got=f"{clip}: {error.strerror}", expected="a file, whose hash is kept",
                        do="correct its path, or leave it out") from error  # fmt: skip


def _nothing(folder: Path) -> UserError:
    return UserError("no trials there", got=folder, expected="a folder in which trials were begun", do="begin them")
