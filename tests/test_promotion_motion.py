"""How a body is watched, and what is made of it: derivatives worked by hand, collisions against geometry."""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import combinations

import mujoco
import numpy as np
import pytest

import envs
from actors.watching import MotionLog, Watch, joined
from envs.base import BodyMotion, VectorEnv
from envs.expert import expert_chunk
from envs.mujoco.catalogue import WORLDS
from envs.mujoco.cpu import STATE
from envs.mujoco.watching import Watcher
from rl_finetune.errors import UserError
from rl_finetune.promotion.evidence.limits import KNOWN, limits_for
from rl_finetune.promotion.evidence.motion import audit, commanded, differences, displaced
from rl_finetune.promotion.records import Limits
from rl_finetune.promotion.registry.limits import check_limits
from rl_finetune.spec import ActionConvention, EmbodimentSpec, EnvSpec
from rl_finetune.types import ActionChunk, ChunkOutcome, Failure, Observation, SeedKeys

NAN = float("nan")


def body(control: str, channels: int, rate: float = 2.0, horizon: int = 2, gripper: str = "none") -> EmbodimentSpec:
    action = ActionConvention(channels, horizon, control, "none", gripper, rate)
    return EmbodimentSpec("thing", "single arm", ("ego",), action)


def log(actions: list[list[float]], fresh: list[int], held: list[float], episode: list[int] | None = None) -> MotionLog:
    """One episode, or as many as `episode` names, all held alike."""
    episodes = episode or [0] * len(actions)
    return MotionLog(
        np.array(episodes), np.array(fresh, bool), np.array(actions, np.float32),
        np.array([held] * (max(episodes) + 1), np.float32), None, None, None,
    )  # fmt: skip


def test_joint_positions_are_differenced_from_where_the_body_stood() -> None:
    moved = differences(log([[1], [2], [4]], [1, 0, 1], [0]), body("joint", 1).action)
    assert moved["velocity"][:, 0].tolist() == [2, 2, 4]
    assert moved["acceleration"][:, 0].tolist() == [4, 0, 4]
    assert moved["jerk"][:, 0].tolist() == [8, -8, 8]


def test_where_nobody_knows_how_the_body_stood_differences_begin_later() -> None:
    moved = differences(log([[1], [2], [4], [4]], [1, 0, 1, 0], [NAN]), body("joint", 1).action)
    assert np.array_equal(moved["velocity"][:, 0], [NAN, 2, 4, 0], equal_nan=True)
    assert np.array_equal(moved["acceleration"][:, 0], [NAN, NAN, 4, -8], equal_nan=True)
    assert np.array_equal(moved["jerk"][:, 0], [NAN, NAN, NAN, -24], equal_nan=True)


def test_displacements_add_up_over_chunks_and_grippers_do_not() -> None:
    convention = body("delta_ee", 4, gripper="open_positive").action
    actions = [[1.0, 0, 0, 1], [2, 0, 0, 1], [1, 0, 0, -1], [0, 3, 0, -1]]
    state = commanded(np.array(actions), np.array([1, 0, 1, 0], bool), convention)
    assert state.tolist() == [[1, 0, 0, 1], [2, 0, 0, 1], [3, 0, 0, -1], [2, 3, 0, -1]]
    moved = differences(log(actions, [1, 0, 1, 0], [9, 9, 9, NAN]), convention)
    assert moved["velocity"][:, 0].tolist() == [2, 2, 2, -2]  # counted from the first frame, whatever was held
    assert np.array_equal(moved["velocity"][:, 3], [NAN, 0, -4, 0], equal_nan=True)


def test_a_chunk_that_was_cut_short_counts_on_from_its_last_executed_step() -> None:
    state = commanded(np.array([[2.0, 0, 0], [1, 0, 0]]), np.array([1, 1], bool), body("delta_ee", 3).action)
    assert state[:, 0].tolist() == [2, 3]


def test_both_arms_of_a_body_have_their_gripper_last() -> None:
    convention = replace(body("delta_ee", 14, gripper="open_positive").action, rotation="axis_angle")
    assert np.flatnonzero(~displaced(convention)).tolist() == [6, 13]
    assert not displaced(body("joint", 8).action).any()


