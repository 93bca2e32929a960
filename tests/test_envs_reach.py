"""`widowx_reach`: what it shows is true, the task ends as it says, and every episode follows from its key."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest

import envs
from envs.base import VectorEnv
from envs.expert import expert_chunk
from envs.mujoco.bodies.weld import turned
from envs.mujoco.bodies.widowx import WidowX
from envs.mujoco.task import EpisodeKey, Start
from envs.mujoco.tasks.reach import BLOCK_EDGE, BLOCK_SPACING, START_CLEARANCE, Layout, Reach
from envs.mujoco.tasks.tabletop import COLOURS, GROUND
from envs.mujoco.world import World
from rl_finetune.types import ActionChunk, Observation, SeedKeys

N = 50


@pytest.fixture(scope="module")
def world() -> Iterator[World]:
    with envs.make("widowx_reach", N) as env:
        assert isinstance(env, World)
        yield env


@pytest.fixture(scope="module")
def single() -> Iterator[World]:
    with envs.make("widowx_reach", 1, image_size=128) as env:
        assert isinstance(env, World)
        yield env


def keys(count: int, *, seed: int = 0, episode: int = 0) -> SeedKeys:
    return SeedKeys(seed, np.arange(count, dtype=np.int64), np.full(count, episode, np.int64))


def still(count: int) -> ActionChunk:
    return ActionChunk(np.zeros((count, 8, 7), np.float32), np.ones((count, 8, 7), bool))


def begun(env: int, *, seed: int = 0, episode: int = 0) -> tuple[Start, Layout, np.ndarray]:
    """One episode's beginning, what lies on its table, and where its tool is."""
    task = Reach(WidowX(), "widowx_reach", image_size=64, tolerance=0.03, time_limit=32)
    start = task.begin(EpisodeKey(seed, env, episode))
    return start, Layout.of(start.facts[None]), start.aim[:3]


def column(observation: Observation, env: VectorEnv, *names: str) -> np.ndarray:
    assert observation.privileged is not None
    return observation.privileged[:, [env.spec.privileged.index(name) for name in names]]


def test_scenes_keep_their_distances_and_use_every_colour_and_phrase() -> None:
    instructions, targets = set(), []
    for env in range(300):
        start, layout, tool = begun(env, seed=7, episode=3)
        present, target = layout.present[0], int(layout.target[0])
        tops = layout.tops[0, present]
        assert tops.shape == (3, 3) and present[target]
        assert (tops[:, 2] == BLOCK_EDGE).all() and not layout.tops[0, ~present].any()
        assert ((tops[:, :2] >= GROUND[:, 0]) & (tops[:, :2] <= GROUND[:, 1])).all()
        apart = np.linalg.norm(tops[:, None] - tops, axis=-1) + np.eye(3)
        assert apart.min() >= BLOCK_SPACING
        assert np.linalg.norm(tops - tool, axis=-1).min() >= START_CLEARANCE
        assert 0.12 <= tool[2] <= 0.21
        assert COLOURS[target] in start.instruction
        instructions.add(start.instruction)
        targets.append(target)
    assert (np.abs(np.bincount(targets, minlength=4) / 300 - 0.25) < 0.08).all()
    assert len(instructions) == 12


def test_expert_succeeds(world: VectorEnv) -> None:
    done, successes, steps = 0, 0, []
    for batch in range(4):
        observation, open_ = world.reset(keys(N, seed=11, episode=batch)), np.ones(N, bool)
        for chunk in range(4):
            actions = expert_chunk(world, observation, keys=keys(N), chunk=chunk, noise=0.005, channels_padded=9)
            assert actions.actions.shape == (N, 8, 9) and not actions.mask[..., 7:].any()
            out = world.step_chunk(actions)
            ended = open_ & (out.terminated | out.truncated)
            done, successes = done + int(ended.sum()), successes + int((out.success & ended).sum())
            steps.append(out.steps_executed[open_].sum())
            open_, observation = open_ & ~ended, out.observation
    assert done == 200
    assert successes >= 196
    assert 4 < sum(steps) / done < 12


def test_expert_says_something_sensible_on_every_channel(world: VectorEnv) -> None:
    observation = world.reset(keys(N))
    actions = expert_chunk(world, observation).actions
    from_pose = np.concatenate([np.zeros((N, 1, 3)), actions[..., :3]], 1)
    assert np.linalg.norm(np.diff(from_pose, axis=1), axis=-1).max() <= 0.0451
    assert not actions[..., 3:6].any()
    assert actions[..., 6].max() == 1.0 and actions[..., 6].min() < -0.9


def test_success_is_a_reward_of_one_at_the_last_step(world: VectorEnv) -> None:
    observation = world.reset(keys(N, seed=2))
    out = world.step_chunk(expert_chunk(world, observation))
    won = np.flatnonzero(out.success)
    assert len(won) > N // 2
    assert out.terminated[won].all() and not out.truncated[won].any()
    assert (out.reward[won, out.steps_executed[won] - 1] == 1).all() and (out.reward.sum(1) == out.success).all()
    assert out.final_observation is not None
    final = out.final_observation.rows(np.searchsorted(out.final_index, won))
    gap = column(final, world, "tool_x", "tool_y", "tool_z") - column(final, world, "target_x", "target_y", "target_z")
    assert np.linalg.norm(gap, axis=1).max() <= 0.03 + 1e-6


