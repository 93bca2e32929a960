"""Messages between the client and Isaac's process: a JSON header and raw arrays, each preceded by its length.

No pickle, so that the two sides may run different Pythons and numpys.
"""

from __future__ import annotations

import json
import math
import socket
import struct
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
_LENGTH = struct.Struct("<Q")
KINDS = "biuf"
"""numpy kinds that travel: no objects, no strings."""


@dataclass(frozen=True)
class Message:
    """One request or answer."""

    head: Mapping[str, Any]
    """JSON values."""
    arrays: Mapping[str, Array] = field(default_factory=dict)
    """Name -> array; the receiver's own, never shared."""


def send(to: socket.socket, message: Message) -> None:
    """Send one message. Raises `OSError` where the other side is gone, `TimeoutError` where it does not read."""
    arrays = {name: np.ascontiguousarray(array) for name, array in message.arrays.items()}
    for name, array in arrays.items():
        if array.dtype.kind not in KINDS:
            raise TypeError(f"array {name!r} of dtype {array.dtype} cannot travel")
    layout = [[name, array.dtype.str, array.shape] for name, array in arrays.items()]
    head = json.dumps({"head": dict(message.head), "arrays": layout}).encode()
    to.sendall(_LENGTH.pack(len(head)) + head)
    for array in arrays.values():
        to.sendall(array.reshape(-1).view(np.uint8).data)


def receive(source: socket.socket) -> Message:
    """Read one message. Raises `EOFError` where the other side closed, `TimeoutError` where it is silent."""
    (size,) = _LENGTH.unpack(_read(source, _LENGTH.size))
    told = json.loads(bytes(_read(source, size)))
    arrays = {}
    for name, code, shape in told["arrays"]:
        dtype = np.dtype(code)
        if dtype.kind not in KINDS:
            raise TypeError(f"array {name!r} of dtype {dtype} cannot travel")
        arrays[name] = np.frombuffer(_read(source, math.prod(shape) * dtype.itemsize), dtype).reshape(shape)
    return Message(told["head"], arrays)


def _read(source: socket.socket, size: int) -> bytearray:
    buffer = bytearray(size)
    view = memoryview(buffer)
    while view:
        got = source.recv_into(view)
        if got == 0:
            raise EOFError("the other side closed the connection")
        view = view[got:]
    return buffer
