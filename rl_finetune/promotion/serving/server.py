"""The policy server: openpi's websocket wire before a stage that acts.

    robot --frame--> decode --Reading--> Session.ask --ActRequest--> Batcher --> Stage (one thread)
    robot <--frame-- encode <--Answer--- Session.answer <--ActReply-----+

Each client has a task of its own that waits on its socket or on its reply. The stage's thread computes, and a thread
beside brings within their limits the chunks that are not: some tens of milliseconds each, in which the loop serves the
others. What a client does wrong costs that client an error line, or its connection: nobody else notices.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import math
import signal
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from typing import cast

import numpy as np
from websockets.asyncio.server import Server, ServerConnection, serve
from websockets.exceptions import ConnectionClosed
from websockets.frames import CloseCode

from rl_finetune.config.serving import ServeSection
from rl_finetune.errors import UserError
from rl_finetune.promotion.serving.access import Places, admin_key, client_key
from rl_finetune.promotion.serving.batching import Batcher, Failed, Refused, Withdrawn
from rl_finetune.promotion.serving.connection import GuardedConnection, Knocking
from rl_finetune.promotion.serving.contract import Acting, Answered, Conversation
from rl_finetune.promotion.serving.front import ADMIN, Front
from rl_finetune.promotion.serving.metrics import Metrics
from rl_finetune.promotion.serving.reading import Reader, Reading, RequestError, bodies
from rl_finetune.promotion.serving.refusals import Refusals
from rl_finetune.promotion.serving.registry_watch import RegistryWatch
from rl_finetune.promotion.serving.requests import ActReply, ActRequest
from rl_finetune.promotion.serving.swapping import Swapper
from rl_finetune.promotion.serving.wire import Keys, WireError, decode, encode

LOG = logging.getLogger(__name__)
GOING_AWAY, IDLE = 1001, 1000
CLOSE_SECONDS = 2.0
"""What a client may take to say goodbye."""
LARGE = 1 << 20
"""Bytes of a message that is read beside the event loop."""
ORDER_CHARS = 4096
"""Longest order of an operator."""
INTERNAL = "internal error; the server's log has it"


class _Gone(Exception):
    """The client has left; there is nobody to answer."""


class PolicyServer:
    """Serves one stage until it is stopped; lives in one event loop."""

    def __init__(
        self,
        stage: Acting,
        sessions: Callable[[int], Conversation],
        settings: ServeSection,
        *,
        watch: RegistryWatch | None = None,
    ) -> None:
        """Check who may connect; nothing listens yet.

        Args:
            stage: acts; its metadata is the first frame that a client gets.
            sessions: makes the session of a client from its number.
            settings: limits and times.
            watch: registry that says who may act; None lets the stage act.

        Raises:
            UserError: others than this machine could connect without a key, or a key cannot be used.
        """
        self.metrics = Metrics()
        self._stage, self._sessions, self._settings, self._watch = stage, sessions, settings, watch
        self._numbers = itertools.count()
        self._talking: dict[ServerConnection, bool] = {}
        self._stopping = False
        network = settings.network
        places = Places(network.connections, network.connections_per_address)
        self._refused = Refusals(self.metrics.errors).note
        self._front = Front(client_key(network), admin_key(network), places, self._refused, self._page)
        self._changed()

    async def start(self) -> int:
        """Listen; returns the port."""
        network = self._settings.network
        knocking, most = Knocking(network.knocking, self._refused), self._reader.message_bytes
        self._swapper = Swapper(self._stage, self.metrics, self._watch, self._changed)
        self._front.held = lambda: self._swapper.held
        self._batcher = Batcher(self._act, self._settings.batching, lambda: len(self._talking))
        connection = partial(GuardedConnection, network=network, most=most, knocking=knocking, refused=self._refused)
        self._server: Server = await serve(
            self._handle, network.host, network.port,
            process_request=self._front.admit, origins=[None], compression=None,
            open_timeout=network.open_timeout, close_timeout=CLOSE_SECONDS,
            ping_interval=network.ping_interval, ping_timeout=network.ping_interval,
            max_size=most, max_queue=1, server_header=None, logger=_quiet_logger(),
            create_connection=cast(type[ServerConnection], connection),
        )  # fmt: skip
        self._following = None
        if self._watch is not None:
            self._following = asyncio.create_task(self._swapper.follow(self._watch, self._settings.follow))
        return int(next(iter(self._server.server.sockets)).getsockname()[1])

    @property
    def swapper(self) -> Swapper:
        """Changes the bundle that acts; there once the server listens."""
        return self._swapper

    async def stop(self) -> None:
        """Take no more clients, finish what is under way within `drain` seconds, and close every connection."""
        self._stopping = self._front.stopping = True
        if self._following is not None:
            self._following.cancel()
        self._server.server.close()
        idle = [ws for ws, busy in self._talking.items() if not busy]
        await asyncio.gather(*(ws.close(GOING_AWAY, "server is being stopped") for ws in idle))
        with suppress(TimeoutError):
            async with asyncio.timeout(self._settings.network.drain):
                while self._talking:
                    await asyncio.sleep(0.01)
        await self._batcher.close()
        self._server.close()
        await self._server.wait_closed()

    async def _handle(self, ws: ServerConnection) -> None:
        """One client, from its first frame to its last."""
        assert ws.request is not None
        if ws.request.path == ADMIN:
            return await self._operator(ws)
        self.metrics.accepted += 1
        session = self._sessions(next(self._numbers))
        gone = asyncio.ensure_future(ws.wait_closed())
        self._talking[ws] = False
        try:
            await self._send(ws, encode(self._stage.metadata()))
            while not self._stopping:
                frame = await self._receive(ws)
                self._talking[ws] = True
                await self._reply(ws, frame, session, gone)
                self._talking[ws] = False
            await ws.close(GOING_AWAY, "server is being stopped")
        except ConnectionClosed as error:
            self._note(error)
        except _Gone:
            pass
        finally:
            del self._talking[ws]
            self._batcher.client_left()
            gone.cancel()

    async def _receive(self, ws: ServerConnection) -> str | bytes:
        try:
            async with asyncio.timeout(self._settings.network.idle_timeout):
                return await ws.recv()
        except TimeoutError:
            reason = f"idle: no message within {self._settings.network.idle_timeout:g} s"
            self._refused("idle", reason)
            await ws.close(IDLE, reason)
            raise _Gone from None

    async def _reply(
        self, ws: ServerConnection, frame: str | bytes, session: Conversation, gone: asyncio.Future[None]
    ) -> None:
        """Answer one message, with a chunk or with one line that says why not."""
        came = time.monotonic()
        self.metrics.requests += 1
        try:
            payload: str | bytes = await self._answer(frame, session, gone, came)
        except (_Gone, ConnectionClosed):
            raise
        except (WireError, RequestError, UserError, Refused) as error:
            payload = _line(error)
            self._refused(_kind(error), payload)
        except Exception:
            LOG.exception("request failed")
            self._refused("internal", INTERNAL)
            payload = INTERNAL
        await self._send(ws, payload)

    async def _answer(
        self, frame: str | bytes, session: Conversation, gone: asyncio.Future[None], came: float
    ) -> bytes:
        """The frame with the chunk."""
        if isinstance(frame, str):
            raise WireError("frame", got="text", expected="binary msgpack")
        # Large pictures take tens of milliseconds, in which the others are served.
        read = partial(_read, frame, self._reader, self._keys)
        request = session.ask(await asyncio.to_thread(read) if len(frame) > LARGE else read(), came)
        reply, answer = await self._chunk(request, session, gone)
        if not np.isfinite(answer.actions).all():
            raise RuntimeError("an action that is not finite came through the safety envelope")
        self._tally(reply, answer, time.monotonic() - came)
        return encode(_message(reply, answer, time.monotonic() - came))

    async def _chunk(
        self, request: ActRequest, session: Conversation, gone: asyncio.Future[None]
    ) -> tuple[ActReply, Answered]:
        """The policy's chunk within the limits; where there is none, one that makes the robot stand still."""
        try:
            self._may_act()
            reply = await self._computed(request, gone)
            self._may_act()
        except Refused as error:
            return self._held(session, error)
        except (UserError, _Gone):
            raise
        except Exception:
            LOG.exception("the policy failed")
            return self._held(session, Failed(INTERNAL))
        now = time.monotonic()
        answer = session.quick(reply, now)
        if answer is None:
            answer = await asyncio.to_thread(session.answer, reply, now)
        return reply, answer

    def _may_act(self) -> None:
        if self._swapper.held:
            raise Withdrawn(f"every robot is held: {self._swapper.held}")

    def _held(self, session: Conversation, why: Refused) -> tuple[ActReply, Answered]:
        """A chunk like any other to the client, which asks again after it; in words where nobody knows what to hold."""
        digest = self._swapper.digest
        try:
            answer = session.hold(why.kind, digest, time.monotonic())
        except (UserError, RequestError) as unknown:
            raise why from unknown
        self._refused(why.kind, _line(why))
        return ActReply(answer.actions, digest, seconds=0.0, batch=0), answer

    async def _computed(self, request: ActRequest, gone: asyncio.Future[None]) -> ActReply:
        """The policy's reply, unless the client leaves before it."""
        asked = self._batcher.ask(request, self._fresh[request.embodiment])

        def leave(_: asyncio.Future[None]) -> None:
            asked.cancel()

        gone.add_done_callback(leave)
        try:
            return await asked
        except asyncio.CancelledError:
            if not gone.done():  # it is this task that is cancelled
                raise
            self._refused("gone", "a client left before its answer")
            raise _Gone from None
        finally:
            gone.remove_done_callback(leave)
            asked.cancel()

    async def _operator(self, ws: ServerConnection) -> None:
        """Orders and replies as JSON texts."""
        with suppress(ConnectionClosed):
            async for order in ws:
                short = isinstance(order, str) and len(order) <= ORDER_CHARS
                await ws.send(await self._swapper.obey(order if isinstance(order, str) and short else ""))

    async def _send(self, ws: ServerConnection, payload: str | bytes) -> None:
        try:
            async with asyncio.timeout(self._settings.network.message_timeout):
                await ws.send(payload)
        except TimeoutError:
            self._refused("slow", "a client does not take its reply")
            ws.transport.abort()
            raise _Gone from None

    def _act(self, requests: Sequence[ActRequest]) -> list[ActReply]:
        return self._stage.act(requests)

    def _changed(self) -> None:
        """Another bundle acts: read messages as it wants them."""
        reading = self._settings.reading
        metadata = self._stage.metadata()
        known, embodiments = bodies(metadata), metadata["embodiments"]
        self._reader = Reader(known, prompt_chars=reading.prompt_chars, largest_side=reading.largest_side)
        self._keys = self._reader.keys
        self._fresh = {tag: float(said.get("stale_after", math.inf)) for tag, said in embodiments.items()}

    def _tally(self, reply: ActReply, answer: Answered, seconds: float) -> None:
        metrics = self.metrics
        metrics.answers += 1
        metrics.held += answer.held
        metrics.interventions.update(answer.interventions)
        metrics.latency.observe(seconds)
        if reply.batch:
            metrics.inference.observe(reply.seconds)
            metrics.batch.observe(reply.batch)

    def _note(self, error: ConnectionClosed) -> None:
        """Count a client that has vanished without a goodbye."""
        if error.sent is not None and error.sent.code == CloseCode.INTERNAL_ERROR and not error.rcvd_then_sent:
            self._refused("ping", "a client does not answer pings any more")

    def _page(self) -> str:
        self.metrics.connections = len(self._talking)
        return self.metrics.page(str(self._stage.metadata()["bundle"]), self._batcher.depth)


