"""What happened, in order, and nobody can edit it afterwards: JSON Lines under a hash chain, with an anchor.

<name>.jsonl         {"body", "hash", "index", "kind", "previous", "time"}, one line an entry, in canonical JSON;
                     hash = SHA-256 of the canonical JSON of the others, previous = hash of the line before
<name>.head.json     the anchor: {"count", "hash", "pending"} of the last entry, so that a missing tail is noticed

An entry is announced in the anchor (`pending` is its line), written, and then counted. Who dies in between leaves an
announcement: a whole line is then counted, the torn beginning of one is dropped. A torn line that nobody announced,
and any other byte that is not as it was, is refused.

The chain proves that nothing was edited in place. Somebody who rewrites ledger and anchor together, from the edited
line on, is only noticed by a head that was kept elsewhere (`Ledger.extends`).
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import cast

from rl_finetune.durable import Json, Step, canonical, held, nothing, parsed, replace_file, sha256
from rl_finetune.errors import UserError

GENESIS = "0" * 64
"""`previous` of the first entry."""
FIELDS = {"body", "hash", "index", "kind", "previous", "time"}


@dataclass(frozen=True, slots=True)
class Entry:
    """One line."""

    index: int
    """From 0."""
    time: str
    """UTC, ISO 8601."""
    previous: str
    """Hash of the entry before."""
    kind: str
    """What happened, for example `advance`."""
    body: Mapping[str, Json]
    """The particulars."""
    hash: str
    """Over all of the above."""

    @property
    def line(self) -> bytes:
        """As it stands in the file, newline included."""
        return canonical({**_unhashed(self), "hash": self.hash}) + b"\n"


@dataclass(frozen=True, slots=True)
class Head:
    """Where a ledger ends."""

    count: int = 0
    """Entries."""
    hash: str = GENESIS
    """Of the last one."""


@dataclass(frozen=True, slots=True)
class _Anchor:
    head: Head = Head()
    pending: str | None = None
    """The announced line after the head, without its newline."""

    @property
    def data(self) -> bytes:
        return canonical({"count": self.head.count, "hash": self.head.hash, "pending": self.pending}) + b"\n"


@dataclass(frozen=True, slots=True)
class _Content:
    """What a file holds once it was verified."""

    entries: tuple[Entry, ...] = ()
    size: int = 0
    """Bytes of the entries that count."""
    pending: bool = False
    """Whether an announcement is open: its line was counted, or dropped beyond `size`."""

    @property
    def head(self) -> Head:
        return Head(len(self.entries), self.entries[-1].hash) if self.entries else Head()


def seal(index: int, time: str, previous: str, kind: str, body: Mapping[str, Json]) -> Entry:
    """An entry with its hash."""
    entry = Entry(index, time, previous, kind, body, "")
    return Entry(index, time, previous, kind, body, sha256(canonical(_unhashed(entry))))


def now() -> str:
    """Present time as entries carry it."""
    return datetime.now(UTC).isoformat(timespec="milliseconds")


@dataclass(frozen=True, slots=True)
class Ledger:
    """An append-only file; safe under several processes and threads, each with its own object or not."""

    path: Path
    """The lines; the anchor lies beside."""
    clock: Callable[[], str] = field(default=now)
    """Tells the time of an entry."""
    step: Step = field(default=nothing)
    """Called before each change of the disk."""

    @property
    def anchor(self) -> Path:
        """File of the anchor."""
        return self.path.with_suffix(".head.json")

    def append(self, kind: str, body: Mapping[str, Json]) -> Entry:
        """Add an entry; when this returns it is on the disk for good. Nothing is added to a damaged ledger.

        Raises:
            UserError: what is there is not what was written, the clock runs behind the last entry, or the disk does
                not take it.
            ValueError, TypeError: the body is no JSON.
        """
        canonical(body)
        try:
            with held(self.path, os.O_RDWR | os.O_CREAT | os.O_APPEND) as handle:
                content, time = self._settled(handle), self.clock()
                if content.entries and datetime.fromisoformat(time) < datetime.fromisoformat(content.entries[-1].time):
                    raise _behind(self.path, time, content.entries[-1].time)
                entry = seal(content.head.count, time, content.head.hash, kind, body)
                self._write(handle, content, entry)
        except OSError as error:
            raise _unusable(self.path, error) from error
        return entry

    def entries(self) -> tuple[Entry, ...]:
        """All entries, verified; an announced line that was torn is not among them. Writes nothing.

        Raises:
            UserError: a byte of ledger or anchor is not what was written; names file and line.
        """
        try:
            with held(self.path, os.O_RDONLY, fcntl.LOCK_SH) as handle:
                return self._content(handle).entries
        except FileNotFoundError:
            anchor = self._anchor()
            return self.entries() if anchor and self.path.exists() else _verified(self.path, b"", anchor).entries
        except OSError as error:
            raise _unusable(self.path, error) from error

    def head(self) -> Head:
        """Where it ends: write it down elsewhere to notice later that ledger and anchor were rewritten together."""
        entries = self.entries()
        return Head(len(entries), entries[-1].hash) if entries else Head()

    def extends(self, head: Head) -> None:
        """Verify that the ledger still contains what it contained when its head was written down.

        Raises:
            UserError: it does not.
        """
        entries = self.entries()
        found = Head(head.count, entries[head.count - 1].hash) if 0 < head.count <= len(entries) else Head()
        if found != head:
            raise tampered(self.path, max(head.count, 1), f"{len(entries)} entries, hash {found.hash[:12]}",
                           f"entry {head.count - 1} with hash {head.hash[:12]}")  # fmt: skip

    def repair(self) -> None:
        """Finish or drop what a killed process left half written; harmless when there is nothing.

        Raises:
            UserError: what is there is not what was written.
        """
        if not self.path.exists() and not self.anchor.exists():
            return
        with held(self.path, os.O_RDWR | os.O_CREAT | os.O_APPEND) as handle:
            content = self._settled(handle)
            if content.pending:
                replace_file(self.anchor, _Anchor(content.head).data, self.step)

    def _settled(self, handle: int) -> _Content:
        content = self._content(handle)
        if os.fstat(handle).st_size > content.size:
            self.step("drop the torn line")
            os.ftruncate(handle, content.size)
            os.fsync(handle)
        return content

    def _write(self, handle: int, content: _Content, entry: Entry) -> None:
        line = entry.line
        replace_file(self.anchor, _Anchor(content.head, line[:-1].decode()).data, self.step)
        self.step("append the line")
        written = os.write(handle, line)
        if written != len(line):
            os.ftruncate(handle, content.size)
            raise OSError(f"only {written} of {len(line)} bytes were taken")
        os.fsync(handle)
        replace_file(self.anchor, _Anchor(Head(entry.index + 1, entry.hash)).data, self.step)

    def _content(self, handle: int) -> _Content:
        data = os.pread(handle, os.fstat(handle).st_size, 0)
        return _verified(self.path, data, self._anchor())

    def _anchor(self) -> _Anchor | None:
        try:
            data = self.anchor.read_bytes()
        except FileNotFoundError:
            return None
        try:
            value = cast(dict[str, Json], parsed(data))
            pending = value["pending"]
            anchor = _Anchor(
                Head(int(cast(int, value["count"])), str(value["hash"])), None if pending is None else str(pending)
            )
        except (ValueError, KeyError, TypeError) as error:
            raise tampered(self.anchor, 1, str(error) or type(error).__name__, "count, hash and pending") from error
        if anchor.data != data or anchor.head.count < 0:
            raise tampered(self.anchor, 1, "bytes that were never written so", anchor.data.decode().strip())
        return anchor


def tampered(path: Path, line: int, got: str, expected: str) -> UserError:
    """The error of a file that is not what was written."""
    return UserError(
        f"{path}, line {line}, is not what was written", got=got, expected=expected,
        do="restore the file and its anchor from a copy; find out who changed it",
    )  # fmt: skip


def _behind(path: Path, time: str, last: str) -> UserError:
    return UserError(
        f"this machine's clock runs behind {path.name}", got=time, expected=f"{last}, as the entry before, or later",
        do="set the clock, then do it again; nothing was written",
    )  # fmt: skip


def _unusable(path: Path, error: OSError) -> UserError:
    return UserError(
        "ledger cannot be used", got=f"{path}: {error.strerror or error}", expected="a file to read and write",
        do="check the folder's permissions and its free space",
    )  # fmt: skip


def _unhashed(entry: Entry) -> dict[str, Json]:
    return {"index": entry.index, "time": entry.time, "previous": entry.previous, "kind": entry.kind,
            "body": entry.body}  # fmt: skip


def _verified(path: Path, data: bytes, anchor: _Anchor | None) -> _Content:
    """The entries that `data` holds, if they are those that the anchor speaks of."""
    if anchor is None:
        if data:
            raise tampered(path, 1, "entries without an anchor", f"{path.with_suffix('.head.json').name} beside them")
        return _Content()
    lines = data.split(b"\n")
    counted, rest = lines[: anchor.head.count], lines[anchor.head.count :]
    if not rest:
        raise tampered(path, len(lines), f"{len(lines) - 1} whole lines", f"{anchor.head.count}, says the anchor")
    entries: list[Entry] = []
    for number, line in enumerate(counted, start=1):
        entries.append(_entry(path, number, line, entries[-1].hash if entries else GENESIS))
    content = _Content(tuple(entries), sum(len(line) + 1 for line in counted), anchor.pending is not None)
    if content.head.hash != anchor.head.hash:
        raise tampered(path, anchor.head.count, f"hash {content.head.hash[:12]}",
                       f"{anchor.head.hash[:12]}, says the anchor")  # fmt: skip
    return _with_tail(path, content, b"\n".join(rest), anchor.pending)


def _with_tail(path: Path, content: _Content, tail: bytes, pending: str | None) -> _Content:
    number = content.head.count + 1
    if pending is None:
        if tail:
            raise tampered(path, number, f"{len(tail)} bytes {tail[:24]!r}", "the end, says the anchor")
        return content
    line = pending.encode()
    entry = _entry(path.with_suffix(".head.json"), 1, line, content.head.hash, index=content.head.count)
    if tail == line + b"\n":
        return _Content((*content.entries, entry), content.size + len(tail), True)
    if not line.startswith(tail):
        raise tampered(path, number, f"{tail[:24]!r}", "the beginning of the line that the anchor announces")
    return content


def _entry(path: Path, number: int, line: bytes, previous: str, index: int | None = None) -> Entry:
    """The entry in a line, if it follows on `previous`."""
    try:
        value = cast(dict[str, Json], parsed(line))
        if value.keys() != FIELDS:
            raise ValueError(f"fields {sorted(value)}")
        if datetime.fromisoformat(str(value["time"])).tzinfo is None:
            raise ValueError(f"time {value['time']!r}")
        body = cast(Mapping[str, Json], value["body"])
        entry = seal(cast(int, value["index"]), str(value["time"]), str(value["previous"]), str(value["kind"]), body)
    except (ValueError, TypeError, AttributeError) as error:
        raise tampered(path, number, str(error), "an entry") from error
    if value["hash"] != entry.hash or entry.line != line + b"\n":
        raise tampered(path, number, f"hash {entry.hash[:12]} of its content", f"{str(value['hash'])[:12]} as it says")
    wanted = (number - 1 if index is None else index, previous)
    if (entry.index, entry.previous) != wanted:
        raise tampered(path, number, f"index {entry.index} after {entry.previous[:12]}",
                       f"index {wanted[0]} after {previous[:12]}")  # fmt: skip
    return entry
