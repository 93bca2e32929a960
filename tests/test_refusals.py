"""What a job refuses by its worlds' specs alone: in one line, before a world is built or anything is written."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import pytest

import envs
from envs.simple import Episode, Step, entry
from rl_finetune import memory
from rl_finetune.algorithm import preflight
from rl_finetune.algorithm.evaluation import evaluate
from rl_finetune.algorithm.job import train
from rl_finetune.algorithm.lessons import check_lessons
from rl_finetune.algorithm.pretraining import sft
from rl_finetune.config import EvaluateConfig, SFTConfig, TrainConfig, load
from rl_finetune.config.promotion import PromoteConfig
from rl_finetune.config.schema import PolicySection
from rl_finetune.config.worlds import EnvSection
from rl_finetune.errors import UserError
from rl_finetune.policy.config import WIDOWX
from rl_finetune.promotion.evidence.gather import gather
from rl_finetune.spec import EnvSpec

ROOT = Path(__file__).resolve().parent.parent
POLICY = ROOT / "checkpoints" / "qwen-vla-tiny"
STRANGER = replace(WIDOWX, tag="stranger")
SPEC = EnvSpec("paper", WIDOWX, image_size=64, time_limit=32, tasks=("hold on",), expert=True, things=("dot",))
Promise = Callable[..., None]


@dataclass(frozen=True, slots=True)
class Paper:
    """Options of a world on paper."""

    perturb: str = "none"


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def promise(monkeypatch: pytest.MonkeyPatch) -> Promise:
    """Registers worlds that exist on paper only: name -> what its spec says otherwise than `SPEC`."""

    def build(num_envs: int, options: Any) -> NoReturn:
        raise AssertionError("a world was built")

    def register(name: str = "paper", **changes: Any) -> None:
        spec = replace(SPEC, name=name, **changes)
        monkeypatch.setitem(envs.REGISTRY, name, envs.Entry(Paper, lambda _: spec, build))

    return register


def run(job: str, *words: str) -> None:
    """The job in world `paper`, unless the words say otherwise."""
    if job == "sft":
        sft(load(SFTConfig, "sft", ["env.name=paper", *words]))
    elif job == "promote":
        mine = [f"candidate.path={POLICY}", "candidate.adapter=null"]
        gather(load(PromoteConfig, "promote", ["env.name=paper", *mine, *words]), lambda *_: None)
    else:
        kind, command = {"train": (TrainConfig, train), "evaluate": (EvaluateConfig, evaluate)}[job]
        command(load(kind, job, ["env.name=paper", f"policy.path={POLICY}", *words]))  # type: ignore[operator, arg-type]


ACTING = ("train", "evaluate", "promote")


@pytest.mark.parametrize(
    ("job", "changes", "message"),
    [
        *[(job, {"embodiment": STRANGER}, "has an embodiment that the policy was not trained for: got 'stranger'")
          for job in ACTING],
        *[(job, {"image_size": 40}, "do not divide into visual tokens: got image_size=40; expected a multiple of 16")
          for job in (*ACTING, "sft")],
        *[(job, {"image_size": 128, "tasks": ()}, r"longer than the policy's context: got \d+ tokens; .* at most 60")
          for job in ACTING],
        ("sft", {"expert": False}, "'paper' has no scripted expert: .*Episode.expert"),
        ("sft", {"things": ()}, "'paper' does not tell where things appear.*got stage 'see' with train=vision"),
    ],
)  # fmt: skip
def test_a_spec_that_does_not_fit(
    job: str, changes: dict[str, Any], message: str, promise: Promise, elsewhere: Path
) -> None:
    promise(**changes)
    with pytest.raises(UserError, match=message):
        run(job)
    assert list(elsewhere.iterdir()) == []


# A picture of 64 x 64 takes 3 * 64 * 64 = 12,288 bytes, and 8 times as much as patches; a context of 60 tokens
# 60 * (4 * 128 + 25) = 32,220. Together 142,812 an environment that acts, 1.14 GB for 8,000. A training round of 4
# chunks keeps each picture and two contexts a chunk besides: 4 * 76,728. A shown chunk is held twice, 24,576 bytes, and
# here its context too, of at least 16 tokens: 17,184.
@pytest.mark.parametrize(
    ("job", "words", "needed"),
    [
        ("evaluate", ["env.num_envs=8000"], "1.1 GB for env.num_envs=8000"),
        ("promote", ["env.num_envs=8000"], "1.1 GB for env.num_envs=8000"),
        ("train", ["env.num_envs=4000", "rollout.chunks=4"], "1.8 GB for env.num_envs=4000"),
        ("sft", ["demonstrations=100000", "stages.2.demonstrations=null"], "4.2 GB for demonstrations=100000"),
        ("evaluate", ["env.num_envs=7000"], None),
        ("promote", ["env.num_envs=7000"], None),
        ("train", ["env.num_envs=2000", "rollout.chunks=4"], None),
        ("sft", ["demonstrations=20000", "stages.2.demonstrations=null"], None),
    ],
)
def test_more_than_the_memory_of_this_machine(
    job: str, words: list[str], needed: str | None, promise: Promise, elsewhere: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    promise()
    monkeypatch.setattr(memory, "available", lambda: 10**9)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    if needed is None:
        with pytest.raises(UserError, match="AssertionError: a world was built"):
            run(job, *words)
        return
    with pytest.raises(UserError, match=rf"at least {needed}; expected at most the 1\.0 GB that this machine has left"):
        run(job, *words)
    assert list(elsewhere.iterdir()) == []


@pytest.mark.parametrize(
    ("free", "limit", "left"), [("2000", "max", 2_048_000), ("2000", "1500000", 1_500_000), ("2000", None, 2_048_000)]
)
def test_memory_that_is_left_is_the_kernels_or_the_containers(
    free: str, limit: str | None, left: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    info, group = tmp_path / "meminfo", tmp_path / "memory.max"
    info.write_text(f"MemTotal: 9000 kB\nMemAvailable:    {free} kB\n")
    if limit is not None:
        group.write_text(limit + "\n")
    monkeypatch.setattr(memory, "MEMINFO", info)
    monkeypatch.setattr(memory, "CGROUP", group)
    assert memory.available() == left
    info.unlink()
    assert memory.available() == (left if limit == "1500000" else None)


def test_worlds_that_do_not_go_together() -> None:
    config = load(SFTConfig, "sft")
    other = replace(WIDOWX, action=replace(WIDOWX.action, horizon=4))
    with pytest.raises(UserError, match="different bodies by one tag"):
        check_lessons(config, [SPEC, replace(SPEC, embodiment=other)])
    with pytest.raises(UserError, match=r"name different things: got \('dot',\), \('cup',\)"):
        check_lessons(config, [SPEC, replace(SPEC, things=("cup",))])
    check_lessons(config, [SPEC, replace(SPEC, embodiment=STRANGER)])


def test_an_instruction_that_no_spec_names_is_looked_at_in_one_world(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody knows its words before an episode begins; still Ray is not started for it."""

    class Talker(Episode):
        words = "reach " * 40

        def begin(self, rng: np.random.Generator) -> str:
            return self.words

        def step(self, action: np.ndarray) -> Step:
            return Step()

        def picture(self, view: str) -> np.ndarray:
            return np.zeros((64, 64, 3), np.uint8)

    monkeypatch.setitem(envs.REGISTRY, "talker", entry(Talker, replace(SPEC, name="talker", tasks=(), things=())))
    policy, world = PolicySection(path=str(POLICY)), EnvSection(name="talker")
    with pytest.raises(UserError, match="prompts of 'talker' are longer than the policy's context"):
        preflight.check(policy, world)
    monkeypatch.setattr(Talker, "words", "reach")
    preflight.check(policy, world)
