"""Command line: parse first, import what the command needs after. `--help` loads nothing heavy."""

from __future__ import annotations

import argparse
import logging
import os
import sys
from collections.abc import Callable, Sequence

from rl_finetune.cli.parsing import parse
from rl_finetune.errors import RunError, UserError, cause, is_theirs


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; return its exit code."""
    arguments = parse(sys.argv[1:] if argv is None else argv)
    # Libraries import DeepSpeed on the way, and it announces that there is no GPU.
    logging.getLogger("DeepSpeed").addFilter(lambda record: record.levelno >= logging.ERROR)
    command: Callable[[argparse.Namespace], int] = arguments.command
    try:
        code = command(arguments)
        sys.stdout.flush()
        return code
    except (UserError, RunError) as error:
        print("error:", " ".join(str(error).split()), file=sys.stderr)
        return 2 if isinstance(error, UserError) else 1
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:
        # The reader (`| head`) has gone; without this the interpreter complains again while it flushes at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except Exception as error:
        if not is_theirs(error):
            raise
        print("error:", cause(error), file=sys.stderr)
        return 1
