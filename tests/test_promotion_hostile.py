"""Strangers: what they do costs them their connection, and nobody else anything."""

from __future__ import annotations

import random
import time

import numpy as np
import pytest
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import connect

from benchmarks.attacks import ATTACKS, CONT, Stranger, Target, said, slow
from benchmarks.fuzz_server import fuzz
from benchmarks.serving import PATIENCE, InstantStage, Robot, observation, serving, until
from rl_finetune.config.serving import NetworkSection, ReadingSection, ServeSection
from rl_finetune.promotion.serving.wire import encode

SIZE = 64


def served(reading: ReadingSection = ReadingSection(), **network: object):  # noqa: B008
    """A server with small pictures on a free port."""
    settings = ServeSection(network=NetworkSection(port=0, **network), reading=reading)
    return serving(InstantStage(image_size=SIZE), settings)


def target(port: int) -> Target:
    """With patience."""
    return Target(port, 5.0)


def counted(server, kind: str) -> int:
    """Refusals of a kind."""
    return server.metrics.errors[kind]


REFUSED = {
    "objects": {b"__ndarray__": True, b"data": b"12345678", b"dtype": "|O", b"shape": [1]},
    "sizes that do not fit": {b"__ndarray__": True, b"data": b"1", b"dtype": "|u1", b"shape": [2**40]},
    "no number": np.full((SIZE, SIZE, 3), np.nan, np.float32),
    "another shape": np.zeros((SIZE, SIZE), np.uint8),
    "numbers beyond a picture's": np.full((SIZE, SIZE, 3), 256, np.int64),
}


@pytest.mark.parametrize("what", REFUSED)
def test_a_picture_that_is_none_is_refused_with_a_line_that_says_why(what):
    with served() as (port, server):
        robot, honest = Robot(port), Robot(port)
        line = robot.send(observation(1, SIZE) | {"observation/ego": REFUSED[what]})
        assert isinstance(line, str) and "got" in line and "expected" in line and "\n" not in line
        assert honest.honest(5, SIZE) is None
        assert counted(server, "wire") + counted(server, "request") == 1


def test_a_message_that_is_too_large_is_cut_while_it_comes_and_told_why(caplog):
    most = 2 * 3 * 8 * 64**2 + 2**20  # two cameras' pictures in float64, and room for the rest
    with served(ReadingSection(largest_side=64)) as (port, server):
        robot, honest = Robot(port), Robot(port)
        assert robot.send(bytes(most)).startswith("frame: got")  # read, and found to be none
        line = robot.send(bytes(most + 1))
        assert line == (
            f"message: got frame with {most + 1} bytes exceeds limit of {most} bytes; expected at most {most} bytes: "
            "smaller pictures"
        )
        with pytest.raises(ConnectionClosed, match="1009"):
            robot.honest(5, SIZE)
        assert counted(server, "too_big") == 1 and f"refused (too_big): {line}" in caplog.text
        assert honest.honest(5, SIZE) is None
        with Stranger(target(port)) as stranger:  # declared and never sent: refused at once all the same
            stranger.frame(b"", declared=2**62)
            assert stranger.answer() == "refused"


@pytest.mark.parametrize("fragmented", [False, True])
def test_a_message_that_comes_too_slowly_is_given_up_while_others_are_served(fragmented, caplog):
    with served(message_timeout=0.3) as (port, server):
        honest = Robot(port)
        with Stranger(target(port)) as stranger:
            frame = encode(observation(1, SIZE))
            if fragmented:
                stranger.frame(frame[:10], fin=False)
            else:
                stranger.frame(frame[:10], declared=len(frame))
            rounds = 0
            while not counted(server, "slow"):  # a byte now and then does not help
                assert honest.honest(rounds % 256, SIZE) is None
                stranger.frame(b"x", CONT, fin=False) if fragmented else stranger.socket.sendall(b"x")
                rounds += 1
                time.sleep(0.02)
            assert stranger.answer() == "refused" and rounds > 1
            assert "slow: expected a whole message within 0.3 s" in caplog.text
        assert honest.honest(7, SIZE) is None
        idle = Robot(port)
        time.sleep(0.5)  # silence between messages is no slowness
        assert idle.honest(8, SIZE) is None and counted(server, "slow") == 1


