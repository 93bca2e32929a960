"""Keeps N environments going while the worlds of some break down.

    a worker breaks --> killed; its environments are replayed in fresh workers (one a cohort: episodes of one age)
                          |-- answers as if nothing had happened: a passing fault, nobody loses anything
                          '-- breaks again: split (into the blamed and the rest, else in four), each part replayed ...
                                '-- one environment alone breaks: its episode is abandoned, its next one begins

An episode is a pure function of its key and its actions, wherever it is played; so whoever is replayed goes on bit for
bit. What was split is joined again at the next reset. Where a world is not `keyed` nothing can be played again, and all
episodes of the broken worker are abandoned.
"""

from __future__ import annotations

import logging
from collections import defaultdict, deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import count

import numpy as np

from envs.ledger import Ledger, share
from envs.worker import Answer, Breakdown, Build, Errand, Worker, converse
from rl_finetune.errors import RunError, UserError
from rl_finetune.types import ActionChunk, BoolArray, ChunkOutcome, Failure, IntArray, SeedKeys

PIECES = 4
"""Parts into which a broken one is split where nobody is blamed: after a hang each round costs the whole patience."""
MOST_IN_A_ROW = 5
"""Episodes of one environment that may break down in a row: then the world, not the episode, is at fault."""
EVENTS = 1_000

log = logging.getLogger(__name__)


class WorldError(RunError):
    """Environments cannot be kept alive; says which and why."""


