"""Stages in their order with what each needs, a way back, and a kill at any instant leaves the old or the new."""

from __future__ import annotations

import json
import multiprocessing
import os
import random
import shutil
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from bundles import grounds, paper_bundle, promoted, submitted

from rl_finetune.errors import UserError
from rl_finetune.promotion.records import Check, PolicyName, Verdict
from rl_finetune.promotion.registry.grounds import Grounds
from rl_finetune.promotion.registry.registry import Audit, Registry
from rl_finetune.promotion.registry.signing import make_keys
from rl_finetune.promotion.registry.stages import STAGES

TIME = "2026-01-02T03:04:05.000+00:00"


@pytest.fixture(autouse=True)
def no_power_cuts(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is killed here is the process: flushing to the disk decides nothing, and takes a busy disk's time."""
    monkeypatch.setattr(os, "fsync", lambda handle: None)


@pytest.fixture
def registry(tmp_path: Path) -> Registry:
    return Registry(tmp_path / "registry", clock=lambda: TIME)


def stages(registry: Registry) -> dict[str, str]:
    return {standing.name: standing.stage for standing in registry.status().bundles}


def acts(registry: Registry) -> str | None:
    return registry.status().promoted


def test_the_way_up_and_back(registry: Registry) -> None:
    assert registry.promoted() is None and registry.status().before is None and registry.verify() == Audit(0, 0, 0, 0)
    with pytest.raises(UserError, match="nothing to roll back to"):
        registry.rollback(by="ada")
    a = promoted(registry, "a")
    assert registry.promoted() is not None and acts(registry) == a.digest and stages(registry) == {"a": "promoted"}
    b, c = promoted(registry, "b"), promoted(registry, "c")
    assert stages(registry) == {"a": "retired", "b": "retired", "c": "promoted"} and acts(registry) == c.digest
    assert registry.rollback(by="bo", note="it trembles").digest == b.digest == acts(registry)
    assert stages(registry) == {"a": "retired", "b": "promoted", "c": "retired"}
    d = promoted(registry, "d")
    assert registry.rollback(by="bo").digest == b.digest and registry.rollback(by="bo").digest == a.digest
    with pytest.raises(UserError, match="nothing to roll back to"):
        registry.rollback(by="bo")
    last = registry.history()[-1]
    assert (last.kind, dict(last.body)) == (
        "rollback", {"bundle": a.digest, "from": b.digest, "by": "bo", "note": ""},
    )  # fmt: skip
    assert [entry.kind for entry in registry.history(d.digest[:8])] == ["submit", *["advance"] * 4, "rollback"]
    # 4 bundles of 5 files and a manifest, 5 entries each and 3 rollbacks, a verdict and a decision each
    assert registry.verify() == Audit(entries=23, bundles=4, files=4 * 6, grounds=8)


def test_a_retired_bundle_is_no_way_back(registry: Registry) -> None:
    a, b, c = (promoted(registry, name) for name in "abc")
    registry.retire(b.digest, by="ada", note="hits the table")
    assert registry.rollback(by="ada").digest == a.digest
    registry.retire(a.digest, by="ada")
    assert registry.promoted() is None and acts(registry) is None
    for old in (a, b, c):
        with pytest.raises(UserError, match="got retired now; expected nothing next"):
            registry.advance(old.digest, "candidate", by="ada")


def test_what_each_step_needs(registry: Registry, tmp_path: Path) -> None:
    a, b = promoted(registry, "a"), submitted(registry, "b")
    verdict, decision = (grounds(tmp_path, kind, b, a.digest) for kind in ("verdict", "decision"))

    def refused(message: str, stage: str, **arguments: object) -> None:
        before = len(registry.history())
        with pytest.raises(UserError, match=message):
            registry.advance(b.digest, stage, **{"by": "ada", **arguments})  # type: ignore[arg-type]
        assert len(registry.history()) == before

    refused("cannot become shadow: got candidate now; expected simulation-passed next", "shadow")
    refused("without a verdict", "simulation-passed")
    refused("cannot be waived", "simulation-passed", waiver="trust me")
    refused("does not rest on a decision", "simulation-passed", grounds=decision)
    refused("about another bundle", "simulation-passed", grounds=grounds(tmp_path, "verdict", a, a.digest))
    refused("compares with a bundle that is not promoted", "simulation-passed", grounds=grounds(tmp_path, "verdict", b))
    refused("cannot be read", "simulation-passed", grounds=tmp_path / "nowhere.json")
    refused("nobody is named", "simulation-passed", grounds=verdict, by=" ")
    assert registry.advance(b.digest[:10], "simulation-passed", by="ada", grounds=verdict).stage == "simulation-passed"
    refused("does not rest on a verdict", "shadow", grounds=verdict)
    registry.advance(b.digest, "shadow", by="ada")
    registry.advance(b.digest, "canary", by="ada")
    refused("without a decision: .* or a waiver with a reason", "promoted")
    refused("without a decision", "promoted", waiver="  ")
    refused("does not rest on a verdict", "promoted", grounds=verdict)
    registry.advance(b.digest, "promoted", by="ada", waiver="no robot in this building", note="demo")
    assert registry.history()[-1].body["waiver"] == "no robot in this building" and acts(registry) == b.digest
    with pytest.raises(UserError, match="submitted before"):
        registry.submit(b.folder, by="ada")
    with pytest.raises(UserError, match=f"no such bundle .* got '77'; expected one of {a.digest[:12]} \\(a\\)"):
        registry.retire("77", by="ada")


def test_hold_is_recorded_and_reject_is_final(registry: Registry, tmp_path: Path) -> None:
    a = submitted(registry, "a")
    hold = grounds(tmp_path, "verdict", a, outcome="hold")
    with pytest.raises(UserError, match="stays candidate; the verdict is recorded: got hold: 63 of 64"):
        registry.advance(a.digest, "simulation-passed", by="ada", grounds=hold)
    assert (registry.history()[-1].kind, registry.history()[-1].body["outcome"]) == ("judged", "hold")
    registry.advance(a.digest, "simulation-passed", by="ada", grounds=grounds(tmp_path, "verdict", a))
    registry.record(grounds(tmp_path, "decision", a, outcome="reject"), by="bo", note="dropped the cup")
    assert stages(registry) == {"a": "simulation-passed"}
    with pytest.raises(UserError, match="a rejection on record"):
        registry.advance(a.digest, "shadow", by="ada")
    assert registry.verify().grounds == 3


def test_grounds_keep_every_check(tmp_path: Path) -> None:
    checks = (
        Check("success", "mean", "promote", 0.1, (0.02, 0.18), 0.0, "points", "10 points better"),
        Check("latency", "p99", "hold", 0.3, None, float("inf"), "s", "0.3 s against 0.2 s"),
    )
    sides = PolicyName("c", "1" * 64), PolicyName("i", "2" * 64)
    found = Grounds.of_verdict(Verdict("hold", checks), *sides, {"evidence": "3" * 64})
    digest = found.save(tmp_path / "verdict.json")
    again = Grounds.load(tmp_path / "verdict.json")
    assert again.digest == digest == found.digest and again.reason == "0.3 s against 0.2 s"
    assert again.detail["evidence"] == "3" * 64
    assert json.loads((tmp_path / "verdict.json").read_text())["detail"]["checks"][1]["bound"] is None
    silent = Verdict("promote", (Check("parity", "off", "promote", 0.0, None, 0.0, "", "off"),))
    assert Grounds.of_verdict(silent, *sides).reason == "no objection in 1 checks; not asked: parity"
    (tmp_path / "verdict.json").write_text(json.dumps({"schema": 1, "kind": "verdict", "outcome": "yes"}))
    with pytest.raises(UserError, match=r"verdict or decision cannot be read: got .* outcome 'yes'"):
        Grounds.load(tmp_path / "verdict.json")


def test_a_damaged_bundle_is_not_rolled_back_to_and_who_acts_goes_on(registry: Registry) -> None:
    a, b = promoted(registry, "a"), promoted(registry, "b")
    weights = registry.bundle_folder(a.digest) / "policy" / "model.safetensors"
    weights.chmod(0o644)
    weights.write_bytes(b"weights of b")
    for call in (lambda: registry.rollback(by="ada"), registry.verify):
        with pytest.raises(UserError, match=r"model\.safetensors is not what was made"):
            call()
    assert acts(registry) == b.digest and stages(registry) == {"a": "retired", "b": "promoted"}


def test_tampering_is_noticed_wherever_it_is(registry: Registry) -> None:
    promoted(registry, "a")
    for path in sorted(p for p in registry.folder.rglob("*") if p.is_file()):
        whole = path.read_bytes()
        for i in {0, len(whole) // 2, len(whole) - 1} if whole else ():
            path.unlink()
            path.write_bytes(whole[:i] + bytes([whole[i] ^ 1]) + whole[i + 1 :])
            with pytest.raises(UserError):
                registry.verify()
        path.unlink()
        path.write_bytes(whole)
    registry.verify()
    (registry.folder / "bundles" / "other").mkdir()
    with pytest.raises(UserError, match="other is not what the ledger tells: got something unknown"):
        registry.verify()
    (registry.folder / "bundles" / "other").rmdir()
    for path in (registry.ledger.path, registry.ledger.anchor):
        path.unlink()
    with pytest.raises(UserError, match="has bundles but no ledger"):
        registry.status()


def test_a_ledger_forged_with_good_hashes_must_still_tell_what_can_happen(registry: Registry) -> None:
    a = submitted(registry, "a")
    registry.ledger.append(
        "advance", {"bundle": a.digest, "stage": "promoted", "by": "eve", "grounds": "", "waiver": ""}
    )
    with pytest.raises(UserError, match=r"tells what cannot have happened: got entry 1: .* from candidate to promoted"):
        registry.status()


def test_only_signed_bundles_where_that_is_wanted(registry: Registry, tmp_path: Path) -> None:
    strict = Registry(tmp_path / "strict", trusted=[make_keys(tmp_path / "key")], require_signature=True)
    with pytest.raises(UserError, match="not signed by anybody who is trusted"):
        strict.submit(paper_bundle(tmp_path / "a").folder, by="ada")
    assert strict.status().bundles == ()


def test_what_a_step_rests_on_is_on_the_disk_before_the_step(
    registry: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[Path] = []
    monkeypatch.setattr(os, "fsync", lambda handle: synced.append(Path(f"/proc/self/fd/{handle}").readlink()))
    bundle = paper_bundle(tmp_path / "a", "a")
    synced.clear()
    registry.submit(bundle.folder, by="ada")
    incoming = registry.folder / "incoming"
    before = synced[: synced.index(registry.ledger.path)]
    copied = [incoming / bundle.digest / name for name in (*bundle.manifest.files, "manifest.json", "policy", "")]
    assert {*copied, incoming} <= set(before)


class Killed:
    """Kills its own process at the n-th change of the disk."""

    def __init__(self, left: int) -> None:
        self.left = left

    def __call__(self, step: str) -> None:
        self.left -= 1
        if self.left < 0:
            os.kill(os.getpid(), signal.SIGKILL)


def died(work: Callable[[Registry], object], registry: Registry) -> bool:
    """Do some work in a child; whether it was killed. It may do nothing but write files: it is forked."""
    child = multiprocessing.get_context("fork").Process(target=work, args=(registry,))
    child.start()
    child.join()
    assert child.exitcode in (0, -signal.SIGKILL)
    return child.exitcode != 0


@pytest.mark.parametrize("what", ["submit", "promote", "rollback"])
def test_a_kill_between_any_two_changes_leaves_old_or_new(registry: Registry, tmp_path: Path, what: str) -> None:
    a, b = promoted(registry, "a"), submitted(registry, "b")
    for stage in STAGES[1:4]:
        file = grounds(tmp_path, "verdict", b, a.digest) if stage == "simulation-passed" else None
        registry.advance(b.digest, stage, by="ada", grounds=file)
    decision, new = grounds(tmp_path, "decision", b, a.digest), paper_bundle(tmp_path / "c", "c")
    if what == "rollback":
        registry.advance(b.digest, "promoted", by="ada", grounds=decision)
    works: dict[str, Callable[[Registry], object]] = {
        "submit": lambda mine: mine.submit(new.folder, by="ada"),
        "promote": lambda mine: mine.advance(b.digest, "promoted", by="ada", grounds=decision),
        "rollback": lambda mine: mine.rollback(by="ada"),
    }
    old, entries, seen = (stages(registry), acts(registry)), len(registry.history()), []
    for step in range(100):
        copy = Registry(tmp_path / "copies" / str(step), clock=lambda: TIME)
        shutil.copytree(registry.folder, copy.folder)
        killed = died(works[what], Registry(copy.folder, step=Killed(step)))
        now = (stages(copy), acts(copy))
        happened = len(copy.history()) - entries
        assert happened in (0, 1) and (now == old) == (happened == 0)
        assert copy.verify().entries == entries + happened  # also while files wait for the next writer
        if not happened:
            works[what](copy)
        with copy._locked():
            assert not list((copy.folder / "incoming").iterdir())
        assert copy.verify().entries == entries + 1
        seen.append(happened)
        if not killed:
            break
    assert seen == sorted(seen) and seen[0] == 0 and seen[-1] == 1 and len(seen) > 5


def test_a_kill_at_any_time_leaves_what_the_ledger_tells(registry: Registry, tmp_path: Path) -> None:
    a, c = promoted(registry, "a"), paper_bundle(tmp_path / "c", "c")
    files = {"simulation-passed": grounds(tmp_path, "verdict", c, a.digest),
             "promoted": grounds(tmp_path, "decision", c, a.digest)}  # fmt: skip

    def all_the_way(mine: Registry) -> None:
        mine.submit(c.folder, by="ada")
        for stage in STAGES[1:5]:
            mine.advance(c.digest, stage, by="ada", grounds=files.get(stage))
        mine.rollback(by="ada")

    rng, ends, duration = random.Random(0), set(), 0.0
    for round_ in range(25):
        mine = Registry(tmp_path / "copies" / str(round_))
        shutil.copytree(registry.folder, mine.folder)
        child = multiprocessing.get_context("fork").Process(target=all_the_way, args=(mine,))
        began = time.monotonic()
        child.start()
        child.join(None if not duration else rng.uniform(0, duration))
        child.kill()
        child.join()
        duration = duration or time.monotonic() - began
        audit, state = mine.verify(), mine.status()
        assert state.promoted == (c.digest if audit.entries == 10 else a.digest)
        assert stages(mine).get("c") == (None, *STAGES)[audit.entries - 5]
        ends.add(audit.entries)
    assert 11 in ends and len(ends) > 1


def test_writers_take_turns(registry: Registry) -> None:
    names = "abcdef"
    folders = [paper_bundle(registry.folder.parent / name, name).folder for name in names]
    threads = [
        threading.Thread(target=lambda folder=folder: Registry(registry.folder).submit(folder, by="ada"))
        for folder in folders
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(stages(registry)) == list(names) and registry.verify().entries == len(names)


def test_a_registry_that_is_held_for_too_long_says_so(registry: Registry) -> None:
    with (
        registry._locked(),
        pytest.raises(UserError, match=r"another process holds the lock: got .*\.lock for 0\.05 s"),
    ):
        Registry(registry.folder, patience=0.05).retire("77", by="ada")


def test_readers_need_no_lock_and_write_nothing(registry: Registry) -> None:
    def tree() -> dict[Path, int]:
        return {path: path.lstat().st_mtime_ns for path in (registry.folder, *registry.folder.rglob("*"))}

    a = promoted(registry, "a")
    (registry.folder / ".lock").unlink()
    before = tree()
    bundle, status, entries, audit = registry.promoted(), registry.status(), registry.history(), registry.verify()
    assert bundle is not None and bundle.digest == a.digest == status.promoted and len(entries) == audit.entries == 5
    assert tree() == before  # also the folder's own time: not even a lock came and went
    with registry._locked():
        assert Registry(registry.folder, patience=0.0).verify() == audit
    nowhere = Registry(registry.folder.parent / "nowhere")
    assert nowhere.status().bundles == () and not nowhere.folder.exists()


def test_nobody_is_rolled_back_to_whom_grounds_speak_against(registry: Registry, tmp_path: Path) -> None:
    a, b, c = (promoted(registry, name) for name in "abc")
    registry.record(grounds(tmp_path, "decision", b, a.digest, "reject"), by="bo")
    with pytest.raises(UserError, match=r"cannot act again: got a rejection.*the way back then leads further"):
        registry.rollback(by="ada")
    assert acts(registry) == c.digest
    registry.retire(b.digest, by="ada")
    assert registry.rollback(by="ada").digest == a.digest


def test_who_acts_on_a_server_is_promoted_or_in_canary_and_stands_in_the_ledger(
    registry: Registry, tmp_path: Path
) -> None:
    old, a = promoted(registry, "old"), promoted(registry, "a")
    names = ("candidate", "shadow", "canary", "rejected")
    tried = {name: submitted(registry, name) for name in names}
    for name in names[1:]:
        bundle = tried[name]
        registry.advance(
            bundle.digest, "simulation-passed", by="ada", grounds=grounds(tmp_path, "verdict", bundle, a.digest)
        )
        registry.advance(bundle.digest, "shadow", by="ada")
    for name in names[2:]:
        registry.advance(tried[name].digest, "canary", by="ada")
    registry.record(grounds(tmp_path, "decision", tried["rejected"], a.digest, "reject"), by="bo")

    def refused(digest: str, named: str | None = None) -> str:
        before = len(registry.history())
        with pytest.raises(UserError, match="expected one") as caught:
            registry.serve(digest, named=named, by="ana")
        assert len(registry.history()) == before
        return str(caught.value)

    for bundle, why in (
        (old, f"may not act: got retired since {TIME} by ada"), (tried["rejected"], "got a rejection on record"),
        (tried["candidate"], "got a bundle that is candidate"), (tried["shadow"], "got a bundle that is shadow"),
    ):  # fmt: skip
        assert why in refused(bundle.digest)
    assert "no such bundle in the registry" in refused("77")
    for bundle in (tried["canary"], a):
        assert registry.serve(bundle.digest, named=None, by="ana").digest == bundle.digest
    # Whom a server was started with needs no stage, unless there is something against it.
    registry.serve(tried["candidate"].digest, named=tried["candidate"].digest, by="ana")
    assert "retired" in refused(old.digest, named=old.digest)
    last = [(entry.kind, entry.body["bundle"], entry.body["by"]) for entry in registry.history()[-3:]]
    assert last == [("serve", bundle.digest, "ana") for bundle in (tried["canary"], a, tried["candidate"])]
    assert acts(registry) == a.digest and stages(registry)["canary"] == "canary"
    registry.retire(a.digest, by="ada")
    assert "got nothing that is promoted" in refused(tried["canary"].digest)
    registry.ledger.append("serve", {"bundle": a.digest, "by": "eve", "note": ""})
    with pytest.raises(UserError, match=r"cannot have happened: .* acted, retired or rejected"):
        registry.status()
