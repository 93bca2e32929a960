"""The server in front of a stage that answers at once: replies, batches, keys, limits, swaps, an orderly end."""

from __future__ import annotations

import asyncio
import logging
import threading
import time
import urllib.error
import urllib.request
from collections import Counter
from contextlib import contextmanager
from dataclasses import replace

import numpy as np
import pytest
from websockets.exceptions import ConnectionClosed

from benchmarks.serving import (
    CHANNELS,
    HORIZON,
    PATIENCE,
    InstantStage,
    PlainSession,
    Robot,
    listening,
    observation,
    serving,
    until,
)
from rl_finetune.config.serving import BatchingSection, NetworkSection, ServeSection
from rl_finetune.errors import UserError
from rl_finetune.promotion.serving.batching import Batcher, Late
from rl_finetune.promotion.serving.reading import Reading
from rl_finetune.promotion.serving.refusals import PERIOD, Refusals
from rl_finetune.promotion.serving.requests import ActReply
from rl_finetune.promotion.serving.server import PolicyServer
from tests.serving import ADMIN, KEY, page, status


def settings(*, batching: dict[str, object] | None = None, follow: float = 0.02, **network: object) -> ServeSection:
    """On a free port."""
    return ServeSection(
        network=NetworkSection(port=0, **network),
        batching=BatchingSection(**({"deadline": PATIENCE} | (batching or {}))),
        follow=follow,
    )


class Gate:
    """Holds the inference thread until it is opened, and remembers what it was given."""

    def __init__(self) -> None:
        self.open, self.entered, self.seen = threading.Event(), threading.Event(), []

    def __call__(self, requests) -> None:
        self.seen.append([int(next(iter(r.observation.images.values())).flat[0]) for r in requests])
        self.entered.set()
        assert self.open.wait(PATIENCE)


class Asking(threading.Thread):
    """One robot that asks once, in a thread of its own."""

    def __init__(self, port: int, value: int, prompt: str = "reach") -> None:
        super().__init__(daemon=True)
        self.robot, self.value, self.prompt, self.reply = Robot(port), value, prompt, None
        self.start()

    def run(self) -> None:
        try:
            self.reply = self.robot.send(observation(self.value) | {"prompt": self.prompt})
        except ConnectionClosed as error:
            self.reply = error

    def result(self):
        """Its reply."""
        self.join(PATIENCE)
        return self.reply

    @property
    def first(self) -> float:
        """The first action of its chunk."""
        return float(self.result()["actions"][0, 0])


@contextmanager
def one_waiting(gate: Gate, **batching: object):
    """A server whose thread is held by a first robot's request, that robot, and the stage."""
    stage = InstantStage(before=gate)
    with serving(stage, settings(batching=batching)) as (port, server):
        first = Asking(port, 1)
        try:
            assert gate.entered.wait(PATIENCE)
            yield port, server, first, stage
        finally:
            gate.open.set()


def waits(server: PolicyServer, count: int) -> bool:
    """Whether so many requests wait in the queue."""
    return until(lambda: f"rl_finetune_queued {count}\n" in server._page())


def test_a_robot_gets_the_metadata_then_a_chunk_for_each_observation():
    with serving(InstantStage(), settings()) as (port, _):
        robot = Robot(port)
        assert robot.metadata == {
            "bundle": "first", "embodiments": {"widowx": {"views": ["ego", "wrist"], "image_size": 224}}
        }  # fmt: skip
        reply = robot.send(observation(9))
        assert reply["actions"].dtype == np.float32 and reply["actions"].shape == (8, 7)
        assert np.allclose(reply["actions"][:, 3], 9 + np.arange(8) / 1000)
        assert (reply["bundle"], reply["held"], reply["interventions"]) == ("first", False, {"action": 1})
        timing = reply["server_timing"]
        assert timing["batch"] == 1 and 0 <= timing["infer_ms"] <= timing["total_ms"] < 1000 * PATIENCE


def test_what_cannot_be_read_costs_a_line_and_the_connection_goes_on(caplog):
    with serving(InstantStage(), settings()) as (port, _):
        robot = Robot(port)
        says = robot.send(observation() | {"prompt": 5})
        assert says == "'prompt': got 5; expected one printable line of text without '<|'"
        assert robot.honest(3) is None
        assert robot.send(b"\xc1").startswith("frame: got") and robot.honest(4) is None
        robot.socket.send("hello")
        assert robot.socket.recv(PATIENCE) == "frame: got text; expected binary msgpack"
        assert robot.honest(5) is None
        robot.socket.send(b"\xff\xfe", text=True)  # what websockets itself closes over is said before, too
        assert robot.socket.recv(PATIENCE).startswith("websocket: got invalid start byte")
        with pytest.raises(ConnectionClosed, match="1007"):
            robot.honest(5)
        told = page(port)
        for kind, count in {"request": 1, "wire": 2, "protocol": 1}.items():
            assert f'errors_total{{kind="{kind}"}} {count}' in told
    assert f"refused (request): {says}" in caplog.text and "refused (wire): frame: got" in caplog.text


