"""The stage: batches that equal an evaluation, swaps under load, the way back, and a shadow that cannot do harm."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import envs
from rl_finetune.errors import UserError
from rl_finetune.policy import QwenVLAPolicy
from rl_finetune.policy.config import WIDOWX
from rl_finetune.promotion.records import Limits
from rl_finetune.promotion.registry.contents import Acted
from rl_finetune.promotion.serving.actor import Stage
from rl_finetune.promotion.serving.reading import Reading, bodies
from rl_finetune.promotion.serving.requests import ActReply, ActRequest
from rl_finetune.promotion.serving.session import Session
from rl_finetune.promotion.serving.shadow import Shadow
from rl_finetune.promotion.serving.swap import Loaded, StageSettings, infer, load
from rl_finetune.promotion.serving.wire import decode, encode
from rl_finetune.types import SeedKeys
from tests.builders import QUANTILES, episode_keys, observations, tiny_policy
from tests.tolerance import assert_rounded_alike

SETTINGS = StageSettings(image_size=64, temperature=0.6)
OLD, NEW = Path("old"), Path("new")


@dataclass
class Book:
    """Opens bundles that are no files: folder -> policy."""

    policies: dict[Path, QwenVLAPolicy]
    limits: Mapping[str, Limits] = field(default_factory=dict)
    opened: list[Path] = field(default_factory=list)
    acted: dict[Path, Acted] = field(default_factory=dict)
    sealed: dict[Path, str] = field(default_factory=dict)

    def __call__(self, folder: Path) -> Any:
        self.opened.append(folder)
        if folder not in self.policies:
            raise UserError("no bundle there", got=folder, expected="a bundle", do="make one")
        digest = self.sealed.get(folder, f"digest of {folder}")
        return Page(digest, str(folder), self.limits, self.policies[folder], self.acted.get(folder, Acted()))


@dataclass
class Page:
    digest: str
    name: str
    limits: Mapping[str, Limits]
    policy: QwenVLAPolicy
    acted: Acted

    def load(self) -> QwenVLAPolicy:
        return self.policy


def book(**limits: Limits) -> Book:
    return Book({OLD: tiny_policy(0), NEW: tiny_policy(1)}, limits)


def until(done: Callable[[], bool], patience: float = 30.0) -> None:
    """Wait for another thread, not for ever."""
    end = time.monotonic() + patience
    while not done():
        assert time.monotonic() < end
        time.sleep(0.002)


def requests(num: int, *, seed: int = 0) -> list[ActRequest]:
    seen = observations(num, seed)
    return [ActRequest(seen.rows(np.array([i])), seed, env=i, episode=i + 1, chunk=i + 2) for i in range(num)]


def alone(policy: QwenVLAPolicy, request: ActRequest) -> np.ndarray:
    """What an evaluation would do."""
    keys = SeedKeys(request.seed, np.array([request.env]), np.array([request.episode]))
    with_noise = policy.act(policy.look(request.observation), keys, np.array([request.chunk]), WIDOWX, 0.6)
    return with_noise.actions[0, :, : WIDOWX.action.channels]


def test_batch_is_what_each_would_get_alone() -> None:
    opener = book()
    stage = Stage(OLD, SETTINGS, opener=opener)
    small = replace(requests(1, seed=2)[0], observation=observations(1, 2, size=32))
    mixed = [*requests(2), requests(2, seed=7)[1], small]  # two seeds, and a picture of another size
    replies = stage.act(mixed)
    assert [reply.batch for reply in replies] == [3, 3, 3, 1]
    policy = opener.policies[OLD]
    for request, reply in zip(mixed, replies, strict=True):
        assert_rounded_alike(reply.actions, alone(policy, request))
    assert stage.act(mixed[:1])[0].actions.tobytes() == alone(policy, mixed[0]).astype(np.float32).tobytes()
    assert np.abs(replies[1].actions - alone(policy, replace(mixed[1], chunk=0))).max() > 1e-3  # noise is keyed


def test_served_episode_is_the_evaluated_one() -> None:
    opener = book()
    policy, stage = opener.policies[OLD], Stage(OLD, SETTINGS, opener=opener)
    session = Session(3, stage, seed=0)
    with envs.make("widowx_reach", 1) as env:
        keys = episode_keys(1, seed=4, first=6)
        seen = env.reset(keys)
        for chunk in range(3):
            want = policy.act(policy.look(seen), keys, np.array([chunk]), WIDOWX, 0.6)
            views = {view: image[0] for view, image in seen.images.items()}
            reading = Reading(views, seen.instruction[0], "widowx", reset=chunk == 0, episode=6, seed=4)
            answer = session.answer(stage.act([session.ask(reading, 0.0)])[0], 0.0)
            np.testing.assert_array_equal(answer.actions, want.actions[0, :, :7])
            seen = env.step_chunk(want).observation


def test_client_learns_what_is_served() -> None:
    stage = Stage(OLD, SETTINGS, opener=book(widowx=Limits(stale_after=0.7)))
    said: Any = decode(encode(stage.metadata()))
    assert said["bundle"] == "digest of old" and said["name"] == "old"
    assert said["embodiments"]["widowx"] == {
        "views": ["ego"], "image_size": 64, "control": "delta_ee", "rotation": "axis_angle",
        "gripper": "open_positive", "channels": 7, "horizon": 8, "rate": 5.0, "stale_after": 0.7,
    }  # fmt: skip
    assert bodies(said)["widowx"].views == ("ego",)


@contextmanager
def load_on(stage: Stage, asked: Sequence[ActRequest]) -> Iterator[list[list[ActReply] | BaseException]]:
    """A thread that asks without pause, as the server's inference thread does."""
    told: list[list[ActReply] | BaseException] = []
    stop = threading.Event()

    def ask() -> None:
        while not stop.is_set():
            try:
                told.append(stage.act(asked))
            except BaseException as error:
                told.append(error)

    thread = threading.Thread(target=ask)
    thread.start()
    try:
        yield told
    finally:
        stop.set()
        thread.join()


