"""Jobs and questions about them: train, evaluate, sft, show-config, check-env."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from rl_finetune.cli import texts
from rl_finetune.cli.parser import Commands, add, add_words, bare
from rl_finetune.errors import UserError, users_code

if TYPE_CHECKING:
    from rl_finetune.config import EvaluateConfig, Section, SFTConfig, TrainConfig

JOBS = ("train", "evaluate", "sft", "promote", "serve")


def add_jobs(commands: Commands) -> None:
    """Commands that learn and measure."""
    train = add(commands, "train", "reinforcement learning of adapters", texts.TRAIN, _train)
    train.add_argument(
        "--resume", metavar="RUN_FOLDER", help="go on from the newest checkpoint of a run, with its settings"
    )
    add(commands, "evaluate", "success of a policy on held-out episodes", texts.EVALUATE, _evaluate)
    add(commands, "sft", "supervised training on demonstrations", texts.SFT, _sft)


def add_questions(commands: Commands) -> None:
    """Commands that only look."""
    about = f"job ({', '.join(JOBS[:-1])} or {JOBS[-1]}), then overrides"
    show = add(
        commands, "show-config", "print the settings of a job", texts.SHOW, _show_config,
        words="[JOB] [key=value ...]", about=about,
    )  # fmt: skip
    show.add_argument("--describe", action="store_true", help="every setting with type, default and meaning instead")
    check = bare(commands, "check-env", "whether an environment keeps the contract", texts.CHECK)
    check.add_argument("name", metavar="NAME", help="registered environment, or package.module:attribute")
    add_words(check, "option=value", "options of that environment")
    check.add_argument("--scale", type=float, default=0.03, help="size of random actions, in its units (0.03)")
    check.set_defaults(command=_check_env)


def quoted(text: str) -> str:
    """As a single-quoted YAML string, so that a folder named 7 or null stays text."""
    return "'" + text.replace("'", "''") + "'"


def _kinds() -> dict[str, type[Section]]:
    from rl_finetune.config import EvaluateConfig, SFTConfig, TrainConfig
    from rl_finetune.config.promotion import PromoteConfig
    from rl_finetune.config.serving import ServeConfig

    return dict(zip(JOBS, (TrainConfig, EvaluateConfig, SFTConfig, PromoteConfig, ServeConfig), strict=True))


def _train(arguments: argparse.Namespace) -> int:
    from rl_finetune.config import TrainConfig, load

    config: TrainConfig
    if arguments.resume is None:
        config = load(TrainConfig, arguments.config or "train", arguments.words)
    else:
        folder = Path(arguments.resume)
        base = arguments.config or _saved_config(folder)
        config = load(TrainConfig, base, [*arguments.words, f"run.folder={quoted(str(folder))}", "run.resume=true"])
    from rl_finetune.algorithm.job import train

    return train(config)


def _saved_config(folder: Path) -> Path:
    saved = folder / "config.yaml"
    if not saved.is_file():
        raise UserError(
            "no run to resume",
            got=f"{str(folder)!r} without config.yaml",
            expected="the folder of an earlier run",
            do="check the path, or start anew with `rl-finetune train`",
        )
    return saved


def _evaluate(arguments: argparse.Namespace) -> int:
    from rl_finetune.config import EvaluateConfig, load

    config: EvaluateConfig = load(EvaluateConfig, arguments.config or "evaluate", arguments.words)
    from rl_finetune.algorithm.evaluation import evaluate

    return evaluate(config)


def _sft(arguments: argparse.Namespace) -> int:
    from rl_finetune.config import SFTConfig, load

    config: SFTConfig = load(SFTConfig, arguments.config or "sft", arguments.words)
    from rl_finetune.algorithm.pretraining import sft

    return sft(config)


def _show_config(arguments: argparse.Namespace) -> int:
    words: list[str] = arguments.words
    job, overrides = (words[0], words[1:]) if words and "=" not in words[0] else ("train", words)
    if job not in JOBS:
        raise UserError(
            "unknown job", got=repr(job), expected=f"one of {', '.join(JOBS)}", do="name the job first, then overrides"
        )
    from rl_finetune.config import describe, dump, load

    kind = _kinds()[job]
    print(describe(kind) if arguments.describe else dump(load(kind, arguments.config or job, overrides)), end="")
    return 0


def _check_env(arguments: argparse.Namespace) -> int:
    import envs
    from envs import contract
    from rl_finetune.config.files import apply

    name, options = arguments.name, apply({}, arguments.words)
    broken = f"environment {name!r} breaks"
    with users_code(f"{broken} down", certain=":" in name), envs.make(name, 3, **options) as env:
        try:
            left_out = contract.check(env, make=lambda n: envs.make(name, n, **options), scale=arguments.scale)
        except contract.ContractError as error:
            rules = "what envs/base.py says"
            raise UserError(f"{broken} the contract", got=error, expected=rules, do="mend it") from error
    print(f"{name} keeps the contract")
    for rule in left_out:
        print(f"  not asked of it: {rule}")
    return 0