def test_a_refusal_is_logged_at_once_and_a_thousand_are_two_lines(caplog):
    now, counts = 0.0, Counter()
    refusals = Refusals(counts, lambda: now)
    for _ in range(1000):
        refusals.note("wire", "frame: got nonsense")
    refusals.note("key", "wrong key")
    now = PERIOD
    refusals.note("wire", "frame: got more")
    assert [record.getMessage() for record in caplog.records] == [
        "refused (wire): frame: got nonsense", "refused (key): wrong key",
        "refused (wire): frame: got more; and 999 more since the last line",
    ]  # fmt: skip
    assert counts == {"wire": 1001, "key": 1}


@pytest.mark.parametrize(
    "shape", [(720, 1280, np.uint8), (480, 640, np.float32), (480, 640, np.float64), (1280, 1280, np.float64)]
)
def test_what_cameras_send_is_taken_from_all_of_them_at_once(shape):
    height, width, dtype = shape
    with serving(InstantStage(image_size=64, views=("ego", "left", "right")), settings()) as (port, _):
        picture = np.full((height, width, 3), 1 if dtype == np.uint8 else 1 / 255, dtype)
        said = {"images": dict.fromkeys(("ego", "left", "right"), picture), "prompt": "reach"}
        reply = Robot(port).send(said)
        # A picture of 1280 x 720 is padded with black above.
        assert reply["actions"][0, 0] == (0.0 if height != width else 1.0)


class Unknown(PlainSession):
    """Of a robot of which nobody knows where it is."""

    def hold(self, kind, digest, now):
        raise UserError("robot cannot be held", got="no command yet", expected="one", do="ask again")


def test_where_there_is_no_chunk_the_robot_is_held_or_told_why_and_the_connection_goes_on(caplog):
    def fail(requests) -> None:
        if requests[0].observation.images["ego"].flat[0] == 1:
            raise RuntimeError("secret insides")

    for sessions in (PlainSession, Unknown):
        with listening(PolicyServer(InstantStage(before=fail), sessions, settings())) as (port, _):
            robot = Robot(port)
            reply = robot.send(observation(1))
            if sessions is Unknown:
                assert reply == "internal error; the server's log has it"
            else:  # a frame like any other, for a client that raises whatever it is told in words
                assert reply["held"] and reply["interventions"] == {"internal": HORIZON}
                assert reply["actions"].shape == (HORIZON, CHANNELS) and not reply["actions"].any()
            assert robot.honest(2) is None
            assert 'errors_total{kind="internal"} 1' in page(port)
    assert caplog.text.count("RuntimeError: secret insides") == 2


def test_requests_that_wait_are_computed_together_and_each_gets_its_own():
    gate = Gate()
    with one_waiting(gate, max_batch=2) as (port, server, first, _):
        others = []
        for value in (2, 3, 4):
            others.append(Asking(port, value))
            assert waits(server, len(others))
        gate.open.set()
        assert [robot.first for robot in (first, *others)] == [1, 2, 3, 4]
        assert gate.seen == [[1], [2, 3], [4]]
        assert [robot.reply["server_timing"]["batch"] for robot in (first, *others)] == [1, 2, 2, 1]


def test_bodies_never_share_a_batch():
    gate = Gate()
    stage = InstantStage(before=gate)
    bodies = {tag: {"views": ["ego"], "image_size": 64} for tag in ("a", "b")}
    stage.metadata = lambda: {"bundle": "first", "embodiments": bodies}
    with serving(stage, settings()) as (port, server):
        asking = []
        for number, tag in enumerate("abba"):
            robot = Robot(port)
            said = observation(number, 64) | {"embodiment": tag}
            asking.append(threading.Thread(target=robot.send, args=(said,), daemon=True))
            asking[-1].start()
            assert gate.entered.wait(PATIENCE) if number == 0 else waits(server, number)
        gate.open.set()
        for thread in asking:
            thread.join(PATIENCE)
    assert gate.seen == [[0], [1, 2], [3]]


