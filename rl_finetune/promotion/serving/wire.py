"""openpi's wire: msgpack frames with numpy arrays in them, from untrusted hands. msgpack and numpy only.

Robots also send what this policy does not look at: keys that are not asked for are passed over unread, whatever they
hold.

An array is the map `{b"__ndarray__": True, b"data": bytes, b"dtype": "|u1", b"shape": [...]}`, a numpy scalar
`{b"__npgeneric__": True, b"data": number, b"dtype": "<f4"}`. There is no pickle here, no type extension and no dtype
but plain numbers and short texts. What a frame may cost is known before it is paid: an array's bytes are not copied
again, and containers are counted while they are built.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any, TypeAlias

import msgpack
import numpy as np

DTYPES = ("|b1", "|u1", "|i1", "<u2", "<i2", "<u4", "<i4", "<u8", "<i8", "<f2", "<f4", "<f8")
"""Plain numbers, little-endian."""
TEXTS = re.compile(r"<U[1-9][0-9]{0,3}|\|S[1-9][0-9]{0,3}")
"""Texts of a fixed length: what an instruction becomes in `np.array`."""
MAX_CONTAINERS = 256
"""Maps and lists in one frame; an observation has a dozen."""
MAX_ENTRIES = 256
"""Entries of one map or list."""
MAX_TEXT = 16_384
"""Bytes of one text."""
MAX_DEPTH = 4
"""Containers within containers, arrays not counted."""
MAX_AXES = 8
"""Axes of an array."""
_ARRAY_KEYS = {b"__ndarray__", b"data", b"dtype", b"shape"}
_SCALAR_KEYS = {b"__npgeneric__", b"data", b"dtype"}


Keys: TypeAlias = "Mapping[str, Keys | None]"
"""What is read of a map: the whole value of a key, or some keys of the map that it is."""


class Ignored:
    """Stands for what was not read."""


IGNORED = Ignored()


class WireError(Exception):
    """Bytes that are no frame of this wire. `str` is the line that the client is sent."""

    def __init__(self, what: str, *, got: object, expected: object) -> None:
        self.what, self.got, self.expected = what, got, expected
        super().__init__(f"{what}: got {got}; expected {expected}")


def decode(frame: bytes, keys: Keys | None = None) -> object:
    """What a frame says; arrays are read-only.

    Args:
        frame: msgpack.
        keys: what is read of the map that it holds; the values of other keys are `IGNORED`. None reads everything.

    Raises:
        WireError: it is not msgpack, or what is read is too rich, or something that this wire does not carry.
    """
    builder = _Builder()
    unpacker = msgpack.Unpacker(
        max_buffer_size=max(len(frame), 1),
        object_hook=builder.map, list_hook=builder.list, ext_hook=_no_extension,
        raw=False, strict_map_key=True,
        max_str_len=MAX_TEXT, max_bin_len=len(frame), max_array_len=MAX_ENTRIES, max_map_len=MAX_ENTRIES,
        max_ext_len=0,
    )  # fmt: skip
    try:
        unpacker.feed(frame)
        message = _value(unpacker, frame, keys)
        if unpacker.tell() != len(frame):
            raise WireError("frame", got="something behind its end", expected="one message")
    except WireError:
        raise
    # msgpack's own refusals are ValueErrors; a stack that is too deep, or a key that cannot be one, are not.
    except (ValueError, TypeError, OverflowError, RecursionError, msgpack.UnpackException) as error:
        raise WireError(
            "frame", got=_reason(error), expected="binary msgpack of numbers, texts, maps, lists, arrays"
        ) from None
    _check_depth(message, MAX_DEPTH)
    return message


def encode(message: Mapping[str, object]) -> bytes:
    """A frame.

    Raises:
        TypeError: something in it is neither plain nor an array of plain numbers.
    """
    packed: bytes = msgpack.packb(message, default=_pack)
    return packed


def _value(unpacker: msgpack.Unpacker, frame: bytes, keys: Keys | None) -> object:
    """The next value."""
    if keys is None or not _begins_map(frame[unpacker.tell() :][:1]):
        return unpacker.unpack()
    entries = unpacker.read_map_header()
    if entries > MAX_ENTRIES:
        raise WireError("frame", got=f"a map of {entries} keys", expected=f"at most {MAX_ENTRIES}")
    found: dict[str, object] = {}
    for _ in range(entries):
        key = unpacker.unpack()
        if isinstance(key, str) and key in keys:
            found[key] = _value(unpacker, frame, keys[key])
            continue
        unpacker.skip()
        if isinstance(key, str):
            found[key] = IGNORED
    return found


def _begins_map(byte: bytes) -> bool:
    return byte in (b"\xde", b"\xdf") or b"\x80" <= byte <= b"\x8f"


class _Builder:
    """Builds and counts the containers of one frame, innermost first."""

    def __init__(self) -> None:
        self._left = MAX_CONTAINERS

    def map(self, found: dict[Any, Any]) -> object:
        """A map, or the array or scalar that it stands for."""
        self._count()
        if b"__ndarray__" in found:
            return _array(found)
        return _scalar(found) if b"__npgeneric__" in found else found

    def list(self, found: list[Any]) -> list[Any]:
        """A list as it is."""
        self._count()
        return found

    def _count(self) -> None:
        self._left -= 1
        if self._left < 0:
            raise WireError("frame", got=f"more than {MAX_CONTAINERS} maps and lists", expected="fewer")


def _array(found: dict[Any, Any]) -> np.ndarray:
    if found.keys() != _ARRAY_KEYS or found[b"__ndarray__"] is not True:
        raise WireError("array", got="another set of keys", expected="__ndarray__ (true), data, dtype, shape")
    dtype, data, shape = _dtype(found[b"dtype"], texts=True), found[b"data"], found[b"shape"]
    if not isinstance(data, bytes):
        raise WireError("array data", got=type(data).__name__, expected="bytes")
    plain = isinstance(shape, list) and len(shape) <= MAX_AXES and all(type(n) is int and n >= 0 for n in shape)
    if not plain:
        raise WireError("array shape", got=_short(shape), expected=f"at most {MAX_AXES} whole numbers")
    needed = math.prod(shape) * dtype.itemsize
    if needed != len(data):
        got = f"{len(data)} bytes for shape {shape} of {dtype.str}"
        raise WireError("array data", got=got, expected=f"{needed} bytes")
    if dtype.kind in "US" and len(data) > MAX_TEXT:
        raise WireError("array of texts", got=f"{len(data)} bytes", expected=f"at most {MAX_TEXT}")
    if dtype.kind == "U":
        data.decode("utf-32-le")  # numpy would fail over it later
    try:
        return np.frombuffer(data, dtype).reshape(shape)
    except ValueError as error:  # no elements, and yet an axis beyond what numpy can count
        raise WireError("array shape", got=_short(shape), expected="axes that numpy can count") from error


def _scalar(found: dict[Any, Any]) -> np.generic:
    if found.keys() != _SCALAR_KEYS or found[b"__npgeneric__"] is not True:
        raise WireError("scalar", got="another set of keys", expected="__npgeneric__ (true), data, dtype")
    dtype, value = _dtype(found[b"dtype"]), found[b"data"]
    kinds: dict[str, type | tuple[type, ...]] = {"b": bool, "u": int, "i": int, "f": (int, float)}
    if not isinstance(value, kinds[dtype.kind]) or (isinstance(value, bool) and dtype.kind != "b"):
        raise WireError(f"scalar of {dtype.str}", got=_short(value), expected="such a number")
    if dtype.kind in "ui" and not np.iinfo(dtype).min <= value <= np.iinfo(dtype).max:
        raise WireError(f"scalar of {dtype.str}", got=value, expected="a number that fits")
    with np.errstate(over="ignore"):
        return dtype.type(value)


def _dtype(name: object, texts: bool = False) -> np.dtype:
    if not isinstance(name, str) or not (name in DTYPES or (texts and TEXTS.fullmatch(name))):
        raise WireError("dtype", got=_short(name), expected=f"one of {', '.join(DTYPES)}")
    return np.dtype(name)


def _check_depth(message: object, left: int) -> None:
    inside = message.values() if isinstance(message, dict) else message if isinstance(message, list) else None
    if inside is None:
        return
    if left == 0:
        raise WireError("frame", got=f"more than {MAX_DEPTH} containers within each other", expected="fewer")
    for part in inside:
        _check_depth(part, left - 1)


def _no_extension(code: int, data: bytes) -> object:
    raise WireError("frame", got=f"msgpack extension {code}", expected="no extension")


def _pack(value: object) -> object:
    if isinstance(value, np.generic | np.ndarray):
        dtype = value.dtype.newbyteorder("<")
        if dtype.str not in DTYPES:
            raise TypeError(f"dtype {value.dtype} does not travel; expected one of {', '.join(DTYPES)}")
        if isinstance(value, np.generic):
            return {b"__npgeneric__": True, b"data": value.item(), b"dtype": dtype.str}
        data = value.astype(dtype, copy=False).tobytes()
        return {b"__ndarray__": True, b"data": data, b"dtype": dtype.str, b"shape": list(value.shape)}
    raise TypeError(f"{type(value).__name__} does not travel")


def _short(value: object) -> str:
    """At most some 60 characters, safe in a log."""
    if isinstance(value, str | bytes):
        return ascii(value[:60])
    if isinstance(value, list):
        return f"{ascii(value[:8])[:60]} of {len(value)} entries"
    return ascii(value)[:60] if isinstance(value, int | float | None) else type(value).__name__


def _reason(error: Exception) -> str:
    """msgpack's words, without a traceback and on one line."""
    return (ascii(str(error)).strip("'\"") or type(error).__name__)[:120]
