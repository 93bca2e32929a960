"""Command line: parse first, import what the command needs after. `--help` loads nothing heavy."""

from __future__ import annotations

import argparse
import logging
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from rl_finetune.errors import UserError

if TYPE_CHECKING:
    from rl_finetune.config import EvaluateConfig, Section, SFTConfig, TrainConfig

JOBS = ("train", "evaluate", "sft")

_EXIT_CODES = """exit codes:
  0    done
  1    the job failed; the traceback says where
  2    input that cannot be used; one line says what, and nothing was written
  130  interrupted (Ctrl-C)"""

_TOP = f"""\
Fine-tune vision-language-action policies by reinforcement learning in parallel simulation.

examples:
  rl-finetune train                                   the main job: configs/train.yaml
  rl-finetune train run.seed=1 run.folder=runs/seed1  the same with another seed, elsewhere
  rl-finetune train --config control                  the control: configs/control.yaml
  rl-finetune train --resume runs/train               go on after an interruption
  rl-finetune evaluate policy.adapter=runs/train/adapter
                                                      success of a trained adapter
  rl-finetune show-config train --describe            every setting with its meaning

Settings come from a YAML file and from key=value overrides after it; a file may extend another.

{_EXIT_CODES}"""

_TRAIN = f"""\
Train adapters by reinforcement learning, and judge them on held-out episodes before and after.

results, in the run folder (run.folder, by default runs/train):
  config.yaml     the resolved settings
  metrics.jsonl   one line an iteration; the same goes to wandb (offline unless run.wandb=online)
  checkpoints/    what --resume goes on from
  evaluation.json success before and after, with intervals
  report.html     one page with curves, diagnostics and clips; opens in any browser

examples:
  rl-finetune train
  rl-finetune train --config smoke
  rl-finetune train ppo.epochs=2 optimizer.actor_lr=3e-4 run.folder=runs/try
  rl-finetune train --resume runs/try
  rl-finetune train --resume runs/try run.iterations=300

{_EXIT_CODES}"""

_EVALUATE = f"""\
Measure the success of one policy on held-out episodes. The episodes are the same for every policy, so results pair.

results: printed, and written as JSON where `output` says.

examples:
  rl-finetune evaluate
  rl-finetune evaluate policy.adapter=runs/train/adapter output=after.json
  rl-finetune evaluate shuffle=images          must drop to chance: the policy looks
  rl-finetune evaluate shuffle=instructions    must drop to chance: the policy reads
  rl-finetune evaluate 'suites=[colour, background, lighting]'     the same episodes, out of distribution

{_EXIT_CODES}"""

_SFT = f"""\
Train a policy by flow matching on demonstrations of the scripted expert.

results, in `folder` (by default runs/sft): progress, a checkpoint per stage, the policy in policy/.

examples:
  rl-finetune sft
  rl-finetune sft folder=runs/mine seed=1
  rl-finetune sft folder=runs/mine resume=true
  rl-finetune sft stages.0.steps=100           settings inside of a list go by number

{_EXIT_CODES}"""

_SHOW = f"""\
Print the resolved settings of a job (default: train) as YAML, ready to be saved as a config file.

examples:
  rl-finetune show-config
  rl-finetune show-config evaluate evaluation.episodes=100
  rl-finetune show-config train --describe     names, types, defaults and meaning

{_EXIT_CODES}"""

