"""`rover_navigate`: the base drives as wheels do, goes through nothing, and only a stop at the named box counts."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import mujoco
import numpy as np
import pytest

import envs
from envs import contract
from envs.base import VectorEnv
from envs.expert import expert_chunk
from envs.mujoco.bodies import rover
from envs.mujoco.build import build
from envs.mujoco.task import EpisodeKey, Float64, Start
from envs.mujoco.tasks import rooms
from envs.mujoco.tasks.navigate import Navigate, NavigateOptions
from envs.mujoco.tasks.tabletop import COLOURS
from envs.mujoco.tasks.ways import FAR, Ground, shortest
from rl_finetune.errors import UserError
from rl_finetune.metrics.intervals import wilson
from rl_finetune.types import ActionChunk, BoolArray, ChunkOutcome, Observation, SeedKeys

N = 50
AHEAD = np.arange(1, 9)[:, None] * np.array([0.25, 0.0, 0.0])
"""Full speed for a whole chunk: two metres."""


@pytest.fixture(scope="module")
def world() -> Iterator[VectorEnv]:
    with envs.make("rover_navigate", N) as env:
        yield env


def keys(count: int, *, seed: int = 0, episode: int = 0) -> SeedKeys:
    return SeedKeys(seed, np.arange(count, dtype=np.int64), np.full(count, episode, np.int64))


def chunk(waypoints: Float64, count: int = 1) -> ActionChunk:
    actions = np.broadcast_to(waypoints, (count, 8, 3)).astype(np.float32)
    return ActionChunk(actions, np.ones(actions.shape, bool))


STILL = np.zeros((8, 3))


def straight(metres: float) -> Float64:
    """Straight ahead (or back) at full speed, then stand."""
    return np.sign(metres) * np.minimum(AHEAD, np.array([abs(metres), 0.0, 0.0]))


class Staged(Navigate):
    """One hand-placed scene: red is meant, green stands by."""

    def __init__(
        self, start: tuple[float, ...], red: tuple[float, float], green: tuple[float, float] = (-1.6, -1.6)
    ) -> None:
        super().__init__(NavigateOptions())
        boxes = np.array([red, green, (FAR, FAR), (FAR, FAR)])
        way = float(np.hypot(red[0] - start[0], red[1] - start[1]))
        present = np.array([True, True, False, False])
        at = np.array(start)
        self.scene = rooms.Scene(boxes, np.zeros(4), present, np.zeros(0), 0, "go to the red box", at, way)

    def begin(self, key: EpisodeKey) -> Start:
        scene, facts = self.scene, np.array([0.0, self.scene.way - self.options.tolerance])
        return Start(scene.start, rooms.mocaps(scene), scene.start, facts, scene.instruction)


def play(task: Staged, *chunks: Float64) -> ChunkOutcome:
    """Drive the chunks, then stand until the episode is over: the outcome of its last chunk."""
    with build(task, 1, task.options) as env:
        env.reset(keys(1))
        for number in range(9):
            out = env.step_chunk(chunk(chunks[number] if number < len(chunks) else STILL))
            if out.terminated[0] or out.truncated[0]:
                return out
    raise AssertionError("an episode outlived its time limit")


def columns(env: VectorEnv, observation: Observation, *names: str) -> np.ndarray:
    assert observation.privileged is not None
    return observation.privileged[:, [env.spec.privileged.index(name) for name in names]]


def guided(env: VectorEnv, count: int, chunks: int, seed: int, noise: float) -> tuple[BoolArray, np.ndarray]:
    """Success and control steps of the first episodes under the expert."""
    observation, open_ = env.reset(keys(count, seed=seed)), np.ones(count, bool)
    won, steps = np.zeros(count, bool), np.zeros(count, np.int64)
    for number in range(chunks):
        actions = expert_chunk(env, observation, keys=keys(count, seed=seed), chunk=number, noise=noise)
        out = env.step_chunk(actions)
        steps += np.where(open_, out.steps_executed, 0)
        won |= open_ & out.success
        open_, observation = open_ & ~(out.terminated | out.truncated), out.observation
        if not open_.any():
            break
    return won, steps


@pytest.mark.parametrize("noise", [0.0, 0.02])
def test_expert_arrives_in_two_to_four_chunks(world: VectorEnv, noise: float) -> None:
    runs = [guided(world, N, 8, seed, noise) for seed in (11, 12)]
    won, steps = np.concatenate([run[0] for run in runs]), np.concatenate([run[1] for run in runs])
    assert wilson(int(won.sum()), len(won))[0] > 0.95
    assert 8 < np.median(steps) <= 32


def test_expert_finds_through_doorways_and_round_boxes() -> None:
    with envs.make("rover_navigate", N, rooms=2) as env:
        assert env.spec.time_limit == 128
        won, _ = guided(env, N, 16, 21, 0.0)
        assert wilson(int(won.sum()), N)[0] > 0.9


def test_doing_nothing_never_succeeds(world: VectorEnv) -> None:
    world.reset(keys(N))
    for _ in range(7):
        out = world.step_chunk(chunk(STILL, N))
        assert not (out.terminated | out.truncated).any()
    out = world.step_chunk(chunk(STILL, N))
    assert out.truncated.all() and not out.success.any() and not out.reward.any()
    assert not out.measures["spl"].any() and not out.measures["oracle_success"].any()
    ways = [rooms.draw_scene(EpisodeKey(0, env, 0), 1, True).way for env in range(N)]
    np.testing.assert_allclose(out.measures["distance"], ways, atol=1e-5)


def test_only_a_stop_within_the_tolerance_counts() -> None:
    beside = Staged((-1.5, 0.0, 0.0), red=(0.6, 0.55))
    arrived = play(beside, AHEAD, straight(0.0))
    assert arrived.success[0] and arrived.terminated[0] and arrived.steps_executed[0] == 3  # 1.75 m would do too
    past = play(beside, AHEAD, straight(1.0))
    assert past.truncated[0] and not past.success[0] and not past.reward.any()
    assert past.measures["oracle_success"][0] == 1 and past.measures["spl"][0] == 0
    short = play(beside, straight(1.5))
    assert not short.success[0] and short.measures["oracle_success"][0] == 0


def test_a_stop_at_another_box_ends_the_episode_without_success() -> None:
    out = play(Staged((-1.5, 0.0, 0.0), red=(1.5, 1.5), green=(0.0, 0.0)), straight(1.0))
    assert out.terminated[0] and not out.success[0] and not out.reward.any()
    assert out.measures["oracle_success"][0] == 0
    assert out.steps_executed[0] == 7  # four to drive, three to stand


def test_leaning_on_the_box_is_no_stop_and_moves_nobody() -> None:
    """Held up 0.345 m from the centre, well within the tolerance, yet told to drive on."""
    out = play(Staged((-0.5, 0.0, 0.0), red=(0.6, 0.0)), *[AHEAD] * 8)
    assert out.truncated[0] and not out.success[0] and out.measures["oracle_success"][0] == 1
    assert out.measures["distance"][0] == pytest.approx(rooms.BOX / 2 + rover.RADIUS, abs=0.01)


@pytest.mark.parametrize("heading", [0.0, 0.4, np.pi / 2])
def test_walls_stop_it_wherever_it_is_told_to_go(heading: float) -> None:
    task = Staged((1.0, 1.0, heading), red=(-1.5, 0.0))
    with build(task, 1, task.options) as env:
        observation = env.reset(keys(1))
        for _ in range(4):
            observation = env.step_chunk(chunk(AHEAD)).observation
        x, y = columns(env, observation, "base_x", "base_y")[0]
    assert max(x, y) == pytest.approx(2.0 - rover.RADIUS, abs=0.01)
    assert min(x, y) < 2.0 - rover.RADIUS + 0.01


def test_spl_of_a_straight_and_of_a_detour_by_hand() -> None:
    start, red = (-1.0, 0.0, 0.0), (1.0, 0.0)  # 2.0 m apart: 1.4 m would do
    direct = play(Staged(start, red), straight(1.5))
    assert direct.success[0] and direct.measures["spl"][0] == pytest.approx(1.4 / 1.5, abs=0.01)
    back_first = play(Staged(start, red), straight(-0.5), AHEAD)
    assert back_first.success[0] and back_first.measures["spl"][0] == pytest.approx(1.4 / 2.5, abs=0.01)
    assert back_first.measures["distance"][0] == pytest.approx(0.5, abs=0.02)


def test_commands_never_ask_wheels_to_slide() -> None:
    rng = np.random.default_rng(3)
    pose = rng.uniform(-1, 1, (40, 3))
    course = rover.follow(pose, np.cumsum(rng.normal(0, 0.2, (40, 8, 3)), 1))
    path = np.concatenate([pose[:, None], course.poses], 1)
    moved, turned = np.diff(path[..., :2], axis=1), np.diff(path[..., 2], axis=1)
    middle = path[:, :-1, 2] + turned / 2
    sideways = np.cos(middle) * moved[..., 1] - np.sin(middle) * moved[..., 0]
    assert np.abs(sideways).max() < 1e-12 and not course.speeds[..., 1].any()
    assert np.linalg.norm(moved, axis=-1).max() / rover.TIMESTEP <= rover.FASTEST + 1e-9
    assert np.abs(turned).max() / rover.TIMESTEP <= rover.FASTEST_TURN + 1e-9
    assert np.linalg.norm(moved, axis=-1).max() / rover.TIMESTEP > 0.45


def test_follower_meets_waypoints_that_wheels_can_meet() -> None:
    angle = np.arange(1, 9) * 0.15  # a left turn of 1.2 rad on a circle of 1 m radius
    arc = np.stack([np.sin(angle), 1 - np.cos(angle), angle], -1)
    ends = rover.follow(np.zeros((1, 3)), arc[None]).poses[0, rover.SUBSTEPS - 1 :: rover.SUBSTEPS]
    assert np.linalg.norm(ends[:, :2] - arc[:, :2], axis=-1).max() < 0.02
    spin = rover.follow(np.zeros((1, 3)), np.arange(1, 9)[None, :, None] * [[[0.0, 0.0, 0.5]]])
    np.testing.assert_allclose(spin.poses[0, -1], [0.0, 0.0, 4.0], atol=1e-9)


def test_the_base_follows_its_commands_and_hardly_slips() -> None:
    task = Staged((0.0, 0.0, 0.3), red=(1.5, 1.5))
    model = mujoco.MjModel.from_xml_string(task.mjcf())
    data = mujoco.MjData(model)
    weave = np.stack([AHEAD[:, 0] * 0.5, 0.15 * np.sin(np.arange(8)), np.zeros(8)], -1)
    course = rover.follow(task.scene.start[None], weave[None])
    start = task.begin(EpisodeKey(0, 0, 0))
    data.qpos[:], data.mocap_pos[:], data.mocap_quat[:] = start.qpos, start.mocap[:, :3], start.mocap[:, 3:]
    slips = []
    for speeds in course.speeds[0]:
        data.ctrl[:] = speeds
        mujoco.mj_step(model, data)
        heading, (vx, vy) = data.qpos[2], data.qvel[:2]
        slips.append(abs(np.cos(heading) * vy - np.sin(heading) * vx))
    assert max(slips) < 0.05
    assert np.linalg.norm(data.qpos[:2] - course.poses[0, -1, :2]) < 0.05


def test_shortest_ways_by_hand() -> None:
    nothing = np.full((1, 1, 2), FAR)
    doorway = Ground(np.array([4.0, 2.0]), np.array([0.0]), np.array([[1.0]]), nothing)
    length, corners = shortest(np.array([[-1.25, -1.0]]), np.array([[1.25, -1.0]]), doorway)
    assert length[0] == pytest.approx(2 * np.hypot(1.0, 1.75) + 0.5)
    np.testing.assert_allclose(corners[0, :3], [[-0.25, 0.75], [0.25, 0.75], [1.25, -1.0]])
    length, _ = shortest(np.array([[-1.0, 1.0]]), np.array([[1.0, 1.2]]), doorway)
    assert length[0] == pytest.approx(np.hypot(2.0, 0.2))
    room = Ground(np.array([2.0, 2.0]), np.zeros(0), np.zeros((1, 0)), np.zeros((1, 1, 2)))
    length, _ = shortest(np.array([[-1.0, 0.0]]), np.array([[1.0, 0.0]]), room)
    assert length[0] == pytest.approx(2 * np.hypot(1 - 0.265, 0.53 * np.sin(np.pi / 3)) + 0.53)
    walled = replace(doorway, boxes=np.array([[[-0.5, 1.0]]]))
    assert not np.isfinite(shortest(np.array([[-1.25, 1.0]]), np.array([[1.25, 1.0]]), walled)[0]).any()


@pytest.mark.parametrize("count", [1, 3])
def test_scenes_keep_their_distances_and_use_every_colour_and_phrase(count: int) -> None:
    scenes = [rooms.draw_scene(EpisodeKey(7, env, 3), count, count == 1) for env in range(120)]
    for scene in scenes:
        boxes = scene.boxes[scene.present]
        assert boxes.shape == (3, 2) and scene.present[scene.target] and len(scene.doors) == count - 1
        assert (np.linalg.norm(boxes[:, None] - boxes, axis=-1) + 9 * np.eye(3)).min() >= rooms.SPACING
        assert np.linalg.norm(boxes - scene.start[:2], axis=-1).min() >= rooms.START_CLEARANCE
        straight_line = np.linalg.norm(scene.boxes[scene.target] - scene.start[:2])
        assert scene.way >= straight_line - 1e-9 and COLOURS[scene.target] in scene.instruction
    shares = np.bincount([scene.target for scene in scenes], minlength=4) / 120
    assert (np.abs(shares - 0.25) < 0.13).all()
    assert len({scene.instruction for scene in scenes}) == 12
    again = rooms.draw_scene(EpisodeKey(7, 5, 3), count, count == 1)
    np.testing.assert_array_equal(rooms.mocaps(again), rooms.mocaps(scenes[5]))
    assert not np.array_equal(again.start, rooms.draw_scene(EpisodeKey(7, 5, 4), count, count == 1).start)


def test_places_are_told_in_the_frame_of_the_base() -> None:
    task = Staged((-1.0, 0.0, np.pi / 2), red=(1.0, 0.5))
    with build(task, 1, task.options) as env:
        seen = env.reset(keys(1))
        place = columns(env, seen, *(f"{thing}_{axis}" for thing in ("tool", "target") for axis in "xyz"))[0]
        np.testing.assert_allclose(place, [0, 0, 0, 0.5, -2.0, 0.175], atol=1e-6)
        pose = columns(env, seen, "base_x", "base_y", "base_cos", "base_sin")[0]
        np.testing.assert_allclose(pose, [-1, 0, 0, 1], atol=1e-6)
        assert columns(env, seen, *(f"{colour}_present" for colour in COLOURS))[0].tolist() == [1, 1, 0, 0]


def test_grounding_points_lie_where_the_colours_are() -> None:
    hues = {"red": (0, (1, 2)), "green": (1, (0, 2)), "blue": (2, (0, 1))}
    misses = []
    with envs.make("rover_navigate", 40, image_size=128) as env:
        seen = env.reset(keys(40, seed=5))
        labels = seen.grounding
        assert labels is not None and labels.names == (*COLOURS, "tool")
        rows = np.arange(40)
        wanted = labels.points[rows, labels.target]
        assert ((wanted > 0) & (wanted < 1)).all(), "the target is in the first picture"
        for row, image in enumerate(seen.images["ego"].astype(int)):
            name = COLOURS[labels.target[row]]
            if name in hues:
                strong, weak = hues[name]
                v, u = np.nonzero(image[..., strong] > 2.5 * image[..., list(weak)].max(-1))
                misses.append(np.array([u.mean() + 0.5, v.mean() + 0.5]) / 128 - wanted[row])
    assert len(misses) > 20
    assert np.abs(misses).max() < 0.03


def test_what_is_behind_or_hidden_by_a_wall_is_not_in_the_picture() -> None:
    task = Navigate(NavigateOptions(rooms=2))
    doors, boxes = np.array([1.0]), np.array([[2.0, -0.5], [2.0, 1.1], [-3.6, 1.0], [FAR, FAR]])
    present = np.array([True, True, True, False])
    scene = rooms.Scene(boxes, np.zeros(4), present, doors, 0, "go to the red box", np.array([-2.0, 1.0, 0.0]), 5.0)
    with build(task, 1, task.options) as env:
        task.begin = lambda key: Start(  # type: ignore[method-assign]
            scene.start, rooms.mocaps(scene), scene.start, np.array([0.0, 4.4, 1.0]), scene.instruction
        )
        labels = env.reset(keys(1)).grounding
        assert labels is not None
        inside = ((labels.points[0] > 0) & (labels.points[0] < 1)).all(-1)
    assert inside.tolist() == [False, True, False, False, True]


def test_it_keeps_the_contract() -> None:
    with envs.make("rover_navigate", 3) as env:
        contract.check(env, make=lambda count: envs.make("rover_navigate", count), scale=0.2)


@pytest.mark.parametrize(
    "option",
    [
        {"rooms": 4}, {"tolerance": 0.3}, {"tolerance": 0.8}, {"image_size": 100}, {"rooms": None},
        {"tolerance": "wide"}, {"strength": [1]}, {"randomise": "visual"}, {"randomise": ["smell"]}, {"backend": 3},
    ],
)  # fmt: skip
def test_impossible_options_are_refused(option: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=next(iter(option))):
        envs.spec("rover_navigate", **option)


def test_options_take_the_types_that_they_declare() -> None:
    chosen = NavigateOptions(image_size=64.0, rooms=2.0, randomise=["mass"])  # type: ignore[arg-type]
    assert (chosen.image_size, chosen.rooms, chosen.randomise) == (64, 2, ("mass",))
    assert type(chosen.image_size) is type(chosen.rooms) is int
