"""The life of Isaac's process: build, say what was found, then answer until the client closes."""

from __future__ import annotations

import signal
import socket
import sys
import sysconfig
import traceback
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np

from .api import is_managed
from .job import Job, Refused
from .lab import Lab, Played, resets_rows
from .launch import has_success_term, scalar_first, start
from .reading import Arrays, Reader
from .wire import Message, receive, send


def main() -> None:
    """Serve on the socket whose number is the first argument."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the client's to handle; it closes the socket
    line = socket.socket(fileno=int(sys.argv[1]))
    sys.argv[1:] = []  # Isaac's application reads them too
    with ExitStack() as running:
        if (lab := _build(line, running)) is not None:
            _serve(line, lab)
        # Isaac's application may end the process when it closes, so the goodbye comes first.
        _try_send(line, Message({"answer": "closed"}))


def _build(line: socket.socket, running: ExitStack) -> Lab | None:
    try:
        job = Job(**receive(line).head)
        env = start(job, running)
        order = scalar_first(env) if job.quaternions else True
        lab = Lab(env, job, Reader(env, job, order))
        first = lab.begin(job.seed)  # wrong sources and sizes show here rather than in the first chunk
    except Exception as error:
        _try_send(line, _failure(error))
        return None
    found = {
        "keeps_last": lab.keeps_last,
        "success": "term" if has_success_term(env, job) else job.without_success_term,
        "reset": "reset(env_ids)" if is_managed(env) and resets_rows(env) else "_reset_idx",
        "widths": {name: int(first[name].shape[1]) for name in job.states},
    }
    _try_send(line, Message({"answer": "ready", "found": found}))
    return lab


def _serve(line: socket.socket, lab: Lab) -> None:
    while True:
        try:
            asked = receive(line)
        except (EOFError, OSError):
            return
        what = asked.head["ask"]
        if what == "close":
            return
        try:
            answer = _answer(lab, what, asked)
        except Exception as error:
            answer = _failure(error)
        _try_send(line, answer)


def _answer(lab: Lab, what: str, asked: Message) -> Message:
    if what == "reset":
        return Message({"answer": "reset"}, lab.begin(int(asked.head["seed"])))
    return Message({"answer": "chunk"}, packed(lab.chunk(asked.arrays["actions"])))


def packed(played: Played) -> Arrays:
    """A chunk as flat arrays: its own fields, `now/NAME` [N, ...] and `final/NAME` [M, ...]."""
    names = ("reward", "steps", "terminated", "truncated", "success", "broken")
    flat: Arrays = {name: getattr(played, name) for name in names}
    flat |= {f"now/{name}": value for name, value in played.now.items()}
    rows = [played.final[row] for row in sorted(played.final)]
    return flat | {f"final/{name}": np.concatenate([row[name] for row in rows]) for name in (rows[0] if rows else {})}


def _failure(error: Exception) -> Message:
    traceback.print_exc()  # into the log
    told: dict[str, Any] = {"answer": "failed", "trace": _line(error)}
    if isinstance(error, Refused):
        told["refused"] = error.told
    return Message(told)


def _line(error: Exception) -> str:
    """Type, message, and the last place in a file that is neither this worker's nor an installed package's."""
    said = " ".join("".join(traceback.format_exception_only(error)).split())
    own, python = str(Path(__file__).parent), sysconfig.get_path("stdlib")
    for frame in reversed(traceback.extract_tb(error.__traceback__)):
        if not frame.filename.startswith((own, python, "<")) and "site-packages" not in frame.filename:
            return f"{said} ({Path(frame.filename).name}:{frame.lineno} in {frame.name})"
    return said


def _try_send(line: socket.socket, message: Message) -> None:
    try:
        send(line, message)
    except OSError:
        print("the client is gone", file=sys.stderr)
