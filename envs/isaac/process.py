"""Isaac's process as the client sees it: started, asked, waited for, ended."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from envs.isaac.worker.wire import Array, Message, receive, send
from rl_finetune.errors import SimulatorError, UserError

BOOT = "import sys; sys.path.insert(0, sys.argv.pop(1)); import worker.serve as serve; sys.path.pop(0); serve.main()"
"""Imports the worker by its folder, so that nothing of this project is importable in Isaac's process."""
FOLDER = Path(__file__).resolve().parent
TAIL = 12
"""Lines of the log that an error shows."""
CLOSE_SECONDS = 60.0


class IsaacError(SimulatorError):
    """Isaac's process failed, died or hangs; says which one, and what its log says."""


class IsaacProcess:
    """One worker process, and the one socket that joins it to this one."""

    def __init__(self, python: str | None) -> None:
        """Start the interpreter; it waits for its job. What Isaac prints goes to `log`."""
        handle, path = tempfile.mkstemp(prefix="rl-finetune-isaac-", suffix=".log")
        self.log, self._python = Path(path), python or sys.executable
        ours, theirs = socket.socketpair()
        command = [self._python, "-c", BOOT, str(FOLDER), str(theirs.fileno())]
        with os.fdopen(handle, "wb") as log, theirs:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                pass_fds=[theirs.fileno()],
                env=os.environ | {"PYTHONUNBUFFERED": "1"},
            )
        self._line: socket.socket | None = ours

    @property
    def pid(self) -> int:
        """Process id."""
        return self._process.pid

    def ask(self, head: dict[str, Any], arrays: dict[str, Array] | None = None, *, seconds: float) -> Message:
        """Send a request and wait for its answer.

        Raises:
            UserError: the task does not fit the options.
            IsaacError: it failed, died or was silent for `seconds`; then the process is gone too.
        """
        what = str(head.get("ask", "start"))
        if self._line is None:
            raise IsaacError(f"Isaac's process is closed and cannot {what}; make the environment again")
        self._line.settimeout(seconds)
        try:
            send(self._line, Message(head, arrays or {}))
            answer = receive(self._line)
        except TimeoutError:
            raise self._lost(f"did not answer {what!r} within {seconds:g} s and was killed") from None
        except (EOFError, OSError):
            raise self._lost(f"died during {what!r}") from None
        if "refused" in answer.head:
            raise UserError(**answer.head["refused"])
        if answer.head["answer"] == "failed":
            raise self._lost(f"failed at {what!r} with {answer.head['trace']}")
        return answer

    def close(self) -> None:
        """End the process, in good order where it still answers. The log of a good end is removed."""
        if self._line is None:
            return
        line, self._line = self._line, None
        line.settimeout(CLOSE_SECONDS)
        try:
            send(line, Message({"ask": "close"}))
            receive(line)
        except (EOFError, OSError):
            pass
        finally:
            line.close()
        if self._end(CLOSE_SECONDS) == 0:
            self.log.unlink(missing_ok=True)

    def _end(self, seconds: float) -> int:
        """Exit code, after waiting; a process that does not end is killed."""
        try:
            return self._process.wait(seconds)
        except subprocess.TimeoutExpired:
            self._process.kill()
            return self._process.wait()

    def _lost(self, how: str) -> IsaacError:
        """The error for a process that is of no more use; ends it."""
        if self._line is not None:
            self._line.close()
            self._line = None
        code = self._end(0.0 if "killed" in how else 5.0)
        lines = self.log.read_text(errors="replace").splitlines()[-TAIL:]
        said = "\n  ".join(lines) or "(nothing)"
        return IsaacError(
            f"Isaac's process (pid {self.pid}, {self._python}) {how}; exit code {code}; make the environment again. "
            f"Its log {self.log} ends:\n  {said}"
        )