def test_waypoints_stand_in_the_frame_in_which_the_chunk_before_ended() -> None:
    quarter = np.pi / 2
    actions = np.array([[1.0, 0, 0], [1, 0, quarter], [1, 0, 0], [1, 1, quarter], [0, 2, 0]])
    state = commanded(actions, np.array([1, 0, 1, 0, 1], bool), body("waypoint", 3).action)
    # ahead, then facing +y: one ahead is (1, 1), one to the left is (0, 1); then facing -x: left is -y
    expected = [[1, 0, 0], [1, 0, quarter], [1, 1, quarter], [0, 1, np.pi], [0, -1, np.pi]]
    assert np.allclose(state, expected, atol=1e-12)


def test_a_bases_speed_is_along_the_axes_of_its_chunk() -> None:
    eighth, convention = np.pi / 4, body("waypoint", 3).action
    # turn by 45 degrees on the spot; then two ahead, and one to the left, as the base stands
    seen = log([[0, 0, eighth], [2, 0, 0], [2, 1, 0]], [1, 1, 0], [0, 0, 0])
    moved = {
        order: values / convention.rate**n for n, (order, values) in enumerate(differences(seen, convention).items(), 1)
    }
    assert np.allclose(moved["velocity"], [[0, 0, eighth], [2, 0, 0], [0, 1, 0]], atol=1e-6)
    assert np.allclose(moved["acceleration"], [[0, 0, eighth], [2, 0, -eighth], [-2, 1, 0]], atol=1e-6)
    assert np.allclose(moved["jerk"], [[0, 0, eighth], [2, 0, -2 * eighth], [-4, 1, eighth]], atol=1e-6)


def test_points_are_not_compared_across_chunks_nor_anything_across_episodes() -> None:
    moved = differences(log([[0.1], [0.2], [0.9], [0.8]], [1, 0, 1, 0], [NAN]), body("trace", 1).action)
    assert np.allclose(moved["velocity"][:, 0], [NAN, 0.2, NAN, -0.2], equal_nan=True)
    two = differences(log([[1], [5], [7]], [1, 1, 0], [0], [0, 1, 1]), body("joint", 1).action)
    assert two["velocity"][:, 0].tolist() == [2, 10, 4]


def test_an_audit_counts_steps_beyond_each_limit_and_names_what_was_measured() -> None:
    seen = replace(
        log([[1, 0], [2, 0], [4, 0], [4, 0]], [1, 0, 1, 0], [0, 0]),
        tools=np.array([[[0, 0, 0.0]], [[0, 0, 0.5]], [[0, 0, 1.5]], [[0, 0, 0.5]]], np.float32),
        beyond=np.array([0, 1, 0, 0], bool), touching=np.array([1, 1, 1, 0], bool),
    )  # fmt: skip
    limits = Limits(low=(0, 0), high=(3, 1), velocity=(3, 3), acceleration=(8, 8), workspace=((-1, 1),) * 3)
    found = audit(seen, body("joint", 2), limits, "here")
    assert found.over == {"action": 2, "velocity": 1, "acceleration": 0, "workspace": 1, "joint": 1}
    assert found.self_collisions == 3 and found.steps == 4
    assert set(found.measured) == {"action", "velocity", "acceleration", "workspace", "joint", "self_collision"}
    assert found.actions == ((1.0, 4.0), (0.0, 0.0)) and found.velocity == (4.0, 0.0)
    assert found.acceleration == (8.0, 0.0) and found.jerk == (24.0, 0.0)


def test_one_hand_outside_is_outside() -> None:
    hands = np.zeros((2, 2, 3), np.float32)
    hands[1, 1, 0] = -0.2
    seen = replace(log([[0], [0]], [1, 0], [0]), tools=hands)
    assert audit(seen, body("joint", 1), Limits(workspace=((-0.1, 0.1),) * 3), "here").over == {"workspace": 1}


