"""`rl-finetune serve`: from words to the policy server."""

from __future__ import annotations

import argparse
import logging

from rl_finetune.cli import jobs
from rl_finetune.cli.parser import Commands, add
from rl_finetune.errors import UserError

SERVE = """\
Serve a policy to robots on openpi's websocket wire. No action leaves it that is beyond the bundle's limits.

Without BUNDLE it serves what the registry has promoted, and follows it: promoting another bundle, or rolling back,
swaps who acts without losing a connection. Robots are held while a bundle acts that is retired or rejected, or the
registry cannot be read. Only this machine can connect unless an API key is set.

  /         websocket: one observation in, one chunk of actions out (msgpack, numpy arrays, never pickle)
  /healthz  OK while it serves, 503 while robots are held        /metrics  counts and times for Prometheus
  SIGTERM   finish what is under way     SIGHUP    look at the registry at once

examples:
  rl-finetune serve runs/promote/bundle
  rl-finetune serve                                            what runs/registry has promoted
  rl-finetune serve runs/promote/bundle serve.network.port=0   a free port; it is printed
  rl-finetune serve shadow.bundle=runs/next/bundle             a candidate watches, and is not obeyed
  RL_FINETUNE_API_KEY=... rl-finetune serve serve.network.host=0.0.0.0

exit codes:
  0    stopped by SIGTERM or Ctrl-C
  1    the server failed; the traceback says where
  2    nothing to serve, a bundle that was tampered with, or no address to listen on; one line says which"""


def add_serve(commands: Commands) -> None:
    """The command."""
    about = "folder of a bundle, and overrides of settings, for example serve.network.port=0"
    add(commands, "serve", "a policy server for robots", SERVE, _serve, words="[BUNDLE] [key=value ...]", about=about)


def _serve(arguments: argparse.Namespace) -> int:
    from rl_finetune.config import load
    from rl_finetune.config.serving import ServeConfig

    words: list[str] = list(arguments.words)
    named = [word for word in words if "=" not in word]
    if len(named) > 1:
        raise UserError("more than one bundle to serve", got=" ".join(named), expected="one", do="name one of them")
    settings = [word for word in words if "=" in word] + [f"bundle={jobs.quoted(name)}" for name in named]
    config: ServeConfig = load(ServeConfig, arguments.config or "serve", settings)
    from rl_finetune.promotion.serving.start import serve

    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(message)s")
    network = config.serve.network
    host = f"[{network.host}]" if ":" in network.host else network.host
    what = config.bundle or f"what {config.registry} has promoted"
    try:
        serve(config, lambda port: print(f"serving {what} on ws://{host}:{port}", flush=True))
    except OSError as error:
        # Files are read under errors of their own: what is left is the socket.
        raise UserError(
            "the server cannot listen", got=f"{network.host}:{network.port}: {error.strerror or error}",
            expected="a free address of this machine", do="set serve.network.port, or stop who has it",
        ) from error  # fmt: skip
    return 0
