"""A process that holds some of the environments, and the talk with several of them at once.

    converse: command --> worker --> answer --> next command ...     every worker at its own pace, all in one wait

A worker that dies, raises, keeps silent or leaves the finite numbers is answered for: its result is a `Breakdown`.
"""

from __future__ import annotations

import os
import signal
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing import get_context
from multiprocessing.connection import Connection, wait

import numpy as np

from envs.base import VectorEnv
from envs.guard import flaws
from rl_finetune.errors import UserError, cause
from rl_finetune.types import ActionChunk, ChunkOutcome, IntArray, Observation, SeedKeys

ONE_THREAD = {"LP_NUM_THREADS": "0", "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
"""Environment of a worker: one process a core, so every library in it keeps to the one thread (0: the caller draws)."""
STARTING = 300.0
"""Seconds that a worker may take to build its worlds, where the patience for an answer is less."""

Build = Callable[[int], VectorEnv]
"""Number of environments -> the environment; it must pickle."""
Command = tuple[str, SeedKeys | ActionChunk]
"""Method of the environment, its argument."""
Answer = Observation | ChunkOutcome


@dataclass(frozen=True, slots=True)
class Breakdown:
    """What stands in for an answer that did not come."""

    cause: str
    """What happened, in words."""
    blamed: tuple[int, ...] = ()
    """Environments of the worker (0 is its first) that are known to be at fault; empty where it could be any."""
    built: bool = True
    """Whether the worker had built its worlds before."""


@dataclass(frozen=True, slots=True)
class Ready:
    """The environments are built."""

    keyed: bool
    """As `VectorEnv.keyed`: what they do can be played again."""


Result = Answer | Breakdown | UserError | None
"""The answer to the last command; None where there was no command and the worker is ready."""


class Worker:
    """A child process with its environments."""

    def __init__(self, build: Build, rows: IntArray, name: str) -> None:
        """Start the process; it builds its environments while the caller goes on.

        Args:
            build: what it builds.
            rows: [n] places of its environments in the whole.
            name: name of the process.
        """
        self.rows, self.ready, self.keyed = rows, False, True
        context = get_context("spawn")
        self.pipe, theirs = context.Pipe()
        self.process = context.Process(target=_serve, args=(theirs, build, len(rows)), daemon=True, name=name)
        with _environment(ONE_THREAD):
            self.process.start()
        theirs.close()

    def __str__(self) -> str:
        return f"worker {self.process.name!r} (pid {self.process.pid}, environments {self.rows.tolist()})"

    def dismiss(self) -> None:
        """Let it end by itself: it does when its pipe closes. Follow with `end`."""
        self.pipe.close()

    def end(self, grace: float = 0.0) -> None:
        """Wait `grace` seconds for the process to end, then kill it."""
        self.dismiss()
        self.process.join(timeout=grace)
        if self.process.is_alive():
            self.process.kill()
            self.process.join()

    def death(self) -> Breakdown:
        """What to say when the pipe broke."""
        self.process.join(timeout=5)
        return Breakdown(f"its process died with exit code {self.process.exitcode}", built=self.ready)


Errand = tuple[Worker, Sequence[Command]]
"""A worker and what it is to do, one command after the other."""


def converse(errands: Iterable[Errand], patience: float) -> list[Result]:
    """Give each worker its commands, one after the other's answer; return the last result of each, in order.

    Args:
        errands: workers and what they are to do. Of several chunks only the last may end an episode: those before it
            are replayed, and in them none ended.
        patience: seconds within which each answer must come.
    """
    talks = [_Talk(worker, commands, patience) for worker, commands in errands]
    while running := {talk.worker.pipe: talk for talk in talks if not talk.over}:
        first = min(talk.deadline for talk in running.values())
        for pipe in wait(list(running), max(0.0, first - time.monotonic())):
            assert isinstance(pipe, Connection)
            running.pop(pipe).hear()
        for talk in running.values():
            talk.lose_patience()
    return [talk.result for talk in talks]


class _Talk:
    """One worker on its way through its commands."""

    def __init__(self, worker: Worker, commands: Sequence[Command], patience: float) -> None:
        self.worker, self.over = worker, False
        self.result: Result = None
        self._left, self._patience = deque(commands), patience
        self._allowed = patience if worker.ready else max(patience, STARTING)
        self.deadline = time.monotonic() + self._allowed
        if worker.ready:
            self._go_on()

    def hear(self) -> None:
        """Take the answer that has arrived."""
        try:
            answer = self.worker.pipe.recv()
        except (EOFError, OSError):
            self._end(self.worker.death())
            return
        if isinstance(answer, Breakdown | UserError):
            self._end(answer)
        elif isinstance(answer, Ready):
            self.worker.ready, self.worker.keyed = True, answer.keyed
            self._go_on()
        elif (broken := examine(answer, replayed=bool(self._left))) is not None:
            self._end(broken)
        else:
            self.result = answer
            self._go_on()

    def lose_patience(self) -> None:
        """End where the answer is overdue."""
        if time.monotonic() >= self.deadline and not self.worker.pipe.poll():
            self._end(Breakdown(f"no answer within {self._allowed:g} s", built=self.worker.ready))

    def _go_on(self) -> None:
        if not self._left:
            self.over = True
            return
        self._allowed = self._patience
        self.deadline = time.monotonic() + self._allowed
        try:
            self.worker.pipe.send(self._left.popleft())
        except OSError:
            self._end(self.worker.death())

    def _end(self, result: Result) -> None:
        self.result, self.over = result, True


def examine(answer: Answer, *, replayed: bool) -> Breakdown | None:
    """What is wrong with an answer; `replayed` ones must not end an episode, for the first time they did not."""
    found = flaws(answer)
    if found:
        return Breakdown(f"{next(iter(found.values()))} is not finite", tuple(found))
    if replayed and isinstance(answer, ChunkOutcome):
        ended = np.flatnonzero(answer.terminated | answer.truncated)
        if ended.size:
            return Breakdown("the same key and actions gave another episode when replayed", tuple(ended.tolist()))
    return None


@contextmanager
def _environment(values: dict[str, str]) -> Iterator[None]:
    """Set environment variables for children started inside."""
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def _serve(pipe: Connection, build: Build, num_envs: int) -> None:
    """A worker's life: build, say so, then answer (method, argument) until the pipe closes."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the caller's to handle; it closes the pipe
    try:
        env = build(num_envs)
    except Exception as error:
        pipe.send(_told(error, built=False))
        return
    with env:
        answer: object = Ready(env.keyed)
        while True:
            try:
                pipe.send(answer)
                method, argument = pipe.recv()
            except (EOFError, BrokenPipeError, ConnectionResetError):
                return  # the caller has closed its end
            try:
                answer = getattr(env, method)(argument)
            except Exception as error:
                answer = _told(error)


def _told(error: Exception, *, built: bool = True) -> UserError | Breakdown:
    """What the caller hears of an error: the record pickles, whatever the error holds."""
    return error if isinstance(error, UserError) else Breakdown(cause(error), built=built)