def test_swap_under_load_fails_nobody_and_mixes_nothing() -> None:
    opener, asked = book(), requests(2)
    stage = Stage(OLD, SETTINGS, opener=opener)
    want = {f"digest of {folder}": infer(policy, asked, 0.6) for folder, policy in opener.policies.items()}
    with load_on(stage, asked) as told:
        for change in (lambda: stage.swap(NEW), stage.rollback, stage.rollback):
            before = len(told)
            change()
            until(lambda: len(told) >= before + 3)  # noqa: B023 - some batches under each
    digests = []
    for replies in told:
        assert not isinstance(replies, BaseException), replies
        assert len({reply.digest for reply in replies}) == 1
        digests.append(replies[0].digest)
        for reply, chunk in zip(replies, want[digests[-1]], strict=True):
            np.testing.assert_array_equal(reply.actions, chunk)
    changes = [now for now, before in zip(digests, [None, *digests], strict=False) if now != before]
    assert changes == ["digest of old", "digest of new", "digest of old", "digest of new"]


def broken(**changes: Any) -> Book:
    """A successor that cannot be one."""
    policy = tiny_policy(1, **changes)
    return Book({OLD: tiny_policy(0), NEW: policy})


def test_successor_that_cannot_take_over_is_refused() -> None:
    action = replace(WIDOWX.action, rate=10.0)
    other = Stage(OLD, SETTINGS, opener=broken(embodiments=(replace(WIDOWX, action=action),)))
    with pytest.raises(UserError, match=r"cannot take over.*rate=10\.0.*rate=5\.0"):
        other.swap(NEW)
    deaf = broken()
    deaf.policies[NEW].decoder.out_adaln.bias.data.fill_(np.nan)
    silent = Stage(OLD, SETTINGS, opener=deaf)
    with pytest.raises(UserError, match="not finite for widowx"):
        silent.swap(NEW)
    unsafe = book(widowx=Limits(jerk=(0.0,) * 7))
    with pytest.raises(UserError, match="above zero"):
        Stage(OLD, SETTINGS, opener=unsafe)
    stage = Stage(OLD, SETTINGS, opener=book())
    with pytest.raises(UserError, match="no bundle"):
        stage.swap(Path("nowhere"))
    with pytest.raises(UserError, match="nothing to roll back"):
        stage.rollback()
    for kept in (other, silent, stage):
        assert kept.metadata()["bundle"] == "digest of old"
        assert kept.act(requests(1))[0].digest == "digest of old"


@pytest.mark.parametrize("keep", [True, False])
def test_way_back_leads_through_memory_or_the_folder(keep: bool) -> None:
    opener = book(widowx=Limits(velocity=(1.0,) * 7))
    stage = Stage(OLD, replace(SETTINGS, keep_previous=keep), opener=opener)
    first = stage.act(requests(1))[0].actions
    stage.swap(NEW)
    opener.limits = {}
    if not keep:
        page = opener.policies.pop(OLD)
        with pytest.raises(UserError, match="no bundle"):
            stage.rollback()
        assert stage.metadata()["bundle"] == "digest of new"
        opener.policies[OLD] = page
    stage.rollback()
    np.testing.assert_array_equal(stage.act(requests(1))[0].actions, first)
    assert opener.opened.count(OLD) == (1 if keep else 3)
    # a reply that was computed before the swap is still judged by its own bundle's limits
    assert np.isfinite(stage.envelope("digest of new", "widowx").bounds.speed).all()


def test_each_bundle_acts_as_it_was_judged_unless_the_settings_say_otherwise() -> None:
    opener = replace(book(), acted={OLD: Acted(64, 0.6), NEW: Acted(64, 0.0)})
    stage, asked = Stage(OLD, StageSettings(), opener=opener), requests(1)
    assert stage.metadata()["embodiments"]["widowx"]["image_size"] == 64
    for folder, temperature in ((OLD, 0.6), (NEW, 0.0)):
        if folder == NEW:
            stage.swap(NEW)
        right = infer(opener.policies[folder], asked, temperature)[0]
        np.testing.assert_array_equal(stage.act(asked)[0].actions, right)
    loud = Stage(NEW, StageSettings(temperature=0.6), opener=opener)
    np.testing.assert_array_equal(loud.act(asked)[0].actions, infer(opener.policies[NEW], asked, 0.6)[0])
    for lacking, name in ((Acted(64), "temperature"), (Acted(None, 0.6), "image_size")):
        with pytest.raises(UserError, match=f"with what {name} bundle 'old' acts.*set acting.{name}"):
            Stage(OLD, StageSettings(), opener=replace(book(), acted={OLD: lacking}))