def test_a_limit_that_is_touched_is_kept_although_actions_are_float32() -> None:
    third = 1 / 3
    seen = log([[third], [third * (1 + 1e-5)]], [1, 0], [NAN])
    assert audit(seen, body("joint", 1), Limits(low=(-third,), high=(third,)), "here").over == {"action": 1}


def test_nothing_measures_nothing() -> None:
    empty = MotionLog(
        np.zeros(0, np.int64), np.zeros(0, bool), np.zeros((0, 1), np.float32), np.full((2, 1), NAN, np.float32),
        None, None, np.zeros(0, bool),
    )  # fmt: skip
    found = audit(empty, body("joint", 1), Limits(low=(0,), high=(1,)), "here")
    assert (found.steps, found.measured, found.velocity, found.actions) == (0, (), (0.0,), ((0.0, 0.0),))


@dataclass
class Scripted(VectorEnv):
    """Two bodies of one joint; the second ends after its first chunk and the first breaks down in its third."""

    num_envs: int = 2
    chunks: int = 0

    def __post_init__(self) -> None:
        self.spec = EnvSpec("scripted", body("joint", 1), 4, 6)

    def reset(self, keys: SeedKeys) -> Observation:
        self.chunks = 0
        return self.seen

    def step_chunk(self, chunk: ActionChunk) -> ChunkOutcome:
        self.chunks += 1
        ended, steps = np.array([False, self.chunks == 1]), np.array([2, 1 if self.chunks == 1 else 2])
        broken = (Failure(0, "scripted", 0, 0, 0, "smoke"),) if self.chunks == 3 else ()
        if self.watching:
            held = np.array([0.5 * self.chunks], np.float32)
            self.watched = [BodyMotion(held, None, np.zeros(n, bool), np.ones(n, bool)) for n in steps]
        none, reward = np.zeros(2, bool), np.zeros((2, 2), np.float32)
        truncated = np.array([self.chunks == 3, False])
        return ChunkOutcome(
            reward, steps, ended, truncated, none, self.seen, np.flatnonzero(ended), None, {}, failures=broken
        )

    def close(self) -> None:
        raise AssertionError("closed by somebody who did not make it")

    @property
    def seen(self) -> Observation:
        return Observation({}, ("go", "go"), "thing")


def test_the_first_episode_is_written_down_and_a_chunk_that_broke_is_not() -> None:
    env = Scripted()
    with Watch(env) as watch:
        watch.reset(SeedKeys(0, np.arange(2), np.zeros(2, np.int64)))
        for number in range(4):
            actions = np.full((2, 2, 3), number, np.float32)
            watch.step_chunk(ActionChunk(actions, np.ones_like(actions, bool)))
            actions[:] = 99  # the caller's to reuse
        written = watch.log()
    assert written.episode.tolist() == [0, 0, 0, 0, 1]
    assert written.actions[:, 0].tolist() == [0, 0, 1, 1, 0]
    assert written.fresh.tolist() == [True, False, True, False, True]
    assert written.held.tolist() == [[0.5], [0.5]]  # as its first chunk began
    assert written.tools is None and written.touching is not None and written.touching.all()
    assert not env.watching and not env.watched


def test_logs_are_joined_episode_after_episode_and_cut_to_the_first() -> None:
    one, two = log([[1], [2]], [1, 0], [0]), log([[3], [4], [5]], [1, 1, 0], [1], [0, 1, 1])
    whole = joined([replace(one, touching=np.ones(2, bool)), two])
    assert whole.episode.tolist() == [0, 0, 1, 2, 2] and whole.held[:, 0].tolist() == [0, 1, 1]
    assert whole.touching is None  # one of them does not know
    assert whole.first(2).actions[:, 0].tolist() == [1, 2, 3] and len(whole.first(2).held) == 2
    again = MotionLog.from_arrays(whole.arrays())
    assert again.tools is None and np.array_equal(again.actions, whole.actions)


def watcher(world: str, **options: object) -> Watcher:
    entry = WORLDS[world]
    return Watcher(entry.task(entry.options(**options)))


