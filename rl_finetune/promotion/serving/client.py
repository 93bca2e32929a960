"""A robot's side of overlapping chunks: it asks for the next one while it still executes the last.

A control loop calls `Executor.tick` once a control period and executes what it gets. Displacements and waypoints count
from where the robot stands at a chunk's first step, which is marked. numpy, msgpack and websockets only.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Protocol, cast

import numpy as np

from rl_finetune.promotion.serving.wire import decode, encode
from rl_finetune.types import FloatArray


class Pending(Protocol):
    """A reply that may be there; `concurrent.futures.Future` is one."""

    def done(self) -> bool: ...
    def result(self) -> FloatArray: ...


Ask = Callable[[Mapping[str, Any]], Pending]
"""Sends an observation, without waiting."""


@dataclass(frozen=True, slots=True)
class Step:
    """What to execute in one control period."""

    action: FloatArray
    """[c] action units."""
    first: bool
    """Whether a chunk begins with it."""


class Executor:
    """Executes chunks in a row."""

    def __init__(self, ask: Ask, ahead: int) -> None:
        """Begin with nothing to execute.

        Args:
            ask: sends an observation.
            ahead: steps of a chunk that are still to come when the next one is asked for; as many as a reply takes
                control periods leave nothing to wait for. Zero asks when the chunk has been executed.
        """
        self._ask, self._ahead = ask, ahead
        self._chunk: FloatArray = np.empty((0, 0), np.float32)
        self._at = 0
        self._pending: Pending | None = None
        self.waited = 0
        """Control periods in which there was nothing to execute."""

    def tick(self, observe: Callable[[], Mapping[str, Any]]) -> Step | None:
        """The next step, or None while there is nothing: hold the robot where it was told to be.

        Args:
            observe: the observation of this moment, before the step; only called when it is sent.
        """
        self._turn()
        left = len(self._chunk) - self._at
        if self._pending is None and left <= self._ahead:
            self._pending = self._ask({**observe(), "ahead": left})
            self._turn()
        if self._at == len(self._chunk):
            self.waited += 1
            return None
        self._at += 1
        return Step(self._chunk[self._at - 1], first=self._at == 1)

    def _turn(self) -> None:
        """To the next chunk, if this one has been executed and the next is there."""
        if self._at == len(self._chunk) and self._pending is not None and self._pending.done():
            self._chunk, self._at, self._pending = self._pending.result(), 0, None


class ServerError(Exception):
    """The server's own words on why there is no chunk."""


class Remote:
    """Connection to a policy server; `ask` is for an `Executor`."""

    def __init__(self, url: str, api_key: str | None = None) -> None:
        """Connect.

        Args:
            url: for example `ws://127.0.0.1:8000`.
            api_key: the server's key for robots, if it has one.
        """
        from websockets.sync.client import connect

        headers = None if api_key is None else {"Authorization": f"Api-Key {api_key}"}
        self._socket = connect(url, additional_headers=headers, compression=None, max_size=None)
        self.metadata = cast(Mapping[str, Any], decode(cast(bytes, self._socket.recv())))
        """What the server says of its policy."""
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="asking")

    def ask(self, observation: Mapping[str, Any]) -> Pending:
        """Send it, and wait for the reply in another thread; `result` raises ServerError where there is no chunk."""
        return self._thread.submit(self._exchange, observation)

    def close(self) -> None:
        """Hang up."""
        self._socket.close()
        self._thread.shutdown()

    def _exchange(self, observation: Mapping[str, Any]) -> FloatArray:
        self._socket.send(encode(observation))
        frame = self._socket.recv()
        if isinstance(frame, str):
            raise ServerError(frame)
        return cast(FloatArray, cast(Mapping[str, Any], decode(frame))["actions"])
