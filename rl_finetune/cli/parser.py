"""What all commands have in common: errors in one line, help as it is written, settings as words."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import NoReturn, TypeAlias

Command = Callable[[argparse.Namespace], int]
"""Runs a parsed command; returns its exit code."""
SETTING = "override of a setting, for example run.seed=1"


class Parser(argparse.ArgumentParser):
    """Errors in one line, like all others."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"error: {message}; see `{self.prog} --help`\n")


Commands: TypeAlias = "argparse._SubParsersAction[Parser]"
"""Where commands are added."""


def raw(prog: str) -> argparse.HelpFormatter:
    """Help with the line breaks that it was written with."""
    return argparse.RawDescriptionHelpFormatter(prog, max_help_position=30, width=110)


def bare(commands: Commands, name: str, summary: str, description: str) -> Parser:
    """A command that takes nothing yet."""
    return commands.add_parser(name, help=summary, description=description, formatter_class=raw, allow_abbrev=False)


def add(
    commands: Commands,
    name: str,
    summary: str,
    description: str,
    command: Command,
    *,
    words: str = "key=value",
    about: str = SETTING,
) -> Parser:
    """A command with settings: words, and a file that they are laid over. Positionals of its own go before."""
    parser = bare(commands, name, summary, description)
    parser.set_defaults(command=command)
    parser.add_argument("--config", metavar="FILE_OR_NAME", help="YAML file, or the name of one in configs/")
    add_words(parser, words, about)
    return parser


def add_words(parser: Parser, words: str, about: str) -> None:
    """Everything else that is written."""
    parser.add_argument("words", nargs="*", metavar=words, help=about)