def test_reaching_another_block_ends_the_episode_without_success(world: VectorEnv) -> None:
    observation = world.reset(keys(N, seed=3))
    assert observation.privileged is not None and observation.grounding is not None
    misled = observation.privileged.copy()
    for row, target in enumerate(observation.grounding.target):
        wrong = next(c for c in range(4) if c != target and observation.grounding.present[row, c])
        misled[row, 3:6] = misled[row, 6 + 4 * wrong : 9 + 4 * wrong]
    out = world.step_chunk(expert_chunk(world, replace(observation, privileged=misled)))
    assert out.terminated.sum() > N // 2
    assert not out.success.any() and not out.reward.any()


def test_doing_nothing_is_truncated_after_32_steps(world: VectorEnv) -> None:
    world.reset(keys(N))
    outcomes = [world.step_chunk(still(N)) for _ in range(5)]
    assert [out.truncated.all() for out in outcomes] == [False, False, False, True, False]
    assert not any(out.terminated.any() or out.success.any() or out.reward.any() for out in outcomes)


def test_holding_still_keeps_the_exact_start_pose(world: VectorEnv) -> None:
    observation = world.reset(keys(N))
    start = np.stack([begun(env)[2] for env in range(N)])
    np.testing.assert_allclose(column(observation, world, "tool_x", "tool_y", "tool_z"), start, atol=1e-7)
    out = world.step_chunk(still(N))
    np.testing.assert_allclose(column(out.observation, world, "tool_x", "tool_y", "tool_z"), start, atol=1e-4)


def test_actions_count_from_the_first_frame_of_the_chunk(world: VectorEnv) -> None:
    """A constant displacement is one move, not eight."""
    observation = world.reset(keys(N, seed=5))
    tool = column(observation, world, "tool_x", "tool_y", "tool_z")
    chunk = still(N)
    inward = np.where(tool[:, 1] > 0, -0.04, 0.04)
    chunk.actions[:, :, 1] = inward[:, None]
    out = world.step_chunk(chunk)
    assert not out.terminated.any()
    moved = column(out.observation, world, "tool_x", "tool_y", "tool_z") - tool
    np.testing.assert_allclose(moved, np.stack([0 * inward, inward, 0 * inward], 1), atol=5e-4)


def test_rotation_turns_the_tool_about_the_base_axes(single: World) -> None:
    single.reset(keys(1))
    chunk = still(1)
    chunk.actions[:, :, 3:6] = [0.0, 0.0, 0.3]
    single.step_chunk(chunk)
    np.testing.assert_allclose(turned(single._now.readings[0, 3:7]), [0, 0, 0.3], atol=2e-3)


def test_gripper_follows_its_channel(single: World) -> None:
    for command, opening in ((1.0, 0.037), (-1.0, 0.015), (5.0, 0.037)):
        single.reset(keys(1))
        chunk = still(1)
        chunk.actions[:, :, 6] = command
        single.step_chunk(chunk)
        np.testing.assert_allclose(single._now.readings[0, 7], opening, atol=1e-3)


def test_outcome_is_bit_identical_after_many_other_episodes(single: VectorEnv) -> None:
    chunk = ActionChunk((np.random.default_rng(4).normal(size=(1, 8, 7)) * 0.05).astype(np.float32), still(1).mask)

    def play() -> tuple[bytes, bytes]:
        single.reset(keys(1, seed=9))
        single.step_chunk(chunk)
        out = single.step_chunk(chunk)
        assert out.observation.privileged is not None
        return out.observation.images["ego"].tobytes(), out.observation.privileged.tobytes()

    before = play()
    for episode in range(30):
        single.reset(keys(1, episode=episode))
        single.step_chunk(chunk)
    assert play() == before


HUES = {"red": (0, (1, 2)), "green": (1, (0, 2)), "blue": (2, (0, 1))}


def test_grounding_points_lie_where_the_colours_are(single: World) -> None:
    offsets: list[np.ndarray] = []
    for episode in range(12):
        observation = single.reset(keys(1, seed=21, episode=episode))
        image, labels = observation.images["ego"][0].astype(int), observation.grounding
        assert labels is not None and labels.names == (*COLOURS, "tool")
        for colour, (strong, weak) in HUES.items():
            index = labels.names.index(colour)
            pure = (image[..., strong] > 70) & (image[..., list(weak)].max(-1) < image[..., strong] * 0.55)
            magenta = (image[..., 0] > 90) & (image[..., 2] > 90)
            v, u = np.nonzero(pure & ~magenta)
            if labels.present[0, index] and len(u) > 180:  # a whole block covers about 220 pixels
                top = column(observation, single, f"{colour}_x", f"{colour}_y", f"{colour}_z")[0]
                middle = single.task.seen_at(single._now, (top - [0, 0, BLOCK_EDGE / 2])[None, None])[0, 0]
                offsets.append(np.array([u.mean() + 0.5, v.mean() + 0.5]) / 128 - middle)
                assert abs(labels.points[0, index, 0] - middle[0]) < 0.02
                assert 0.0 < middle[1] - labels.points[0, index, 1] < 0.05
    assert len(offsets) >= 15
    assert np.abs(offsets).max() < 0.012  # a pixel and a half of 128


def test_tool_is_labelled_between_its_fingertips(single: VectorEnv) -> None:
    observation = single.reset(keys(1, seed=8))
    image, labels = observation.images["ego"][0].astype(int), observation.grounding
    assert labels is not None
    v, u = np.nonzero((image[..., 0] > 90) & (image[..., 2] > 80) & (image[..., 1] < 60))
    assert len(u) > 20
    np.testing.assert_allclose(labels.points[0, 4], [(u.mean() + 0.5) / 128, (v.max() + 0.5) / 128], atol=0.02)
