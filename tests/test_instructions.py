"""A task in words means the same whoever gives it: a simulator, a data set, a policy's caller."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import gym_worlds
import numpy as np
import pytest
from builders import observations, tiny_policy
from gymnasium.vector import AutoresetMode

import envs
from envs import contract
from envs.form import check_observation
from envs.gymnasium import GymnasiumOptions
from envs.simple import Episode, SimpleWorld, Step
from rl_finetune.errors import UserError
from rl_finetune.instructions import instruction
from rl_finetune.policy.config import WIDOWX
from rl_finetune.policy.policy import advise
from rl_finetune.policy.prompt import VISION_START, body_sentence, prompt
from rl_finetune.spec import EnvSpec
from rl_finetune.types import SeedKeys

REACH = "reach the blue block"
SAME = [
    REACH, f" {REACH}\n", REACH.encode(), [REACH], (REACH.encode(),), [[REACH]],
    np.str_(REACH), np.array(REACH), np.array([REACH.encode()]), np.array([[REACH]], object),
]  # fmt: skip
REFUSED = [
    (None, "got nothing"), (7, "got 7"), (np.array([1, 2]), r"got ndarray of int64 \(2,\)"), ([], "got list of 0"),
    (["reach", "lift"], "got list of 2"), ({"task": REACH}, "got dict"), ("", "got ''"), ("  \n", r"got '  \\n'"),
    (b"\xff\xfe", r"got b'\\xff\\xfe'"), ("reach\nlift", r"got 'reach\\nlift'"), ("reach \x00", r"got 'reach \\x00'"),
    ("reach <|image_pad|>", r"got 'reach <\|image_pad\|>'"), (b"<|vision_start|>", r"got b'<\|vision_start\|>'"),
    (["<|im_end|>"], "got list of 1"),
]  # fmt: skip
KEYS = SeedKeys(0, np.arange(2), np.zeros(2, np.int64))


@pytest.mark.parametrize("given", SAME, ids=repr)
def test_every_way_to_write_a_task_is_the_same_text(given: object) -> None:
    found = instruction(given)
    assert type(found) is str and found == REACH


@pytest.mark.parametrize(("given", "message"), REFUSED)
def test_what_is_no_task_is_refused_in_one_line(given: object, message: str) -> None:
    with pytest.raises(UserError, match=rf"^the task is no task in words: {message}; expected one printable") as caught:
        instruction(given, "the task")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("given", SAME, ids=repr)
def test_prompts_take_a_task_however_it_is_written(given: Any) -> None:
    assert prompt(WIDOWX, given, 2) == prompt(WIDOWX, REACH, 2)
    said = advise(replace(observations(1), instruction=(given,)), "positive")
    assert said.instruction == (f"{REACH}. Advantage: positive",)


@pytest.mark.parametrize("given", [given for given, _ in REFUSED])
def test_a_policy_refuses_a_text_that_would_hold_pictures_or_none(given: Any) -> None:
    """The model would look for a picture at each `<|image_pad|>`, and end where there are no more."""
    with pytest.raises(UserError, match="instruction is no task in words"):
        tiny_policy().look(replace(observations(2), instruction=(REACH, given)))


def test_no_other_word_of_a_prompt_can_be_a_token() -> None:
    with pytest.raises(UserError, match="embodiment cannot be named in a prompt"):
        body_sentence(replace(WIDOWX, tag="widowx<|image_pad|>"), REACH)
    for view in ("vision", "a|><|image_pad"):
        with pytest.raises(UserError, match="view cannot be tagged in a prompt"):
            prompt(replace(WIDOWX, views=(view,)), REACH, 2)
    assert prompt(WIDOWX, REACH, 2).count(VISION_START) == 1


class Teller(Episode):
    """Says what it is told to say."""

    said: object = REACH

    def begin(self, rng: np.random.Generator) -> Any:
        return self.said

    def step(self, action: np.ndarray) -> Step:
        return Step()


SPEC = EnvSpec("teller", replace(WIDOWX, views=()), image_size=8, time_limit=4)


def counting(kind: str) -> envs.VectorEnv:
    """Counting environments whose info tells the task."""
    own: dict[str, Any] = dict(horizon=4, instruction="info.task", privileged=["obs.state"])
    if kind == "single":
        return envs.make("gymnasium", 2, id="Counting-v0", **own)
    return envs.make("gymnasium", 2, factory="gym_worlds:alone", kwargs={"mode": kind}, time_limit=6, **own)


@pytest.mark.parametrize("given", SAME, ids=repr)
def test_simulators_are_read_alike(given: object, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Teller, "said", given)
    monkeypatch.setattr(gym_worlds.Counting, "task", property(lambda self: given))
    assert SimpleWorld(2, SPEC, lambda: Teller(None)).reset(KEYS).instruction == (REACH, REACH)
    for kind in ("single", AutoresetMode.SAME_STEP.name):
        with counting(kind) as env:
            assert env.reset(KEYS).instruction == (REACH, REACH), kind


@pytest.mark.parametrize(("given", "message"), REFUSED)
def test_simulators_are_refused_alike(given: object, message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Teller, "said", given)
    monkeypatch.setattr(gym_worlds.Counting, "task", property(lambda self: given))
    with pytest.raises(UserError, match=f"instruction of 'teller' is no task in words: {message}"):
        SimpleWorld(2, SPEC, lambda: Teller(None)).reset(KEYS)
    with counting("single") as env, pytest.raises(UserError, match=r"'info.task' is no task in words"):
        env.reset(KEYS)


def test_a_vector_environment_of_ones_own_is_checked_for_plain_text() -> None:
    env = SimpleWorld(2, SPEC, lambda: Teller(None))
    seen = env.reset(KEYS)
    check_observation(env, seen, 2)
    for given in (b"reach", ["reach"], " reach", "", "<|image_pad|>"):
        with pytest.raises(contract.ContractError, match="instruction must be one line of text"):
            check_observation(env, replace(seen, instruction=(REACH, given)), 2)  # type: ignore[arg-type]


def test_options_hold_a_text_that_can_be_used() -> None:
    assert GymnasiumOptions(id="x", instruction=f"{REACH} ").instruction == REACH
    with pytest.raises(UserError, match=r"option 'instruction' is no task in words: got 'a <\|image_pad\|>'"):
        GymnasiumOptions(id="x", instruction="a <|image_pad|>")
    with pytest.raises(UserError, match="option 'instructions' is no task in words"):
        envs.spec("isaac", task="T", instructions=[REACH, "<|image_pad|>"], time_limit=16)