def state_of(watched: Watcher, qpos: np.ndarray) -> np.ndarray:
    state = np.zeros((1, mujoco.mj_stateSize(watched._model, STATE)))
    state[0, 1 : 1 + watched._model.nq] = qpos
    return state


def apart(watched: Watcher, qpos: np.ndarray, near: int) -> float:
    """Least distance in metres between shapes of links more than `near` joints apart, one pair at a time."""
    model, data = watched._model, mujoco.MjData(watched._model)
    data.qpos[:] = qpos
    mujoco.mj_forward(model, data)
    least = np.inf
    for one, two in combinations(np.flatnonzero(model.geom_contype).tolist(), 2):
        a, b = int(model.geom_bodyid[one]), int(model.geom_bodyid[two])
        if a != b and hinges(model, a, b) > near and not fingers(model, a, b):
            least = min(least, mujoco.mj_geomDistance(model, data, one, two, 1.0, np.zeros(6)))
    return least


def fingers(model: mujoco.MjModel, a: int, b: int) -> bool:
    """Whether two bodies are the fingers of one hand."""
    return model.body(a).name.endswith("finger") and model.body_parentid[a] == model.body_parentid[b]


def hinges(model: mujoco.MjModel, a: int, b: int) -> int:
    """Joints between two bodies, if one carries the other; many if not."""
    a, b = sorted((a, b))
    count = 0
    while b > a:
        count += int(model.body_jntnum[b])
        b = int(model.body_parentid[b])
    return count if b == a else 99


@pytest.mark.parametrize("world", ["widowx_reach", "aloha_reach"])
def test_a_body_touches_itself_where_the_shapes_of_distant_links_overlap(world: str) -> None:
    watched, rng = watcher(world), np.random.default_rng(0)
    low, high = watched._model.jnt_range.T
    found = []
    for _ in range(100):
        qpos = rng.uniform(low, high)
        distance = apart(watched, qpos, near=2)
        if abs(distance) > 1e-3:  # where it is plain
            touching = watched._inside(state_of(watched, qpos))[1]
            assert touching is not None and touching[0] == (distance < 0), (distance, qpos)
            found.append(bool(touching[0]))
    assert 3 <= sum(found) <= len(found) - 3


@pytest.mark.parametrize("world", ["widowx_reach", "widowx_stack", "franka_pick", "aloha_transfer", "gr1_reach"])
def test_a_body_at_rest_touches_nothing_and_is_within_its_joints(world: str) -> None:
    watched = watcher(world)
    entry = WORLDS[world]
    qpos = entry.task(entry.options()).begin(envs.mujoco.task.EpisodeKey(3, 1, 2)).qpos
    beyond, touching = watched._inside(state_of(watched, qpos))
    assert beyond is not None and not beyond.any() and touching is not None and not touching.any()


def test_fingers_of_one_hand_may_be_pushed_together() -> None:
    watched = watcher("widowx_reach")
    model, data = watched._model, mujoco.MjData(watched._model)
    data.qpos[:] = watched._task.begin(envs.mujoco.task.EpisodeKey(0, 0, 0)).qpos
    slides = np.flatnonzero(model.jnt_type == mujoco.mjtJoint.mjJNT_SLIDE)
    data.qpos[model.jnt_qposadr[slides]] = 0.02  # both to the left, as far
    mujoco.mj_forward(model, data)
    left, right = (int(model.body_geomadr[body]) for body in model.jnt_bodyid[slides])
    assert mujoco.mj_geomDistance(model, data, left, right, 1.0, np.zeros(6)) < 0
    touching = watched._inside(state_of(watched, data.qpos))[1]
    assert touching is not None and not touching.any()


def test_a_joint_is_beyond_its_range_when_it_is_more_than_softly_so() -> None:
    watched = watcher("widowx_reach")
    rest = np.clip(np.zeros(watched._model.nq), *watched._model.jnt_range.T)
    for over, expected in ((0.005, False), (0.02, True)):
        qpos = rest.copy()
        qpos[1] = watched._model.jnt_range[1, 1] + over
        beyond, _ = watched._inside(state_of(watched, qpos))
        assert beyond is not None and beyond.tolist() == [expected]
    rest[-1] += 0.02  # a finger that something pushes
    beyond, _ = watched._inside(state_of(watched, rest))
    assert beyond is not None and not beyond.any()


