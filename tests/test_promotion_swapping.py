"""Who acts, and who may not: another bundle under load, because the registry says so, or an operator."""

from __future__ import annotations

import asyncio
import json
import shutil
import threading
import urllib.error
from contextlib import contextmanager
from pathlib import Path

import pytest
from bundles import grounds, promoted, submitted
from websockets.sync.client import connect

from benchmarks.serving import HORIZON, PATIENCE, InstantStage, Robot, observation, serving, until
from rl_finetune.config.serving import NetworkSection, ServeSection
from rl_finetune.errors import UserError
from rl_finetune.promotion.registry.ledger import Ledger
from rl_finetune.promotion.registry.registry import Registry
from rl_finetune.promotion.serving.registry_watch import RegistryWatch
from tests.serving import ADMIN, KEY, page, status


def settings(**network: object) -> ServeSection:
    """On a free port, and quick to follow."""
    return ServeSection(network=NetworkSection(port=0, **network), follow=0.02)


def test_hot_swap_and_rollback_under_load_fail_no_request_and_drop_no_connection(tmp_path):
    stage, stop, names = InstantStage(image_size=32), threading.Event(), [f"bundle-{i}" for i in range(12)]
    bundles: list[list[str]] = [[], [], []]

    def drive(number: int, port: int) -> None:
        robot = Robot(port)
        while not stop.is_set():
            reply = robot.send(observation(number, 32))
            assert float(reply["actions"][0, 0]) == number
            bundles[number].append(reply["bundle"])

    with serving(stage, settings()) as (port, server):
        loop = server._server.get_loop()

        def order(coroutine):
            return asyncio.run_coroutine_threadsafe(coroutine, loop).result(PATIENCE)

        threads = [threading.Thread(target=drive, args=(i, port)) for i in range(3)]
        for thread in threads:
            thread.start()
        for name in names:
            counts = [len(seen) for seen in bundles]
            assert order(server.swapper.swap(tmp_path / name)) == name
            assert until(lambda counts=counts: all(len(b) > n for b, n in zip(bundles, counts, strict=True)))
        with pytest.raises(UserError, match="whole one"):
            order(server.swapper.swap(tmp_path / "broken"))
        assert order(server.swapper.rollback()) == names[-2]
        assert until(lambda: all(seen[-1] == names[-2] for seen in bundles))
        stop.set()
        for thread in threads:
            thread.join(PATIENCE)
        told = page(port)
    assert 'outcome="swap"} 12' in told and 'outcome="rollback"} 1' in told and 'outcome="failed"} 1' in told
    assert f'digest="{names[-2]}"' in told and "errors_total{" not in told
    for seen in bundles:  # nobody ever goes back to an earlier bundle, but for the one rollback
        changes = [b for a, b in zip(["", *seen], seen, strict=False) if a != b]
        assert changes == [*sorted(changes[:-1], key=["first", *names].index), names[-2]]


@contextmanager
def followed(registry: Registry, stage: InstantStage, **network: object):
    """A server that follows a registry; its port, itself and a robot that is connected."""
    watch = RegistryWatch(Registry(registry.folder))
    with serving(stage, settings(**network), watch=watch) as (port, server):
        yield port, server, Robot(port, network.get("key"))


def acts(robot: Robot, digest: str) -> bool:
    """Whether it comes to that a bundle acts for a robot."""
    return until(lambda: (lambda reply: reply["bundle"] == digest and not reply["held"])(robot.send(observation())))


def held(robot: Robot) -> bool:
    """Whether it comes to that a robot is held, with all its displacements at zero."""
    found = until(lambda: robot.send(observation())["held"])
    return found and not robot.send(observation())["actions"].any()


def health(port: int) -> tuple[int, str]:
    """What `/healthz` says."""
    try:
        return 200, page(port, "/healthz")
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


@pytest.fixture
def registry(tmp_path: Path) -> Registry:
    return Registry(tmp_path / "registry")


def canary(registry: Registry, name: str) -> str:
    """A bundle in canary."""
    bundle, incumbent = submitted(registry, name), registry.status().promoted
    verdict = grounds(registry.folder.parent, "verdict", bundle, str(incumbent))
    registry.advance(bundle.digest, "simulation-passed", by="ada", grounds=verdict)
    for stage in ("shadow", "canary"):
        registry.advance(bundle.digest, stage, by="ada")
    return bundle.digest


