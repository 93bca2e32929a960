"""A server whose policy answers at once, and a client that knows what it must be answered: for benchmarks and tests.

The instant policy paints its chunk with what it was shown: every action is the value of the first view's first pixel,
plus the number of the step in thousandths. A client that shows a picture of one value sees at once whether it got its
own answer.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from websockets.sync.client import ClientConnection, connect

from rl_finetune.config.serving import ServeSection
from rl_finetune.errors import UserError
from rl_finetune.promotion.serving.reading import Reading
from rl_finetune.promotion.serving.requests import ActReply, ActRequest
from rl_finetune.promotion.serving.server import PolicyServer
from rl_finetune.promotion.serving.wire import decode, encode
from rl_finetune.types import FloatArray

HORIZON, CHANNELS = 8, 7
VIEWS = ("ego", "wrist")
PATIENCE = 60.0
"""Seconds after which something that should have happened counts as hung."""


@dataclass
class InstantStage:
    """Acts without weights."""

    image_size: int = 224
    """Side of the pictures that it wants."""
    views: tuple[str, ...] = VIEWS
    """What it looks at."""
    digest: str = "first"
    """Who acts."""
    before: Callable[[Sequence[ActRequest]], None] = lambda requests: None
    """Called in the inference thread before each batch."""
    batches: list[int] = field(default_factory=list)
    """Size of each batch so far."""
    shadowed: str | None = None
    """Who is watched."""
    _last: str | None = None

    def act(self, requests: Sequence[ActRequest]) -> list[ActReply]:
        """The painted chunk of each."""
        self.before(requests)
        self.batches.append(len(requests))
        steps = np.arange(HORIZON, dtype=np.float32)[:, None] / 1000
        shown = [float(next(iter(r.observation.images.values())).flat[0]) for r in requests]
        digest = self.digest
        return [
            ActReply(np.tile(value + steps, (1, CHANNELS)).astype(np.float32), digest, 0.0, len(requests))
            for value in shown
        ]

    def metadata(self) -> Mapping[str, Any]:
        """One body."""
        body = {"views": list(self.views), "image_size": self.image_size}
        return {"bundle": self.digest, "embodiments": {"widowx": body}}

    def swap(self, folder: Path) -> None:
        """Act under the folder's name."""
        if folder.name.startswith("broken"):
            raise UserError("bundle", got=folder.name, expected="a whole one", do="make it again")
        self._last, self.digest = self.digest, folder.name

    @property
    def previous(self) -> str | None:
        """The name before."""
        return self._last

    def rollback(self) -> None:
        """Act under the name before."""
        if self._last is None:
            raise UserError("rollback", got="no earlier bundle", expected="one", do="swap first")
        self.digest, self._last = self._last, None

    def end_shadow(self) -> None:
        """Watch nobody."""
        self.shadowed = None


@dataclass(frozen=True)
class PlainAnswer:
    """What the policy said."""

    actions: FloatArray
    interventions: Mapping[str, int]
    held: bool


@dataclass
class PlainSession:
    """Passes on what it is told."""

    number: int
    _chunk: int = -1

    def ask(self, message: Reading, now: float) -> ActRequest:
        """Numbered."""
        self._chunk += 1
        return ActRequest(message.observation(), message.seed or 0, self.number, message.episode or 0, self._chunk)

    def answer(self, reply: ActReply, now: float) -> PlainAnswer:
        """As it is."""
        return PlainAnswer(reply.actions, {"action": 1}, False)

    quick = answer

    def hold(self, kind: str, digest: str, now: float) -> PlainAnswer:
        """No displacement."""
        return PlainAnswer(np.zeros((HORIZON, CHANNELS), np.float32), {kind: HORIZON}, True)


class Robot:
    """Speaks openpi's wire as its client does: waits for the metadata, then one frame for one frame."""

    def __init__(self, port: int, key: str | None = None, path: str = "/") -> None:
        headers = None if key is None else {"Authorization": f"Api-Key {key}"}
        self.socket: ClientConnection = connect(
            f"ws://127.0.0.1:{port}{path}", compression=None, max_size=None, additional_headers=headers,
            open_timeout=PATIENCE, close_timeout=1,
        )  # fmt: skip
        self.metadata: Any = decode(self._received()) if path == "/" else None

    def send(self, message: Mapping[str, object] | bytes) -> Any:
        """The reply to an observation or to raw bytes: a dict, or the text of an error."""
        self.socket.send(message if isinstance(message, bytes) else encode(message))
        reply = self._received()
        return reply if isinstance(reply, str) else decode(reply)

    def honest(self, value: int, size: int = 224) -> str | None:
        """Ask with pictures of one value; None where the chunk is the right one, else what was wrong."""
        reply = self.send(observation(value, size))
        if isinstance(reply, str):
            return reply
        right = np.tile(value + np.arange(HORIZON, dtype=np.float32)[:, None] / 1000, (1, CHANNELS))
        return None if np.array_equal(reply["actions"], right.astype(np.float32)) else "another one's chunk"

    def close(self) -> None:
        """Say goodbye."""
        self.socket.close()

    def _received(self) -> Any:
        return self.socket.recv(timeout=PATIENCE)


def observation(value: int = 7, size: int = 224) -> dict[str, object]:
    """What a robot with two cameras says."""
    picture = np.full((size, size, 3), value, np.uint8)
    return {"observation/ego": picture, "observation/wrist": picture, "prompt": "put the red cube on the plate"}


@contextmanager
def serving(stage: InstantStage, settings: ServeSection, **arguments: Any) -> Iterator[tuple[int, PolicyServer]]:
    """A server before an instant stage, listening; its port."""
    with listening(PolicyServer(stage, PlainSession, settings, **arguments)) as running:
        yield running


@contextmanager
def listening(server: PolicyServer) -> Iterator[tuple[int, PolicyServer]]:
    """The server in a thread of its own; stopped at the end."""
    box: dict[str, Any] = {}
    ready, stop = threading.Event(), threading.Event()

    async def live() -> None:
        try:
            box["port"] = await server.start()
        except BaseException as error:
            box["error"] = error
            raise
        finally:
            ready.set()
        while not stop.is_set():
            await asyncio.sleep(0.005)
        await server.stop()

    thread = threading.Thread(target=asyncio.run, args=(live(),), daemon=True)
    thread.start()
    ready.wait(PATIENCE)
    if "error" in box:
        raise box["error"]
    try:
        yield box["port"], server
    finally:
        stop.set()
        thread.join(PATIENCE)
        if thread.is_alive():
            raise RuntimeError("the server does not stop")


def until(holds: Callable[[], bool], seconds: float = PATIENCE) -> bool:
    """Whether something comes true in time."""
    end = time.monotonic() + seconds
    while not holds():
        if time.monotonic() > end:
            return False
        time.sleep(0.005)
    return True