def test_a_base_on_wheels_has_no_joints_to_exceed_and_no_links_to_hit() -> None:
    with envs.make("rover_navigate", 1) as env:
        env.watching = True
        env.step_chunk(expert_chunk(env, env.reset(SeedKeys(0, np.zeros(1, np.int64), np.zeros(1, np.int64)))))
        (seen,) = env.watched
    assert seen.beyond is None and seen.touching is None and seen.tools is None


def test_watching_changes_nothing_and_tells_the_tool_of_every_step() -> None:
    keys = SeedKeys(4, np.arange(2), np.zeros(2, np.int64))
    ends = []
    for watching in (False, True):
        with envs.make("franka_pick", 2, control="joint") as env:
            env.watching = watching
            names = env.spec.privileged
            first = env.reset(keys)
            outcome = env.step_chunk(expert_chunk(env, first))
            assert first.privileged is not None and outcome.observation.privileged is not None
            ends.append(outcome.observation.privileged)
            seen = list(env.watched)
    assert np.array_equal(*ends) and len(seen) == 2
    tools = seen[0].tools
    assert tools is not None and tools.shape == (16, 1, 3)
    assert np.array_equal(tools[-1, 0], ends[1][0, :3])
    joints = first.privileged[0, [names.index(f"joint{number}") for number in range(1, 8)]]
    assert np.allclose(seen[0].held, [*joints, 1.0], atol=1e-6)  # at rest, gripper open


def test_limits_of_the_main_body_are_those_of_its_controller() -> None:
    limits = limits_for("widowx")
    assert limits.high == (0.265, 0.34, 0.2, 1.2, 1.2, 1.2, 1.25) and limits.low == tuple(-x for x in limits.high)
    assert limits.velocity == (0.3, 0.3, 0.3, 1.25, 1.25, 1.25, 12.5)  # 6 cm and 0.25 rad a step at 5 Hz
    assert limits.acceleration == (2.25, 2.25, 2.25, 9.375, 9.375, 9.375, 125.0)
    assert limits.jerk == (22.5, 22.5, 22.5, 93.75, 93.75, 93.75, 1250.0)
    assert limits.workspace == ((0.11, 0.395), (-0.18, 0.18), (0.01, 0.23)) and limits.stale_after == 0.5
    assert limits_for("aloha").stale_after == 0.32  # one chunk
    assert limits_for("gr1").velocity[:4] == (1.5, 1.5, 1.5, 3.0)
    with pytest.raises(UserError, match="'crane'"):
        limits_for("crane")


def test_every_shipped_body_has_limits_that_a_bundle_takes() -> None:
    bodies = [envs.spec(name).embodiment for name in WORLDS]
    bodies.append(envs.spec("franka_reach", control="joint").embodiment)
    assert {one.tag for one in bodies} == set(KNOWN)
    for one in bodies:
        check_limits(one.tag, limits_for(one.tag), one.action.channels)


@pytest.mark.parametrize(
    ("world", "options"),
    [("widowx_stack", {}), ("franka_reach", {"control": "joint"}), ("gr1_transfer", {}), ("rover_navigate", {})],
)
def test_the_scripted_expert_stays_within_the_limits(world: str, options: dict[str, str]) -> None:
    with envs.make(world, 6, **options) as env, Watch(env) as watch:
        seen, running = watch.reset(SeedKeys(8, np.arange(6), np.zeros(6, np.int64))), np.ones(6, bool)
        while running.any():
            outcome = watch.step_chunk(expert_chunk(env, seen))
            running, seen = running & ~(outcome.terminated | outcome.truncated), outcome.observation
        tag = env.spec.embodiment.tag
        found = audit(watch.log(), env.spec.embodiment, limits_for(tag), world)
    assert found.steps > 20 and not any(found.over.values()), found
    assert {"action", "velocity", "acceleration", "jerk"} <= set(found.measured)
    assert found.self_collisions == 0
