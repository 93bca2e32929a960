"""The client and Isaac's process together, on the double; options, actions, the GPU, the wire."""

from __future__ import annotations

import logging
import socket
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest

import envs
from envs import contract
from envs.actions import matrices, per_step, vectors
from envs.isaac.client import IsaacEnv, named
from envs.isaac.gpu import check_can_draw, claim
from envs.isaac.options import held_channels, spec
from envs.isaac.process import IsaacError
from envs.isaac.worker.wire import Message, receive, send
from rl_finetune.errors import UserError
from rl_finetune.types import ActionChunk, SeedKeys
from tests.isaac_double import HORIZON, NAMES, options, remote

__all__ = ["remote"]


def keys(*episodes: int, seed: int = 1) -> SeedKeys:
    return SeedKeys(seed, np.arange(len(episodes), dtype=np.int64), np.array(episodes, np.int64))


def chunk(actions: np.ndarray) -> ActionChunk:
    return ActionChunk(actions.astype(np.float32), np.ones(actions.shape, bool))


@pytest.mark.parametrize("habits", ["", "three", "direct,no_success"])
def test_the_contract_holds_as_far_as_isaac_can_keep_it(
    habits: str, remote: Callable[[str], None], caplog: pytest.LogCaptureFixture
) -> None:
    remote(habits)
    with caplog.at_level(logging.WARNING), IsaacEnv(3, options(without_success_term="extras")) as env:
        assert env.found["keeps_last"] == (habits == "three")
        assert env.found["success"] == ("extras" if "no_success" in habits else "term")
        assert env.found["reset"] == ("_reset_idx" if "direct" in habits else "reset(env_ids)")
        declined = contract.check(env)
        log = env._process.log
    assert declined == contract.KEY_RULES
    warned = [record for record in caplog.records if "keeps no last observation" in record.message]
    assert len(warned) == (habits != "three"), "said once, where it is so"
    assert not log.exists(), "a good end leaves no log"


@pytest.fixture(scope="module")
def env() -> Iterator[IsaacEnv]:
    with pytest.MonkeyPatch.context() as patch:
        remote.__wrapped__(patch)("nan")
        with IsaacEnv(3, options(instructions=["touch the goal", "go there"])) as made:
            yield made


def test_a_chunk_crosses_the_process_in_our_conventions(env: IsaacEnv) -> None:
    first = env.reset(keys(0, 0, 1))
    assert first.instruction == ("touch the goal", "go there", "go there")
    assert first.privileged is not None and first.proprioception is not None
    np.testing.assert_array_equal(first.privileged[:, :3], first.proprioception)
    gap = first.privileged[:, 3:6] - first.privileged[:, :3]
    aims = np.zeros((3, HORIZON, 3))
    aims[0] = gap[0] * np.minimum(np.arange(1, HORIZON + 1) / 5, 1)[:, None]  # there at the fifth step
    aims[2, :, 1] = np.linspace(-1, -8, HORIZON)  # beyond finite numbers at the second step
    out = env.step_chunk(chunk(aims))
    assert out.success.tolist() == [True, False, False] and out.steps_executed.tolist() == [5, 8, 2]
    assert out.reward[0].tolist() == [0, 0, 0, 0, 1, 0, 0, 0] and out.final_index.tolist() == [0, 2]
    assert out.observation.instruction == ("go there", "go there", "touch the goal")
    assert out.final_observation is not None
    assert out.final_observation.instruction == ("touch the goal", "go there")
    (failure,) = out.failures
    assert (failure.row, failure.seed, failure.env, failure.episode) == (2, 1, 2, 1) and out.failed[2]


def test_the_same_keys_begin_alike_and_others_do_not(env: IsaacEnv) -> None:
    one, again, other = (env.reset(keys(*e)).privileged for e in ((3, 3, 3), (3, 3, 3), (4, 3, 3)))
    assert one is not None and again is not None and other is not None
    np.testing.assert_array_equal(one, again)
    assert not np.array_equal(one, other)
    assert 0 <= named(keys(3, 3, 3)) < 2**31


