"""Another bundle under load, because the registry's pointer moved, or because an operator said so."""

from __future__ import annotations

import asyncio
import json
import threading

import pytest
from websockets.sync.client import connect

from benchmarks.serving import PATIENCE, InstantStage, Robot, observation, serving, until
from rl_finetune.config.serving import NetworkSection, ServeSection
from rl_finetune.errors import UserError
from rl_finetune.promotion.serving.swapping import Followed
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


def test_the_registrys_pointer_is_followed(tmp_path, caplog):
    pointer = tmp_path / "promoted.json"
    pointer.write_text("first")

    def point(name: str) -> None:
        (tmp_path / "new").write_text(name)
        (tmp_path / "new").replace(pointer)

    followed = Followed(pointer, lambda: tmp_path / pointer.read_text(), b"first")
    stage = InstantStage()
    with serving(stage, settings(), followed=followed) as (port, server):
        robot = Robot(port)
        assert robot.honest(1) is None and stage.digest == "first"
        point("second")
        assert until(lambda: robot.send(observation())["bundle"] == "second")
        point("broken-3")
        assert until(lambda: 'outcome="failed"} 1' in server._page())
        assert robot.send(observation())["bundle"] == "second"
        pointer.unlink()
        assert until(lambda: "nothing is promoted any more" in caplog.text)
        assert robot.send(observation())["bundle"] == "second"
        point("first")
        assert until(lambda: robot.send(observation())["bundle"] == "first")
        stage.digest = "something else"
        server._server.get_loop().call_soon_threadsafe(server.swapper.look_again)
        assert until(lambda: robot.send(observation())["bundle"] == "first")
    assert caplog.text.count("nothing is promoted any more; second goes on") == 1  # not with every look


def test_operators_need_their_own_key_and_choose_among_bundles_that_lie_there(monkeypatch, tmp_path):
    with serving(InstantStage(), settings()) as (port, _):
        assert status(port, "/admin", KEY) == 404
    monkeypatch.setenv("RL_FINETUNE_ADMIN_KEY", ADMIN)
    monkeypatch.setenv("RL_FINETUNE_API_KEY", KEY)
    (tmp_path / "bundles" / "second").mkdir(parents=True)
    (tmp_path / "outside").mkdir()
    with serving(InstantStage(), settings(connections=1), bundles=tmp_path / "bundles") as (port, _):
        assert [status(port, "/admin", key) for key in (None, KEY)] == [401, 401]
        robot = Robot(port, KEY)
        operator = connect(f"ws://127.0.0.1:{port}/admin", additional_headers={"Authorization": f"Api-Key {ADMIN}"})

        def order(text: str):
            operator.send(text)
            return json.loads(operator.recv(PATIENCE))

        assert order('{"do": "swap", "bundle": "second"}') == {"ok": True, "bundle": "second"}
        assert robot.send(observation())["bundle"] == "second"
        for bad in ("../outside", "/etc", "", ".", "..", "absent", "second/../../outside", 5):
            assert not order(json.dumps({"do": "swap", "bundle": bad}))["ok"]
        for bad in ("", "[]", "[" * 4000, '{"do": "stop"}', '{"do": "rollback", "to": 1}', "x" * 10_000):
            assert "order: got" in order(bad)["error"]
        assert order('{"do": "status"}') == {"ok": True, "bundle": "second"}
        assert order('{"do": "rollback"}') == {"ok": True, "bundle": "first"}
        assert "no earlier bundle" in order('{"do": "rollback"}')["error"]
        assert robot.send(observation())["bundle"] == "first"
