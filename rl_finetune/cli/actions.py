"""What the actions of `rl-finetune promote` share: who does it, and where its settings come from."""

from __future__ import annotations

import argparse
import getpass
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rl_finetune.cli.jobs import quoted
from rl_finetune.cli.parser import SETTING, Command, Commands, Parser, add_words, bare
from rl_finetune.errors import UserError

if TYPE_CHECKING:
    from rl_finetune.config.promotion import PromoteConfig


def first(
    actions: Commands,
    name: str,
    summary: str,
    description: str,
    command: Command,
    *positionals: str,
    numbers: Sequence[str] = (),
) -> Parser:
    """An action with arguments of its own before its settings."""
    parser = bare(actions, name, summary, description)
    parser.set_defaults(command=command)
    parser.add_argument("--config", metavar="FILE_OR_NAME", help="YAML file, or the name of one in configs/")
    for word in positionals:
        parser.add_argument(word, metavar=word.upper(), type=int if word in numbers else str)
    add_words(parser, "key=value", SETTING)
    return parser


def who(parser: Parser) -> Parser:
    """Options of whatever is written down under a name."""
    parser.add_argument("--by", default=None, metavar="NAME", help="who does it; default: your login")
    parser.add_argument("--note", default="", metavar="TEXT", help="kept in the ledger")
    return parser


def by_whom(arguments: argparse.Namespace) -> str:
    """Whose name is written down.

    Raises:
        UserError: nobody's.
    """
    if arguments.by is None:
        try:
            return getpass.getuser()
        except (OSError, KeyError) as error:
            raise UserError("nobody is named who does it", got="no login", expected="--by NAME", do="add it") from error
    if not arguments.by.strip():
        raise UserError("nobody is named who does it", got="--by ''", expected="a name", do="say who you are")
    return str(arguments.by)


def config_of(arguments: argparse.Namespace) -> PromoteConfig:
    """Settings from file and words."""
    from rl_finetune.config import load
    from rl_finetune.config.promotion import PromoteConfig

    return load(PromoteConfig, arguments.config or "promote", arguments.words)


def saved_config(arguments: argparse.Namespace) -> PromoteConfig:
    """Settings of a candidate that was judged: those in its folder, where no file is named."""
    from rl_finetune.config import load
    from rl_finetune.config.promotion import PromoteConfig

    config = config_of(arguments)
    saved = Path(config.folder) / "config.yaml"
    if arguments.config is not None or not saved.is_file():
        return config
    return load(PromoteConfig, saved, [*arguments.words, f"folder={quoted(config.folder)}"])
