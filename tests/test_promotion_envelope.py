"""The safety envelope: numbers worked by hand, random chunks that must come out within every limit, and what wins."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from envs.actions import matrices, vectors
from envs.mujoco.bodies.franka import FrankaJoint
from envs.mujoco.bodies.rover import EMBODIMENT as ROVER
from rl_finetune.errors import UserError
from rl_finetune.policy.config import WIDOWX
from rl_finetune.promotion.records import Limits
from rl_finetune.promotion.serving.chunks import aligned, fading
from rl_finetune.promotion.serving.envelope import Envelope
from rl_finetune.promotion.serving.frames import carried, framed
from rl_finetune.promotion.serving.limiter import Bounds, Motion, braking, stopping
from rl_finetune.promotion.serving.workspace import tools_of
from rl_finetune.spec import ActionConvention, EmbodimentSpec

JOINTS = EmbodimentSpec("two", "single arm", ("ego",), ActionConvention(2, 8, "joint", "none", "none", 1.0))
"""Two joints at 1 Hz: units by second are units by step."""


def line(*, low=-np.inf, high=np.inf, speed=np.inf, push=np.inf, jerk=np.inf) -> Bounds:
    """One absolute channel."""
    return Bounds(*(np.array([float(x)]) for x in (low, high, speed, push, jerk)), framed=np.zeros(1, bool))


def joints(**limits: float) -> Envelope:
    return Envelope.of(JOINTS, Limits(**{name: (value, value) for name, value in limits.items()}))


def rates(path: np.ndarray, before: Motion) -> tuple[float, float, float]:
    """Greatest |first|, |second| and |third| difference of a command that goes on from `before`."""
    past = before.place - before.speed
    places = np.stack([past - (before.speed - before.push), past, before.place, *path])
    return tuple(float(np.abs(np.diff(places, n, axis=0)[3 - n :]).max()) for n in (1, 2, 3))  # type: ignore[return-value]


def test_brakes_meet_the_stand_exactly() -> None:
    # jerk 1: from speed 3 the push may fall to -1, then to -1.5 (1.5 + 0.5 = 2), then fade over -0.5 to 0
    path = braking(Motion(np.zeros(1), np.array([3.0]), np.zeros(1)), line(jerk=1.0, push=2.0))
    assert [m.speed.item() for m in path] == [3, 2, 0.5, 0, 0]
    assert [m.push.item() for m in path] == [0, -1, -1.5, -0.5, 0]
    assert path[-1].place.item() == 2.5
    # without limits of push and jerk the next step stands
    assert len(braking(Motion(np.zeros(1), np.array([3.0]), np.zeros(1)), line())) == 3
    # a push of 2 that may only fade by 1 carries the speed through zero: 0.8, 0.8 under no push, 0
    reach = stopping(Motion(np.zeros(1), np.array([-0.2]), np.array([2.0])), line(jerk=1.0))
    assert reach.stands.all() and reach.low == 0 and reach.high.item() == reach.end.item() == pytest.approx(1.6)


def test_chunk_within_its_limits_is_handed_on_bit_by_bit() -> None:
    t = np.linspace(0, 1, 8)[:, None]
    chunk = ((10 * t**3 - 15 * t**4 + 6 * t**5) * [1.0, -0.7]).astype(np.float32)
    told = joints(low=-2, high=2, velocity=0.3, acceleration=0.13, jerk=0.15).apply(chunk, Motion.resting(np.zeros(2)))
    assert told.actions.tobytes() == chunk.tobytes() and told.interventions == {} and not told.held
    # the same chunk with a limit that its third step breaks, and the one before which must give way to it
    told = joints(low=-2, high=2, velocity=0.2).apply(chunk, Motion.resting(np.zeros(2)))
    assert told.interventions.keys() == {"velocity"} and np.abs(np.diff(told.actions, axis=0)).max() <= 0.2 + 1e-6
    np.testing.assert_array_equal(told.actions[:3], chunk[:3])


def test_each_kind_is_counted_where_it_is_asked_for() -> None:
    chunk = np.zeros((8, 2), np.float32)
    chunk[2:, 0] = 3.0
    told = joints(low=-1, high=1).apply(chunk, Motion.resting(np.zeros(2)))
    assert told.interventions == {"action": 6} and told.actions[:, 0].tolist() == [0, 0, 1, 1, 1, 1, 1, 1]
    told = joints(velocity=1.0).apply(chunk, Motion.resting(np.zeros(2)))
    assert told.interventions == {"velocity": 2} and told.actions[:, 0].tolist() == [0, 0, 1, 2, 3, 3, 3, 3]
    chunk[2:, 0] = 1.0
    told = joints(acceleration=0.6).apply(chunk, Motion.resting(np.zeros(2)))  # steps of 0.6, 0.4, 0
    assert told.interventions == {"acceleration": 1}
    np.testing.assert_allclose(told.actions[:, 0], [0, 0, 0.6, 1, 1, 1, 1, 1], atol=1e-6)


def test_limit_of_place_is_not_approached_faster_than_the_body_can_stop() -> None:
    # every step keeps velocity 0.1 and jerk 0.02, but the last one is 0.05 before a wall, at full speed
    envelope = joints(low=-1, high=1, velocity=0.1, acceleration=0.02, jerk=0.02)
    start = Motion(np.array([0.15, 0.0]), np.array([0.1, 0.0]), np.zeros(2))
    chunk = np.stack([0.15 + 0.1 * np.arange(1, 9), np.zeros(8)], 1).astype(np.float32)
    told = envelope.apply(chunk, start)
    assert told.interventions["stopping"] == 1 and told.actions[-1, 0] < chunk[-1, 0]
    on = envelope.apply(np.full((8, 2), 1.0, np.float32), told.end)  # and the wall itself is asked for
    path = np.concatenate([told.actions, on.actions])
    assert path[:, 0].max() <= 1 + 1e-6
    assert np.array(rates(path, start)) == pytest.approx([0.1, 0.02, 0.02], abs=1e-6)
    assert on.actions[-1, 0] == pytest.approx(1.0, abs=1e-3)


def test_rates_win_over_place_where_both_cannot_be_kept() -> None:
    envelope = joints(low=-1, high=1, velocity=0.1, acceleration=0.05)
    outside = Motion(np.array([1.5, 0.0]), np.array([0.2, 0.0]), np.zeros(2))  # faster than allowed, too
    told = envelope.apply(np.zeros((24, 2), np.float32), outside)
    steps = np.diff(told.actions[:, 0], prepend=1.5)
    # braked by 0.05 a step: 0.15, 0.1, 0.05, 0; then back at no more than 0.1 a step
    np.testing.assert_allclose(steps[:4], [0.15, 0.1, 0.05, 0.0], atol=1e-6)
    assert told.actions[:, 0].max() == pytest.approx(1.8) and np.diff(steps).min() >= -0.05 - 1e-6
    assert (steps[4:] >= -0.1 - 1e-6).all() and abs(told.actions[-1, 0]) < 1


@pytest.mark.parametrize("seed", range(6))
def test_random_chunks_come_out_within_every_limit(seed: int) -> None:
    rng = np.random.default_rng(seed)
    body = replace(WIDOWX, action=replace(WIDOWX.action, rate=10.0)) if seed % 2 else replace(
        JOINTS, action=replace(JOINTS.action, channels=7, rate=20.0)
    )  # fmt: skip
    rate, moving = body.action.rate, framed(body)
    high, speed = rng.uniform(0.05, 1, 7), rng.uniform(0.2, 2, 7)
    limits = Limits(*(tuple(x) for x in (-high, high, speed, speed * rng.uniform(2, 9), speed * rng.uniform(9, 90))))
    envelope, end = Envelope.of(body, limits), None
    told, seam = [], np.zeros(7)
    for number in range(4):
        wild = rng.normal(size=(8, 7)) * 10 ** rng.uniform(-2, 1)
        guarded = envelope.apply((wild if number % 2 else np.cumsum(wild, 0)).astype(np.float32), end)
        assert (np.abs(guarded.actions) <= high + 1e-6).all()
        told.append(seam + guarded.actions)  # where the body is, were it followed from the first frame on
        seam, end = np.where(moving, told[-1][-1], 0.0), guarded.end
    path = np.concatenate(told)
    begun = np.stack([np.where(moving, 0.0, path[0])] * 3 + list(path))
    for order, limit in enumerate((limits.velocity, limits.acceleration, limits.jerk), 1):
        got = np.abs(np.diff(begun, order, axis=0)).max(0) * rate**order
        assert (got <= np.array(limit) + 2e-6 * rate**order).all(), order


def test_body_is_held_by_braking_and_its_gripper_stays() -> None:
    limits = Limits(velocity=(1.0,) * 7, acceleration=(0.5,) * 6 + (50.0,))
    envelope = Envelope.of(WIDOWX, limits)
    still = Motion.resting(np.array([0.0] * 6 + [-1.0]))
    told = envelope.hold(still, 8, "stale")
    assert told.held and told.interventions == {"stale": 8}
    np.testing.assert_array_equal(told.actions, [[0.0] * 6 + [-1.0]] * 8)
    # 0.05 m a step at 5 Hz; 0.5 m/s^2 is 0.02 m a step each step: 0.03, 0.01, 0
    moving = Motion(still.place, np.array([0.05] + [0.0] * 6), np.zeros(7))
    np.testing.assert_allclose(envelope.hold(moving, 4, "stale").actions[:, 0], [0.03, 0.04, 0.04, 0.04], atol=1e-7)
    bad = np.zeros((8, 7), np.float32)
    bad[5, 2] = np.inf
    told = envelope.apply(bad, still)
    assert told.held and told.interventions == {"not_finite": 8} and np.isfinite(told.actions).all()
    np.testing.assert_array_equal(joints().hold(Motion.resting(np.array([0.3, 0.4])), 2, "stale").actions, np.float32(
        [[0.3, 0.4]] * 2
    ))  # fmt: skip
    with pytest.raises(UserError, match="no command yet"):
        envelope.apply(bad, None)
    np.testing.assert_array_equal(Envelope.of(ROVER, Limits()).hold(None, 3, "stale").actions, np.zeros((3, 3)))


def test_waypoints_turn_with_the_base() -> None:
    quarter = Motion(np.array([1.0, 2.0, np.pi / 2]), np.array([0.1, 0.0, 0.2]), np.array([0.0, 0.3, 0.0]))
    seen = carried(quarter, ROVER)  # heading along y now, what went along x goes to the right
    np.testing.assert_allclose(seen.place, 0)
    np.testing.assert_allclose(seen.speed, [0, -0.1, 0.2], atol=1e-12)
    np.testing.assert_allclose(seen.push, [0.3, 0, 0], atol=1e-12)


def test_tool_stays_in_its_workspace() -> None:
    body = FrankaJoint.embodiment
    rest = np.array([0.0, 0.2, 0.0, -2.2, 0.0, 2.4, 0.8, 1.0])
    tools = tools_of(body)
    assert tools is not None and tools_of(WIDOWX) is None
    tool = tools(rest[None])[0, 0]
    box = tuple((float(at) - 0.03, float(at) + 0.03) for at in tool)
    limits = Limits(velocity=(2.0,) * 8, acceleration=(6.0,) * 8, jerk=(90.0,) * 8, workspace=box)
    chunk = np.tile(rest, (16, 1))
    chunk[:, 0] += np.minimum(np.arange(1, 17) * 0.02, 0.3)  # turns the tool 0.15 m aside
    told = Envelope.of(body, limits).apply(chunk.astype(np.float32), Motion.resting(rest))
    assert told.interventions["workspace"] > 0
    places = tools(told.actions.astype(np.float64))[:, 0]
    assert (np.abs(places - tool) <= 0.03 + 1e-6).all() and np.abs(places[-1] - tool).max() > 0.01
    small = chunk.astype(np.float32) * 0 + rest.astype(np.float32)
    assert (
        Envelope.of(body, limits).apply(small, Motion.resting(rest.astype(np.float32).astype(float))).actions is small
    )


@pytest.mark.parametrize(
    ("limits", "says"),
    [
        (Limits(low=(0.0,)), "2 numbers, or none"),
        (Limits(jerk=(0.0, 1.0)), "above zero"),
        (Limits(velocity=(np.nan, 1.0)), "2 numbers"),
        (Limits(low=(1.0, 1.0), high=(0.0, 2.0)), "low <= high"),
        (Limits(velocity=(1.0, 1.0), jerk=(1e-9, 1.0)), "stop the greatest velocity"),
    ],
)
def test_limits_that_cannot_be_kept_are_refused(limits: Limits, says: str) -> None:
    with pytest.raises(UserError, match=says):
        Envelope.of(JOINTS, limits)


def plan(body: EmbodimentSpec, steps: int) -> np.ndarray:
    """Where a body goes [steps, c] in the first frame."""
    k = np.arange(1, steps + 1)[:, None]
    return 0.04 * k * np.linspace(1, 0.3, body.action.channels) + 0.02 * np.sin(k)


def seen_from(path: np.ndarray, at: np.ndarray | None, body: EmbodimentSpec) -> np.ndarray:
    """Rows of `path` as a chunk whose first frame is where `at` says, by rotation matrices and complex numbers."""
    out = path.copy()
    if at is None or body.action.control == "joint":
        return out
    if body.action.control == "waypoint":
        moved = ((path[:, 0] - at[0]) + 1j * (path[:, 1] - at[1])) * np.exp(-1j * at[2])
        return np.stack([moved.real, moved.imag, path[:, 2] - at[2]], 1)
    out[:, :3] -= at[:3]
    out[:, 3:6] = vectors(matrices(path[:, 3:6]) @ matrices(at[3:6]).T)
    return out


@pytest.mark.parametrize("body", [WIDOWX, JOINTS, ROVER], ids=["delta_ee", "joint", "waypoint"])
@pytest.mark.parametrize("ahead", [1, 3, 8])
def test_chunks_of_one_plan_join_without_a_seam(body: EmbodimentSpec, ahead: int) -> None:
    path = plan(body, 17)
    sent = path[:8]
    pictures = None if ahead == 8 else path[7 - ahead]
    fresh = seen_from(path[8 - ahead : 17 - ahead], pictures, body)
    reply = aligned(fresh.astype(np.float32), sent.astype(np.float32), ahead, body)
    np.testing.assert_allclose(reply, seen_from(path[8 : 17 - ahead], path[7], body), atol=1e-6)


@pytest.mark.parametrize("body", [WIDOWX, JOINTS, ROVER], ids=["delta_ee", "joint", "waypoint"])
def test_command_does_not_jump_where_chunks_disagree(body: EmbodimentSpec) -> None:
    c, moving = body.action.channels, framed(body)
    even = np.cumsum(np.full((9, c), 0.01, np.float32), 0)
    reply = aligned(even + 0.3, even[:8], 4, body)  # another way, 0.3 beside
    assert fading(5, 4).tolist() == pytest.approx([0.8, 0.6, 0.4, 0.2, 0.0])
    start = np.where(moving, 0.0, even[7])
    # 0.3 is let in over five steps, beside the plan's own 0.01; a base that turns may take x and y along one axis
    most = (0.3 / 5 + 0.01 + 1e-6) * (np.sqrt(2) if body.action.control == "waypoint" else 1)
    assert np.abs(np.diff(reply, axis=0, prepend=start[None])).max() <= most
    if not moving.any():
        np.testing.assert_allclose(reply[-1], even[8] + 0.3)  # the old opinion has faded


def test_no_overlap_leaves_the_chunk_and_too_much_is_refused() -> None:
    fresh = np.ones((8, 7), np.float32)
    assert aligned(fresh, fresh, 0, WIDOWX) is fresh
    for ahead, sent in ((8, 8), (5, 4), (-1, 8)):
        with pytest.raises(ValueError, match="ahead"):
            aligned(fresh, fresh[:sent], ahead, WIDOWX)