def test_a_bundle_that_is_promoted_takes_over_and_one_that_is_retired_drives_nobody(registry, caplog):
    first = promoted(registry, "a").digest
    stage = InstantStage(digest=first)
    with followed(registry, stage) as (port, _, robot):
        assert acts(robot, first) and health(port) == (200, "OK\n")
        second = promoted(registry, "b").digest
        assert acts(robot, second)
        registry.retire(second, by="ana", note="hits the table")
        assert held(robot) and stage.digest == second
        status, text = health(port)
        assert status == 503 and text.startswith("every robot is held: retired since") and "by ana" in text
        newcomer = Robot(port).send(observation())
        assert newcomer["held"] and newcomer["interventions"] == {"withdrawn": HORIZON}
        told = page(port)
        assert "rl_finetune_acting 0\n" in told and 'errors_total{kind="withdrawn"}' in told
        registry.rollback(by="ana")
        assert acts(robot, first) and health(port) == (200, "OK\n") and "rl_finetune_acting 1\n" in page(port)
        third = promoted(registry, "c").digest
        assert acts(robot, third)
    assert caplog.text.count("may not act") == 1  # not with every look


@pytest.mark.parametrize("what", ["rejected", "deleted", "tampered with"])
def test_who_is_not_known_to_be_promoted_drives_nobody(registry, tmp_path, what):
    bundle = promoted(registry, "a")
    ledger = registry.ledger.path
    whole = ledger.read_bytes()
    with followed(registry, InstantStage(digest=bundle.digest)) as (port, _, robot):
        assert acts(robot, bundle.digest)
        if what == "rejected":
            registry.record(grounds(tmp_path, "decision", bundle, outcome="reject"), by="bo")
        elif what == "deleted":
            shutil.rmtree(registry.folder)
        else:
            ledger.write_bytes(whole.replace(b"ada", b"eve", 1))
        assert held(robot) and health(port)[0] == 503
        if what == "tampered with":
            assert "is not what was written" in health(port)[1]
            ledger.write_bytes(whole)
            assert acts(robot, bundle.digest)


def test_whoever_is_superseded_goes_on_until_the_next_one_is_ready_and_no_longer(registry):
    first = promoted(registry, "a").digest
    begun, ready = threading.Event(), threading.Event()

    class Slow(InstantStage):
        """Loads until it is told to go on, and then perhaps cannot."""

        def swap(self, folder: Path) -> None:
            begun.set()
            assert ready.wait(PATIENCE)
            if broken:
                raise UserError("bundle", got=folder.name, expected="a whole one", do="make it again")
            super().swap(folder)

    stage, broken = Slow(digest=first), False
    with followed(registry, stage) as (port, server, robot):
        second = promoted(registry, "b").digest
        assert begun.wait(PATIENCE)
        for _ in range(20):
            reply = robot.send(observation())
            assert reply["bundle"] == first and not reply["held"]
        registry.retire(second, by="ana")  # nobody is promoted any more, whatever is being loaded
        assert held(robot)
        ready.set()
        assert until(lambda: stage.digest == second) and held(robot)
        registry.rollback(by="ana")
        assert acts(robot, first)

        broken = True
        third = promoted(registry, "c").digest
        assert held(robot) and stage.digest == first  # retired, and its successor cannot be loaded
        assert "retired since" in health(port)[1] and "is not served: bundle: got" in health(port)[1]
        assert 'outcome="failed"} 1' in page(port)
        broken = False
        server._server.get_loop().call_soon_threadsafe(server.swapper.look_again)
        assert acts(robot, third)


