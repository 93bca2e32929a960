"""`rl-finetune promote`: from words to the parts of promotion."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from rl_finetune.cli import promote_texts as texts
from rl_finetune.cli.actions import by_whom, config_of, first, saved_config, who
from rl_finetune.cli.parser import Commands, add, bare
from rl_finetune.cli.trials import add_record, add_trials


def completed(argv: Sequence[str]) -> list[str]:
    """The words with `judge` put in, which may be left out where settings follow `promote` at once."""
    words = list(argv)
    if words[:1] != ["promote"] or words[1:2] in (["-h"], ["--help"]):
        return words
    settings = len(words) == 1 or "=" in words[1] or words[1].startswith("--")
    return ["promote", "judge", *words[1:]] if settings else words


def add_promote(commands: Commands) -> None:
    """The command with all its actions."""
    promote = bare(commands, "promote", "may a policy drive a robot? gates, trials, registry", texts.PROMOTE)
    actions = promote.add_subparsers(metavar="ACTION", required=True)
    who(add(actions, "judge", "evidence, gates, registry, report (the default)", texts.JUDGE, _judge))
    add(actions, "bundle", "seal a policy into a bundle, without judging it", texts.BUNDLE, _bundle)
    add(actions, "report", "write a candidate's page again", texts.REPORT, _report)
    _add_registry(actions)
    trials = bare(actions, "trials", "blinded trials on the robot", texts.TRIALS)
    add_trials(trials.add_subparsers(metavar="ACTION", required=True))
    add_record(actions)


def _add_registry(actions: Commands) -> None:
    add(actions, "status", "who acts, and where every bundle stands", texts.STATUS, _status)
    history = add(actions, "history", "the ledger, or what it says of one bundle", texts.HISTORY, _history)
    history.add_argument("--bundle", default=None, metavar="DIGEST", help="only of the bundle that begins so")
    verify = add(actions, "verify", "every byte of registry, bundles and grounds", texts.VERIFY, _verify)
    verify.add_argument("--bundle", default=None, metavar="FOLDER", help="only this bundle, wherever it lies")
    who(first(actions, "submit", "bring a bundle into the registry", texts.SUBMIT, _submit, "bundle"))
    advance = first(actions, "advance", "bring a bundle to the next stage", texts.ADVANCE, _advance, "digest", "stage")
    advance.add_argument("--grounds", default=None, metavar="FILE", help="verdict.json, or the trials' decision.json")
    advance.add_argument("--waiver", default="", metavar="WHY", help="promote without a decision; recorded")
    who(advance)
    who(add(actions, "rollback", "who acted before acts again", texts.ROLLBACK, _rollback))
    who(first(actions, "retire", "take a bundle out of service for good", texts.RETIRE, _retire, "digest"))
    first(actions, "keys", "draw a key pair for signing bundles", texts.KEYS, _keys, "file")


def _judge(arguments: argparse.Namespace) -> int:
    config, by = config_of(arguments), by_whom(arguments)
    from rl_finetune.promotion.commands.judging import judge

    return judge(config, by=by, note=arguments.note)


def _bundle(arguments: argparse.Namespace) -> int:
    config = config_of(arguments)
    from rl_finetune.promotion.commands.judging import seal

    return seal(config)


def _report(arguments: argparse.Namespace) -> int:
    config = saved_config(arguments)
    from rl_finetune.promotion.commands.page import again

    return again(config)


def _status(arguments: argparse.Namespace) -> int:
    config = config_of(arguments)
    from rl_finetune.promotion.commands import shelf

    return shelf.status(config)


def _history(arguments: argparse.Namespace) -> int:
    config = config_of(arguments)
    from rl_finetune.promotion.commands import shelf

    return shelf.history(config, arguments.bundle)


def _verify(arguments: argparse.Namespace) -> int:
    config = config_of(arguments)
    from rl_finetune.promotion.commands import shelf

    return shelf.verify(config, arguments.bundle)


def _submit(arguments: argparse.Namespace) -> int:
    config, by = config_of(arguments), by_whom(arguments)
    from rl_finetune.promotion.commands import shelf

    return shelf.submit(config, Path(arguments.bundle), by=by, note=arguments.note)


def _advance(arguments: argparse.Namespace) -> int:
    config, by = config_of(arguments), by_whom(arguments)
    from rl_finetune.promotion.commands import shelf

    return shelf.advance(
        config, arguments.digest, arguments.stage, by=by, note=arguments.note, grounds=arguments.grounds,
        waiver=arguments.waiver,
    )  # fmt: skip


def _rollback(arguments: argparse.Namespace) -> int:
    config, by = config_of(arguments), by_whom(arguments)
    from rl_finetune.promotion.commands import shelf

    return shelf.rollback(config, by=by, note=arguments.note)


def _retire(arguments: argparse.Namespace) -> int:
    config, by = config_of(arguments), by_whom(arguments)
    from rl_finetune.promotion.commands import shelf

    return shelf.retire(config, arguments.digest, by=by, note=arguments.note)


def _keys(arguments: argparse.Namespace) -> int:
    from rl_finetune.promotion.commands import shelf

    return shelf.keys(Path(arguments.file))