def test_one_clients_fault_does_not_cost_the_others_of_its_batch_theirs():
    gate = Gate()

    def before(requests) -> None:
        gate(requests)
        if any("poison" in r.observation.instruction for r in requests):
            raise UserError("prompt", got="poison", expected="none", do="change it")

    with one_waiting(gate) as (port, server, first, stage):
        stage.before = before
        robots = [Asking(port, 2), Asking(port, 3, prompt="poison"), Asking(port, 4)]
        assert waits(server, 3)
        gate.open.set()
        assert (first.first, robots[0].first, robots[2].first) == (1, 2, 4)
        assert robots[1].result() == "prompt: got poison; expected none; change it"
        assert [sorted(batch) for batch in gate.seen[:2]] == [[1], [2, 3, 4]]
        assert sorted(gate.seen[2:]) == [[2], [3], [4]]


def test_a_lone_client_is_not_kept_waiting_for_company_but_two_are_brought_together():
    stage = InstantStage()
    with serving(stage, settings(batching={"max_wait": 50.0})) as (port, _):
        began = time.monotonic()
        alone = Robot(port)
        assert alone.honest(1) is None
        assert time.monotonic() - began < 45
        robots = [Asking(port, 2), Asking(port, 3), Asking(port, 4)]
        alone.close()  # three clients, and all three have asked: nobody waits it out
        assert [robot.first for robot in robots] == [2, 3, 4]
        assert time.monotonic() - began < 45
    assert sum(stage.batches) == 4


def test_a_chunk_that_takes_long_to_limit_keeps_nobody_else_waiting():
    going, begun = threading.Event(), threading.Event()

    class Thorough(PlainSession):
        """Takes its time over one chunk."""

        def quick(self, reply, now):
            return None if reply.actions[0, 0] == 1 else self.answer(reply, now)

        def answer(self, reply, now):
            if reply.actions[0, 0] == 1:
                begun.set()
                assert going.wait(PATIENCE)
            return super().answer(reply, now)

    with listening(PolicyServer(InstantStage(), Thorough, settings())) as (port, _):
        slow, other = Asking(port, 1), Robot(port)
        try:
            assert begun.wait(PATIENCE)
            assert other.honest(2) is None and slow.reply is None
        finally:
            going.set()
        assert slow.first == 1


def test_a_request_that_waits_too_long_is_given_up_and_never_computed():
    gate = Gate()
    with one_waiting(gate, deadline=0.2) as (port, server, first, _):
        for late in (Asking(port, 2), first):
            assert late.result()["held"] and late.reply["interventions"] == {"late": HORIZON}
        assert waits(server, 0)
        gate.open.set()
        assert until(lambda: first.robot.honest(5) is None)
    assert gate.seen[:2] == [[1], [5]]


def test_a_request_is_given_up_as_soon_as_its_pictures_are_too_old():
    gate = Gate()
    stage = InstantStage(before=gate)
    said = stage.metadata()["embodiments"]["widowx"] | {"stale_after": 0.2}
    stage.metadata = lambda: {"bundle": "first", "embodiments": {"widowx": said}}
    with serving(stage, settings()) as (port, server):  # whose deadline is far away
        first = Asking(port, 1)
        try:
            assert gate.entered.wait(PATIENCE)
            second = Asking(port, 2)
            for robot in (first, second):
                assert robot.result()["interventions"] == {"late": HORIZON}
            assert waits(server, 0)
        finally:
            gate.open.set()
        assert until(lambda: first.robot.honest(5) is None)
    assert gate.seen[0] == [1] and [2] not in gate.seen and [5] in gate.seen


def test_a_robot_that_was_told_nothing_yet_goes_first_in_every_other_batch():
    """The others can be held where they are too late."""
    gate = Gate()
    gate.open.set()
    with serving(InstantStage(before=gate), settings(batching={"max_batch": 2})) as (port, server):
        regulars = [Robot(port) for _ in range(4)]
        for number, robot in enumerate(regulars):
            assert robot.honest(number) is None
        gate.open.clear()
        gate.entered.clear()
        gate.seen.clear()
        threads = []

        def ask(robot: Robot, value: int) -> None:
            threads.append(threading.Thread(target=robot.send, args=(observation(value),), daemon=True))
            threads[-1].start()
            assert gate.entered.wait(PATIENCE) if value == 0 else waits(server, value)

        for value in range(4):
            ask(regulars[value], value)
        for value in (4, 5):
            ask(Robot(port), value)
        gate.open.set()
        for thread in threads:
            thread.join(PATIENCE)
    assert gate.seen == [[0], [4, 1], [2, 3], [5]]