def test_groups_and_chunks_before_a_reset_are_refused(env: IsaacEnv) -> None:
    with pytest.raises(UserError, match="cannot begin the environments of a group alike"):
        env.reset(SeedKeys(0, np.arange(3), np.zeros(3, np.int64), group=3))


@pytest.mark.parametrize(
    ("habits", "message"),
    [
        ("die", r"died during 'chunk'; exit code 7; .*\[double\] the driver is gone"),
        ("raise", r"failed at 'chunk' with torch._C._LinAlgError: .* \(envs.py:\d+ in misbehave\)"),
        ("hang", r"did not answer 'chunk' within 2 s and was killed; exit code -9"),
    ],
)
def test_a_lost_process_is_told_with_the_end_of_its_log(
    habits: str, message: str, remote: Callable[[str], None]
) -> None:
    remote(habits)
    with closing(IsaacEnv(2, options(step_seconds=2.0))) as env:
        env.reset(keys(0, 0))
        with pytest.raises(IsaacError, match=f"(?s)pid {env._process.pid}.*{message}"):
            env.step_chunk(chunk(np.zeros((2, HORIZON, 3))))
        with pytest.raises(IsaacError, match="make the environment again"):
            env.reset(keys(0, 0))
        assert env._process.log.exists()
        env._process.log.unlink()
        env.close()


def test_a_task_that_does_not_fit_is_a_users_error_and_leaves_no_process(remote: Callable[[str], None]) -> None:
    remote("no_success")
    with pytest.raises(UserError, match="no termination term that means success"):
        envs.make("isaac", 2, **{name: getattr(options(), name) for name in given()})


def given() -> tuple[str, ...]:
    return (
        "task", "device", "channels", "horizon", "rotation", "gripper", "rate", "image_size", "instructions",
        "time_limit", "views",
    )  # fmt: skip


def test_an_interpreter_without_isaac_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PYTHONPATH", raising=False)
    with pytest.raises(IsaacError, match=r"(?s)failed at 'start' with ModuleNotFoundError: No module named 'isaaclab'"):
        IsaacEnv(1, options())


