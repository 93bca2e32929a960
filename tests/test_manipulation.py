"""Tasks with things that are grasped: an expert does them, idling and letting go do not, judges cannot be cheated."""

from __future__ import annotations

import numpy as np
import pytest

import envs
from benchmarks.experts import Blind, by_expert, letting_go, once, staying
from envs import contract
from envs.expert import expert_chunk
from envs.mujoco import kinematics as kin
from envs.mujoco.bodies.aloha import Aloha
from envs.mujoco.bodies.upper_body import UpperBody
from envs.mujoco.bodies.weld import DOWN
from envs.mujoco.bodies.widowx import WidowX
from envs.mujoco.catalogue import WORLDS
from envs.mujoco.task import EpisodeKey, Float64, Judged, Now, Task
from envs.mujoco.tasks.insertion import INSIDE, PEG, SOCKET, Insertion
from envs.mujoco.tasks.objects import square_yaw
from envs.mujoco.tasks.pick import Pick
from envs.mujoco.tasks.place import PLATE, PutOn, Stack
from envs.mujoco.tasks.plans import Corner, play
from envs.mujoco.tasks.transfer import Transfer
from envs.mujoco.world import World
from rl_finetune.types import ActionChunk, IntArray, Observation, SeedKeys

N = 5
ROBOTS = [
    ("widowx_pick", {}), ("widowx_put_on", {}), ("widowx_stack", {}),
    ("franka_pick", {"control": "joint"}), ("franka_put_on", {"control": "delta_ee"}),
    ("franka_stack", {"control": "joint"}), ("aloha_transfer", {}), ("aloha_insertion", {}), ("gr1_transfer", {}),
]  # fmt: skip
RED, GREEN, BLUE, YELLOW = range(4)
OPEN, CLOSED, BLOCK = 0.06, 0.04, 0.04
Place = tuple[float, float, float]


def task_of(name: str, options: dict[str, str]) -> Task:
    return WORLDS[name].task(WORLDS[name].options(**options))


def keys(count: int) -> SeedKeys:
    return SeedKeys(31, np.arange(count), np.zeros(count, np.int64))


@pytest.mark.parametrize(("name", "options"), ROBOTS)
def test_expert_does_it_and_neither_idling_nor_letting_go_does(name: str, options: dict[str, str]) -> None:
    task = task_of(name, options)
    with World(task, Blind(task, N, 64), N) as world:
        success, steps = once(world, keys(N), by_expert)
        assert success.mean() >= 0.8
        assert steps[success].max() <= 0.9 * task.spec.time_limit
        # letting go when a quarter is done: nothing has come near its goal yet
        dropped, _ = once(world, keys(N), letting_go(task.body, steps.min() / 4))
        assert not dropped.any()
        idle, waited = once(world, keys(N), staying)
        assert not idle.any() and (waited == task.spec.time_limit).all()


@pytest.mark.parametrize(("name", "options"), [ROBOTS[1], ROBOTS[5], ROBOTS[7]])
def test_worlds_keep_the_contract(name: str, options: dict[str, str]) -> None:
    with envs.make(name, 2, **options) as env:
        contract.check(env, make=lambda count: envs.make(name, count, **options), chunks=2)


def test_expert_recovers_from_what_it_is_made_to_do_wrong() -> None:
    task = task_of("widowx_put_on", {})
    with World(task, Blind(task, N, 64), N) as world:
        number = iter(range(100))

        def noisy(world: World, seen: Observation, steps: IntArray) -> ActionChunk:
            return expert_chunk(world, seen, keys=keys(N), chunk=next(number), noise=0.006)

        success, steps = once(world, keys(N), noisy)
        calm, fewest = once(world, keys(N), by_expert)
    assert success.mean() >= 0.75 and calm.all()
    assert steps.mean() > fewest.mean()


@pytest.mark.parametrize("kind", [Pick, PutOn, Stack])
def test_scenes_name_what_is_there(kind: type[Pick] | type[PutOn] | type[Stack]) -> None:
    task = kind(WidowX(grasping=True), "trial", image_size=64, time_limit=40)
    starts = [task.begin(EpisodeKey(3, env, 0)) for env in range(200)]
    assert {start.instruction for start in starts} == set(task.spec.tasks)
    for start in starts:
        blocks, plates, target, goal = start.facts[:4] > 0.5, start.facts[4:8] > 0.5, *start.facts[8:10].astype(int)
        assert blocks[target] and not (blocks & plates).any() and target != goal
        assert (goal == -1) == (kind is Pick)
        places = start.qpos[-28:].reshape(4, 7)[:, :3]
        np.testing.assert_allclose(places[blocks, 2], BLOCK / 2)
        assert (places[~blocks, 2] < -0.4).all()
        if goal >= 0:
            assert (plates if kind is PutOn else blocks)[goal]


