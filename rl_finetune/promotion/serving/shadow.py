"""A candidate beside the incumbent: same observations, same noise, but nobody executes what it says.

    inference's thread   act --offer--> (bounded; full: dropped and counted)
    shadow's thread                          +--> the candidate's chunk --> difference --> log, summary

The incumbent's thread does nothing but put a batch into a queue. What goes wrong here is counted and goes no further.
"""

from __future__ import annotations

import json
import logging
import os
import threading
import time
from collections import deque
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from queue import Full, Queue

import numpy as np

from rl_finetune.promotion.serving.limiter import Float64
from rl_finetune.promotion.serving.requests import ActReply, ActRequest
from rl_finetune.promotion.serving.swap import Loaded, alike, infer

LOG = logging.getLogger(__name__)
NICE = 10
"""How far the shadow's thread stands back for others on a processor."""
REMEMBERED = 1000
"""Calls whose seconds a summary looks back on."""

_Batch = tuple[Sequence[ActRequest], Sequence[ActReply]]


@dataclass(frozen=True, slots=True)
class Difference:
    """Of the candidate's actions from the incumbent's in one body, over all compared chunks; [c] each."""

    chunks: int
    """Compared."""
    rms: tuple[float, ...]
    """Root mean square, action units."""
    worst: tuple[float, ...]
    """Greatest, action units."""
    relative: tuple[float, ...]
    """`rms` over half the range of the candidate's normalisation."""


@dataclass(frozen=True, slots=True)
class ShadowSummary:
    """What a shadow has seen."""

    bodies: Mapping[str, Difference]
    """Robot tag -> difference."""
    dropped: int
    """Requests that it was too slow for."""
    failed: int
    """Requests that it could not compute or write down."""
    last_failure: str
    """In words; empty where there was none."""
    seconds: tuple[float, float]
    """Median seconds of a batch by the incumbent and by the candidate; NaN before the first."""


class Shadow:
    """Watches one candidate in a thread of its own."""

    def __init__(self, candidate: Loaded, log: Path, *, waiting: int = 4, log_bytes: int = 16_777_216) -> None:
        """Start watching.

        Args:
            candidate: made ready with `swap.load`.
            log: JSON Lines file, one line a chunk; when it is full it becomes `<log>.1`, in the place of the last.
            waiting: batches that may wait; further ones are dropped.
            log_bytes: size at which a log is full.
        """
        self.candidate = candidate
        """Who is watched."""
        self._log, self._log_bytes = log, log_bytes
        self._queue: Queue[_Batch | None] = Queue(waiting)
        self._lock = threading.Lock()
        self._sums: dict[str, _Sum] = {}
        self._dropped = self._failed = 0
        self._last_failure = ""
        self._seconds: deque[tuple[float, float]] = deque(maxlen=REMEMBERED)
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._run, name="shadow", daemon=True)
        self._thread.start()

    def offer(self, requests: Sequence[ActRequest], replies: Sequence[ActReply]) -> None:
        """Look at what the incumbent has answered, some time; never blocks, never raises."""
        try:
            self._queue.put_nowait((requests, replies))
        except Full:
            with self._lock:
                self._dropped += len(requests)

    def summary(self) -> ShadowSummary:
        """What was seen so far."""
        with self._lock:
            bodies = {tag: seen.difference() for tag, seen in self._sums.items()}
            pair = np.median(np.array(self._seconds), axis=0) if self._seconds else np.full(2, np.nan)
            return ShadowSummary(
                bodies, self._dropped, self._failed, self._last_failure, (float(pair[0]), float(pair[1]))
            )

    def close(self, patience: float = 5.0) -> ShadowSummary:
        """Look at nothing more; a candidate that hangs longer than `patience` seconds is left to the process's end."""
        self._closed.set()
        with suppress(Full):  # then it wakes by itself, and sees that it is closed
            self._queue.put_nowait(None)
        self._thread.join(patience)
        return self.summary()

    def _run(self) -> None:
        _stand_back()
        while not self._closed.is_set():
            batch = self._queue.get()
            if batch is None:
                break
            requests, replies = batch
            for rows in alike(requests):
                try:
                    self._compare([requests[row] for row in rows], [replies[row] for row in rows])
                except Exception as error:
                    with self._lock:
                        self._failed += len(rows)
                        self._last_failure = f"{type(error).__name__}: {error}"
                    LOG.warning("shadow: %s", error)

    def _compare(self, requests: Sequence[ActRequest], replies: Sequence[ActReply]) -> None:
        since = time.perf_counter()
        chunks = infer(self.candidate.policy, requests, self.candidate.temperature)
        seconds = time.perf_counter() - since
        for request, reply, chunk in zip(requests, replies, chunks, strict=True):
            self._note(request, reply, chunk.astype(np.float64) - reply.actions, seconds)

    def _note(self, request: ActRequest, reply: ActReply, difference: Float64, seconds: float) -> None:
        quantiles = self.candidate.policy.quantiles[request.embodiment]
        scale = (np.array(quantiles.q99) - np.array(quantiles.q01)) / 2
        rms = np.sqrt((difference**2).mean(0))
        line = {
            "time": time.time(), "embodiment": request.embodiment, "session": request.env, "episode": request.episode,
            "chunk": request.chunk, "incumbent": reply.digest, "candidate": self.candidate.digest,
            "rms": rms.tolist(), "worst": np.abs(difference).max(0).tolist(), "relative": (rms / scale).tolist(),
            "seconds": [reply.seconds, seconds],
        }  # fmt: skip
        with self._lock:
            self._sums.setdefault(request.embodiment, _Sum(scale)).add(difference)
            self._seconds.append((reply.seconds, seconds))
        self._write(json.dumps(line) + "\n")

    def _write(self, line: str) -> None:
        if self._log.exists() and self._log.stat().st_size + len(line) > self._log_bytes:
            self._log.replace(self._log.with_name(self._log.name + ".1"))
        with self._log.open("a") as file:
            file.write(line)


class _Sum:
    """Running sums of one body."""

    def __init__(self, scale: Float64) -> None:
        self._scale, self._chunks, self._steps = scale, 0, 0
        self._squares, self._worst = np.zeros_like(scale), np.zeros_like(scale)

    def add(self, difference: Float64) -> None:
        """One chunk [H, c]."""
        self._chunks += 1
        self._steps += len(difference)
        self._squares += (difference**2).sum(0)
        self._worst = np.maximum(self._worst, np.abs(difference).max(0))

    def difference(self) -> Difference:
        """So far."""
        rms = np.sqrt(self._squares / self._steps)
        rows = (tuple(map(float, values)) for values in (rms, self._worst, rms / self._scale))
        return Difference(self._chunks, *rows)


def _stand_back() -> None:
    """Give way to the incumbent where both want a processor; Linux sets that for the thread alone."""
    try:
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), NICE)
    except (AttributeError, OSError) as error:
        LOG.info("shadow runs at the incumbent's priority: %s", error)
