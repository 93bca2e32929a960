"""Which episodes run, and the chunks that brought them where they are: all that it takes to play them again."""

from __future__ import annotations

from collections import deque
from dataclasses import replace
from itertools import islice

import numpy as np

from envs.worker import Command
from rl_finetune.types import ActionChunk, BoolArray, IntArray, SeedKeys


class Ledger:
    """Running episodes of N environments and their chunks so far.

    A chunk is forgotten when every episode it was part of has ended. No episode outlives its time limit, so at most
    time limit / horizon chunks of [N, H, c] are kept: N * time limit * c * 5 bytes.
    """

    def __init__(self, keys: SeedKeys) -> None:
        """Begin with the first chunks of the episodes `keys`."""
        self.keys = replace(keys, env=np.array(keys.env), episode=np.array(keys.episode))
        self._begun = np.zeros(len(keys), np.int64)
        self._chunks: deque[ActionChunk] = deque()
        self._forgotten = 0

    def __len__(self) -> int:
        """Chunks that are kept."""
        return len(self._chunks)

    @property
    def _now(self) -> int:
        return self._forgotten + len(self._chunks)

    def add(self, chunk: ActionChunk) -> None:
        """Note a chunk [N, H, c] that is about to be played; the arrays must not change afterwards."""
        self._chunks.append(chunk)

    def settle(self, ended: BoolArray, rested: BoolArray) -> None:
        """The chunk has been played: [N] episodes that ended with it, [N] environments that had no part in it."""
        self.keys.episode[ended] += 1
        self._begun[ended | rested] = self._now
        while self._forgotten < self._begun.min():
            self._chunks.popleft()
            self._forgotten += 1

    def abandon(self, rows: IntArray) -> None:
        """These environments go on with their next episodes, which have not seen the present chunk."""
        self.keys.episode[rows] += 1
        self._begun[rows] = self._now

    def cohorts(self, rows: IntArray) -> list[IntArray]:
        """The rows, grouped by the chunk with which their episodes began: each group can be replayed as a batch."""
        begun = self._begun[rows]
        return [rows[begun == chunk] for chunk in np.unique(begun)]

    def script(self, rows: IntArray) -> list[Command]:
        """What brings fresh environments to where the `rows` of one cohort are."""
        chunks = islice(self._chunks, int(self._begun[rows[0]]) - self._forgotten, None)
        return [("reset", self.keys.rows(rows)), *(("step_chunk", share(chunk, rows)) for chunk in chunks)]


def share(chunk: ActionChunk, rows: IntArray) -> ActionChunk:
    """Some environments' part of a chunk."""
    return ActionChunk(chunk.actions[rows], chunk.mask[rows])
