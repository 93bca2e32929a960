"""Evidence: what is paired, what is kept and read again, what a person hears, and how it is written and refused."""

from __future__ import annotations

import json
import math
import pickle
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from io import StringIO
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from actors.evaluator import EpisodeResults
from actors.guarding import Guards
from actors.playing import Company, Part, Remote
from actors.watching import MotionLog
from envs.supervision import WorldError
from rl_finetune.config import load
from rl_finetune.config.promotion import PromoteConfig
from rl_finetune.config.schema import EvaluationSection, PolicySection
from rl_finetune.config.worlds import World
from rl_finetune.errors import UserError
from rl_finetune.promotion.evidence import evidence_from_dict, evidence_to_dict, read_evidence, write_evidence
from rl_finetune.promotion.evidence.cache import Cache, Episodes, Key
from rl_finetune.promotion.evidence.guarding import Envelopes
from rl_finetune.promotion.evidence.limits import limits_for
from rl_finetune.promotion.evidence.play import compare
from rl_finetune.promotion.evidence.policies import Weights
from rl_finetune.promotion.evidence.progress import Spoken
from rl_finetune.promotion.records import (
    Evidence,
    LatencyRecord,
    Limits,
    MotionAudit,
    ParityRecord,
    PolicyName,
    WorldRecord,
)
from rl_finetune.types import Failure

WHOLE = Evidence(
    candidate=PolicyName("new", "a" * 64), incumbent=PolicyName("old", "b" * 64),
    worlds=(WorldRecord("reach", "widowx", "none", 3, (True, False), (False, False), failed=1),),
    motion=(
        MotionAudit("reach", "widowx", 7, ((-0.1, 0.2), (0.0, 1.0)), (1.5, 2.0), (3.0, 4.0), (5.0, 6.0),
                    over={"action": 2}, self_collisions=1, measured=("action", "self_collision"), guarded=True,
                    changed=3, interventions={"velocity": 3, "jerk": 1}),
    ),
    latency=(LatencyRecord("widowx", (0.1, 0.25), 0.2, 8, "a machine"),),
    parity=(ParityRecord("widowx", 4, (1e-6, 0.0), (0.5, 0.25)),),
    limits={"widowx": Limits((-1.0, -1.0), (1.0, 1.0), workspace=((0.0, 1.0), (0.0, 1.0), (0.0, 2.0)))},
)  # fmt: skip


