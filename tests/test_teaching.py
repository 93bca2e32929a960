"""A world of one's own, taught: what its expert and its labels must be, and what supervised training makes of it."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import envs
from actors.demonstrations import collect
from envs import contract
from envs.simple import Episode, NoOptions, Places, Step, entry
from rl_finetune.algorithm.pretraining import sft
from rl_finetune.config import SFTConfig, load
from rl_finetune.errors import UserError
from rl_finetune.policy import QwenVLAPolicy
from rl_finetune.policy.extension import SLACK, fresh
from rl_finetune.policy.normalisation import Quantiles
from rl_finetune.policy.prompt import prompt
from rl_finetune.spec import ActionConvention, EmbodimentSpec, EnvSpec, handshake
from rl_finetune.types import SeedKeys

BODY = EmbodimentSpec("lamp", "", ("ego",), ActionConvention(2, 4, "joint", "none", "none", 10.0))
SPEC = EnvSpec("lamp", BODY, image_size=32, time_limit=8, things=("bulb",))


class Lamp(Episode):
    """Turns until its two joints are where the task says."""

    teaches: Any = ...
    """What the expert gives instead of the right chunk."""
    tells: Any = ...
    """What is told of places instead of where the bulb is."""

    def begin(self, rng: np.random.Generator) -> str:
        self.at, self.goal = np.zeros(2), rng.integers(1, 4, 2) / 10
        return f"turn by {self.goal[0]:.1f} and {self.goal[1]:.1f} softly"

    def step(self, action: np.ndarray) -> Step:
        self.at = action.astype(float)
        done = bool(np.abs(self.at - self.goal).max() < 0.03)
        return Step(reward=done, success=done)

    def picture(self, view: str) -> np.ndarray:
        picture = np.zeros((32, 32, 3), np.uint8)
        picture[int(16 + 10 * self.at[0]) :, :, 1] = 200
        return picture

    def expert(self) -> Any:
        return np.tile(self.goal, (4, 1)) if self.teaches is ... else self.teaches

    def places(self) -> Any:
        return Places({"bulb": (0.5, 0.5)}, "bulb") if self.tells is ... else self.tells


class Mute(Episode):
    """Nobody to ask."""

    begin, step, picture = Lamp.begin, Lamp.step, Lamp.picture


@pytest.fixture(autouse=True)
def registered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(envs.REGISTRY, "lamp", entry(Lamp, SPEC))
    monkeypatch.setitem(envs.REGISTRY, "mute", entry(Mute, replace(SPEC, name="mute", things=())))


def keys(count: int) -> SeedKeys:
    return SeedKeys(3, np.arange(count), np.zeros(count, np.int64))


def test_a_spec_says_whether_there_is_an_expert() -> None:
    assert envs.spec("lamp").expert and not envs.spec("mute").expert
    told = entry(lambda options: Lamp(options), replace(SPEC, expert=True))
    assert told.describe(NoOptions()).expert
    with envs.make("lamp", 2) as good:
        assert contract.check(good, make=lambda n: envs.make("lamp", n)) == ()
    with (
        entry(lambda options: Lamp(options), SPEC).build(2, NoOptions()) as silent,
        pytest.raises(contract.ContractError, match=r"has an expert, but spec\.expert is False"),
    ):
        contract.check(silent)


@pytest.mark.parametrize(
    ("teaches", "message"),
    [
        (None, "'lamp' has no scripted expert"),
        (np.zeros((3, 2)), r"lamp expert gives no chunk: got ndarray of float64 \(3, 2\); .* \[4, 2\]"),
        (np.full((4, 2), np.nan), "lamp expert gives no chunk"),
        ("left", "lamp expert cannot be read: got 'left'"),
    ],
)
def test_experts_that_teach_nothing(teaches: Any, message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Lamp, "teaches", teaches)
    with envs.make("lamp", 2) as env, pytest.raises(UserError, match=message):
        env.expert(env.reset(keys(2)))


@pytest.mark.parametrize(
    ("tells", "message"),
    [
        (None, r"lamp places do not go with the spec: got nothing; expected .* things \('bulb',\)"),
        (Places({"cord": (0.5, 0.5)}, "cord"), "lamp places do not go with the spec"),
        (Places({}, "bulb"), "lamp places do not go with the spec"),
        (Places({"bulb": (0.5, 0.5, 0.5)}, "bulb"), "lamp place of bulb has another shape"),
    ],
)
def test_labels_of_something_else(tells: Any, message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Lamp, "tells", tells)
    with envs.make("lamp", 2) as env, pytest.raises(UserError, match=message):
        env.reset(keys(2))


def test_a_place_that_is_no_number_is_a_breakdown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Lamp, "tells", Places({"bulb": (np.nan, 0.5)}, "bulb"))
    with envs.make("lamp", 1) as env, pytest.raises(RuntimeError, match="a place of a thing is not finite"):
        env.reset(keys(1))


def test_a_fresh_policy_has_room_for_its_body() -> None:
    """Channels, views and pictures may be more than the tiny policy has by default: 60 tokens, 16 channels."""
    wide = replace(BODY, views=("ego", "side"), action=replace(BODY.action, channels=17))
    torch.manual_seed(0)
    policy = fresh([(wide, 36, ("turn", "turn on"))], {"lamp": Quantiles((-1.0,) * 17, (1.0,) * 17)}, decoder_depth=1)
    assert policy.config.decoder.action_width == 32 and len(policy.decoder.blocks) == 1
    longest = policy.eyes.count(prompt(wide, "turn on", 36))
    assert policy.config.context_tokens == {"lamp": longest + SLACK} and longest > 72


@pytest.mark.parametrize("start", [None, "checkpoints/qwen-vla-tiny"])
def test_a_world_without_tasks_and_labels_is_taught(
    start: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its words are those of the demonstrations, its eyes learn from the actions."""
    monkeypatch.setitem(envs.REGISTRY, "lamp", entry(Lamp, replace(SPEC, things=())))
    monkeypatch.setattr(Lamp, "tells", None)
    stages = "stages=[{name: act, train: all, steps: 2, batch: 8}]"
    words = ["env.name=lamp", f"start={start or 'null'}", "demonstrations=20", stages, f"folder={tmp_path / 'sft'}"]
    assert sft(load(SFTConfig, "sft", [*words, "evaluation.episodes=2", "threads=1"])) == 0
    assert json.loads((tmp_path / "sft" / "evaluation.json").read_text())["episodes"] == 2
    policy = QwenVLAPolicy.from_pretrained(tmp_path / "sft" / "policy")
    with envs.make("lamp", 20) as env:
        shown = collect(env, 20, seed=0, noise=0.0)
        assert handshake(policy.config.embodiments, env.spec) == BODY
    assert policy.encode(shown.observation).mask.sum(1).max() == policy.config.context_tokens["lamp"] - SLACK
    text = " softly"
    assert policy.eyes.count(text) == 1, "a word of the demonstrations is one token"