def test_two_hands_begin_only_where_both_can_be() -> None:
    task = task_of("gr1_transfer", {})
    out_of_reach = np.array([[0.37, 0.1, 0.15], [0.133, -0.12, 0.173]])
    with pytest.raises(ValueError, match="out of reach"):
        UpperBody().rest(out_of_reach)
    for env in range(120):  # among these are such draws, which are drawn again
        assert np.isfinite(task.begin(EpisodeKey(1, env, 0)).qpos).all()


# Judges, with readings written by hand: one hand, four blocks, one control step each.


def hand(tool: Place, width: float, body: WidowX | Aloha, side: int = 0) -> Float64:
    return np.array([*tool, *DOWN, width / 2 - body.slack[side]])


def body_at(place: Place, turn: Float64 | None = None) -> Float64:
    return np.array([*place, *(np.array([1.0, 0, 0, 0]) if turn is None else kin.quaternion_from_vector(turn))])


def asked(task: Task, facts: Float64, steps: list[Float64], memory: Float64 | None = None) -> Judged:
    readings = np.stack(steps)[None]
    blank = np.zeros((1, task.memory)) if memory is None else memory
    now = Now(readings[:, 0], np.zeros((1, 0, 7)), np.zeros((1, 0)), facts[None], blank, np.zeros(1, np.int64))
    return task.judge(now, readings)


def table(tool: Place, width: float, red: Place, green: Place = (0.3, 0.1, 0.02),
          turn: Float64 | None = None) -> Float64:  # fmt: skip
    rest = [body_at((0.1 * row, 0.0, -0.48)) for row in (2, 3)]
    return np.concatenate([hand(tool, width, WidowX()), body_at(red, turn), body_at(green), *rest])


def facts(goal: int, plates: tuple[float, ...] = (0, 0, 0, 0), spot: Place = (0, 0, 0)) -> Float64:
    spots = np.zeros((4, 3))
    spots[goal] = spot
    return np.concatenate([[1, 1, 0, 0], plates, [RED, goal, 0], spots.ravel()])


def test_pick_needs_a_closed_hand_around_the_named_block_for_two_steps() -> None:
    task = Pick(WidowX(grasping=True), "trial", image_size=64, time_limit=40)
    up, high = (0.2, 0.0, 0.08), (0.2, 0.0, 0.075)
    lifted = table(up, CLOSED, high)
    assert asked(task, facts(-1), [lifted] * 3).success.tolist() == [[False, True, True]]
    assert asked(task, facts(-1), [lifted], memory=np.ones((1, 1))).success.all()
    low, thrown = table(up, CLOSED, (0.2, 0.0, 0.065)), table((0.2, 0.1, 0.08), CLOSED, high)
    for wrong in (low, table(up, OPEN, high), thrown):
        judged = asked(task, facts(-1), [lifted, wrong, lifted])
        assert not judged.success.any() and judged.memory[0, :, 0].tolist() == [1, 0, 1]
        assert not judged.failure.any()


def test_a_tilted_block_is_as_high_as_its_lowest_corner() -> None:
    task = Pick(WidowX(grasping=True), "trial", image_size=64, time_limit=40)
    tilted = table((0.2, 0.0, 0.08), CLOSED, (0.2, 0.0, 0.075), turn=np.array([np.pi / 4, 0.0, 0.0]))
    assert task.scene(tilted).lowest(task.half)[RED] == pytest.approx(0.075 - 0.02 * np.sqrt(2))
    assert not asked(task, facts(-1), [tilted] * 3).success.any()


def test_lifting_another_block_or_dropping_the_named_one_off_the_table_is_the_end() -> None:
    task = Pick(WidowX(grasping=True), "trial", image_size=64, time_limit=40)
    other = table((0.3, 0.1, 0.08), CLOSED, (0.2, 0.0, 0.02), green=(0.3, 0.1, 0.08))
    fallen = table((0.3, 0.1, 0.2), OPEN, (0.9, 0.0, -0.1))
    unharmed = table((0.3, 0.1, 0.2), OPEN, (0.2, 0.0, 0.02), green=(0.9, 0.0, -0.1))
    assert asked(task, facts(-1), [unharmed, other, fallen]).failure.tolist() == [[False, True, True]]


def test_put_on_needs_the_block_on_the_plate_and_the_open_hand_away() -> None:
    task = PutOn(WidowX(grasping=True), "trial", image_size=64, time_limit=40)
    top = 2 * PLATE[2]
    known = facts(BLUE, (0, 0, 1, 1), (0.3, -0.1, top))
    on, away = (0.31, -0.1, top + BLOCK / 2), (0.31, -0.1, 0.1)
    assert asked(task, known, [table(away, OPEN, on)] * 2).success.tolist() == [[False, True]]
    beside, above = (0.325, -0.1, top + BLOCK / 2), (0.31, -0.1, top + BLOCK / 2 + 0.01)
    bad = [table(away, OPEN, beside), table(away, OPEN, above), table(away, CLOSED, on), table(on, OPEN, on)]
    bad.append(table(away, OPEN, on, turn=np.array([0.5, 0.0, 0.0])))
    for wrong in bad:
        assert not asked(task, known, [wrong] * 4).success.any()