def test_a_bundle_of_other_pictures_neither_takes_over_nor_watches(tmp_path: Path) -> None:
    opener = replace(book(), acted={OLD: Acted(64, 0.6), NEW: Acted(32, 0.6)})
    stage = Stage(OLD, StageSettings(), opener=opener)
    with pytest.raises(UserError, match=r"cannot take over.*got pictures of 32 pixels; expected 64"):
        stage.swap(NEW)
    assert stage.metadata()["bundle"] == "digest of old"
    watcher = Shadow(load(NEW, StageSettings(), opener), tmp_path / "log")
    with pytest.raises(UserError, match="cannot take over"):
        Stage(OLD, StageSettings(), opener=opener, shadow=watcher)
    watcher.close()


def test_the_way_back_does_not_lead_to_another_bundle_in_the_same_folder() -> None:
    opener = book()
    stage = Stage(OLD, replace(SETTINGS, keep_previous=False), opener=opener)
    stage.swap(NEW)
    opener.sealed[OLD] = "digest of an intruder"
    with pytest.raises(UserError, match="another bundle than acted before"):
        stage.rollback()
    assert stage.act(requests(1))[0].digest == "digest of new"


def candidate(policy: QwenVLAPolicy) -> Loaded:
    return load(NEW, SETTINGS, Book({NEW: policy}))


def test_shadow_measures_and_does_not_act(tmp_path: Path) -> None:
    log, asked = tmp_path / "shadow.jsonl", requests(2)
    with_shadow = Shadow(candidate(tiny_policy(1)), log)
    stage = Stage(OLD, SETTINGS, opener=book(), shadow=with_shadow)
    replies = stage.act(asked)
    until(lambda: log.exists() and log.read_text().count("\n") == 2)
    seen = with_shadow.close()
    assert {reply.digest for reply in replies} == {"digest of old"}
    apart = np.stack(infer(tiny_policy(1), asked, 0.6)) - np.stack(infer(tiny_policy(0), asked, 0.6))
    both = seen.bodies["widowx"]
    rms = np.sqrt((apart.astype(np.float64) ** 2).mean((0, 1)))
    np.testing.assert_allclose(both.rms, rms, rtol=1e-5)
    np.testing.assert_allclose(both.worst, np.abs(apart).max((0, 1)), rtol=1e-5)
    np.testing.assert_allclose(both.relative, rms / np.array(QUANTILES["widowx"].q99), rtol=1e-5)
    assert both.chunks == 2 and min(seen.seconds) > 0 and (seen.dropped, seen.failed) == (0, 0)
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    assert [(e["session"], e["episode"], e["chunk"]) for e in lines] == [(0, 1, 2), (1, 2, 3)]
    assert lines[0]["incumbent"] == "digest of old" and lines[0]["candidate"] == "digest of new"
    np.testing.assert_allclose(lines[0]["worst"], np.abs(apart[0]).max(0), rtol=1e-5)


def test_trouble_of_the_shadow_stays_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    policy, log = tiny_policy(1), tmp_path / "shadow.jsonl"
    with_shadow = Shadow(candidate(policy), log, waiting=1, log_bytes=1500)
    opener = book()
    stage = Stage(OLD, SETTINGS, opener=opener, shadow=with_shadow)
    going, begun = threading.Event(), threading.Event()

    def stuck(*_: Any) -> None:
        begun.set()
        going.wait()
        raise RuntimeError("the candidate fell over")

    monkeypatch.setattr(policy, "look", stuck)
    asked, plain = requests(2), Stage(OLD, SETTINGS, opener=opener).act(requests(2))
    stage.act(asked)
    begun.wait()
    for _ in range(3):  # one waits, two have no room
        told = stage.act(asked)
    np.testing.assert_array_equal(told[1].actions, plain[1].actions)
    assert with_shadow.summary().dropped == 4
    monkeypatch.undo()
    going.set()
    until(lambda: with_shadow.summary().failed == 2 and "widowx" in with_shadow.summary().bodies)
    assert with_shadow.summary().last_failure == "RuntimeError: the candidate fell over"
    for number in range(2, 6):
        until(lambda: with_shadow.summary().bodies["widowx"].chunks == 2 * number - 2)  # noqa: B023
        stage.act(asked)
    with_shadow.close()
    full = log.with_name("shadow.jsonl.1")
    assert log.stat().st_size <= 1500 and full.stat().st_size <= 1500
    assert all(json.loads(line)["embodiment"] == "widowx" for line in (full.read_text() + log.read_text()).splitlines())
