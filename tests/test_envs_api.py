"""How environments are asked for, what they refuse, and how they say so."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

import envs
from envs.base import VectorEnv
from envs.expert import expert_chunk
from rl_finetune.errors import UserError
from rl_finetune.types import ActionChunk, SeedKeys

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def single() -> Iterator[VectorEnv]:
    with envs.make("widowx_reach", 1) as env:
        yield env


def keys(count: int, *, seed: int = 0) -> SeedKeys:
    return SeedKeys(seed, np.arange(count, dtype=np.int64), np.zeros(count, np.int64))


def still(count: int) -> ActionChunk:
    return ActionChunk(np.zeros((count, 8, 7), np.float32), np.ones((count, 8, 7), bool))


def python(code: str) -> str:
    """What `code` prints in a fresh interpreter."""
    return subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True).stdout


@pytest.mark.parametrize("size", [64, 224])
def test_picture_size_is_an_option(size: int) -> None:
    with envs.make("widowx_reach", 1, image_size=size) as env:
        assert env.reset(keys(1)).images["ego"].shape == (1, size, size, 3)
        assert env.spec.image_size == size


def test_tolerance_is_an_option() -> None:
    with envs.make("widowx_reach", 20, tolerance=0.01) as env:
        observation = env.reset(keys(20))
        ends = [env.step_chunk(expert_chunk(env, observation))]
        ends.append(env.step_chunk(expert_chunk(env, ends[0].observation)))
    won = sum(int(out.success.sum()) for out in ends)
    assert won >= 20
    final = ends[0].final_observation
    assert final is not None
    assert final.privileged is not None and env.spec.privileged[:6:3] == ("tool_x", "target_x")
    gap = final.privileged[:, 0:3] - final.privileged[:, 3:6]
    assert np.linalg.norm(gap, axis=1).max() <= 0.01 + 1e-6


def test_not_finite_actions_are_refused(single: VectorEnv) -> None:
    single.reset(keys(1))
    chunk = still(1)
    chunk.actions[0, 2, 5] = np.nan
    with pytest.raises(UserError, match="environment 0, step 2, channel 5 is not finite: got nan"):
        single.step_chunk(chunk)


def test_padding_is_ignored_even_when_it_is_not_finite(single: VectorEnv) -> None:
    single.reset(keys(1))
    padded = np.pad(still(1).actions, ((0, 0), (0, 0), (0, 2)), constant_values=np.nan)
    assert single.step_chunk(ActionChunk(padded, np.isfinite(padded))).steps_executed.tolist() == [8]


def test_wrong_shapes_and_order_are_refused(single: VectorEnv) -> None:
    with envs.make("widowx_reach", 1) as fresh, pytest.raises(RuntimeError, match=r"call reset\(keys\) first"):
        fresh.step_chunk(still(1))
    single.reset(keys(1))
    with pytest.raises(UserError, match=r"got \(2, 8, 7\); expected \(1, 8, K >= 7\)"):
        single.step_chunk(still(2))
    with pytest.raises(UserError, match="wrong number of seed keys: got 2 env"):
        single.reset(keys(2))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: envs.make("widowx_rech", 1), "unknown environment: .*did you mean 'widowx_reach'"),
        (
            lambda: envs.spec("widowx_reach", image_sise=64),
            "unknown option of widowx_reach: .*did you mean 'image_size'",
        ),
        (lambda: envs.spec("widowx_reach", image_size=65), r"got 65; expected one of \(64, 96, 128, 224\)"),
        (lambda: envs.spec("widowx_reach", tolerance=0.2), "got 0.2"),
        (lambda: envs.make("widowx_reach", 0), "num_envs=0"),
        (lambda: envs.make("widowx_reach", 1, num_envs=3), "unknown option of widowx_reach: got 'num_envs'"),
        (lambda: envs.make("widowx_reach", 2, workers=3), "workers=3"),
        (lambda: envs.make("widowx_reach", 2, workers=2, patience=0), "patience=0"),
    ],
)
def test_bad_requests_are_refused_in_plain_words(call: Callable[[], object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        call()


def test_spec_names_the_conventions_without_importing_mujoco() -> None:
    code = (
        "import sys, envs; s = envs.spec('widowx_reach'); a = s.embodiment.action; "
        "assert 'mujoco' not in sys.modules; "
        "print(s.embodiment.tag, a.channels, a.horizon, a.control, a.gripper, s.time_limit, len(s.privileged))"
    )
    printed = python(code)
    assert printed.split() == ["widowx", "7", "8", "delta_ee", "open_positive", "32", "22"]


def test_missing_opengl_is_explained() -> None:
    code = (
        "import sys; sys.modules['mujoco.egl'] = None; import envs\n"
        "try: envs.make('widowx_reach', 1)\n"
        "except Exception as e: print(type(e).__name__, e)"
    )
    printed = python(code)
    assert printed.startswith("UserError") and "libegl1 libegl-mesa0 libgl1-mesa-dri" in printed


def test_two_environments_share_a_process_without_mixing_their_pictures(single: VectorEnv) -> None:
    alone = single.reset(keys(1, seed=6)).images["ego"]
    with envs.make("widowx_reach", 1) as other:
        other.reset(keys(1, seed=7))
        np.testing.assert_array_equal(single.reset(keys(1, seed=6)).images["ego"], alone)
    np.testing.assert_array_equal(single.reset(keys(1, seed=6)).images["ego"], alone)


def test_closing_twice_does_no_harm() -> None:
    env = envs.make("widowx_reach", 1)
    env.close()
    env.close()


def test_expert_refuses_what_it_cannot_work_from(single: VectorEnv) -> None:
    observation = single.reset(keys(1))
    with pytest.raises(ValueError, match="keys when noise > 0"):
        expert_chunk(single, observation, noise=0.01)
