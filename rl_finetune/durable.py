"""Changes of the disk that survive a power cut: written beside, flushed, renamed. And JSON with one spelling only."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TypeAlias

from rl_finetune.errors import UserError

Json: TypeAlias = "str | int | float | bool | None | Sequence[Json] | Mapping[str, Json]"
Step = Callable[[str], None]
"""Called with a name before each change of the disk; a test may die there."""
PATIENCE = 60.0
"""Seconds to wait for another process that holds a lock."""


def nothing(step: str) -> None:
    """The step of everybody who does not want to die."""


def canonical(value: Json) -> bytes:
    """The one spelling of a value: sorted keys, no spaces, ASCII, no NaN.

    Raises:
        ValueError: NaN or an infinity.
        TypeError: something that JSON does not know.
    """
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False).encode()


def sha256(data: bytes) -> str:
    """As 64 hexadecimal digits."""
    return hashlib.sha256(data).hexdigest()


def parsed(data: bytes) -> Json:
    """JSON from bytes that nobody vouches for.

    Raises:
        ValueError: no JSON, not UTF-8, or nested beyond measure.
    """
    try:
        value: Json = json.loads(data)
    except RecursionError as error:
        raise ValueError("nested too deeply") from error
    return value


def replace_file(path: Path, data: bytes, step: Step = nothing) -> None:
    """Put `data` in the place of a file: at any instant it holds the old or the new bytes, whole."""
    beside = path.with_name(f".{path.name}.part")
    step(f"write {beside.name}")
    with beside.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    step(f"rename {path.name}")
    beside.replace(path)
    sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Make the names in a folder survive."""
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextmanager
def held(path: Path, flags: int, kind: int = fcntl.LOCK_EX, patience: float = PATIENCE) -> Iterator[int]:
    """An open file under `flock`; the lock goes with the process, however it ends.

    Args:
        path: the file.
        flags: of `os.open`.
        kind: `LOCK_EX` or `LOCK_SH`.
        patience: seconds to wait.

    Raises:
        OSError: it cannot be opened.
        UserError: somebody else kept it for too long.
    """
    handle = os.open(path, flags | os.O_CLOEXEC | os.O_NOFOLLOW, 0o644)
    try:
        until = time.monotonic() + patience
        while not _taken(handle, kind):
            if time.monotonic() > until:
                raise UserError(
                    "another process holds the lock", got=f"{path} for {patience:g} s", expected="a free lock",
                    do="wait for that process, then do it again",
                )  # fmt: skip
            time.sleep(0.01)
        yield handle
    finally:
        os.close(handle)


def _taken(handle: int, kind: int) -> bool:
    with suppress(BlockingIOError):
        fcntl.flock(handle, kind | fcntl.LOCK_NB)
        return True
    return False
