"""Nothing in a ledger can be edited, and who is killed while writing leaves it as it was before or after."""

from __future__ import annotations

import json
import os
import re
import shutil
import threading
from pathlib import Path

import pytest

from rl_finetune.durable import replace_file
from rl_finetune.errors import UserError
from rl_finetune.promotion.registry.ledger import GENESIS, Head, Ledger

TIME = "2026-01-02T03:04:05.000+00:00"
FIRST = "d275b248d4b55272765549cdd7e3ac1d97675efdd90decb5936355d1942f4c22"
"""printf '{"body":{"bundle":"a"},"index":0,"kind":"submit","previous":"0...0","time":"2026-..."}' | sha256sum"""


@pytest.fixture(autouse=True)
def no_power_cuts(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is killed here is the process: flushing to the disk decides nothing, and takes a busy disk's time."""
    monkeypatch.setattr(os, "fsync", lambda handle: None)


def put(path: Path, data: bytes) -> None:
    """Write a file anew; writing over an old one would flush."""
    path.unlink(missing_ok=True)
    path.write_bytes(data)


class Dead(BaseException):
    """The process was killed here."""


class DyingAt:
    """A step that dies at the n-th change of the disk."""

    def __init__(self, step: int) -> None:
        self.left = step

    def __call__(self, step: str) -> None:
        self.left -= 1
        if self.left < 0:
            raise Dead(step)


def written(path: Path, entries: int = 3) -> Ledger:
    ledger = Ledger(path, clock=lambda: TIME)
    for i in range(entries):
        ledger.append("submit", {"bundle": "abc"[i % 3]})
    return ledger


def test_an_entry_is_what_was_worked_out_by_hand(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "ledger.jsonl", clock=lambda: TIME)
    assert ledger.entries() == () and ledger.head() == Head(0, GENESIS)
    first, second = ledger.append("submit", {"bundle": "a"}), ledger.append("retire", {"bundle": "a", "note": "ä"})
    assert (first.index, first.previous, first.hash) == (0, "0" * 64, FIRST)
    assert (second.index, second.previous) == (1, FIRST)
    lines = ledger.path.read_text().splitlines()
    assert json.loads(lines[0]) == {
        "body": {"bundle": "a"}, "hash": FIRST, "index": 0, "kind": "submit", "previous": "0" * 64, "time": TIME,
    }  # fmt: skip
    assert ledger.entries() == (first, second) and ledger.head() == Head(2, second.hash)
    assert json.loads(ledger.anchor.read_text()) == {"count": 2, "hash": second.hash, "pending": None}
    with pytest.raises(ValueError):
        ledger.append("submit", {"value": float("nan")})
    assert len(ledger.entries()) == 2


def test_every_byte_counts(tmp_path: Path) -> None:
    ledger = written(tmp_path / "ledger.jsonl")
    for path in (ledger.path, ledger.anchor):
        whole = path.read_bytes()
        for i in range(len(whole)):
            for damaged in (whole[:i] + bytes([whole[i] ^ 1]) + whole[i + 1 :], whole[:i] + whole[i + 1 :], whole[:i]):
                put(path, damaged)
                with pytest.raises(UserError, match="is not what was written") as refused:
                    ledger.entries()
                assert path.name in refused.value.what or ledger.path.name in refused.value.what
        put(path, whole)
    assert len(ledger.entries()) == 3


def test_refusals_name_file_line_and_both_sides(tmp_path: Path) -> None:
    ledger = written(tmp_path / "ledger.jsonl")
    lines = ledger.path.read_bytes().splitlines(keepends=True)
    edited = json.loads(lines[1]) | {"body": {"bundle": "z"}}
    line = json.dumps(edited, sort_keys=True, separators=(",", ":")).encode() + b"\n"
    cases = {
        "line 2, .* hash [0-9a-f]{12} of its content; expected " + edited["hash"][:12]: [lines[0], line, lines[2]],
        "line 2, .* index 2 .* expected index 1": [lines[0], lines[2], lines[1]],
        "line 1, .* index 1 .* expected index 0": [lines[1], lines[2], lines[0]],
        "line 3, .* got 2 whole lines; expected 3, says the anchor": lines[:2],
        "line 4, .* expected the end, says the anchor": [*lines, lines[2]],
        "line 4, .*torn.*expected the end": [*lines, b"torn"],
        "line 2, .* got .*; expected an entry": [lines[0], b"[]\n", lines[2]],
    }
    for message, damaged in cases.items():
        put(ledger.path, b"".join(damaged))
        for call in (ledger.entries, ledger.repair, lambda: ledger.append("submit", {})):
            with pytest.raises(UserError, match=message):
                call()
        assert ledger.path.read_bytes() == b"".join(damaged)


def test_ledger_or_anchor_cannot_vanish(tmp_path: Path) -> None:
    ledger = written(tmp_path / "ledger.jsonl")
    anchor = ledger.anchor.read_bytes()
    ledger.anchor.unlink()
    with pytest.raises(UserError, match="entries without an anchor"):
        ledger.append("submit", {})
    put(ledger.anchor, anchor)
    ledger.path.unlink()
    with pytest.raises(UserError, match=r"got 0 whole lines; expected 3"):
        ledger.entries()


def test_an_anchor_that_counts_from_the_end_is_refused(tmp_path: Path) -> None:
    ledger = written(tmp_path / "ledger.jsonl", 11)
    put(ledger.anchor, ledger.anchor.read_bytes().replace(b'"count":11', b'"count":-1'))
    with pytest.raises(UserError, match="is not what was written"):
        ledger.entries()


def test_a_head_kept_elsewhere_shows_a_ledger_that_was_rewritten(tmp_path: Path) -> None:
    ledger = written(tmp_path / "a.jsonl")
    head = ledger.head()
    ledger.append("retire", {"bundle": "a"})
    ledger.extends(head)
    ledger.extends(Head())
    forged = Ledger(tmp_path / "b.jsonl", clock=lambda: TIME)
    for body in ({"bundle": "a"}, {"bundle": "forged"}, {"bundle": "c"}):
        forged.append("submit", body)
    assert len(forged.entries()) == 3
    for other in (forged, written(tmp_path / "c.jsonl", 2)):
        with pytest.raises(UserError, match="expected entry 2 with hash " + head.hash[:12]):
            other.extends(head)


def test_killed_between_any_two_changes_it_holds_the_old_or_the_new(tmp_path: Path) -> None:
    outcomes = []
    for step in range(6):
        ledger = written(tmp_path / f"{step}.jsonl", 2)
        dying = Ledger(ledger.path, clock=ledger.clock, step=DyingAt(step))
        try:
            dying.append("retire", {"bundle": "a"})
        except Dead:
            seen = ledger.entries()
            ledger.repair()
            assert ledger.entries() == seen
            assert json.loads(ledger.anchor.read_text())["pending"] is None
        outcomes.append(len(ledger.entries()))
        assert ledger.append("submit", {"bundle": "b"}).index == outcomes[-1]
        assert len(ledger.entries()) == outcomes[-1] + 1
    assert outcomes == [2, 2, 2, 3, 3, 3]


def test_a_line_torn_at_any_byte_is_dropped_if_it_was_announced_and_only_then(tmp_path: Path) -> None:
    ledger = written(tmp_path / "ledger.jsonl", 2)
    whole, old, new = ledger.entries(), ledger.path.read_bytes(), Ledger(tmp_path / "new.jsonl", clock=ledger.clock)
    shutil.copy(ledger.path, new.path)
    shutil.copy(ledger.anchor, new.anchor)
    entry = new.append("retire", {"bundle": "a"})
    announced = {"count": 2, "hash": whole[-1].hash, "pending": entry.line.decode()[:-1]}
    announcement = json.dumps(announced, sort_keys=True, separators=(",", ":")).encode() + b"\n"
    settled = ledger.anchor.read_bytes()
    for torn in range(1, len(entry.line)):
        put(ledger.path, old + entry.line[:torn])
        put(ledger.anchor, settled)
        with pytest.raises(UserError, match="line 3, is not what was written"):
            ledger.entries()
        replace_file(ledger.anchor, announcement)
        assert ledger.entries() == whole
        ledger.repair()
        assert ledger.path.read_bytes() == old and ledger.anchor.read_bytes() == settled
    put(ledger.anchor, announcement)
    put(ledger.path, old + entry.line[:20] + b"?")
    with pytest.raises(UserError, match="expected the beginning of the line that the anchor announces"):
        ledger.repair()
    put(ledger.path, old + entry.line)
    assert ledger.entries() == (*whole, entry)


def test_writers_take_turns(tmp_path: Path) -> None:
    def write() -> None:
        mine = Ledger(tmp_path / "ledger.jsonl")
        for _ in range(5):
            mine.append("trial", {"by": threading.get_ident()})

    threads = [threading.Thread(target=write) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [entry.index for entry in Ledger(tmp_path / "ledger.jsonl").entries()] == list(range(20))


def test_a_disk_that_does_not_take_it_is_the_users_to_know(tmp_path: Path) -> None:
    os.mkdir(tmp_path / "ledger.jsonl")
    with pytest.raises(UserError, match="ledger cannot be used"):
        Ledger(tmp_path / "ledger.jsonl").append("submit", {})
    with pytest.raises(UserError, match="ledger cannot be used"):
        Ledger(tmp_path / "nowhere" / "ledger.jsonl").append("submit", {})


def test_time_never_runs_backwards(tmp_path: Path) -> None:
    times = ["2026-01-02T03:04:05.000+00:00", "2026-01-02T04:04:05.000+01:00", "2020-01-01T00:00:00.000+00:00"]
    clock = iter([*times, "2026-01-02T03:04:05.001+00:00"])
    ledger = Ledger(tmp_path / "ledger.jsonl", clock=lambda: next(clock))
    ledger.append("a", {})
    ledger.append("b", {})  # the same instant in another zone
    before = (ledger.path.read_bytes(), ledger.anchor.read_bytes())
    with pytest.raises(UserError, match=f"clock runs behind ledger.jsonl: got 2020.*; expected {re.escape(times[1])}"):
        ledger.append("c", {})
    assert (ledger.path.read_bytes(), ledger.anchor.read_bytes()) == before
    assert ledger.append("d", {}).index == 2  # once the clock has been set
