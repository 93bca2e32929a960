"""Training runs as a person starts them: in processes of their own, which a test may watch, kill and resume.

Everything that a run starts (Ray's daemons, actors, learners) stays in the session that `start_new_session` opens, so a
test can find exactly its own processes, whatever else Ray runs on this machine.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, ClassVar

ROOT = Path(__file__).resolve().parent.parent
PATIENCE = 240.0
"""Seconds after which something that should have happened counts as hung."""
TIMINGS = {"minutes", "steps_per_second", "collect_seconds", "update_seconds"}
"""Fields of a row that no two runs share."""


class Job:
    """One `rl-finetune WORDS` in the background, its output in files beside `folder`."""

    started: ClassVar[list[Job]] = []
    """All of them, for the end of a test session to kill what is left."""

    def __init__(self, folder: Path, *words: str, log: str = "log") -> None:
        self.folder = folder
        self.output, self.errors = folder.with_suffix(f".{log}.out"), folder.with_suffix(f".{log}.err")
        with self.output.open("w") as out, self.errors.open("w") as err:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "rl_finetune", *words],
                env=environment(), stdout=out, stderr=err, cwd=folder.parent, start_new_session=True,
            )  # fmt: skip
        self.started.append(self)

    def wait(self) -> int:
        """Exit code, once it has ended by itself."""
        return self._process.wait(PATIENCE)

    def kill(self) -> None:
        """SIGKILL to the whole run at once, and to what is still there afterwards; nothing where it has ended.

        The first process is waited for last: until then its number, which names the session, is not given away.
        """
        if self._process.returncode is not None:
            return
        os.killpg(self._process.pid, signal.SIGKILL)
        deadline = time.monotonic() + PATIENCE
        while left := self.processes():
            assert time.monotonic() < deadline, f"processes {left} outlive SIGKILL"
            for pid in left:
                _send(pid, signal.SIGKILL)
            time.sleep(0.05)
        self._process.wait()

    def kill_one(self, title: str) -> int:
        """SIGKILL to the first of its processes with that name; returns its number."""
        pid = min(pid for pid, name in self.processes().items() if name.startswith(title))
        _send(pid, signal.SIGKILL)
        return pid

    def processes(self) -> dict[int, str]:
        """Number -> name of every living process of the run."""
        assert self._process.returncode is None, "the run has been waited for: its session may be another's by now"
        found = {}
        for stat in Path("/proc").glob("[0-9]*/stat"):
            try:
                pid, rest = stat.read_text().split(" (", 1)
            except (OSError, ValueError):
                continue  # it ended meanwhile
            name, (state, _parent, _group, session, *_) = rest.rsplit(") ", 1)[0], rest.rsplit(") ", 1)[1].split()
            if int(session) == self._process.pid and state not in "ZX":
                found[int(pid)] = name
        return found

    def wait_until(self, happened: Callable[[list[dict[str, Any]]], bool]) -> list[dict[str, Any]]:
        """Rows of metrics.jsonl, as soon as `happened` holds for them."""
        deadline = time.monotonic() + PATIENCE
        while not happened(found := rows(self.folder)):
            assert self._process.poll() is None, f"the run ended too early:\n{self.log()}"
            assert time.monotonic() < deadline, f"nothing of the kind happened:\n{self.log()}"
            time.sleep(0.02)
        return found

    def log(self) -> str:
        """What it printed so far."""
        return self.output.read_text() + self.errors.read_text()


def run(*words: str, cwd: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    """`rl-finetune WORDS` to its end, with further environment variables."""
    return subprocess.run(
        [sys.executable, "-m", "rl_finetune", *words], cwd=cwd, env=environment() | variables, capture_output=True,
        text=True, timeout=PATIENCE, check=False,
    )  # fmt: skip


def environment() -> dict[str, str]:
    """This process's variables with the repository on the path, and no cluster to join."""
    return {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"} | {"PYTHONPATH": str(ROOT)}


def rows(folder: Path) -> list[dict[str, Any]]:
    """Whole lines of metrics.jsonl; none where there is no file yet."""
    file = folder / "metrics.jsonl"
    lines = file.read_text().split("\n")[:-1] if file.exists() else []
    return [json.loads(line) for line in lines]


def numbers(row: dict[str, Any]) -> dict[str, Any]:
    """A row without what depends on the clock."""
    return {name: value for name, value in row.items() if name not in TIMINGS}


def _send(pid: int, number: signal.Signals) -> None:
    with suppress(ProcessLookupError):  # it ended meanwhile
        os.kill(pid, number)
