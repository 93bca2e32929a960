"""`rl-finetune promote trials`: from words to the book of trials."""

from __future__ import annotations

import argparse

from rl_finetune.cli import promote_texts as texts
from rl_finetune.cli.actions import by_whom, first, saved_config, who
from rl_finetune.cli.parser import Commands, Parser, add


def add_trials(actions: Commands) -> None:
    """Actions below `promote trials`."""
    add(actions, "begin", "plan the trials, and draw who is A and who is B", texts.BEGIN, _begin)
    following = add(actions, "next", "the trial to play now", texts.NEXT, _next)
    following.add_argument(
        "--server", metavar="URL", help="let the trial's policy act there, for example ws://127.0.0.1:8000"
    )
    _named(following)
    sheet = add(actions, "sheet", "all trials, to print or to fill in", texts.SHEET, _sheet)
    sheet.add_argument("--form", default="markdown", help="markdown or csv")
    add_record(actions)
    correct = first(
        actions, "correct", "overrule a result", texts.CORRECT, _correct, "entry", "outcome", numbers=("entry",)
    )
    correct.add_argument("--reason", required=True, metavar="WHY", help="what was wrong")
    _named(correct)
    add(actions, "results", "every attempt, with the number of its entry", texts.RESULTS, _results)
    add(actions, "status", "how far the trials are", texts.TRIALS_STATUS, _trials_status)
    decide = who(add(actions, "decide", "open the letters and say what follows", texts.DECIDE, _decide))
    decide.add_argument("--early", action="store_true", help="although the evidence does not suffice: hold")


def _named(parser: Parser) -> None:
    parser.add_argument("--by", default=None, metavar="NAME", help="who says so; default: your login")


def add_record(actions: Commands) -> None:
    """Recording a result: `promote record` as well."""
    record = first(
        actions, "record", "write down how a trial went", texts.RECORD, _record, "trial", "letter", "outcome",
        numbers=("trial",),
    )  # fmt: skip
    who(record)
    record.add_argument("--seconds", type=float, metavar="S", help="how long it took")
    record.add_argument("--clip", default="", metavar="FILE", help="a film; its hash is kept")
    record.add_argument("--robot", default="", metavar="NAME", help="which robot")


def _begin(arguments: argparse.Namespace) -> int:
    config = saved_config(arguments)
    from rl_finetune.promotion.commands import testing

    return testing.begin(config)


def _next(arguments: argparse.Namespace) -> int:
    config, by = saved_config(arguments), by_whom(arguments)
    from rl_finetune.promotion.commands import testing

    return testing.following(config, arguments.server, by)


def _sheet(arguments: argparse.Namespace) -> int:
    config = saved_config(arguments)
    from rl_finetune.promotion.commands import testing

    return testing.sheet(config, arguments.form)


def _record(arguments: argparse.Namespace) -> int:
    config, by = saved_config(arguments), by_whom(arguments)
    from rl_finetune.promotion.commands import testing
    from rl_finetune.promotion.trials import Result

    result = Result(
        arguments.trial, arguments.letter, arguments.outcome, by, arguments.note, arguments.seconds, arguments.clip,
        arguments.robot,
    )  # fmt: skip
    return testing.record(config, result)


def _correct(arguments: argparse.Namespace) -> int:
    config, by = saved_config(arguments), by_whom(arguments)
    from rl_finetune.promotion.commands import testing
    from rl_finetune.promotion.trials import Correction

    return testing.correct(config, Correction(arguments.entry, arguments.outcome, by, arguments.reason))


def _results(arguments: argparse.Namespace) -> int:
    config = saved_config(arguments)
    from rl_finetune.promotion.commands import testing

    return testing.results(config)


def _trials_status(arguments: argparse.Namespace) -> int:
    config = saved_config(arguments)
    from rl_finetune.promotion.commands import testing

    return testing.status(config)


def _decide(arguments: argparse.Namespace) -> int:
    config, by = saved_config(arguments), by_whom(arguments)
    from rl_finetune.promotion.commands import testing

    return testing.decide(config, by=by, note=arguments.note, early=arguments.early)
