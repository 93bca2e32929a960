"""Numbers of other people's simulators: converted from whatever they are, or refused by name and type."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from envs.gymnasium.options import GymnasiumOptions
from envs.gymnasium.reading import reported
from envs.gymnasium.rows import Row, row_of
from envs.simple import Episode, SimpleWorld, Step
from rl_finetune.arrays import as_array, flag, flags, number, per_env
from rl_finetune.errors import NotFiniteError, UserError
from rl_finetune.policy.config import WIDOWX
from rl_finetune.spec import EnvSpec
from rl_finetune.types import ActionChunk, SeedKeys


class Dlpack:
    """What can only be shared as DLPack."""

    def __init__(self, values: np.ndarray) -> None:
        self._values = values

    def __dlpack__(self, **asked: Any) -> Any:
        return self._values.__dlpack__(**asked)

    def __dlpack_device__(self) -> Any:
        return self._values.__dlpack_device__()


class Elsewhere:
    """An array on a device that numpy cannot reach, as cupy's say it."""

    shape, dtype = (2,), "float32"

    def __array__(self, *_: Any, **__: Any) -> Any:
        raise TypeError("Implicit conversion to a NumPy array is not allowed")


ROW = [0.5, -1.0, 2.0]
SAME: list[Any] = [
    ROW, tuple(ROW), np.array(ROW), np.array(ROW, np.float16), torch.tensor(ROW),
    torch.tensor(ROW, requires_grad=True), torch.tensor(ROW, dtype=torch.bfloat16), Dlpack(np.array(ROW)),
    [torch.tensor(value, requires_grad=True) for value in ROW], [np.array(value) for value in ROW],
]  # fmt: skip
NO_NUMBERS: list[tuple[Any, str]] = [
    (None, "nothing"), ("1", "'1'"), ({"a": 1}, "dict"), (np.array([1, None]), "ndarray of object (2,)"),
    ([[1], [2, 3]], "list of 2"), (np.array(["a"]), "ndarray of <U1 (1,)"), (1j, "complex"), (object(), "object"),
    (np.datetime64("2026-01-01"), "datetime64 of datetime64[D] ()"), ([ROW, None], "list of 2"),
    (Elsewhere(), "Elsewhere of float32 (2,)"),
]  # fmt: skip


@pytest.mark.parametrize("value", SAME, ids=lambda value: type(value).__name__)
def test_whatever_holds_numbers_is_an_array_of_them(value: Any) -> None:
    found = as_array(value, "obs")
    assert type(found) is np.ndarray and found.tolist() == ROW


@pytest.mark.parametrize(("value", "got"), NO_NUMBERS)
def test_what_holds_none_is_refused_by_name_and_type(value: Any, got: str) -> None:
    for read in (as_array, number, flag, lambda value, what: per_env(value, what, 2)):
        with pytest.raises(UserError) as caught:
            read(value, "info.success")
        assert str(caught.value).startswith(f"info.success cannot be read: got {got}; expected ")
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("kind", [bool, int, float, np.bool_, np.int64, np.float32, np.array, torch.tensor])
def test_a_truth_value_is_one_whatever_type_it_has(kind: Callable[..., Any]) -> None:
    for truth in (True, False):
        for value in (kind(truth), [kind(truth)], np.array([[truth]])):
            assert flag(value, "success") is truth
            assert number(value, "success") == float(truth)


@pytest.mark.parametrize("value", [0.7, 2, -1, [True, False, False], torch.tensor([True, False, False]), []])
def test_what_is_neither_true_nor_false_is_no_truth_value(value: Any) -> None:
    with pytest.raises(UserError, match="success cannot be read"):
        flag(value, "success")


def test_nan_is_neither() -> None:
    for value in (float("nan"), np.nan, np.array([np.nan]), torch.tensor(float("nan"))):
        with pytest.raises(NotFiniteError, match="success is nan"):
            flag(value, "success")
    with pytest.raises(UserError, match="done cannot be read"):
        flags([0.0, np.nan], "done", 2)


def test_batches_have_one_entry_for_each_environment() -> None:
    for value in ([1, 0, 1], torch.tensor([True, False, True]), np.array([[1.0], [0.0], [1.0]])):
        assert flags(value, "done", 3).tolist() == [True, False, True]
        assert per_env(value, "done", 3).tolist() == [1, 0, 1]
        with pytest.raises(UserError, match=r"done cannot be read: got \w+ of .*3.*; expected one for each of 2 env"):
            per_env(value, "done", 2)
    for value in (True, torch.tensor(1.0), np.ones((1, 3))):
        with pytest.raises(UserError, match="expected one for each of 3 environments"):
            per_env(value, "done", 3)


INFO = GymnasiumOptions(id="x", instruction="x")


@pytest.mark.parametrize(
    "success",
    [
        torch.tensor([True, False, False, False]), np.array([1, 0, 0, 0]), [True, False, False, False],
        torch.tensor([[1.0], [0.0], [0.0], [0.0]]),
    ],
)  # fmt: skip
def test_one_success_of_four_is_a_quarter(success: Any) -> None:
    """Not all of them, because a tensor that holds a success is true."""
    rows = [Row({"success": success, "steps": 3}, row, 4, "info") for row in range(4)]
    assert [reported(INFO, row, terminated=False, over=True) for row in rows] == [True, False, False, False]