class Supervisor:
    """The workers, what they play, and what it takes to replace them."""

    def __init__(self, world: str, build: Build, parts: Sequence[IntArray], patience: float) -> None:
        """Start a worker for each part and wait until they have built their environments.

        Args:
            world: registered name, for messages.
            build: builds the environments of one worker.
            parts: [n] each, the places of the environments in the whole.
            patience: seconds within which an answer must come.

        Raises:
            UserError: what a worker raised while it built its part.
            WorldError: a worker could not build its part.
        """
        self.events: deque[str] = deque(maxlen=EVENTS)
        self._world, self._build, self._parts, self._patience = world, build, parts, patience
        self._number, self._workers = count(), list[Worker]()
        self._ledger: Ledger | None = None
        self._owed: defaultdict[int, deque[Failure]] = defaultdict(deque)
        self._in_a_row, self._abandoned = np.zeros(sum(map(len, parts)), np.int64), 0
        with self._disbanding():
            list(self._results([(self._start(part), ()) for part in parts]))
        self.keyed = all(worker.keyed for worker in self._workers)

    def reset(self, keys: SeedKeys) -> list[tuple[IntArray, Answer]]:
        """Begin the episodes `keys`; rows and first observations of each worker."""
        self._ledger = None  # an error below leaves nothing to go on with
        self._owed.clear()
        ledger = Ledger(keys)
        with self._disbanding():
            self._muster()
            answers = self._ask(ledger, [(w, ledger.script(w.rows)) for w in self._workers])
        self._ledger = ledger
        return answers

    def step(self, chunk: ActionChunk) -> list[tuple[IntArray, Answer | None]]:
        """Play a chunk [N, H, c]; rows and outcomes of each worker.

        Environments whose episodes broke have the first observation of their next episodes in place of an outcome;
        None where that is known already. `pay` says what broke.

        Raises:
            RuntimeError: called before `reset`.
        """
        ledger, self._ledger = self._ledger, None
        if ledger is None:
            raise RuntimeError("step_chunk before reset: call reset(keys) first")
        ledger.add(chunk)
        resting = [worker for worker in self._workers if self._owed.get(int(worker.rows[0]))]
        busy = [worker for worker in self._workers if worker not in resting]
        with self._disbanding():
            answers = self._ask(ledger, [(w, [("step_chunk", share(chunk, w.rows))]) for w in busy])
        self._ledger = ledger
        return [*answers, *((worker.rows, None) for worker in resting)]

    def pay(self, row: int) -> Failure:
        """The failure to report of an environment whose outcome is missing, once."""
        return self._owed[row].popleft()

    def settle(self, outcome: ChunkOutcome, paid: BoolArray) -> None:
        """Take note of the whole batch's outcome; [N] rows whose outcome was missing are `paid`.

        Raises:
            WorldError: a world that reports its own failures does so in too many episodes in a row.
        """
        assert self._ledger is not None
        ended = (outcome.terminated | outcome.truncated) & ~paid
        self._ledger.settle(ended, paid)
        self._in_a_row[ended & ~outcome.failed] = 0
        for failure in outcome.failures:
            if not paid[failure.row]:
                self._count(failure)

    def drain(self) -> list[str]:
        """What became of workers since the last call, oldest first."""
        told = list(self.events)
        self.events.clear()
        return told

    def close(self) -> None:
        """End all workers."""
        for worker in self._workers:
            worker.dismiss()
        for worker in self._workers:
            worker.end(grace=5.0)
        self._workers.clear()

    def _ask(self, ledger: Ledger, errands: Sequence[Errand]) -> list[tuple[IntArray, Answer]]:
        """Answers of all, or of those that replaced them."""
        answers = list[tuple[IntArray, Answer]]()
        for worker, result in self._results(errands):
            if isinstance(result, Breakdown):
                answers += self._replace(ledger, worker, result)
            else:
                answers.append((worker.rows, result))
        return answers

    def _replace(self, ledger: Ledger, worker: Worker, found: Breakdown) -> list[tuple[IntArray, Answer]]:
        """Play a worker's environments again until everyone is where they were, or has abandoned the episode."""
        self._end(worker)
        self._tell(f"{self._world}: {worker} is replaced: {found.cause}")
        lost, answers = self._abandoned, list[tuple[IntArray, Answer]]()
        pending = split(ledger, worker.rows, found.blamed)
        if not worker.keyed:
            pending = self._abandon(ledger, worker.rows, found.cause)
        while pending:
            errands = [(self._start(rows), ledger.script(rows)) for rows in pending]
            pending = []
            for fresh, result in self._results(errands):
                if not isinstance(result, Breakdown):
                    answers.append((fresh.rows, result))
                    continue
                self._end(fresh)
                if len(fresh.rows) == 1 or not fresh.keyed:
                    pending += self._abandon(ledger, fresh.rows, result.cause)
                else:
                    pending += split(ledger, fresh.rows, result.blamed, PIECES)
        if self._abandoned == lost:
            self._tell(f"{self._world}: environments {worker.rows.tolist()} go on where they were")
        return answers

    def _abandon(self, ledger: Ledger, rows: IntArray, cause: str) -> list[IntArray]:
        """Give the episodes of `rows` up; what is to be begun instead."""
        for row in rows.tolist():
            env, episode = int(ledger.keys.env[row]), int(ledger.keys.episode[row])
            failure = Failure(row, self._world, ledger.keys.seed, env, episode, cause)
            self._tell(str(failure))
            self._count(failure)
            self._owed[row].append(failure)
        self._abandoned += len(rows)
        ledger.abandon(rows)
        return [rows]

    def _count(self, failure: Failure) -> None:
        self._in_a_row[failure.row] += 1
        if self._in_a_row[failure.row] > MOST_IN_A_ROW:
            raise WorldError(f"{failure}; so did its last {MOST_IN_A_ROW} episodes: the world itself is at fault")

    def _muster(self) -> None:
        """One worker a part again, where some were split."""
        whole = {tuple(part): part for part in self._parts}
        for worker in [worker for worker in self._workers if tuple(worker.rows) not in whole]:
            self._end(worker)
        for rows in whole.keys() - {tuple(worker.rows) for worker in self._workers}:
            self._start(whole[rows])

    def _results(self, errands: Sequence[Errand]) -> Iterator[tuple[Worker, Answer | Breakdown]]:
        """What each worker answered; raises what replacing a worker cannot mend."""
        results = converse(errands, self._patience)
        for result in results:
            if isinstance(result, UserError):
                raise result
            if isinstance(result, Breakdown) and not result.built:
                raise WorldError(f"{self._world} could not be built in a worker process: {result.cause}")
        for (worker, _), result in zip(errands, results, strict=True):
            if isinstance(result, Answer | Breakdown):
                yield worker, result

    @contextmanager
    def _disbanding(self) -> Iterator[None]:
        """After an error some workers may still be about to answer: all are ended, and the next reset starts others."""
        try:
            yield
        except BaseException:
            while self._workers:
                self._end(self._workers[-1])
            raise

    def _start(self, rows: IntArray) -> Worker:
        worker = Worker(self._build, rows, f"{self._world}-worker-{next(self._number)}")
        self._workers.append(worker)
        return worker

    def _end(self, worker: Worker) -> None:
        worker.end()
        self._workers.remove(worker)

    def _tell(self, event: str) -> None:
        log.warning(event)
        self.events.append(event)


def split(ledger: Ledger, rows: IntArray, blamed: Sequence[int], pieces: int = 1) -> list[IntArray]:
    """Parts to replay: each blamed place of `rows` alone, and the others by cohort, each in up to `pieces`."""
    alone = [rows[place : place + 1] for place in blamed]
    others = ledger.cohorts(np.delete(rows, blamed)) if len(blamed) < len(rows) else []
    cut = 1 if blamed else pieces
    return alone + [piece for cohort in others for piece in np.array_split(cohort, min(cut, len(cohort)))]
