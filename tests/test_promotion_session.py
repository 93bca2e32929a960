"""A client's episodes: numbers of chunks, ages of pictures, and chunks that overlap without waiting."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pytest

from rl_finetune.errors import UserError
from rl_finetune.policy.config import WIDOWX
from rl_finetune.promotion.records import Limits
from rl_finetune.promotion.serving.client import Executor
from rl_finetune.promotion.serving.envelope import Envelope
from rl_finetune.promotion.serving.reading import Reading, RequestError
from rl_finetune.promotion.serving.requests import ActReply
from rl_finetune.promotion.serving.session import DRIFT, Freshness, Session
from rl_finetune.types import FloatArray

PERIOD = 1 / WIDOWX.action.rate
JOINTED = replace(WIDOWX, tag="jointed", action=replace(WIDOWX.action, control="joint"))


@dataclass
class Rules:
    """One set of limits for every bundle."""

    limits: Limits = field(default_factory=Limits)

    def envelope(self, digest: str, tag: str) -> Envelope:
        return Envelope.of(JOINTED if tag == "jointed" else WIDOWX, self.limits)


def saw(**changes: Any) -> Reading:
    image = np.zeros((8, 8, 3), np.uint8)
    return replace(Reading({"ego": image}, "reach the red block", "widowx"), **changes)


def says(actions: FloatArray | float) -> ActReply:
    return ActReply(np.full((8, 7), actions, np.float32) if isinstance(actions, float) else actions, "a", 0.1, 1)


def test_chunks_and_episodes_are_numbered() -> None:
    session = Session(5, Rules(), seed=3)
    got = []
    for reset in (False, False, True, False):  # the first message begins an episode whatever it says
        request = session.ask(saw(reset=reset), 0.0)
        got.append((request.seed, request.env, request.episode, request.chunk))
        session.answer(says(0.0), 0.0)
    assert got == [(3, 5, 0, 0), (3, 5, 0, 1), (3, 5, 1, 0), (3, 5, 1, 1)]
    session.ask(saw(), 0.0)
    assert session.ask(saw(), 0.0).chunk == 2  # the one before was never answered
    # numbered by the client: the noise of held-out episode 9, environment 9 of an evaluation
    named = [session.ask(saw(episode=e, seed=11), 0.0) for e in (9, 9, 10)]
    assert [(r.seed, r.env, r.episode, r.chunk) for r in named] == [(11, 9, 0, 0), (11, 9, 0, 0), (11, 10, 0, 0)]
    assert np.array_equal(named[0].observation.images["ego"].shape, (1, 8, 8, 3))


def test_robot_cannot_become_another_within_an_episode() -> None:
    session = Session(0, Rules())
    session.ask(saw(), 0.0)
    with pytest.raises(RequestError, match="reset"):
        session.ask(saw(embodiment="jointed"), 0.0)
    assert session.ask(saw(embodiment="jointed", reset=True), 0.0).embodiment == "jointed"


def test_ages_count_from_the_quickest_message() -> None:
    clock = Freshness()
    assert clock.age(100.0, 7.3) == 0
    assert clock.age(101.0, 8.4) == pytest.approx(0.1 - DRIFT * 1.1)
    assert clock.age(102.0, 9.2) == 0  # quicker than the first
    assert clock.age(103.0, 10.7) == pytest.approx(0.5 - DRIFT * 1.5)
    assert clock.age(102.9, 10.8) is None
    # a client's clock that loses 100 us a second is no delay, for hours
    slow = Freshness()
    assert max(slow.age(t * (1 - 1e-4), float(t)) or 0.0 for t in range(0, 20_000, 10)) < 0.01


def test_stale_pictures_hold_the_robot() -> None:
    session = Session(0, Rules(Limits(stale_after=0.5)))

    def told(time: float | None, came: float, left: float) -> Any:
        session.ask(saw(time=time), came)
        return session.answer(says(0.02), left)

    assert not told(10.0, 0.0, 0.1).held
    answer = told(11.0, 1.3, 1.45)  # 0.3 late, then 0.15 in the server
    assert not answer.held and answer.interventions == {}
    answer = told(12.0, 2.3, 2.55)
    assert answer.held and answer.interventions == {"stale": 8}
    assert not answer.actions[:, :6].any()
    np.testing.assert_array_equal(answer.actions[:, 6], np.float32([0.02] * 8))  # the gripper as it was told last
    assert not told(13.0, 3.0, 3.1).held
    assert told(12.9, 3.2, 3.25).interventions == {"backwards": 8}
    assert told(None, 4.0, 4.6).interventions == {"stale": 8}  # all of it spent in the server
    session.ask(saw(time=1.0, reset=True), 5.0)  # another episode may have another clock
    assert not session.answer(says(0.0), 5.1).held


def test_joints_hold_what_they_were_told_or_refuse() -> None:
    session = Session(0, Rules())
    broken = np.full((8, 7), 0.3, np.float32)
    broken[0, 0] = np.nan
    session.ask(saw(embodiment="jointed"), 0.0)
    with pytest.raises(UserError, match="no command yet"):
        session.answer(says(broken), 0.0)
    session.ask(saw(embodiment="jointed"), 0.0)
    session.answer(says(0.25), 0.0)
    session.ask(saw(embodiment="jointed", ahead=3), 0.0)
    answer = session.answer(says(broken), 0.0)  # its NaN is in a step that alignment would drop
    assert answer.held and answer.interventions == {"not_finite": 5}
    np.testing.assert_array_equal(answer.actions, np.full((5, 7), 0.25, np.float32))


def test_more_than_was_sent_cannot_be_ahead() -> None:
    session = Session(0, Rules())
    with pytest.raises(RequestError, match="'ahead': got 1; expected at most the 0"):
        session.ask(saw(ahead=1), 0.0)
    session.ask(saw(), 0.0)
    session.answer(says(0.0), 0.0)
    session.ask(saw(ahead=8), 0.0)
    with pytest.raises(RequestError, match="less than the 8"):
        session.answer(says(0.0), 0.0)
    with pytest.raises(ValueError, match="without a question"):
        session.answer(says(0.0), 0.0)


@pytest.mark.parametrize(
    ("thought", "pause", "first"),
    [(0.0, 0.5 * PERIOD, 0.03), (0.0, 1.5 * PERIOD, 0.01), (0.5 * PERIOD, 0.0, 0.03), (1.5 * PERIOD, 0.0, 0.01)],
)
def test_motion_goes_on_through_the_seam_unless_the_robot_has_stood(thought: float, pause: float, first: float) -> None:
    # 0.25 m/s^2 at 5 Hz: a step may be 0.01 m longer than the one before
    session = Session(0, Rules(Limits(acceleration=(0.25,) * 7)))
    ramp = np.zeros((8, 7), np.float32)
    ramp[:, 0] = np.cumsum([0.01] + [0.02] * 7)
    session.ask(saw(), 0.0)
    assert session.answer(says(ramp), 0.0).interventions == {}
    came = 8 * PERIOD + thought  # the robot may stand before it asks, or until it is answered
    session.ask(saw(), came)
    fast = np.zeros((8, 7), np.float32)
    fast[:, 0] = 0.1 * np.arange(1, 9)
    assert session.quick(says(fast), came + pause) is None
    assert session.answer(says(fast), came + pause).actions[0, 0] == pytest.approx(first, abs=1e-6)


def test_a_quick_answer_is_the_answer_or_none_that_leaves_all_as_it_was() -> None:
    hurried, patient = (Session(0, Rules(Limits(velocity=(0.5,) * 7))) for _ in range(2))
    for number, height in enumerate((0.05, 3.0)):
        for session in (hurried, patient):
            assert session.ask(saw(), 0.0).chunk == number
        found = hurried.quick(says(height), 0.0)
        assert (found is None) == (height == 3.0)
        found, right = found or hurried.answer(says(height), 0.0), patient.answer(says(height), 0.0)
        np.testing.assert_array_equal(found.actions, right.actions)
        assert found.interventions == right.interventions
    assert hurried.ask(saw(), 0.0).chunk == 2


class Slow:
    """A server that answers after some ticks, by a real session; its policy walks on from what the robot sees."""

    def __init__(self, latency: int) -> None:
        self.session, self.latency, self.tick = Session(0, Rules(Limits(stale_after=60.0))), latency, 0
        self.place = np.zeros(7)

    def ask(self, observation: Mapping[str, Any]) -> Slow.Reply:
        now = self.tick * PERIOD
        self.session.ask(saw(ahead=observation["ahead"], time=now), now)
        steps = np.zeros((8, 7), np.float32)
        goal = np.sin(0.15 * (self.tick + np.arange(1, 9)))  # one wave in time, whenever it is looked at
        steps[:, 0] = goal - self.place[0]
        answer = self.session.answer(says(steps), now)
        return Slow.Reply(self, self.tick + self.latency, answer.actions)

    @dataclass
    class Reply:
        server: Slow
        due: int
        actions: FloatArray

        def done(self) -> bool:
            return self.server.tick >= self.due

        def result(self) -> FloatArray:
            return self.actions


def drive(ahead: int, latency: int, ticks: int = 60) -> tuple[int, float]:
    """Periods without a step after the first chunk began, and the greatest jump of the command."""
    server = Slow(latency)
    client = Executor(server.ask, ahead)
    frame, path, before = np.zeros(7), [], 0
    for server.tick in range(ticks):
        step = client.tick(lambda: {})
        if step is not None:
            frame = server.place if step.first else frame
            server.place = frame + step.action
        elif not path:
            before += 1
        if path or step is not None:
            path.append(server.place[0])
    return client.waited - before, float(np.abs(np.diff(path)).max())


def test_asking_ahead_leaves_nothing_to_wait_for() -> None:
    assert drive(ahead=0, latency=3)[0] >= 3 * 4  # at every seam
    assert 0 < drive(ahead=2, latency=3)[0] < drive(ahead=0, latency=3)[0]
    for ahead, latency in ((3, 3), (4, 3), (1, 1)):
        waited, jump = drive(ahead, latency)
        assert waited == 0
        assert jump < 0.16  # the wave itself moves by 0.15 a tick
