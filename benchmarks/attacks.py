"""What a stranger may do to a websocket server, one function each, over raw sockets. Used by `fuzz_server`.

Every attack ends by itself, whatever the server does, and says what it met: `refused` with a reason (an error line, a
close code or an HTTP status), `closed` without one, `served` where what it sent happened to be harmless, or `survived`
where it left without waiting for an answer.
"""

from __future__ import annotations

import random
import socket
import struct
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass

import msgpack
import numpy as np

from benchmarks.serving import observation
from rl_finetune.promotion.serving.wire import encode

STRANGER = "127.0.0.2"
"""Address that attacks come from: the limits for one address must not touch anybody else's."""
TEXT, BINARY, CONT, CLOSE = 1, 2, 0, 8
HELLO = b"GET %s HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
HELLO += b"Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\nSec-WebSocket-Version: 13\r\n%s\r\n"
GOOD = encode(observation(5, 64))


@dataclass(frozen=True)
class Target:
    """The server under attack, and how long it says it lets things hang."""

    port: int
    hang: float
    """Seconds after which it must have cut a slow sender."""


Attack = Callable[[Target, random.Random], str]


class Stranger:
    """A socket that keeps to no rule but its own time limit."""

    def __init__(self, target: Target, *, upgraded: bool = True) -> None:
        self._end = time.monotonic() + target.hang + 10
        self.socket = socket.create_connection(("127.0.0.1", target.port), target.hang + 10, (STRANGER, 0))
        self.status = self.hello() if upgraded else 0
        if self.status == 101:
            self.answer()  # the metadata

    def __enter__(self) -> Stranger:
        return self

    def __exit__(self, *caught: object) -> None:
        self.socket.close()

    def hello(self, path: bytes = b"/", more: bytes = b"") -> int:
        """Open the websocket; the HTTP status."""
        self.socket.sendall(HELLO % (path, more))
        head = b""
        while b"\r\n\r\n" not in head and (byte := self._read(1)):
            head += byte
        return int(head.split()[1]) if head else 0

    def frame(self, payload: bytes, opcode: int = BINARY, *, fin: bool = True, declared: int | None = None) -> None:
        """Send one frame, which may lie about its length. The mask is zero."""
        length = struct.pack("!BQ", 0x80 | 127, len(payload) if declared is None else declared)
        self.socket.sendall(bytes([opcode | (0x80 if fin else 0)]) + length + bytes(4) + payload)

    def answer(self) -> str:
        """What comes back first, leaving pings out."""
        while True:
            head = self._read(2)
            if len(head) < 2:
                return "closed"
            length = head[1]
            if length >= 126:
                length = int.from_bytes(self._read(2 if length == 126 else 8), "big")
            self._read(length)
            opcode = head[0] & 15
            if opcode in (TEXT, CLOSE):
                return "refused"
            if opcode == BINARY:
                return "served"

    def _read(self, count: int) -> bytes:
        found = b""
        while len(found) < count:
            self.socket.settimeout(max(self._end - time.monotonic(), 0.001))
            part = self.socket.recv(count - len(found))
            if not part:
                break
            found += part
        return found


def said(target: Target, payload: bytes, opcode: int = BINARY) -> str:
    """What one frame meets."""
    with Stranger(target) as stranger:
        if stranger.status != 101:
            return "refused"
        stranger.frame(payload, opcode)
        return stranger.answer()


def mutated(target: Target, rng: random.Random) -> str:
    """A good message with some bytes changed."""
    frame = bytearray(GOOD)
    head = rng.random() < 0.7  # where the structure is, and not in the pixels
    for _ in range(rng.randint(1, 6)):
        frame[rng.randrange(120 if head else len(frame))] = rng.randrange(256)
    return said(target, bytes(frame))


def noise(target: Target, rng: random.Random) -> str:
    """Random bytes in a frame."""
    return said(target, rng.randbytes(rng.randint(0, 4000)))


def garbage(target: Target, rng: random.Random) -> str:
    """Random bytes in place of a handshake, or of frames."""
    with Stranger(target, upgraded=rng.random() < 0.5) as stranger:
        stranger.socket.sendall(rng.randbytes(rng.randint(1, 4000)))
        stranger.socket.shutdown(socket.SHUT_WR)
        return stranger.answer()


def truncated(target: Target, rng: random.Random) -> str:
    """A good message whose end is missing."""
    return said(target, GOOD[: rng.randrange(len(GOOD))])


def broken_off(target: Target, rng: random.Random) -> str:
    """A frame that says it is longer than what comes, and then nobody."""
    with Stranger(target) as stranger:
        stranger.frame(GOOD[: rng.randrange(len(GOOD))], declared=len(GOOD))
    return "survived"


def ill_typed(target: Target, rng: random.Random) -> str:
    """Arrays of the wrong type or shape, or with the wrong number of bytes."""
    dtype = rng.choice(["|O", "<c8", "|V8", "<U2", "<M8[s]", ">f4", "f4,f4", "|u1", "<f8", "no type", 7])
    shape = rng.choice([[2**31, 2**31, 2**31], [-1], [0], [8, 8, 4], [], "x", [1] * 40, [2**63, 0], [64, 64, 3]])
    data = rng.choice([b"", bytes(8), bytes(64 * 64 * 3), "text", None])
    array = {b"__ndarray__": True, b"data": data, b"dtype": dtype, b"shape": shape}
    return said(target, msgpack.packb({"observation/ego": array, "observation/wrist": array, "prompt": "x"}))


