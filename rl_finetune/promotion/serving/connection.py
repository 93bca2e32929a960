"""A connection that can be given up on: before it has said what it wants, and in the middle of a message."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from websockets.asyncio.server import ServerConnection
from websockets.frames import CloseCode, Frame, Opcode
from websockets.protocol import State

from rl_finetune.config.serving import NetworkSection

HANDSHAKE_BYTES = 16_384
"""Longest opening handshake; websockets by itself would keep a megabyte of headers for every socket."""
SLOW = 1008
"""Close code: policy violation (RFC 6455, 7.4.1)."""
TURNED_AWAY = (
    b"HTTP/1.1 503 Service Unavailable\r\nConnection: close\r\nContent-Type: text/plain\r\nContent-Length: 52\r\n\r\n"
    b"too many handshakes at a time, or one that is long.\n"
)
WORDS = {
    CloseCode.MESSAGE_TOO_BIG: ("too_big", "message"),
    CloseCode.PROTOCOL_ERROR: ("protocol", "websocket"),
    CloseCode.INVALID_DATA: ("protocol", "websocket"),
}
"""Close codes with which websockets itself refuses what a client sends -> kind of the refusal, and what it is about."""
_DATA = (Opcode.TEXT, Opcode.BINARY, Opcode.CONT)


Refused = Callable[[str, str], None]
"""Is told the kind of a refusal, and what the client is told."""


class Knocking:
    """Sockets whose opening handshake is not done.

    Of too many, the address that has the most loses its oldest: whoever opens thousands of sockets and says nothing
    pushes out his own, and an honest client, who is through in milliseconds, stays.
    """

    def __init__(self, most: int, refused: Refused) -> None:
        self._most, self._refused = most, refused
        self._by_address: dict[str, dict[GuardedConnection, None]] = {}
        self._count = 0

    def add(self, connection: GuardedConnection) -> None:
        """One more."""
        self._by_address.setdefault(connection.address, {})[connection] = None
        self._count += 1
        if self._count > self._most:
            most = max(self._by_address, key=lambda address: len(self._by_address[address]))
            oldest = next(iter(self._by_address[most]))
            self.remove(oldest)
            self._refused("knocking", f"one of more than {self._most} handshakes at a time, from {oldest.address}")
            oldest.turn_away()

    def remove(self, connection: GuardedConnection) -> None:
        """It has become a client, or has gone."""
        same = self._by_address.get(connection.address, {})
        if connection in same:
            del same[connection]
            self._count -= 1
            if not same:
                del self._by_address[connection.address]


class GuardedConnection(ServerConnection):
    """websockets' own connection with a clock on every message. Whatever it closes over, it says so in words before:
    clients read replies, and no close codes."""

    def __init__(
        self, *args: Any, network: NetworkSection, most: int, knocking: Knocking, refused: Refused, **kwargs: Any
    ) -> None:
        super().__init__(*args, **kwargs)
        self.address = ""
        """Where it comes from, without the port."""
        self._leaving: Callable[[], None] = lambda: None
        self._network, self._most, self._knocking, self._refused = network, most, knocking, refused
        self._told = False
        self._fragmented = False
        self._heard = 0
        self._begun: asyncio.TimerHandle | None = None
        self._closing: asyncio.Task[None] | None = None

    def turn_away(self) -> None:
        """Close a socket that is no client; it is told why, unless it has had an answer already."""
        if self.response is None and not self.protocol.eof_sent:
            self.transport.write(TURNED_AWAY)
        self.transport.close()

    def seat(self, leaving: Callable[[], None]) -> None:
        """It is a client now; `leaving` is called once when its socket has closed."""
        self._knocking.remove(self)
        self._leaving = leaving

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        self.address = str((transport.get_extra_info("peername") or ("",))[0])
        self._knocking.add(self)

    def connection_lost(self, exc: Exception | None) -> None:
        self._knocking.remove(self)
        self._set_clock(False)
        super().connection_lost(exc)
        self._leaving()

    def data_received(self, data: bytes) -> None:
        """Start the clock with the first bytes of a message; `process_event` stops it with the last."""
        if self.request is None:
            self._heard += len(data)
            if self._heard > HANDSHAKE_BYTES:
                self._refused("handshake", f"a handshake of more than {HANDSHAKE_BYTES} bytes from {self.address}")
                self.turn_away()
                return
        elif self._begun is None and self.state is State.OPEN:
            self._set_clock(True)
        super().data_received(data)

    def send_data(self) -> None:
        """Before websockets closes over what came, say in words why."""
        close = self.protocol.close_sent
        if close is not None and close.code in WORDS and self.protocol.close_rcvd is None and not self._told:
            kind, what = WORDS[CloseCode(close.code)]
            expected = f"at most {self._most} bytes: smaller pictures" if kind == "too_big" else "frames of RFC 6455"
            self._say(kind, f"{what}: got {close.reason}; expected {expected}")
        super().send_data()

    def _say(self, kind: str, line: str) -> None:
        """A refusal in words."""
        self._told = True
        self._refused(kind, line)
        self.transport.write(Frame(Opcode.TEXT, line.encode()).serialize(mask=False))

    def process_event(self, event: Any) -> None:
        super().process_event(event)
        if isinstance(event, Frame):
            if event.opcode in _DATA:
                self._fragmented = not event.fin
            if not self._fragmented:
                self._set_clock(False)

    def _set_clock(self, running: bool) -> None:
        if self._begun is not None:
            self._begun.cancel()
        self._begun = self.loop.call_later(self._network.message_timeout, self._give_up) if running else None

    def _give_up(self) -> None:
        reason = f"slow: expected a whole message within {self._network.message_timeout:g} s"
        if self.state is State.OPEN:
            self._say("slow", reason)
        self._closing = self.loop.create_task(self.close(SLOW, reason))