_CHECK = f"""\
Run the contract's checks on an environment: a few episodes with random actions and one with none.

A world is named as in env.name: a registered one, or package.module:attribute of your own. Settings that follow are its
options (env.options).

examples:
  rl-finetune check-env widowx_reach tolerance=0.02
  rl-finetune check-env my_package.my_module:WORLD
  rl-finetune check-env gymnasium id=Pendulum-v1 privileged=[obs] success=never "instruction=swing up"

{_EXIT_CODES}"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; return its exit code."""
    arguments = _parse(argv)
    # Libraries import DeepSpeed on the way, and it announces that there is no GPU.
    logging.getLogger("DeepSpeed").addFilter(lambda record: record.levelno >= logging.ERROR)
    command: Callable[[argparse.Namespace], int] = arguments.command
    try:
        code = command(arguments)
        sys.stdout.flush()
        return code
    except UserError as error:
        print("error:", " ".join(str(error).split()), file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:
        # The reader (`| head`) has gone; without this the interpreter complains again while it flushes at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141


class _Parser(argparse.ArgumentParser):
    """Errors in one line, like all others."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"error: {message}; see `{self.prog} --help`\n")


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = _Parser(prog="rl-finetune", description=_TOP, formatter_class=_raw, allow_abbrev=False)
    parser.add_argument("--version", action="store_true", help="print the version and stop")
    commands = parser.add_subparsers(metavar="COMMAND")
    train = _add(commands, "train", "reinforcement learning of adapters", _TRAIN, _train)
    train.add_argument(
        "--resume", metavar="RUN_FOLDER", help="go on from the newest checkpoint of a run, with its settings"
    )
    _add(commands, "evaluate", "success of a policy on held-out episodes", _EVALUATE, _evaluate)
    _add(commands, "sft", "supervised training on demonstrations", _SFT, _sft)
    show = _add(commands, "show-config", "print the settings of a job", _SHOW, _show_config)
    show.add_argument("--describe", action="store_true", help="every setting with type, default and meaning instead")
    _add_check(commands)
    arguments, extra = parser.parse_known_args(argv)
    # argparse takes positionals in one piece only: those after an option come back here.
    strange = [word for word in extra if word.startswith("-")]
    if strange:
        parser.error(f"unknown option {strange[0]!r}")
    if arguments.version:
        from rl_finetune import __version__

        parser.exit(0, f"rl-finetune {__version__}\n")
    if not hasattr(arguments, "command"):
        parser.error("no command: got nothing; expected one of train, evaluate, sft, show-config, check-env")
    arguments.words += extra
    return arguments


def _add(
    commands: argparse._SubParsersAction[_Parser],
    name: str,
    summary: str,
    description: str,
    command: Callable[[argparse.Namespace], int],
) -> argparse.ArgumentParser:
    parser = commands.add_parser(name, help=summary, description=description, formatter_class=_raw, allow_abbrev=False)
    words = "[JOB] [key=value ...]" if name == "show-config" else "key=value"
    about = (
        "job (train, evaluate or sft), then overrides"
        if name == "show-config"
        else "override of a setting, for example run.seed=1"
    )
    parser.add_argument("words", nargs="*", metavar=words, help=about)
    parser.add_argument("--config", metavar="FILE_OR_NAME", help="YAML file, or the name of one in configs/")
    parser.set_defaults(command=command)
    return parser


def _add_check(commands: argparse._SubParsersAction[_Parser]) -> None:
    summary = "whether an environment keeps the contract"
    check = commands.add_parser("check-env", help=summary, description=_CHECK, formatter_class=_raw, allow_abbrev=False)
    check.add_argument("name", metavar="NAME", help="registered environment, or package.module:attribute")
    check.add_argument("words", nargs="*", metavar="option=value", help="options of that environment")
    check.add_argument("--scale", type=float, default=0.03, help="size of random actions, in its units (0.03)")
    check.set_defaults(command=_check_env)


def _raw(prog: str) -> argparse.HelpFormatter:
    return argparse.RawDescriptionHelpFormatter(prog, max_help_position=30, width=110)


def _kinds() -> dict[str, type[Section]]:
    from rl_finetune.config import EvaluateConfig, SFTConfig, TrainConfig

    return {"train": TrainConfig, "evaluate": EvaluateConfig, "sft": SFTConfig}


def _train(arguments: argparse.Namespace) -> int:
    from rl_finetune.config import TrainConfig, load

    config: TrainConfig
    if arguments.resume is None:
        config = load(TrainConfig, arguments.config or "train", arguments.words)
    else:
        folder = Path(arguments.resume)
        base = arguments.config or _saved_config(folder)
        config = load(TrainConfig, base, [*arguments.words, f"run.folder={_quoted(str(folder))}", "run.resume=true"])
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


def _quoted(text: str) -> str:
    """As a single-quoted YAML string, so that a folder named 7 or null stays text."""
    return "'" + text.replace("'", "''") + "'"


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
    try:
        with envs.make(name, 3, **options) as env:
            left_out = contract.check(env, make=lambda n: envs.make(name, n, **options), scale=arguments.scale)
    except contract.ContractError as error:
        raise UserError(
            f"environment {name!r} breaks the contract", got=error, expected="what envs/base.py says", do="mend it"
        ) from error
    print(f"{name} keeps the contract")
    for rule in left_out:
        print(f"  not asked of it: {rule}")
    return 0