def test_spec_starts_nothing_and_declares_the_conventions() -> None:
    told = spec(options())
    assert told.embodiment.action.horizon == HORIZON and told.embodiment.views == ("ego",)
    assert told.privileged == NAMES and told.tasks == ("touch the goal",)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"task": ""}, "'task'"),
        ({"time_limit": 20}, "a multiple of horizon 8"),
        ({"views": {}}, "'views'"),
        ({"views": {"ego": "table_cam"}}, r"'views.ego': got 'table_cam'; expected `camera:NAME`"),
        ({"instructions": "touch"}, "'instructions': got 'touch'; expected a list"),
        ({"instructions": []}, "at least one"),
        ({"without_success_term": "guess"}, "expected 'refuse'"),
        ({"control": "delta-ee"}, "'control': got 'delta-ee'; expected 'delta_ee'"),
        ({"rate": "fast"}, "'rate': got 'fast'; expected a valid number"),
        ({"privileged_names": ()}, "a name for each channel"),
        ({"quaternions": (7,)}, "first of four channels among 10"),
        ({"channels": 4}, "3 channels an arm"),
        ({"python": "/nowhere/python"}, "interpreter of Isaac's environment"),
        ({"action_scale": 0.0}, "above 0"),
    ],
)
def test_bad_options_are_refused_before_anything_starts(changed: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        options(**changed)


def test_displacements_from_the_first_frame_become_steps() -> None:
    quarter = np.pi / 2
    told = np.array([[[0.1, 0, 0, 0, 0, quarter, 1], [0.1, 0.2, 0, 0, quarter, 0, -1]]], np.float32)
    out = per_step(told, 6, True, 0.5)[0]
    np.testing.assert_allclose(out[0], [0.2, 0, 0, 0, 0, 2 * quarter, 1], atol=1e-6)
    np.testing.assert_allclose(out[1, [0, 1, 2, 6]], [0, 0.4, 0, -1], atol=1e-6)
    # R_y(90) R_z(-90) turns x to -y, y to -z and z to x: 120 degrees about (-1, 1, -1) / sqrt 3
    third = 2 * np.pi / 3 / np.sqrt(3)
    np.testing.assert_allclose(out[1, 3:6] * 0.5, [-third, third, -third], atol=1e-6)


def test_steps_put_together_are_the_displacement() -> None:
    told = np.random.default_rng(0).normal(size=(5, 9, 14)).astype(np.float32) * 0.6
    steps = per_step(told, 6, True, 0.3)
    for arm in (0, 7):
        np.testing.assert_allclose(np.cumsum(steps[..., arm : arm + 3], 1) * 0.3, told[..., arm : arm + 3], atol=1e-5)
        pose = np.broadcast_to(np.eye(3), (5, 3, 3))
        for step in range(9):
            pose = matrices(steps[:, step, arm + 3 : arm + 6].astype(float) * 0.3) @ pose
            np.testing.assert_allclose(vectors(pose), told[:, step, arm + 3 : arm + 6], atol=1e-5)


def test_held_channels_are_grippers_or_all_joints() -> None:
    arm = {"rotation": "axis_angle", "gripper": "open_positive", "privileged": None, "privileged_names": ()}
    assert held_channels(options(channels=14, quaternions=(), **arm)) == (6, 13)
    assert held_channels(options(control="joint")) == (0, 1, 2)
    assert held_channels(options()) == ()


@pytest.mark.parametrize(("name", "refused"), [("NVIDIA H100 80GB HBM3", True), ("NVIDIA L40S", False)])
def test_a_gpu_that_cannot_draw_is_named(
    name: str, refused: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tool = tmp_path / "nvidia-smi"
    tool.write_text(f'#!/bin/sh\necho "$@" > {tmp_path}/asked\necho "{name}"\n')
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,5")
    if refused:
        with pytest.raises(UserError, match=f"on '{name}': it has no ray-tracing cores.*newton_renderer"):
            envs.make("isaac", 1, task="T", instructions=["x"], time_limit=16, device="cuda:1")
    else:
        check_can_draw(options(device="cuda:1"))
    assert "--id=5 " in (tmp_path / "asked").read_text()
    check_can_draw(options(device="cuda:1", overrides=["presets=newton_renderer"]))


def test_one_isaac_process_a_gpu(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    first = claim("cuda:0")
    assert first is not None and claim("cpu") is None
    with pytest.raises(UserError, match="another Isaac process holds GPU 0"):
        claim("cuda:0")
    other = claim("cuda:1")
    first.close()
    again = claim("cuda:0")
    assert other is not None and again is not None
    other.close()
    again.close()


def test_messages_arrive_as_they_were_sent() -> None:
    here, there = socket.socketpair()
    arrays = {
        "a": np.arange(6, dtype=np.float32).reshape(2, 3)[:, ::-1], "none": np.zeros((0, 4), np.uint8),
        "flag": np.array([True, False]), "one": np.array(3, np.int64),
    }  # fmt: skip
    send(here, Message({"ask": "chunk", "n": 1}, arrays))
    got = receive(there)
    assert got.head == {"ask": "chunk", "n": 1}
    for name, array in arrays.items():
        np.testing.assert_array_equal(got.arrays[name], array)
        assert got.arrays[name].dtype == array.dtype and got.arrays[name].flags.writeable
    with pytest.raises(TypeError, match="cannot travel"):
        send(here, Message({}, {"bad": np.array([None])}))
    here.close()
    with pytest.raises(EOFError):
        receive(there)
