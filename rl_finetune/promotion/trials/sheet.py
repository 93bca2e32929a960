"""The operator's sheet: trials in their order, by letter."""

from __future__ import annotations

import csv
import io

from rl_finetune.errors import UserError
from rl_finetune.promotion.trials.history import History

COLUMNS = ("trial", "pair", "letter", "task", "instruction", "condition", "outcome", "seconds", "operator", "note")
_HEAD = """# Trials

Play them in this order; set the same condition up again for both letters of a pair. Write down every attempt.
Outcome: `success`, `failure`, `intervention` (somebody stopped or helped the policy), `abort` (a reason that has
nothing to do with the policy: the trial is played again before its pair goes on). They end when the evidence suffices.

Commitment of the letters: `{commitment}`

"""


def write(history: History, form: str) -> str:
    """The sheet with what is recorded so far.

    Raises:
        UserError: `form` is neither `markdown` nor `csv`.
    """
    if form == "csv":
        text = io.StringIO(newline="")
        csv.writer(text).writerows([COLUMNS, *_rows(history)])
        return text.getvalue()
    if form != "markdown":
        raise UserError("unknown form of the sheet", got=form, expected="markdown | csv", do="choose one of them")
    lines = [COLUMNS, ("---",) * len(COLUMNS), *_rows(history)]
    table = "".join("| " + " | ".join(_cell(text) for text in line) + " |\n" for line in lines)
    return _HEAD.format(commitment=history.plan.commitment) + table


def _rows(history: History) -> list[tuple[str, ...]]:
    """One for each attempt, and one to fill in for each trial that is open."""
    rows: list[tuple[str, ...]] = []
    for number in history.plan.trials:
        trial = history.plan.trial(number)
        pair = trial.pair
        what = (str(number), str(pair.number), trial.letter, pair.task, pair.instruction, pair.condition)
        for attempt in history.attempts.get(number, ()):
            told = attempt.result
            seconds = "" if told.seconds is None else f"{told.seconds:g}"
            rows.append((*what, attempt.outcome, seconds, told.operator, told.note))
        if history.success(number) is None:
            rows.append((*what, "", "", "", ""))
    return rows


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")
