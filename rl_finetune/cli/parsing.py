"""From words to a command. Nothing heavy is imported here or by what is imported here."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from rl_finetune.cli import jobs, promote, serve, texts
from rl_finetune.cli.parser import Parser, raw

COMMANDS = "train, evaluate, sft, promote, serve, show-config, check-env"


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """The command with its options; `words` holds everything else. Whoever cannot be understood is told so, and the
    program ends with exit code 2."""
    parser = Parser(prog="rl-finetune", description=texts.TOP, formatter_class=raw, allow_abbrev=False)
    parser.add_argument("--version", action="store_true", help="print the version and stop")
    commands = parser.add_subparsers(metavar="COMMAND")
    jobs.add_jobs(commands)
    promote.add_promote(commands)
    serve.add_serve(commands)
    jobs.add_questions(commands)
    arguments, extra = parser.parse_known_args(promote.completed(argv))
    # argparse takes positionals in one piece only: those after an option come back here.
    strange = [word for word in extra if word.startswith("-")]
    if strange:
        parser.error(f"unknown option {strange[0]!r}")
    if arguments.version:
        from rl_finetune import __version__

        parser.exit(0, f"rl-finetune {__version__}\n")
    if not hasattr(arguments, "command"):
        parser.error(f"no command: got nothing; expected one of {COMMANDS}")
    arguments.words += extra
    return arguments
