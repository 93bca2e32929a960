"""Actors that cannot start or play say why, in one line and at once; films that cannot be had cost nothing else."""

from __future__ import annotations

import os
import pickle
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import ray
from breaking_world import Breaking
from builders import blind_policy, random_contexts, trajectory

import actors.env_runner
import rl_finetune.cli as cli
from actors import cluster
from actors.env_runner import FlowEnvRunner
from actors.playing import evaluate
from envs.supervision import WorldError
from rl_finetune.algorithm import filming, preflight
from rl_finetune.algorithm.algorithm import FlowRLConfig, _check_started
from rl_finetune.config import EvaluateConfig, TrainConfig, load
from rl_finetune.config.objectives import DiffusionNFTSection, FPOSection
from rl_finetune.config.schema import EvaluationSection, PolicySection
from rl_finetune.config.worlds import EnvSection
from rl_finetune.errors import RunError, UserError
from rl_finetune.store import save_round

REFUSED = UserError("no such thing", got="a", expected="b", do="c")


def raising(error: Exception) -> Callable[..., Any]:
    def call(*_: object, **__: object) -> Any:
        raise error

    return call


@pytest.fixture(scope="module")
def connected() -> Iterator[None]:
    """Ray, as the product starts it."""
    cluster.connect(2)
    yield
    ray.shutdown()


def test_workers_run_at_the_priority_of_whoever_starts_them(connected: None) -> None:
    assert ray.get(ray.remote(lambda: os.nice(0)).remote()) == os.nice(0)


def test_a_player_that_cannot_start_says_why_without_rays_account_of_it(connected: None) -> None:
    with pytest.raises(UserError) as caught:
        evaluate(
            PolicySection(path="nowhere"), [], EvaluationSection(episodes=2), players=2, gpus=0, shuffle="none",
            told=lambda _: None,
        )  # fmt: skip
    assert type(caught.value) is UserError and str(caught.value).startswith("policy not found: got 'nowhere'")
    assert "\n" not in str(caught.value)


def runner(monkeypatch: pytest.MonkeyPatch, error: Exception, *, restarted: bool = False) -> FlowEnvRunner:
    """An actor's inside whose player cannot be built."""
    context = SimpleNamespace(was_current_actor_reconstructed=restarted)
    monkeypatch.setattr(actors.env_runner.ray, "get_runtime_context", lambda: context)
    monkeypatch.setattr(actors.env_runner, "Player", raising(error))
    return FlowEnvRunner(config=FlowRLConfig.from_job(TrainConfig()), worker_index=1, num_workers=2)


