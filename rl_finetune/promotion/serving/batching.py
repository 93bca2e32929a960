"""Requests of several clients meet in one thread that computes them together.

    client 1 --ask--+
    client 2 --ask--+--> waiting (bounded) --batch of one kind--> the thread --> a reply for each
    client 3 --ask--+         ^ removed where a client goes away or its deadline passes

While the thread computes, the next batch gathers by itself. A thread that is free waits for company, at most
`max_wait`, and not even that where every client has asked already. All is done in callbacks of the event loop: tasks
that wake one another would cost a lone client more than its frame does.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Hashable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass

from rl_finetune.config.serving import BatchingSection
from rl_finetune.promotion.serving.requests import ActReply, ActRequest

Act = Callable[[Sequence[ActRequest]], list[ActReply]]
Outcome = ActReply | Exception


class Refused(Exception):
    """The server cannot answer this request now; the connection goes on."""

    kind = "refused"


class Late(Refused):
    """The deadline has passed."""

    kind = "late"


class Stopping(Refused):
    """The server is being stopped."""

    kind = "stopping"


class Withdrawn(Refused):
    """The registry lets nobody act."""

    kind = "withdrawn"


class Failed(Refused):
    """The policy has raised something."""

    kind = "internal"


@dataclass(frozen=True, slots=True, eq=False)
class _Waiting:
    """One request in the queue."""

    request: ActRequest
    kind: Hashable
    """Only requests of one kind share a batch."""
    reply: asyncio.Future[ActReply]
    since: float
    """When it came, on the loop's clock."""
    until: float
    """When its reply is of no use any more."""


class Batcher:
    """The queue before the one thread that infers; lives in one event loop. A client has one request in it at most."""

    def __init__(self, act: Act, settings: BatchingSection, clients: Callable[[], int]) -> None:
        """Begin with an empty queue.

        Args:
            act: computes a batch; blocks.
            settings: sizes and times.
            clients: how many could have a request waiting at this moment.
        """
        self._act, self._settings, self._clients = act, settings, clients
        self._loop = asyncio.get_running_loop()
        self._waiting: list[_Waiting] = []
        self._computing: list[_Waiting] = []
        self._free_since = self._busy_since = self._loop.time()
        self._took = 0.0
        self._patience: asyncio.TimerHandle | None = None
        self._stopped = self._jumped = False
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="inference")

    @property
    def depth(self) -> int:
        """Requests that wait."""
        return len(self._waiting)

    def ask(self, request: ActRequest, within: float = math.inf) -> asyncio.Future[ActReply]:
        """The policy's reply, or what it raised for this very request, or Late. Cancelling it takes the request out of
        the queue.

        Args:
            request: of one client.
            within: seconds after which the reply is of no use any more; `deadline` at most.

        Raises:
            Stopping: the server stops.
        """
        if self._stopped:
            raise Stopping("the server is being stopped")
        within, now = min(within, self._settings.deadline), self._loop.time()
        waiting = _Waiting(request, kind_of(request), self._loop.create_future(), now, now + within)
        self._waiting.append(waiting)
        late = Late(f"late: no chunk within {within:g} s; ask again")
        deadline = self._loop.call_at(waiting.until, _settle, waiting, late)
        waiting.reply.add_done_callback(lambda reply: self._done(waiting, deadline))
        self._pump()
        return waiting.reply

    def client_left(self) -> None:
        """One client fewer could ask: perhaps nobody need be waited for any more."""
        self._pump()

    async def close(self) -> None:
        """Refuse what has not been computed, and wait for the thread."""
        self._stopped = True
        for waiting in (*self._waiting, *self._computing):
            _settle(waiting, Stopping("the server is being stopped"))
        await asyncio.to_thread(self._thread.shutdown)

    def _pump(self) -> None:
        """Give the thread its next batch, if it is free and there is nothing to wait for."""
        if self._computing or not self._waiting or self._stopped:
            return
        since = max(self._waiting[0].since, self._free_since)
        if self._enough() or self._loop.time() >= since + self._settings.max_wait:
            self._computing, self._busy_since = self._take(), self._loop.time()
            self._thread.submit(self._work, self._computing)
        elif self._patience is None:
            self._patience = self._loop.call_at(since + self._settings.max_wait, self._impatient)

    def _impatient(self) -> None:
        self._patience = None
        self._pump()

    def _enough(self) -> bool:
        if len(self._waiting) >= self._clients():
            return True
        first = self._waiting[0].kind
        return sum(w.kind == first for w in self._waiting) >= self._settings.max_batch

    def _take(self) -> list[_Waiting]:
        """The oldest request and the next ones of its kind; the others keep their places.

        A robot that was told nothing in its episode goes before the others, in every other batch: the others can be
        held where they are too late, and it perhaps cannot. Whoever would be too late after a batch like the last one
        is passed over: a queue that is always served from its old end serves nobody in time.
        """
        now = self._loop.time()
        useful = [w for w in self._waiting if w.until > now + self._took] or self._waiting
        first = next((w for w in useful if w.request.chunk == 0), useful[0])
        lead = useful[0] if self._jumped else first
        self._jumped = lead is not useful[0]
        others = [w for w in useful if w is not lead and w.kind == lead.kind]
        batch = [lead, *others[: self._settings.max_batch - 1]]
        self._waiting = [w for w in self._waiting if w not in batch]
        return batch

    def _work(self, batch: list[_Waiting]) -> None:
        """In the thread."""
        outcomes = self._outcomes(batch)
        with suppress(RuntimeError):  # the loop has been closed meanwhile
            self._loop.call_soon_threadsafe(self._finish, batch, outcomes)

    def _outcomes(self, batch: list[_Waiting]) -> list[Outcome]:
        try:
            replies = self._act([waiting.request for waiting in batch])
            if len(replies) != len(batch):
                raise RuntimeError(f"policy gave {len(replies)} replies to {len(batch)} requests")
            return list(replies)
        except Exception as error:
            if len(batch) == 1:
                return [error]
            # One client's request must not cost the others theirs.
            return [outcome for waiting in batch for outcome in self._outcomes([waiting])]

    def _finish(self, batch: list[_Waiting], outcomes: list[Outcome]) -> None:
        for waiting, outcome in zip(batch, outcomes, strict=True):
            _settle(waiting, outcome)
        self._computing, self._free_since = [], self._loop.time()
        self._took = self._free_since - self._busy_since
        self._pump()

    def _done(self, waiting: _Waiting, deadline: asyncio.TimerHandle) -> None:
        deadline.cancel()
        with suppress(ValueError):  # the usual case: the thread has taken it
            self._waiting.remove(waiting)


def kind_of(request: ActRequest) -> Hashable:
    """What requests of one batch have in common: embodiment, views and picture sizes."""
    seen = request.observation
    return seen.embodiment, tuple((view, image.shape[1:]) for view, image in seen.images.items())


def _settle(waiting: _Waiting, outcome: Outcome) -> None:
    if waiting.reply.done():  # the client went away, or its deadline passed
        return
    if isinstance(outcome, Exception):
        waiting.reply.set_exception(outcome)
    else:
        waiting.reply.set_result(outcome)