def test_who_would_be_too_late_does_not_keep_others_from_being_in_time():
    """Of a policy that takes five seconds, on a clock of its own."""
    request = PlainSession(0).ask(Reading({"ego": np.zeros((8, 8, 3), np.uint8)}, "reach", "widowx"), 0.0)
    seen = []

    async def live() -> None:
        loop, now, gate = asyncio.get_running_loop(), 0.0, threading.Event()
        gate.set()

        def act(requests):
            nonlocal now
            assert gate.wait(PATIENCE)
            now += 5.0
            seen.append([r.seed for r in requests])
            return [ActReply(np.zeros((1, 1), np.float32), "a", 0.0, 1) for _ in requests]

        loop.time = lambda: now
        batcher = Batcher(act, BatchingSection(max_batch=1, max_wait=0.0, deadline=1000.0), lambda: 9)
        await batcher.ask(replace(request, seed=1))
        gate.clear()
        asked = [batcher.ask(replace(request, seed=n), within) for n, within in ((2, 900.0), (3, 9.0), (4, 900.0))]
        gate.set()
        await asked[2]
        with pytest.raises(Late, match="no chunk within 9 s"):
            await asked[1]
        del loop.time
        await batcher.close()

    asyncio.run(live())
    assert seen[:3] == [[1], [2], [4]]


def test_a_client_that_leaves_takes_its_request_with_it():
    gate = Gate()
    with one_waiting(gate) as (port, server, first, _):
        second = Asking(port, 2)
        assert waits(server, 1)
        second.robot.socket.socket.shutdown(2)
        assert waits(server, 0)
        gate.open.set()
        assert first.first == 1
        assert first.robot.honest(9) is None
        assert 'errors_total{kind="gone"} 1' in page(port)
    assert gate.seen == [[1], [9]]


def test_keys(monkeypatch, caplog, tmp_path):
    caplog.set_level(logging.DEBUG)
    monkeypatch.setenv("RL_FINETUNE_API_KEY", KEY)
    with serving(InstantStage(), settings()) as (port, _):
        assert [status(port, "/", key) for key in (None, "wrong", KEY + "x", KEY[:-1], "")] == [401] * 5
        assert Robot(port, KEY).honest(1) is None
        assert page(port, "/healthz") == "OK\n"
        with pytest.raises(urllib.error.HTTPError, match="401"):
            page(port)
        assert KEY not in page(port, key=KEY) and 'errors_total{kind="key"} 6' in page(port, key=KEY)
    assert not [r for r in caplog.records if KEY in r.getMessage() and r.name != "websockets.client"]
    monkeypatch.delenv("RL_FINETUNE_API_KEY")
    file = tmp_path / "key"
    file.write_text(ADMIN + "\n")
    with serving(InstantStage(), settings(api_key_file=str(file))) as (port, _):
        assert (status(port, "/", KEY), status(port, "/", ADMIN)) == (401, 101)


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "", "192.168.1.2", "example.org"])
def test_others_cannot_reach_a_server_without_a_key(monkeypatch, host):
    monkeypatch.delenv("RL_FINETUNE_API_KEY", raising=False)
    with pytest.raises(UserError, match="needs an API key"):
        PolicyServer(InstantStage(), lambda number: None, settings(host=host))
    monkeypatch.setenv("RL_FINETUNE_API_KEY", "short")
    with pytest.raises(UserError, match="5 characters") as caught:
        PolicyServer(InstantStage(), lambda number: None, settings(host=host))
    assert "short" not in str(caught.value)
    monkeypatch.setenv("RL_FINETUNE_API_KEY", KEY)
    PolicyServer(InstantStage(), lambda number: None, settings(host=host))


def test_pages_of_a_browser_cannot_move_the_robot():
    with serving(InstantStage(), settings()) as (port, _):
        assert status(port, "/", Origin="http://example.org") == 403
        assert status(port, "/elsewhere") == 404


def test_places_are_limited_and_given_back():
    with serving(InstantStage(), settings(connections=2)) as (port, server):
        first, second = Robot(port), Robot(port)
        assert status(port, "/") == 503
        assert "connections 2\n" in page(port) and page(port, "/healthz") == "OK\n"
        first.close()
        assert until(lambda: "connections 1\n" in server._page())
        assert Robot(port).honest(1) is None and second.honest(2) is None
    with serving(InstantStage(), settings(connections_per_address=1)) as (port, _):
        assert Robot(port).honest(1) is None
        assert status(port, "/") == 503


def test_stopping_finishes_what_is_under_way_and_says_goodbye():
    gate = Gate()
    stage = InstantStage(before=gate)
    with serving(stage, settings()) as (port, server):
        idle, busy = Robot(port), Asking(port, 6)
        assert gate.entered.wait(PATIENCE)
        ended = asyncio.run_coroutine_threadsafe(server.stop(), server._server.get_loop())
        with pytest.raises(ConnectionClosed, match="1001"):
            idle.socket.recv(PATIENCE)
        assert not ended.done()
        with pytest.raises(OSError):
            Robot(port)
        gate.open.set()
        assert busy.first == 6
        with pytest.raises(ConnectionClosed, match="1001"):
            busy.robot.socket.recv(PATIENCE)
        ended.result(PATIENCE)