async def run(server: PolicyServer, listening: Callable[[int], None] = lambda port: None) -> None:
    """Serve until SIGTERM or SIGINT; SIGHUP looks at the registry at once.

    Args:
        server: not yet listening.
        listening: told the port.
    """
    loop, stop = asyncio.get_running_loop(), asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    port = await server.start()
    loop.add_signal_handler(signal.SIGHUP, server.swapper.look_again)
    listening(port)
    await stop.wait()
    await server.stop()


def _message(reply: ActReply, answer: Answered, seconds: float) -> dict[str, object]:
    timing = {"infer_ms": 1000 * reply.seconds, "total_ms": 1000 * seconds, "batch": reply.batch}
    return {
        "actions": np.asarray(answer.actions, np.float32),
        "server_timing": timing,
        "bundle": reply.digest,
        "held": bool(answer.held),
        "interventions": {kind: int(count) for kind, count in answer.interventions.items()},
    }


def _read(frame: bytes, reader: Reader, keys: Keys) -> Reading:
    return reader.read(decode(frame, keys))


def _kind(error: Exception) -> str:
    if isinstance(error, Refused):
        return error.kind
    return "wire" if isinstance(error, WireError) else "request"


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:500]


def _quiet_logger() -> logging.Logger:
    """For websockets: at DEBUG it would write every header, the key among them."""
    logger = logging.getLogger(f"{__name__}.websockets")
    logger.setLevel(logging.WARNING)
    return logger
