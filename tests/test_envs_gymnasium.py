"""The gymnasium backend: which observation is which, in every autoreset mode, by pictures that say who they are."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from gym_worlds import BREAKS, LIMIT, SICK, Counting, sync
from gymnasium.utils.seeding import np_random
from gymnasium.vector import AutoresetMode

import envs
from envs import contract
from envs.base import VectorEnv
from envs.form import check_outcome
from envs.gymnasium import GymnasiumOptions, spec
from envs.gymnasium.reading import episode_seed, to_world
from envs.gymnasium.together import TogetherWorld
from envs.simple import SimpleWorld
from rl_finetune.config import TrainConfig, load
from rl_finetune.errors import UserError
from rl_finetune.keys import Stream, generator
from rl_finetune.spec import handshake
from rl_finetune.types import ActionChunk, Observation, SeedKeys

HORIZON = 4
OPTIONS: dict[str, Any] = dict(
    id="Counting-v0", horizon=HORIZON, views={"top": "obs.seen.top"}, image_size=8, proprioception=["obs.state"],
    privileged=["obs.state"], instruction="info.task",
)  # fmt: skip
MODES = list(AutoresetMode)
KEYED = [
    "single", "factory sync", "factory wrapped", *(f"sync {mode.name}" for mode in MODES), "alone DISABLED",
    "tensors DISABLED",
]  # fmt: skip
LOOSE = ["alone NEXT_STEP", "alone SAME_STEP", "tensors NEXT_STEP", "tensors SAME_STEP"]


def world(kind: str, num_envs: int = 2, **options: Any) -> VectorEnv:
    """Counting environments, driven in one of the ways there are."""
    how, _, mode = kind.partition(" ")
    if how == "single":
        return envs.make("gymnasium", num_envs, **OPTIONS | options)
    if how == "factory":
        own = {"id": "", "factory": f"gym_worlds:{mode}", "time_limit": LIMIT}
        return envs.make("gymnasium", num_envs, **OPTIONS | own | options)
    if how in ("alone", "tensors"):
        own = {"id": "", "factory": f"gym_worlds:{how}", "kwargs": {"mode": mode}, "time_limit": LIMIT}
        return envs.make("gymnasium", num_envs, **OPTIONS | own | options)
    chosen = GymnasiumOptions(**OPTIONS | options)
    return TogetherWorld(sync(num_envs, AutoresetMode[mode]), chosen, spec(chosen))


def keys(*episodes: int) -> SeedKeys:
    return SeedKeys(7, np.arange(len(episodes), dtype=np.int64), np.array(episodes, np.int64))


def chunk(*rows: list[float], second: tuple[tuple[int, int, float], ...] = ()) -> ActionChunk:
    """First channel by row; second channel zero but where (row, step, value) says otherwise."""
    actions = np.zeros((len(rows), HORIZON, 2), np.float32)
    actions[..., 0] = rows
    for row, step, value in second:
        actions[row, step, 1] = value
    return ActionChunk(actions, np.ones(actions.shape, bool))


def drawn(env: int, episode: int) -> int:
    """What an environment draws when it is reset for that episode."""
    rng, _ = np_random(episode_seed(generator(7, Stream.SCENE, env, episode)))
    return int(rng.integers(1, 200))


def shown(seen: Observation | None) -> list[tuple[int, int]]:
    """(who, step) of each row, by picture; state and instruction must say the same."""
    assert seen is not None and seen.privileged is not None
    pixels = seen.images["top"][:, 4, 4, [0, 2]].astype(int)
    np.testing.assert_array_equal(seen.privileged, pixels)
    np.testing.assert_array_equal(seen.proprioception, seen.privileged)
    assert [text.split()[-1] for text in seen.instruction] == [str(who) for who in pixels[:, 0]]
    return [(int(who), int(step)) for who, step in pixels]


@pytest.mark.parametrize("kind", KEYED)
def test_chunk_stops_where_the_episode_ends_and_the_next_one_has_just_begun(kind: str) -> None:
    with world(kind) as env:
        assert env.keyed
        assert shown(env.reset(keys(0, 5))) == [(drawn(0, 0), 0), (drawn(1, 5), 0)]
        one = env.step_chunk(chunk([0.5, 0.5, 0.7, 0.7], [0.1] * 4))
        np.testing.assert_allclose(one.reward, [[0.5, 0.5, 0, 0], [0.1] * 4], rtol=1e-6)
        assert one.steps_executed.tolist() == [2, 4]
        assert one.terminated.tolist() == one.success.tolist() == [True, False] and not one.truncated.any()
        assert one.final_index.tolist() == [0] and shown(one.final_observation) == [(drawn(0, 0), 2)]
        assert shown(one.observation) == [(drawn(0, 1), 0), (drawn(1, 5), 4)]
        two = env.step_chunk(chunk([0.0] * 4, [0.25] * 4))
        assert two.steps_executed.tolist() == [4, LIMIT - 4] and two.truncated.tolist() == [False, True]
        assert not (two.terminated | two.success).any()
        assert shown(two.final_observation) == [(drawn(1, 5), LIMIT)]
        assert shown(two.observation) == [(drawn(0, 1), 4), (drawn(1, 6), 0)]


@pytest.mark.parametrize(
    ("kind", "idle"),
    [("alone NEXT_STEP", 1), ("alone SAME_STEP", 2), ("tensors NEXT_STEP", 1), ("tensors SAME_STEP", 2)],
)
def test_world_that_restarts_by_itself_idles_to_the_boundary(kind: str, idle: int) -> None:
    """NEXT_STEP spends step 3 on the reset and idles in step 4; SAME_STEP idles in both."""
    with world(kind) as env:
        (first, _), (second, _) = shown(env.reset(keys(0, 5)))
        assert not env.keyed and first == drawn(0, 0)
        one = env.step_chunk(chunk([0.5, 0.5, 0.7, 0.7], [0.1] * 4))
        np.testing.assert_allclose(one.reward, [[0.5, 0.5, 0, 0], [0.1] * 4], rtol=1e-6)
        assert one.steps_executed.tolist() == [2, 4] and one.success.tolist() == [True, False]
        assert shown(one.final_observation) == [(first, 2)]
        (fresh, step), other = shown(one.observation)
        assert fresh != first and step == idle and other == (second, 4)
        # Nothing that was left of the chunk reached the new episode: 0.9 does not end it.
        two = env.step_chunk(chunk([0.3, 0.3, 0.3, 0.0], [0.1] * 4))
        assert not two.terminated.any() and two.steps_executed.tolist() == [4, 2]


def test_episode_that_ends_with_the_chunk_costs_the_others_one_step_in_next_step_mode() -> None:
    with world("alone NEXT_STEP") as env:
        first, second = (who for who, _ in shown(env.reset(keys(0, 0))))
        out = env.step_chunk(chunk([0.0, 0.0, 0.5, 0.5], [0.1] * 4))
        assert out.steps_executed.tolist() == [4, 4] and out.terminated.tolist() == [True, False]
        np.testing.assert_allclose(out.reward, [[0, 0, 0.5, 0.5], [0.1, 0.1, 0.1, 0.2]], rtol=1e-6)
        assert shown(out.final_observation) == [(first, 4)]
        (fresh, step), other = shown(out.observation)
        assert fresh != first and step == 0 and other == (second, 5)


@pytest.mark.parametrize("kind", [*KEYED, *LOOSE])
def test_contract_holds(kind: str) -> None:
    with world(kind, 3) as env:
        left_out = contract.check(env, make=lambda n: world(kind, n))
        assert left_out == (() if kind in KEYED else contract.KEY_RULES)


def test_what_is_wrapped_together_is_stepped_together() -> None:
    with world("factory sync") as plain, world("factory wrapped") as wrapped:
        assert isinstance(plain, SimpleWorld) and isinstance(wrapped, TogetherWorld)


def test_contract_holds_in_processes_of_gymnasiums_own() -> None:
    own = {"id": "gym_worlds:Counting-v0", "vectorization": "async"}
    with envs.make("gymnasium", 2, **OPTIONS | own) as env:
        assert isinstance(env, TogetherWorld) and contract.check(env) == ()


def test_state_without_pictures_is_a_world_too() -> None:
    options = dict(id="Pendulum-v1", privileged=["obs"], instruction="swing up", success="never", time_limit=20)
    with envs.make("gymnasium", 2, **options) as env:
        assert env.spec.embodiment.views == () and env.spec.privileged == ("obs_0", "obs_1", "obs_2")
        contract.check(env)
        obs = env.reset(keys(0, 0)).privileged
        assert obs is not None
        np.testing.assert_allclose(np.hypot(obs[:, 0], obs[:, 1]), 1, rtol=1e-6)


@pytest.mark.parametrize("kind", ["single", "sync NEXT_STEP", "alone DISABLED", "tensors DISABLED"])
def test_time_limit_may_be_shorter_than_the_environments_own(kind: str) -> None:
    with world(kind, time_limit=3) as env:
        env.reset(keys(0, 0))
        out = env.step_chunk(chunk([0.1] * 4, [0.1] * 4))
        assert out.steps_executed.tolist() == [3, 3] and out.truncated.all()
        assert shown(out.final_observation) == [(drawn(0, 0), 3), (drawn(1, 0), 3)]
        assert shown(out.observation) == [(drawn(0, 1), 0), (drawn(1, 1), 0)]


def test_world_that_outlives_its_limit_and_cannot_be_stopped_is_refused() -> None:
    with world("alone SAME_STEP", time_limit=3) as env:
        env.reset(keys(0, 0))
        with pytest.raises(UserError, match="outlived its time limit: got 3 steps"):
            env.step_chunk(chunk([0.1] * 4, [0.1] * 4))


@pytest.mark.parametrize("value", [BREAKS, SICK])
def test_environment_that_breaks_down_is_reported_and_replaced_while_the_other_plays_on(value: float) -> None:
    with world("single") as env:
        env.reset(keys(3, 5))
        made = Counting.made
        out = env.step_chunk(chunk([0.2] * 4, [0.1] * 4, second=((0, 3, value),)))
        (failure,) = out.failures
        assert (failure.row, failure.seed, failure.env, failure.episode) == (0, 7, 0, 3)
        assert ("the arm fell off" if value == BREAKS else "proprioception channel 1 is not finite") in str(failure)
        assert not out.reward[0].any() and out.truncated.tolist() == [True, False] and not out.success.any()
        np.testing.assert_allclose(out.reward[1], 0.1, rtol=1e-6)
        assert shown(out.final_observation) == [(drawn(0, 3), 0)]
        assert shown(out.observation) == [(drawn(0, 4), 0), (drawn(1, 5), 4)]
        assert Counting.made == made + 1
        with pytest.raises(contract.ContractError, match=r"broke down.*episode 3"):
            check_outcome(env, out)


@pytest.mark.parametrize("kind", ["sync DISABLED", "sync SAME_STEP", "alone DISABLED", "tensors DISABLED"])
def test_nan_in_a_vector_environment_costs_one_row(kind: str) -> None:
    with world(kind) as env:
        env.reset(keys(3, 5))
        out = env.step_chunk(chunk([0.2] * 4, [0.1] * 4, second=((0, 3, SICK),)))
        assert [(f.row, f.episode) for f in out.failures] == [(0, 3)] and out.truncated.tolist() == [True, False]
        assert shown(out.final_observation) == [(drawn(0, 3), 0)]
        assert shown(out.observation) == [(drawn(0, 4), 0), (drawn(1, 5), 4)]


def test_nan_where_nothing_can_be_restarted_alone_stops_the_world_by_name() -> None:
    with world("alone SAME_STEP") as env:
        env.reset(keys(3, 5))
        with pytest.raises(RuntimeError, match=r"gymnasium.*not finite"):
            env.step_chunk(chunk([0.2] * 4, [0.1] * 4, second=((0, 3, SICK),)))


def test_frames_are_drawn_at_the_boundary_only_and_resized() -> None:
    with world("single", 1, views={"top": "render"}, image_size=32) as env:
        first = env.reset(keys(0)).images["top"]
        assert first.shape == (1, 32, 32, 3) and first[0, 16, 16].tolist() == [drawn(0, 0), 255 - drawn(0, 0), 0]
        inner = env._episodes[0]._env.unwrapped  # type: ignore[attr-defined]
        assert inner.drawn == 1
        env.step_chunk(chunk([0.1] * 4))
        assert inner.drawn == 2
        env.step_chunk(chunk([0.1] * 4))
        assert inner.drawn == 4, "the last observation, and the first of the next episode"


@pytest.mark.parametrize("name", ["is_success", "terminated", "never"])
def test_what_counts_as_success_is_an_option(name: str) -> None:
    rule = f"info.{name}" if name == "is_success" else name
    with world("single", 1, success=rule) as env:
        env.reset(keys(0))
        out = env.step_chunk(chunk([1.0, 0, 0, 0]))
        assert out.terminated.all() and out.success.tolist() == [name != "never"]


def test_displacements_become_steps_in_the_environments_units() -> None:
    """Metres from the chunk's first frame; 1 of the environment is 5 cm a step; the gripper is turned around."""
    options = GymnasiumOptions(
        id="x", instruction="x", control="delta_ee", gripper="open_positive", actions="per_step",
        action_scale=[0.05, 0.05, 0.05, -1],
    )  # fmt: skip
    far = np.array([[[0.01, 0, 0, 1], [0.03, 0, -0.02, 1], [0.03, 0.1, -0.02, -1]]], np.float32)
    bounds = np.full(4, -1, np.float32), np.full(4, 1, np.float32)
    steps = [[[0.2, 0, 0, -1], [0.4, 0, -0.4, -1], [0, 1, 0, 1]]]
    np.testing.assert_allclose(to_world(options, far, *bounds), steps, atol=1e-6)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"id": ""}, "one of id and factory"),
        ({"id": "Countin-v0"}, "cannot use option 'id'.*Countin"),
        ({"id": "Endless-v0"}, "registered without"),
        ({"kwargs": {"colour": 1}}, "'kwargs'.*unexpected keyword argument 'colour'"),
        ({"id": "CartPole-v1"}, "a Box of numbers"),
        ({"time_limit": LIMIT + 1}, f"at most its own {LIMIT}"),
        ({"horizon": 0}, "'horizon': got 0; expected greater than or equal to 1"),
        ({"control": "torque"}, "'control': got 'torque'; expected 'delta_ee'"),
        ({"instruction": ""}, "the task in words"),
        ({"views": {"top": "seen"}}, r"views\.top"),
        ({"views": {"top": "obs.sen.top"}}, r"'obs\.sen\.top'; expected keys \['seen', 'state'\]"),
        ({"privileged": ["obs.seen"]}, "name one of its keys"),
        ({"action_scale": [1, 1, 1]}, "one number, or 2"),
        ({"action_scale": [0, 1]}, "other than 0"),
        ({"actions": "per_step"}, "got 2 channels; expected 3 for each arm"),
        ({"success": "is_success"}, "`info.KEY`"),
        ({"id": "", "factory": "gym_worlds:alown"}, "did you mean 'alone'"),
        ({"id": "", "factory": "no_such_module:make"}, "no module 'no_such_module'"),
        ({"id": "", "factory": "gym_worlds:no_vector"}, "gymnasium.vector.VectorEnv"),
    ],
)
def test_options_that_cannot_work_are_refused_in_plain_words(change: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        envs.spec("gymnasium", **OPTIONS | change)


@pytest.mark.parametrize(
    ("play", "message"),
    [
        (lambda: world("single", 1, success="info.won"), r"says nothing of success: got .*is_success.*expected won"),
        (lambda: world("single", 1, instruction="info.words"), "has no 'info.words': .*one of .*task"),
        (lambda: world("alone SAME_STEP", 1, views={"top": "render"}), "before its last picture can be drawn"),
    ],
)
def test_what_only_shows_in_play_is_said_when_it_shows(play: Callable[[], VectorEnv], message: str) -> None:
    with pytest.raises(UserError, match=message), play() as env:
        env.reset(keys(0))
        env.step_chunk(chunk([1.0, 0, 0, 0]))


def test_shipped_settings_are_options_of_this_backend() -> None:
    env = load(TrainConfig, "gymnasium").env
    assert env.name == "gymnasium" and GymnasiumOptions(**env.options).success == "info.is_success"


def test_policy_with_eyes_refuses_a_world_without_pictures() -> None:
    blind = spec(GymnasiumOptions(**OPTIONS | {"views": {}}))
    with pytest.raises(UserError, match=r"'gymnasium' shows no pictures: got views=\(\)"):
        handshake((blind.embodiment,), blind)