def test_evidence_survives_the_disk_and_its_digest_is_that_of_the_file(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "evidence.json"
    digest = write_evidence(path, WHOLE)
    assert read_evidence(path, digest) == (WHOLE, digest)
    assert [file.name for file in path.parent.iterdir()] == ["evidence.json"]  # nothing left beside it
    assert write_evidence(path, WHOLE) == digest != write_evidence(path, replace(WHOLE, latency=()))
    with pytest.raises(UserError, match=r"SHA-256 .*expected " + digest):
        read_evidence(path, digest)


def _at(*place: str | int) -> Callable[[dict[str, Any], object], None]:
    def put(tree: Any, value: object) -> None:
        for key in place[:-1]:
            tree = tree[key]
        tree[place[-1]] = value

    return put


@pytest.mark.parametrize(
    ("put", "value", "told"),
    [
        (_at("extra"), 1, "unknown ['extra']"),
        (_at("candidate"), {"name": "new"}, "evidence.candidate: unknown [], missing ['digest']"),
        (_at("worlds", 0, "candidate", 1), 1, "evidence.worlds[0].candidate[1]: 1; expected bool"),
        (_at("worlds", 0, "seed"), True, "evidence.worlds[0].seed: True; expected int"),
        (_at("latency", 0, "seconds"), "0.1", "evidence.latency[0].seconds: str; expected a list"),
        (_at("latency", 0, "seconds", 0), math.nan, "seconds[0]: nan; expected a finite number"),
        (_at("limits", "widowx", "workspace", 1), [0.0], "workspace[1]: 1 values; expected 2 values"),
        (_at("motion", 0, "over"), {"action": 1.5}, "over['action']: 1.5; expected int"),
        (_at("motion", 0, "guarded"), 1, "motion[0].guarded: 1; expected bool"),
    ],
)
def test_evidence_that_was_meddled_with_is_refused_by_place(
    put: Callable[[dict[str, Any], object], None], value: object, told: str
) -> None:
    tree = json.loads(json.dumps(evidence_to_dict(WHOLE)))
    assert evidence_from_dict(tree) == WHOLE
    put(tree, value)
    with pytest.raises(UserError) as caught:
        evidence_from_dict(tree)
    assert told in str(caught.value)


@pytest.mark.parametrize("text", ["", "[]", '{"schema": 0, "evidence": {}}', '{"schema": 1'])
def test_what_is_no_evidence_file_is_refused(text: str, tmp_path: Path) -> None:
    path = tmp_path / "evidence.json"
    path.write_text(text)
    with pytest.raises(UserError, match=r"evidence cannot be read: got .*evidence\.json"):
        read_evidence(path)


def test_numbers_that_are_none_are_not_written(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="JSON"):
        write_evidence(tmp_path / "e.json", replace(WHOLE, latency=(replace(WHOLE.latency[0], seconds=(math.inf,)),)))
    assert not list(tmp_path.glob("*.json"))


KEY = Key("d" * 64, "widowx_reach", {"tolerance": 0.03}, 3, 5, 0.6)
BROKEN = Failure(1, "widowx_reach", 5, 1, 0, "smoke")
PLAYED = Episodes((True, False, False), (4, 8, 8), (BROKEN,))


def motion(episodes: int = 3) -> MotionLog:
    """One step an episode, of seven channels."""
    ids = np.arange(episodes)
    actions = np.tile(ids[:, None].astype(np.float32), (1, 7)) / 100
    held = np.zeros((episodes, 7), np.float32)
    return MotionLog(ids, np.ones(episodes, bool), actions, held, None, None, np.zeros(episodes, bool))


def test_what_was_played_is_read_again_under_exactly_its_key(tmp_path: Path) -> None:
    cache = Cache(tmp_path / "played")
    assert cache.load(KEY, watched=False) is None
    cache.save(KEY, PLAYED, None)
    assert cache.load(KEY, watched=False) == (PLAYED, None)
    assert cache.load(KEY, watched=True) is None  # nobody watched
    changed: list[dict[str, Any]] = [
        {"policy": "e" * 64}, {"world": "widowx_pick"}, {"options": {"perturb": "all"}}, {"episodes": 4}, {"seed": 6},
        {"temperature": 1.0}, {"limits": Limits(low=(0.0,))},
    ]  # fmt: skip
    assert all(cache.load(replace(KEY, **change), watched=False) is None for change in changed)
    cache.save(KEY, PLAYED, motion())
    kept = cache.load(KEY, watched=True)
    assert kept is not None and kept[1] is not None
    assert np.array_equal(kept[1].actions, motion().actions) and kept[1].tools is None


@pytest.mark.parametrize("damage", [b"", b"{", b'{"key": {}, "episodes": {}}'])
def test_a_damaged_file_is_played_again(damage: bytes, tmp_path: Path) -> None:
    cache = Cache(tmp_path)
    cache.save(KEY, PLAYED, motion())
    (npz,), (path,) = tmp_path.glob("*.npz"), tmp_path.glob("*.json")
    whole = npz.read_bytes()
    npz.write_bytes(whole[: len(whole) // 2])
    assert cache.load(KEY, watched=True) is None and cache.load(KEY, watched=False) is not None
    path.write_bytes(damage)
    assert cache.load(KEY, watched=False) is None


@dataclass
class Stage:
    """Hires players whose success follows from policy, world, suite and episode, and writes down what they played."""

    breaks: str = ""
    """World that breaks down in its second part."""
    dies: int = 10**9
    """Rounds after which the whole process dies."""
    played: list[str] = field(default_factory=list)
    guarded: dict[str, Guards | None] = field(default_factory=dict)

    def __call__(
        self, policy: PolicySection, worlds: Sequence[World], asked: EvaluationSection, guards: Guards | None
    ) -> Company:
        self.guarded[Path(policy.path).name] = guards
        return _Fake(self, policy, worlds)


@dataclass
class _Fake(Company):
    stage: Stage
    policy: PolicySection
    worlds: Sequence[World]

    def play(self, world: int, parts: Sequence[np.ndarray], *, watch: bool) -> Iterator[Part]:
        here = self.worlds[world]
        suite = here.options.get("perturb", "none")
        for number, part in reversed(list(enumerate(parts))):  # the last is done first
            if len(self.stage.played) >= self.stage.dies:
                raise KeyboardInterrupt
            if here.label == self.stage.breaks and number == 0:
                raise WorldError("out of oil")
            self.stage.played.append(f"{Path(self.policy.path).name}/{here.label}/{suite}/{number}")
            better = Path(self.policy.path).name == "new"
            success = part % (2 if better else 3) == 0
            failures = tuple(replace(BROKEN, row=0) if id_ == 4 and better else None for id_ in part)
            results = EpisodeResults(
                success & np.array([f is None for f in failures]), np.zeros(len(part)), part + 1, failures, {}
            )
            yield Part(number, results, motion(len(part)) if watch else None)

    def close(self) -> None:
        pass


def named(name: str, digest: str) -> Weights:
    return Weights(PolicyName(name, digest * 64), PolicySection(path=f"some/{name}"))


NEW, OLD = named("new", "1"), named("old", "2")


def config(tmp_path: Path, *overrides: str) -> PromoteConfig:
    words = (
        "episodes=6", "suite_episodes=4", "suites=[colour]", "num_actors=0", "env.num_envs=8", f"folder={tmp_path}",
    )  # fmt: skip
    mix = "env.mix=[{name: widowx_reach}, {name: franka_reach}]"
    return load(PromoteConfig, None, [mix, *words, *overrides])


def test_both_play_the_same_episodes_of_every_world_and_suite(tmp_path: Path) -> None:
    stage, told = Stage(), []
    found = compare(config(tmp_path), NEW, OLD, lambda what, done, of: told.append((what, done, of)), stage)
    assert [(r.world, r.embodiment, r.suite, len(r.candidate)) for r in found.worlds] == [
        ("widowx_reach", "widowx", "none", 6), ("franka_reach", "franka_ee", "none", 6),
        ("widowx_reach", "widowx", "colour", 4), ("franka_reach", "franka_ee", "colour", 4),
    ]  # fmt: skip
    plain, *_, perturbed = found.worlds
    # episode 4 broke down under the candidate alone, and is lost by both
    assert plain.candidate == (True, False, True, False, False, False)
    assert plain.incumbent == (True, False, False, True, False, False) and plain.failed == 1
    assert perturbed.candidate == (True, False, True, False) and perturbed.failed == 0
    assert set(found.motion) == {"widowx_reach", "franka_reach"}
    # rounds of four: parts come back in any order and are put together in theirs
    assert found.motion["widowx_reach"].actions[:, 0].tolist() == pytest.approx([0, 0.01, 0.02, 0.03, 0, 0.01])
    done = [each[1] for each in told]
    assert done == sorted(done) and told[-1][1:] == (40, 40)
    assert "incumbent in franka_reach under colour" in told[-1][0]


def test_each_side_plays_behind_its_own_limits_and_again_without_them(tmp_path: Path) -> None:
    own = replace(limits_for("widowx"), stale_after=0.25)
    sealed = Weights(OLD.name, OLD.section, SimpleNamespace(limits={"widowx": own}))  # type: ignore[arg-type]
    compare(config(tmp_path), NEW, sealed, lambda *_: None, stage := Stage())
    known = {tag: limits_for(tag) for tag in ("widowx", "franka_ee")}
    assert stage.guarded == {"new": Envelopes(known), "old": Envelopes(known | {"widowx": own})}
    assert pickle.loads(pickle.dumps(stage.guarded["old"])) == stage.guarded["old"]
    compare(config(tmp_path, "guarded=false"), NEW, sealed, lambda *_: None, raw := Stage())
    assert raw.guarded == {"new": None, "old": None} and raw.played == stage.played  # nothing of it is mixed up


def test_an_interrupted_evaluation_goes_on_where_it_was(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        compare(config(tmp_path), NEW, OLD, lambda *_: None, first := Stage(dies=5))
    second, told = Stage(), []
    whole = compare(config(tmp_path), NEW, OLD, lambda what, done, of: told.append(done), second)
    assert len(first.played) == 5 and not set(second.played) & set(first.played[:4])
    assert second.played[0] == first.played[4]  # its round was not whole
    assert told[0] > 12  # what was kept counts from the beginning
    fresh = compare(config(tmp_path / "other"), NEW, OLD, lambda *_: None, Stage())
    assert fresh.worlds == whole.worlds
    compare(config(tmp_path), NEW, OLD, lambda *_: None, third := Stage())
    assert not third.played


def test_the_incumbent_is_not_played_again_for_the_next_candidate(tmp_path: Path) -> None:
    compare(config(tmp_path), NEW, OLD, lambda *_: None, Stage())
    compare(config(tmp_path), named("newer", "3"), OLD, lambda *_: None, stage := Stage())
    assert {name.split("/")[0] for name in stage.played} == {"newer"}


def test_a_policy_against_itself_is_played_once(tmp_path: Path) -> None:
    told: list[int] = []
    found = compare(config(tmp_path), NEW, NEW, lambda what, done, of: told.append(done), stage := Stage())
    assert len(stage.played) == len(set(stage.played)) and told[-1] == 40
    assert all(record.candidate == record.incumbent for record in found.worlds)


def test_a_world_that_cannot_be_kept_alive_is_lost_by_both_and_the_others_go_on(tmp_path: Path) -> None:
    found = compare(config(tmp_path), NEW, OLD, lambda *_: None, Stage(breaks="franka_reach"))
    lost, kept = found.worlds[1], found.worlds[0]
    assert lost.failed == 6 and not any(lost.candidate + lost.incumbent) and any(kept.candidate)
    unseen = found.motion["franka_reach"]
    assert not len(unseen.episode) and len(found.motion["widowx_reach"].episode)
    assert unseen.changed is not None, "nothing was played, but not without the envelope"


def test_suites_that_a_world_lacks_are_not_asked_of_it(tmp_path: Path) -> None:
    asked = config(tmp_path, "gates.suites.lacking={franka_reach: [colour]}")
    found = compare(asked, NEW, OLD, lambda *_: None, Stage())
    assert [(r.world, r.suite) for r in found.worlds][2:] == [("widowx_reach", "colour")]


def test_rounds_go_to_whoever_is_free(monkeypatch: pytest.MonkeyPatch) -> None:
    """A stand-in for Ray in which the second of two players is always the first to answer."""
    hired: list[Any] = []

    class Actor:
        def __init__(self, *_: object, **__: object) -> None:
            hired.append(self)
            self.got: list[list[int]] = []
            self.start = SimpleNamespace(remote=lambda: Handle((self, None)))
            self.play = SimpleNamespace(remote=self._play)

        def _play(self, world: int, part: np.ndarray) -> tuple[Actor, list[int]]:
            self.got.append(part.tolist())
            return Handle((self, part.tolist()))

    class Handle(tuple):  # as hashable as Ray's
        __hash__ = object.__hash__

    def wait(running: list[Any]) -> tuple[list[Any], list[Any]]:
        last = max(running, key=lambda handle: hired.index(handle[0]))
        return [last], [each for each in running if each is not last]

    ray = SimpleNamespace(
        remote=lambda **_: lambda kind: SimpleNamespace(remote=Actor), wait=wait, get=lambda handle: handle[1],
        kill=lambda actor: actor.got.append("killed"),
    )  # fmt: skip
    monkeypatch.setitem(__import__("sys").modules, "ray", ray)
    with Remote(PolicySection(), [], EvaluationSection(), 2) as company:
        parts = list(company.play(0, [np.array([n]) for n in range(4)], watch=False))
    assert [(part.number, part.results) for part in parts] == [(1, [1]), (2, [2]), (3, [3]), (0, [0])]
    assert [actor.got for actor in hired] == [[[0], "killed"], [[1], [2], [3], "killed"]]


def test_a_person_hears_how_long_it_will_take() -> None:
    out, now = StringIO(), iter([0.0, 4.0, 30.0, 31.0, 60.0])
    spoken = Spoken(out, every=10.0, clock=lambda: next(now))
    spoken("a", 40, 100)  # forty of them came from the disk
    for done in (45, 50, 55):
        spoken("a" if done < 55 else "b", done, 100)
    spoken("b", 100, 100)
    assert out.getvalue().splitlines() == [
        "40 of 100 episodes, a", "50 of 100 episodes, a, 2 min left", "55 of 100 episodes, b, 2 min left",
        "100 of 100 episodes, b",
    ]  # fmt: skip


def test_the_plan_of_the_gates_says_how_much_is_played() -> None:
    asked = PromoteConfig()
    plan = asked.gates.plan
    assert asked.evaluation(perturbed=False).episodes == plan.episodes
    assert asked.evaluation(perturbed=True).episodes == plan.suite_episodes
    assert asked.asked_suites == tuple(asked.gates.suites.required)
    few = load(PromoteConfig, None, ["episodes=7", "suites=[]"])
    assert few.evaluation(perturbed=False).episodes == 7 and few.asked_suites == ()
    for words, told in (
        (["limits={widowx: {low: [0], high: [1, 2]}}"], "one number a channel"),
        (["limits={widowx: {low: [2], high: [1]}}"], "limits.low"),
        (["num_actors=3", "env.num_envs=2"], "num_actors = 3"),
    ):
        with pytest.raises(UserError, match=told):
            load(PromoteConfig, None, words)