@pytest.mark.parametrize(
    ("error", "kind", "text"),
    [
        (REFUSED, UserError, "no such thing: got a; expected b; c"),
        (WorldError("breaking could not be built"), WorldError, "breaking could not be built"),
        (ZeroDivisionError("by zero"), RunError, "ZeroDivisionError: by zero"),
    ],
)
def test_the_first_error_of_a_start_ends_the_run(
    error: Exception, kind: type[Exception], text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken = runner(monkeypatch, error)
    answers = [None, pickle.loads(pickle.dumps(broken.started()))]
    with pytest.raises(kind) as caught:
        _check_started(SimpleNamespace(foreach_env_runner=lambda *_, **__: answers))
    told = str(caught.value).split(" (test_starting.py:")[0]  # what this file raises counts as a user's code
    assert type(caught.value) is kind and told.removeprefix("call raised ") == text
    broken.stop()
    with pytest.raises(type(error)):  # a successor that nobody asks must not pass for alive
        runner(monkeypatch, error, restarted=True)


def test_started_actors_go_on_and_none_at_all_is_an_error() -> None:
    _check_started(SimpleNamespace(foreach_env_runner=lambda *_, **__: [None, None]))
    with pytest.raises(RunError, match="no actor started"):
        _check_started(SimpleNamespace(foreach_env_runner=lambda *_, **__: []))


def test_an_actor_answers_what_would_fail_again_and_dies_of_the_rest(monkeypatch: pytest.MonkeyPatch) -> None:
    actor, fails = runner(monkeypatch, REFUSED), ZeroDivisionError("by zero")
    for error in (REFUSED, WorldError("out of oil")):
        actor.player = SimpleNamespace(play=raising(error), film=raising(error))
        assert actor.play(0, np.arange(2)) is error and actor.film(0, np.arange(2)) is error
    actor.player = SimpleNamespace(play=raising(fails), film=raising(fails))
    assert "ZeroDivisionError: by zero (test_starting.py:" in str(actor.film(0, np.arange(2)))
    with pytest.raises(ZeroDivisionError):
        actor.play(0, np.arange(2))


@pytest.mark.parametrize(("error", "code"), [(REFUSED, 2), (WorldError("out\nof oil"), 1)])
def test_errors_are_one_line(
    error: Exception, code: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(cli, "parse", lambda _: SimpleNamespace(command=raising(error)))
    assert cli.main([]) == code
    assert capsys.readouterr().err == f"error: {' '.join(str(error).split())}\n"


class Runners:
    """Four of them, of whom one films, one refuses, one dies and one hangs; time passes by waiting only."""

    def __init__(self, behaviour: dict[int, str], monkeypatch: pytest.MonkeyPatch) -> None:
        self.behaviour, self.now, self.asked, self.restarted = behaviour, 0.0, dict[str, tuple[int, int]](), list[int]()
        self.alive = list(behaviour)
        monkeypatch.setattr(filming.time, "monotonic", lambda: self.now)

    def healthy_env_runner_ids(self) -> list[int]:
        return list(self.alive)

    def foreach_env_runner_async(
        self, func: str, tag: str | None = None, *, kwargs: Any = None, remote_worker_ids: Any = None
    ) -> int:
        assert func == "film" and tag is not None and tag not in self.asked
        self.asked[tag] = remote_worker_ids[0], kwargs["world"]
        return 1

    def fetch_ready_async_reqs(self, *, tags: Any = None, timeout_seconds: float | None = 0.0) -> list[tuple[int, Any]]:
        assert timeout_seconds is not None
        who, world = self.asked[tags]
        does = "died" if who in self.restarted else self.behaviour[who]
        if does == "hangs":
            self.now += timeout_seconds
        if does == "died" and who in self.alive:
            self.alive.remove(who)
        return {"films": [(who, [f"film of {world}"])], "refuses": [(who, RunError("no light"))]}.get(does, [])

    def film(self, shares: int) -> tuple[list[Any], list[str]]:
        given = [{"world": number} for number in range(shares)]
        return filming.film(self, given, name="film-1", restart=self.restarted.append, patience=50.0)


def test_what_cannot_be_filmed_is_told_and_the_rest_is_filmed(monkeypatch: pytest.MonkeyPatch) -> None:
    group = Runners({1: "films", 2: "refuses", 3: "died", 4: "hangs"}, monkeypatch)
    films, troubles = group.film(6)
    assert films == ["film of 0", "film of 4"]  # the second round has the first two runners
    assert troubles == [
        "clips are missing: actor 2: no light", "clips are missing: actor 3: its process died",
        "clips are missing: actor 4: no answer in time, so it is restarted", "clips are missing: actor 2: no light",
    ]  # fmt: skip
    assert group.restarted == [4] and group.now == 50


def test_hanging_films_end_with_the_last_runner(monkeypatch: pytest.MonkeyPatch) -> None:
    group = Runners({1: "hangs", 2: "hangs"}, monkeypatch)
    films, troubles = group.film(9)
    assert films == [] and group.restarted == [1, 2] and group.now == 50 and len(group.asked) == 2
    assert troubles[2:] == ["clips are missing: no actor is left for 7 of 9 shares"]


ISAAC = load(TrainConfig, "isaac").env.options | {"device": "cuda:1"}


@pytest.mark.parametrize(
    ("env", "actors", "gpus", "times"),
    [
        ({}, 2, 0.0, 2),
        ({}, 3, 0.5, 3),
        ({"workers": 2}, 1, 0.0, 2),
        ({"mix": [{"name": "isaac", "options": ISAAC}] * 2}, 1, 1.0, 2),
        ({}, 1, 0.0, 1),
        ({}, 2, 1.0, 1),
        ({"options": ISAAC | {"device": "cpu"}}, 2, 0.0, 1),
        ({"name": "widowx_reach", "options": {}, "workers": 2}, 2, 0.0, 1),
    ],
)
def test_a_gpu_has_one_isaac(
    env: dict[str, Any], actors: int, gpus: float, times: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    section = EnvSection.model_validate({"name": "isaac", "num_envs": 8, "options": ISAAC} | env)
    if times == 1:
        preflight.check_alone(section, actors, gpus)
        return
    with pytest.raises(UserError, match=rf"has GPU 1 to itself, once: got {times} of it: rollout\.num_actors={actors}"):
        preflight.check_alone(section, actors, gpus, by="rollout.")


def test_evaluation_of_isaac_by_two_is_refused_before_anything_starts() -> None:
    from rl_finetune.algorithm.evaluation import evaluate as command

    config = EvaluateConfig(policy=PolicySection(path="nowhere"), env=EnvSection(name="isaac", options=ISAAC))
    with pytest.raises(UserError, match=r"num_actors=2.*set num_actors=1 and env.workers=0"):
        command(config)


# ---- groups that could never be compared


def test_groups_are_refused_where_environments_do_not_begin_alike() -> None:
    with pytest.raises(UserError, match=r"breaking cannot begin .*: got objective.group_size=8; expected 1"):
        preflight.require_groups(Breaking(keyed=False)(1), 8)
    preflight.require_groups(Breaking(keyed=False)(1), 1)
    preflight.require_groups(Breaking()(1), 8)


@pytest.mark.parametrize("name", ["grpo", "rloo", "diffusion_nft", "step_nft"])
def test_a_group_of_one_is_refused(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["train", f"objective.name={name}", "objective.group_size=1"]) == 2
    assert "objective.group_size" in capsys.readouterr().err


def test_stored_rounds_without_groups_are_refused_where_groups_are_compared(tmp_path: Path) -> None:
    made = trajectory(blind_policy(), random_contexts(4))
    for group in (1, 2):
        save_round(tmp_path / str(group), 0, [replace(made, keys=replace(made.keys, group=group))])
    preflight.check_source(str(tmp_path / "1"), FPOSection())
    preflight.check_source(str(tmp_path / "2"), DiffusionNFTSection())
    with pytest.raises(UserError, match="compares the episodes of a group: got group size 1 in"):
        preflight.check_source(str(tmp_path / "1"), DiffusionNFTSection())