def pickled(target: Target, rng: random.Random) -> str:
    """An array of objects as other libraries would send it: with a pickle inside."""
    bomb = b"cos\nsystem\n(S'exit 1'\ntR."
    return said(target, msgpack.packb({b"nd": True, b"type": "|O", b"kind": b"O", b"shape": [1], b"data": bomb}))


def deep(target: Target, rng: random.Random) -> str:
    """Containers within containers."""
    one = rng.choice([b"\x91", b"\x81\xa1a"])
    return said(target, one * rng.choice([5, 100, 1024, 200_000]) + b"\xc0")


def wide(target: Target, rng: random.Random) -> str:
    """Very many small containers."""
    return said(target, b"\xdc\x00\xc8" + (b"\xdc\x00\xc8" + b"\x90" * 200) * 200)


def boastful(target: Target, rng: random.Random) -> str:
    """Sizes that are declared and never sent, within msgpack and of the frame itself."""
    if rng.random() < 0.5:
        return said(target, rng.choice([b"\xdd", b"\xdf", b"\xc6", b"\xdb", b"\xc9"]) + b"\xff\xff\xff\xff")
    with Stranger(target) as stranger:
        stranger.frame(b"", declared=rng.choice([2**30, 2**40, 2**62]))
        return stranger.answer()


def oversized(target: Target, rng: random.Random) -> str:
    """A message that is larger than any may be, and comes."""
    with Stranger(target) as stranger:
        with suppress(ConnectionError):
            stranger.frame(bytes(6_000_000))
        return stranger.answer()


def nan(target: Target, rng: random.Random) -> str:
    """Pictures that are no pictures."""
    picture = np.full((64, 64, 3), rng.choice([np.nan, np.inf, -1.0, 255.0]), rng.choice(["<f2", "<f4", "<f8"]))
    return said(target, encode(observation() | {"observation/ego": picture}))


def ignored(target: Target, rng: random.Random) -> str:
    """Much of everything under a key that nobody reads."""
    long, deep = b"\xdd\x00\x1e\x84\x80" + b"\xc0" * 2_000_000, b"\x91" * rng.choice([900, 5000]) + b"\xc0"
    filler = rng.choice([long, deep])
    return said(target, b"\x84\xa5other" + filler + GOOD[1:])


def wordy(target: Target, rng: random.Random) -> str:
    """Prompts that are too long, or mean something to a tokenizer."""
    prompt = rng.choice(["a" * 10_000, "<|image_pad|>" * 20, "", "a\x00b", "\u202e", 5, ["x"]])
    return said(target, encode(observation() | {"prompt": prompt}))


def chatty(target: Target, rng: random.Random) -> str:
    """Text where bytes are expected; sometimes no text either."""
    return said(target, rng.choice([b"hello", b"\xff\xfe", b""]), TEXT)


def slow(target: Target, rng: random.Random) -> str:
    """A message that comes a byte at a time: whole, in fragments, or before the handshake."""
    way = rng.randrange(3)
    with Stranger(target, upgraded=way > 0) as stranger, suppress(ConnectionError):
        if way == 1:
            stranger.frame(b"", declared=1000)
        end = time.monotonic() + target.hang
        while time.monotonic() < end:
            if way == 2:
                stranger.frame(b"x", BINARY if end - time.monotonic() > target.hang - 0.05 else CONT, fin=False)
            else:
                stranger.socket.sendall(b"G")
            time.sleep(0.1)
        return stranger.answer()
    return "closed"


def fragments(target: Target, rng: random.Random) -> str:
    """A message in thousands of pieces."""
    with Stranger(target) as stranger:
        piece = bytes([CONT, 0x81, 0, 0, 0, 0, 0])
        with suppress(ConnectionError):
            stranger.socket.sendall(bytes([BINARY, 0x81, 0, 0, 0, 0, 0]) + piece * 6000)
        return stranger.answer()


def crowd(target: Target, rng: random.Random) -> str:
    """Hundreds of sockets at a time that say nothing, or open and then sit there."""
    upgraded, crowd = rng.random() < 0.3, list[Stranger]()
    refused = 0
    for _ in range(100 if upgraded else 500):
        try:
            crowd.append(Stranger(target, upgraded=upgraded))
            refused += crowd[-1].status not in (0, 101)
        except OSError:
            refused += 1
    for stranger in crowd:
        stranger.socket.close()
    return "refused" if refused else "survived"


def impatient(target: Target, rng: random.Random) -> str:
    """A good request, and away before the answer."""
    with Stranger(target) as stranger:
        stranger.frame(GOOD)
    return "survived"


def eager(target: Target, rng: random.Random) -> str:
    """Good requests without waiting for answers."""
    with Stranger(target) as stranger:
        for _ in range(50):
            stranger.frame(GOOD)
        return stranger.answer()


def lost(target: Target, rng: random.Random) -> str:
    """Paths that there are not, other methods, and a browser's origin."""
    with Stranger(target, upgraded=False) as stranger:
        path, more = rng.choice(
            [(b"/admin", b""), (b"/../x", b""), (b"/", b"Origin: http://evil\r\n"), (b"/x" * 900, b"")]
        )
        return "refused" if stranger.hello(path, more) >= 400 else "closed"


ATTACKS: tuple[Attack, ...] = (
    mutated, noise, garbage, truncated, broken_off, ill_typed, pickled, deep, wide, boastful, oversized, nan, ignored,
    wordy, chatty, slow, fragments, crowd, impatient, eager, lost,
)  # fmt: skip