@pytest.mark.parametrize("success", [True, torch.tensor(True), np.bool_(True), [True], torch.ones(3), np.ones((1, 4))])
def test_a_success_that_is_not_one_for_each_is_refused(success: Any) -> None:
    with pytest.raises(UserError, match=r"info\.success is not one for each: got .*; expected 4 entries"):
        reported(INFO, Row({"success": success}, 0, 4, "info"), terminated=False, over=True)


def test_a_success_of_several_parts_is_refused_by_key_and_type() -> None:
    each = torch.tensor([[True, False], [False, False]])
    with pytest.raises(UserError, match=r"info\['success'\] cannot be read: got Tensor of torch.bool \(2,\)"):
        reported(INFO, Row({"success": each}, 0, 2, "info"), terminated=False, over=True)


def test_what_an_info_does_not_have_for_a_row_it_does_not_have() -> None:
    infos = {
        "task": np.array(["lift", None], object), "_task": np.array([True, False]), "all": "reach", "spare": object(),
        "inner": {"force": torch.tensor([[1.0], [2.0]]), "_force": torch.tensor([False, True])},
    }  # fmt: skip
    first, second = (Row(infos, row, 2, "info") for row in range(2))
    assert sorted(first) == ["all", "inner", "spare", "task"] and sorted(second) == ["all", "inner", "spare"]
    assert first["task"] == "lift" and first["all"] == second["all"] == "reach"
    assert list(first["inner"]) == [] and number(second["inner"]["force"], "force") == 2
    with pytest.raises(UserError, match=r"info\.spare is not one for each: got object"):
        first["spare"]


def test_a_row_of_an_array_is_nobody_elses() -> None:
    batch = np.zeros((2, 3))
    row_of(batch, 0, 2, "obs")[:] = 1
    assert not batch.any()


SPEC = EnvSpec("own", replace(WIDOWX, views=()), image_size=8, time_limit=4, privileged=("x", "y"))
KEYS = SeedKeys(0, np.arange(2), np.zeros(2, np.int64))
STILL = ActionChunk(np.zeros((2, 8, 7), np.float32), np.ones((2, 8, 7), bool))


class Told(Episode):
    """Returns what the test says."""

    step_: Any = Step()
    felt: Any = (0.0, 1.0, 2.0)
    known: Any = (0.0, 1.0)

    def begin(self, rng: np.random.Generator) -> str:
        return "reach"

    def step(self, action: np.ndarray) -> Step:
        return self.step_

    def proprioception(self) -> Any:
        return self.felt

    def privileged(self) -> Any:
        return self.known


def own(**told: Any) -> SimpleWorld:
    return SimpleWorld(2, SPEC, lambda: type("Told", (Told,), told)(None))


@pytest.mark.parametrize("kind", [float, np.float32, np.array, torch.tensor, lambda value: [torch.tensor([value])]])
def test_a_world_of_ones_own_may_return_tensors(kind: Callable[[Any], Any]) -> None:
    step = Step(reward=kind(0.5), success=kind(1), truncated=kind(0), terminated=kind(False))
    env = own(step_=step, felt=torch.tensor([1.0, 2, 3], requires_grad=True), known=[torch.tensor(4.0), 5])
    env.reset(KEYS)
    out = env.step_chunk(STILL)
    assert out.success.tolist() == [True, True] and out.reward[:, 0].tolist() == [0.5, 0.5]
    assert out.success.dtype == bool and out.steps_executed.tolist() == [1, 1]
    assert out.observation.proprioception is not None and out.observation.privileged is not None
    np.testing.assert_array_equal(out.observation.proprioception, [[1, 2, 3]] * 2)
    np.testing.assert_array_equal(out.observation.privileged, [[4, 5]] * 2)
    assert out.observation.privileged.dtype == np.float32


@pytest.mark.parametrize(
    ("told", "message"),
    [
        ({"step_": (0, 0.0, True, False, {})}, "own step cannot be read: got tuple of 5; expected an envs.simple.Step"),
        ({"step_": None}, "own step cannot be read: got nothing"),
        ({"step_": Step(reward=torch.zeros(2))}, r"own reward cannot be read: got Tensor of torch.float32 \(2,\)"),
        ({"step_": Step(success=torch.ones(3))}, r"own success cannot be read: got Tensor of torch.float32 \(3,\)"),
        ({"step_": Step(terminated="no")}, "own terminated cannot be read: got 'no'"),
        ({"step_": Step(truncated=None)}, "own truncated cannot be read: got nothing"),
        ({"felt": [[0.0]]}, r"own proprioception has another shape than the spec: got list of 1; expected \[P\]"),
        ({"felt": {"q": 1}}, "own proprioception cannot be read: got dict"),
        ({"known": [0.0]}, r"own privileged has another shape than the spec: got list of 1; expected \[2\]"),
        ({"known": None}, "own privileged cannot be read: got nothing"),
    ],
)  # fmt: skip
def test_what_a_world_of_ones_own_cannot_return(told: dict[str, Any], message: str) -> None:
    env = own(**told)
    with pytest.raises(UserError, match=message):
        env.reset(KEYS)
        env.step_chunk(STILL)


def test_nan_for_a_truth_is_a_breakdown_of_that_environment() -> None:
    env = own()
    env.reset(KEYS)
    env._episodes[1].step_ = Step(success=np.nan)  # type: ignore[attr-defined]
    out = env.step_chunk(STILL)
    assert [(failure.row, failure.cause) for failure in out.failures] == [(1, "own success is nan")]
    assert not out.success.any() and out.truncated.tolist() == [True, True]
