"""The same contract, spread over worker processes that each own a simulator and a renderer.

    ProcessEnv --SeedKeys | ActionChunk--> worker 0 (envs 0..a) --Observation | ChunkOutcome--> joined in order
               --...---------------------> worker 1 (envs a..N)

All workers are sent their part before any answer is awaited. Pipes run between this process and its own children.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import pairwise
from multiprocessing import get_context
from multiprocessing.connection import Connection
from typing import Any

import numpy as np

from envs.base import VectorEnv, check_keys, used_actions
from rl_finetune.types import ActionChunk, ChunkOutcome, Observation, SeedKeys, concatenate

ONE_THREAD = {"LP_NUM_THREADS": "0", "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
"""Environment of a worker: one process a core, so every library in it keeps to the one thread (0: the caller draws)."""


class WorkerError(RuntimeError):
    """A worker process died; says which one and which environments it held."""


class ProcessEnv(VectorEnv):
    """N environments split over worker processes in contiguous, nearly equal parts."""

    def __init__(self, name: str, num_envs: int, workers: int, options: dict[str, Any]) -> None:
        """Start the workers and wait until each has built its part.

        Args:
            name: registered environment.
            num_envs: N.
            workers: processes, 1..N.
            options: keyword options of the environment.

        Raises:
            UserError: what a worker raised while it built its part.
            WorkerError: a worker died while starting.
        """
        from envs import spec

        self.spec, self.num_envs = spec(name, **options), num_envs
        bounds = np.linspace(0, num_envs, workers + 1).astype(int)
        self._parts = [slice(int(a), int(b)) for a, b in pairwise(bounds)]
        context = get_context("spawn")
        self._pipes: list[Connection] = []
        self._processes = []
        with _environment(ONE_THREAD):
            for index, part in enumerate(self._parts):
                ours, theirs = context.Pipe()
                job = (theirs, name, part.stop - part.start, options)
                process = context.Process(target=_serve, args=job, daemon=True, name=f"{name}-worker-{index}")
                process.start()
                theirs.close()
                self._pipes.append(ours)
                self._processes.append(process)
        try:
            self._receive()
        except BaseException:
            self.close()
            raise

    def reset(self, keys: SeedKeys) -> Observation:
        """See `VectorEnv.reset`."""
        check_keys(keys, self.num_envs)
        return concatenate(self._ask("reset", keys.rows))

    def step_chunk(self, chunk: ActionChunk) -> ChunkOutcome:
        """See `VectorEnv.step_chunk`. Raises `WorkerError` where a worker died."""
        used_actions(chunk, self.spec, self.num_envs)  # here the number in the message is the whole batch's
        answers = self._ask("step_chunk", lambda part: ActionChunk(chunk.actions[part], chunk.mask[part]))
        return join_outcomes(answers)

    def close(self) -> None:
        """See `VectorEnv.close`."""
        for pipe in self._pipes:
            pipe.close()
        for process in self._processes:
            process.join(timeout=5)
            if process.is_alive():
                process.kill()
                process.join()
        self._pipes, self._processes = [], []

    def _ask(self, method: str, share: Callable[[slice], Any]) -> list[Any]:
        for index, (pipe, part) in enumerate(zip(self._pipes, self._parts, strict=True)):
            try:
                pipe.send((method, share(part)))
            except (BrokenPipeError, ConnectionResetError) as error:
                raise self._death(index) from error
        return self._receive()

    def _receive(self) -> list[Any]:
        """One answer of each worker, in order; every pipe is emptied before an error is raised."""
        answers: list[Any] = []
        for index, pipe in enumerate(self._pipes):
            try:
                answers.append(pipe.recv())
            except (EOFError, ConnectionResetError):
                answers.append(self._death(index))
        for answer in answers:
            if isinstance(answer, BaseException):
                raise answer
        return answers

    def _death(self, index: int) -> WorkerError:
        process, part = self._processes[index], self._parts[index]
        process.join(timeout=5)
        return WorkerError(
            f"environment worker {process.name!r} (pid {process.pid}, environments {part.start}..{part.stop - 1}) "
            f"died with exit code {process.exitcode}; make the environment again"
        )


def join_outcomes(parts: list[ChunkOutcome]) -> ChunkOutcome:
    """Outcomes of neighbouring groups of environments as one."""

    def joined(name: str) -> Any:
        return np.concatenate([getattr(part, name) for part in parts])

    starts = np.cumsum([0, *(len(part.steps_executed) for part in parts[:-1])])
    finals = [part.final_observation for part in parts if part.final_observation is not None]
    return ChunkOutcome(
        reward=joined("reward"),
        steps_executed=joined("steps_executed"),
        terminated=joined("terminated"),
        truncated=joined("truncated"),
        success=joined("success"),
        observation=concatenate([part.observation for part in parts]),
        final_index=np.concatenate([part.final_index + start for part, start in zip(parts, starts, strict=True)]),
        final_observation=concatenate(finals) if finals else None,
        reward_terms={
            name: np.concatenate([part.reward_terms[name] for part in parts]) for name in parts[0].reward_terms
        },
    )


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


def _serve(pipe: Connection, name: str, num_envs: int, options: dict[str, Any]) -> None:
    """A worker's life: build, say so, then answer (method, argument) until the pipe closes."""
    from envs import make

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the caller's to handle; it closes the pipe
    try:
        env = make(name, num_envs, **options)
    except Exception as error:
        pipe.send(error)
        return
    pipe.send("ready")
    with env:
        while True:
            try:
                method, argument = pipe.recv()
            except EOFError:
                return
            try:
                pipe.send(getattr(env, method)(argument))
            except Exception as error:
                pipe.send(error)