def test_operators_choose_among_those_that_may_act_and_the_ledger_keeps_it(monkeypatch, registry):
    old, first = promoted(registry, "old").digest, promoted(registry, "a").digest
    second = canary(registry, "b")
    waiting = submitted(registry, "c").digest
    with followed(registry, InstantStage(digest=first)) as (port, *_):
        assert status(port, "/admin", KEY) == 404
    monkeypatch.setenv("RL_FINETUNE_ADMIN_KEY", ADMIN)
    monkeypatch.setenv("RL_FINETUNE_API_KEY", KEY)
    (registry.folder / "bundles" / "stray").mkdir()
    stage = InstantStage(digest=first)
    watch = RegistryWatch(Registry(registry.folder))
    with serving(stage, settings(connections=1), watch=watch) as (port, _):
        assert [status(port, "/admin", key) for key in (None, KEY)] == [401, 401]
        robot = Robot(port, KEY)
        operator = connect(f"ws://127.0.0.1:{port}/admin", additional_headers={"Authorization": f"Api-Key {ADMIN}"})

        def order(text: str):
            operator.send(text)
            return json.loads(operator.recv(PATIENCE))

        def swap(digest: object, **more: object):
            return order(json.dumps({"do": "swap", "bundle": digest, **more}))

        assert swap(second, by="ana") == {"ok": True, "bundle": second, "held": ""}
        assert acts(robot, second)
        before = len(registry.history())
        assert "retired since" in swap(old)["error"] and "got a bundle that is candidate" in swap(waiting)["error"]
        for bad in ("../outside", "/etc", "", ".", "..", "absent", "stray", 5):
            assert not swap(bad)["ok"]
        for bad in ("", "[]", "[" * 4000, '{"do": "stop"}', '{"do": "rollback", "to": 1}', "x" * 10_000):
            assert "order: got" in order(bad)["error"]
        assert "order: got another 'by'" in swap(first, by="a\nb")["error"]
        assert order('{"do": "status"}') == {"ok": True, "bundle": second, "held": ""}
        assert len(registry.history()) == before
        assert order('{"do": "rollback"}') == {"ok": True, "bundle": first, "held": ""}
        assert acts(robot, first)
        assert [(e.kind, e.body["bundle"], e.body["by"]) for e in registry.history()[before - 1 :]] == [
            ("serve", second, "ana"), ("serve", first, "an operator of the server")
        ]  # fmt: skip

        assert swap(second)["ok"] and acts(robot, second)
        registry.retire(second, by="ana")  # in the midst of its trials
        assert acts(robot, first)  # who is promoted acts in its place
        assert "retired since" in order('{"do": "rollback"}')["error"]
        registry.retire(first, by="ana")
        assert held(robot) and "retired since" in order('{"do": "status"}')["held"]
        assert stage.digest == first


def test_an_order_that_cannot_be_written_down_or_fails_leaves_who_acts(monkeypatch, registry):
    monkeypatch.setenv("RL_FINETUNE_ADMIN_KEY", ADMIN)
    first = promoted(registry, "a").digest
    second = canary(registry, "b")
    stage = InstantStage(digest=first)
    order = json.dumps({"do": "swap", "bundle": second})
    with followed(registry, stage) as (_, server, robot):

        def obeyed() -> dict[str, object]:
            return json.loads(
                asyncio.run_coroutine_threadsafe(server.swapper.obey(order), server._server.get_loop()).result(PATIENCE)
            )

        with monkeypatch.context() as full:
            full.setattr(Ledger, "append", lambda *_: (_ for _ in ()).throw(OSError(30, "Read-only file system")))
            assert "registry cannot be used" in str(obeyed()["error"])
        assert acts(robot, first)
        monkeypatch.setattr(stage, "swap", lambda folder: (_ for _ in ()).throw(RuntimeError("out of memory")))
        assert "internal error" in str(obeyed()["error"]) and acts(robot, first)
        assert [(e.kind, e.body["bundle"], e.body["note"]) for e in registry.history()[-2:]] == [
            ("serve", second, ""), ("serve", first, f"{second[:12]} cannot act")
        ]  # fmt: skip


def test_a_shadow_that_is_retired_is_watched_no_more(registry):
    first = promoted(registry, "a").digest
    second = canary(registry, "b")
    stage = InstantStage(digest=first, shadowed=second)
    with followed(registry, stage) as (_, _, robot):
        assert acts(robot, first) and stage.shadowed == second
        registry.retire(second, by="ana")
        assert until(lambda: stage.shadowed is None) and acts(robot, first)


def test_a_bundle_that_was_named_acts_until_the_registry_speaks_against_it(registry):
    first, named = promoted(registry, "a").digest, submitted(registry, "b").digest
    watch = RegistryWatch(Registry(registry.folder), named=named)
    with serving(InstantStage(digest=named), settings(), watch=watch) as (port, _):
        robot = Robot(port)
        assert acts(robot, named)
        promoted(registry, "c")  # is nothing to a server that was told whom to serve
        registry.retire(first, by="ana")
        assert acts(robot, named)
        registry.retire(named, by="ana")
        assert held(robot) and health(port)[0] == 503
