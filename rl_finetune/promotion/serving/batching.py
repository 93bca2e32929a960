"""Requests of several clients meet in one thread that computes them together.

    client 1 --ask--+
    client 2 --ask--+--> waiting (bounded) --gather--> batch of one kind --> the thread --> a reply for each
    client 3 --ask--+         ^ removed where a client goes away or its deadline passes

While the thread computes, the next batch gathers by itself; only an idle thread waits, at most `max_wait`, and not even
that where every client has asked already.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Hashable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass

from rl_finetune.config.serving import BatchingSection
from rl_finetune.promotion.serving.requests import ActReply, ActRequest

Act = Callable[[Sequence[ActRequest]], list[ActReply]]


class Refused(Exception):
    """The server cannot answer this request now; the connection goes on."""

    kind = "refused"


class Busy(Refused):
    """Too many requests wait."""

    kind = "busy"


class Late(Refused):
    """The deadline has passed."""

    kind = "late"


class Stopping(Refused):
    """The server is being stopped."""

    kind = "stopping"


@dataclass(frozen=True, slots=True, eq=False)
class _Waiting:
    """One request in the queue."""

    request: ActRequest
    kind: Hashable
    """Only requests of one kind share a batch."""
    reply: asyncio.Future[ActReply]
    since: float
    """When it came, on the loop's clock."""


class Batcher:
    """The queue before the one thread that infers; lives in one event loop."""

    def __init__(self, act: Act, settings: BatchingSection, clients: Callable[[], int]) -> None:
        """Start computing.

        Args:
            act: computes a batch; blocks.
            settings: sizes and times.
            clients: how many could have a request waiting at this moment.
        """
        self._act, self._settings, self._clients = act, settings, clients
        self._waiting: list[_Waiting] = []
        self._arrived = asyncio.Event()
        self._stopped = False
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="inference")
        self._runner = asyncio.create_task(self._run())

    @property
    def depth(self) -> int:
        """Requests that wait."""
        return len(self._waiting)

    async def ask(self, request: ActRequest) -> ActReply:
        """The policy's reply. Whoever cancels this takes the request out of the queue.

        Raises:
            Refused: the queue is full, the deadline has passed, or the server stops.
            Exception: what the policy raised for this very request.
        """
        settings = self._settings
        if self._stopped:
            raise Stopping("the server is being stopped")
        if len(self._waiting) >= settings.queue:
            raise Busy(f"busy: got {len(self._waiting)} requests waiting; expected fewer; ask again later")
        loop = asyncio.get_running_loop()
        waiting = _Waiting(request, kind_of(request), loop.create_future(), loop.time())
        self._waiting.append(waiting)
        self._arrived.set()
        try:
            async with asyncio.timeout(settings.deadline):
                return await waiting.reply
        except TimeoutError:
            raise Late(f"late: no chunk within {settings.deadline:g} s; ask again with a new observation") from None
        finally:
            with suppress(ValueError):  # the usual case: the thread has taken it
                self._waiting.remove(waiting)

    def client_left(self) -> None:
        """One client fewer could ask: perhaps nobody need be waited for any more."""
        self._arrived.set()

    async def close(self) -> None:
        """Refuse what waits, and wait for the batch that is being computed."""
        self._stopped = True
        self._runner.cancel()
        with suppress(asyncio.CancelledError):
            await self._runner
        for waiting in self._waiting:
            _settle(waiting, Stopping("the server is being stopped"))
        await asyncio.to_thread(self._thread.shutdown)

    async def _run(self) -> None:
        while True:
            self._arrived.clear()
            if self._waiting:
                await self._gather()
                await self._compute(self._take())
            else:
                await self._arrived.wait()

    async def _gather(self) -> None:
        """Wait for company, no longer than the oldest request may."""
        end = self._waiting[0].since + self._settings.max_wait
        with suppress(TimeoutError):
            async with asyncio.timeout_at(end):
                while not self._enough():
                    self._arrived.clear()
                    await self._arrived.wait()

    def _enough(self) -> bool:
        if not self._waiting or len(self._waiting) >= self._clients():
            return True
        first = self._waiting[0].kind
        return sum(w.kind == first for w in self._waiting) >= self._settings.max_batch

    def _take(self) -> list[_Waiting]:
        """The oldest request and the next ones of its kind; the others keep their places."""
        batch = [w for w in self._waiting if w.kind == self._waiting[0].kind][: self._settings.max_batch]
        self._waiting = [w for w in self._waiting if w not in batch]
        return batch

    async def _compute(self, batch: list[_Waiting]) -> None:
        batch = [w for w in batch if not w.reply.done()]
        if not batch:
            return
        try:
            replies = await asyncio.get_running_loop().run_in_executor(self._thread, self._act, _requests(batch))
            if len(replies) != len(batch):
                raise RuntimeError(f"policy gave {len(replies)} replies to {len(batch)} requests")
        except asyncio.CancelledError:
            for waiting in batch:
                _settle(waiting, Stopping("the server is being stopped"))
            raise
        except Exception as error:
            if len(batch) == 1:
                _settle(batch[0], error)
            else:  # one client's request must not cost the others theirs
                for waiting in batch:
                    await self._compute([waiting])
            return
        for waiting, reply in zip(batch, replies, strict=True):
            _settle(waiting, reply)


def kind_of(request: ActRequest) -> Hashable:
    """What requests of one batch have in common: embodiment, views and picture sizes."""
    seen = request.observation
    return seen.embodiment, tuple((view, image.shape[1:]) for view, image in seen.images.items())


def _requests(batch: list[_Waiting]) -> list[ActRequest]:
    return [waiting.request for waiting in batch]


def _settle(waiting: _Waiting, outcome: ActReply | Exception) -> None:
    if waiting.reply.done():  # the client went away, or its deadline passed
        return
    if isinstance(outcome, Exception):
        waiting.reply.set_exception(outcome)
    else:
        waiting.reply.set_result(outcome)