def test_who_never_reads_his_answers_is_cut():
    with served(message_timeout=0.5) as (port, server):
        honest = Robot(port)
        with Stranger(target(port)) as stranger:
            stranger.socket.settimeout(0.2)
            end = time.monotonic() + PATIENCE
            while not counted(server, "slow") and time.monotonic() < end:
                try:
                    stranger.frame(encode({"prompt": 1}))
                except OSError:
                    time.sleep(0.05)
            assert counted(server, "slow") and honest.honest(7, SIZE) is None
        assert until(lambda: len(server._talking) == 1)


def test_who_says_nothing_is_let_go():
    with served(idle_timeout=0.2) as (port, server):
        with pytest.raises(ConnectionClosed, match="idle"):
            Robot(port).socket.recv(PATIENCE)
        assert counted(server, "idle") == 1


def test_hundreds_of_silent_sockets_push_out_themselves_and_not_the_robots():
    with served(knocking=20, open_timeout=60.0) as (port, server):
        resident = Robot(port)
        silent = [Stranger(target(port), upgraded=False) for _ in range(300)]
        assert until(lambda: counted(server, "knocking") == 280)
        assert silent[0].socket.recv(12) == b"HTTP/1.1 503"
        newcomer = Robot(port)
        assert newcomer.honest(3, SIZE) is None and resident.honest(4, SIZE) is None
        assert silent[-1].hello() == 101  # among the latest twenty
        for stranger in silent:
            stranger.socket.close()


def test_a_handshake_without_end_is_cut():
    with served() as (port, server), Stranger(target(port), upgraded=False) as stranger:
        stranger.socket.sendall(b"GET / HTTP/1.1\r\n")
        with pytest.raises(OSError):
            while True:
                stranger.socket.sendall(b"x: " + b"y" * 4000 + b"\r\n")
                time.sleep(0.01)
        assert counted(server, "handshake") >= 1


def test_a_handshake_that_is_never_finished_is_let_go():
    with served(open_timeout=0.2) as (port, _), Stranger(target(port), upgraded=False) as stranger:
        stranger.socket.sendall(b"GET / HTTP/1.1\r\n")
        assert stranger.socket.recv(1) == b""


def test_strangers_of_one_address_cannot_take_every_place():
    with served(connections_per_address=3, connections=5) as (port, _):
        strangers = [Stranger(target(port)) for _ in range(6)]
        assert [s.status for s in strangers] == [101] * 3 + [503] * 3
        assert Robot(port).honest(1, SIZE) is None
        for stranger in strangers:
            stranger.socket.close()


def test_pings_are_answered_and_a_robot_that_vanishes_is_noticed():
    with served(ping_interval=0.2) as (port, server):
        alive = connect(f"ws://127.0.0.1:{port}/")
        stranger = Stranger(target(port))  # never answers a ping
        assert until(lambda: len(server._talking) == 2) and until(lambda: len(server._talking) == 1)
        assert alive.ping().wait(PATIENCE)
        stranger.socket.close()
        alive.close()


@pytest.mark.parametrize("attack", [a for a in ATTACKS if a is not slow], ids=lambda attack: attack.__name__)
def test_after_every_attack_the_server_serves_and_has_no_failure_of_its_own(attack):
    with served() as (port, server):
        rng = random.Random(attack.__name__)
        for _ in range(2 if attack.__name__ == "crowd" else 8):
            try:
                met = attack(target(port), rng)
            except (ConnectionError, TimeoutError) as error:
                met = repr(error)
            assert "timed out" not in met.lower()
        assert Robot(port).honest(5, SIZE) is None
        assert until(lambda: len(server._talking) <= 1)
        assert counted(server, "internal") == 0


def test_a_good_frame_of_a_stranger_is_served():
    """Else the attacks above would prove nothing."""
    with served() as (port, _):
        assert said(target(port), encode(observation(5, SIZE))) == "served"


def test_under_attack_for_twenty_seconds_every_honest_request_is_served():
    score = fuzz(20.0, seed=1)
    assert score.failures == [] and score.log == "" and score.exit_status == 0
    assert score.honest > 0 and score.visits > 0 and len(score.attacks) > len(ATTACKS) / 2
    assert sum(score.refused.values()) > 0 and "internal" not in score.refused
    assert not [name for name, met in score.attacks.items() if "left hanging" in met]
    assert 0 < score.refusals <= 3 * len(score.refused)  # one line of a kind in ten seconds
    assert score.memory_after - score.memory_before < 64