def test_stack_needs_the_lower_block_on_the_table() -> None:
    task = Stack(WidowX(grasping=True), "trial", image_size=64, time_limit=40)
    away, lower = (0.3, 0.1, 0.15), (0.3, 0.1, 0.02)
    assert asked(task, facts(GREEN), [table(away, OPEN, (0.3, 0.11, 0.06), lower)] * 2).success[0, 1]
    floating = table((0.3, 0.1, 0.2), OPEN, (0.3, 0.1, 0.09), (0.3, 0.1, 0.05))
    swapped = table(away, OPEN, lower, (0.3, 0.1, 0.06))
    for wrong in (floating, swapped, table(away, OPEN, (0.3, 0.13, 0.06), lower)):
        assert not asked(task, facts(GREEN), [wrong] * 4).success.any()


def two(left: Float64, right: Float64, joints: int, things: list[Float64]) -> Float64:
    return np.concatenate([left, right, np.zeros(joints), *things])


def test_transfer_counts_only_in_mid_air_and_only_with_one_hand() -> None:
    body = Aloha()
    task = Transfer(body, "trial", image_size=64, time_limit=400)
    joints, rest = len(body.joints), [body_at((0.1 * row, 0.0, -0.48)) for row in range(3)]
    bar, low = (0.25, 0.0, 0.15), (0.25, 0.0, 0.02)

    def step(giver: float, taker: float, place: Place = bar, at: Place = (0.21, 0.0, 0.15)) -> Float64:
        left = hand(at, giver, body)
        return two(left, hand((0.29, 0.0, place[2]), taker, body, 1), joints, [body_at(place), *rest])

    known, gone = np.array([RED, GREEN, 0.0]), (0.15, 0.1, 0.2)
    given, alone = step(CLOSED, OPEN), step(OPEN, CLOSED, at=gone)
    needed = round(0.4 * 50)
    assert asked(task, known, [given] + [alone] * needed).success[0].tolist() == [False] * needed + [True]
    both, near, landed = step(CLOSED, CLOSED), step(OPEN, CLOSED), step(OPEN, OPEN, place=low, at=gone)
    for wrong in ([given] + [both] * 30, [given] + [near] * 30, [given, landed] + [alone] * 30, [alone] * 30):
        assert not asked(task, known, wrong).success.any()


@pytest.mark.parametrize(
    ("deep", "beside", "done"), [(INSIDE + 0.002, 0, True), (INSIDE - 0.002, 0, False), (0.04, 0.05, False)]
)
def test_insertion_needs_depth_inside_the_walls(deep: float, beside: float, done: bool) -> None:
    body = Aloha()
    task = Insertion(body, "trial", image_size=64, time_limit=400)
    peg = (0.2, beside, 0.15)
    socket = (0.2 + PEG[0] + SOCKET[0] - deep, 0.0, 0.15)
    left = hand((peg[0] - 0.03, beside, 0.15), CLOSED, body)
    for width, held in ((2 * SOCKET[1], done), (0.1, False)):
        right = hand((socket[0] + 0.03, 0.0, 0.15), width, body, 1)
        step = two(left, right, len(body.joints), [body_at(peg), body_at(socket)])
        assert asked(task, np.zeros(1), [step] * 10).success[0].tolist() == [False] * 9 + [held]


# Plans.


def test_a_plan_arrives_waits_and_then_moves_its_fingers() -> None:
    def corner(x: float, opening: float, dwell: float = 0.0, yaw: float = 0.0) -> Corner:
        return Corner(np.array([[x, 0.0, 0.0]]), np.array([yaw]), np.array([opening]), np.array([dwell]))

    # 0.1 m at 0.2 m/s are 2.5 steps of 0.2 s: arrival on step 3, closed from step 4 on, away after 2 steps of waiting
    motion = play([corner(0.0, 1.0), corner(0.1, -1.0, 0.4), corner(0.0, -1.0)], np.array([0.2]), 5.0, 8)
    np.testing.assert_allclose(motion.places[0, :, 0], [1 / 30, 2 / 30, 0.1, 0.1, 0.1, 0.06, 0.02, 0.0])
    assert motion.opening[0].tolist() == [1, 1, 1, -1, -1, -1, -1, -1]
    # turning by half a radian takes half a second, however short the way
    turn = play([corner(0.0, 1.0), corner(0.01, 1.0, yaw=0.5)], np.array([0.2]), 10.0, 6)
    np.testing.assert_allclose(turn.yaw[0], [0.1, 0.2, 0.3, 0.4, 0.5, 0.5])


@pytest.mark.parametrize("face", [np.zeros(3), np.array([np.pi / 2, 0, 0]), np.array([0, np.pi / 2, 0])])
def test_a_cube_is_grasped_alike_on_any_face(face: Float64) -> None:
    spin = kin.quaternion_from_vector(np.array([0.0, 0.0, 0.3]))
    frame = kin.matrix_from_quaternion(kin.multiply(spin, kin.quaternion_from_vector(face)))
    assert square_yaw(frame) == pytest.approx(0.3)
