"""The whole way from settings to a chunk, with a real policy."""

from __future__ import annotations

import asyncio
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from bundles import grounds, promoted, submitted

from benchmarks.serving import PATIENCE, Robot, listening, until
from rl_finetune.config import load
from rl_finetune.config.serving import (
    ActingSection,
    BatchingSection,
    NetworkSection,
    ServeConfig,
    ServeSection,
    ShadowSection,
)
from rl_finetune.errors import UserError
from rl_finetune.policy import backbone
from rl_finetune.promotion.records import Limits
from rl_finetune.promotion.registry.bundle import make_bundle, open_bundle
from rl_finetune.promotion.registry.contents import Acted, Provenance
from rl_finetune.promotion.registry.registry import Registry
from rl_finetune.promotion.serving.start import _by_digest, assembled
from tests.builders import episode_keys, observations, tiny_policy
from tests.tolerance import assert_rounded_alike

SERVE = ServeSection(network=NetworkSection(port=0), batching=BatchingSection(deadline=PATIENCE), follow=0.02)
FREE = {"widowx": Limits(low=(-9.0,) * 7, high=(9.0,) * 7, stale_after=PATIENCE)}


@pytest.fixture(scope="module")
def bundles(tmp_path_factory) -> list[Path]:
    """Two policies for the same body."""
    folder = tmp_path_factory.mktemp("bundles")
    for seed in (0, 1):
        tiny_policy(seed).save_pretrained(folder / f"policy-{seed}")
        make_bundle(
            folder / f"policy-{seed}", folder / "all" / str(seed), name=str(seed), provenance=Provenance("x"),
            limits=FREE, acted=Acted(64, 0.6),
        )  # fmt: skip
    return [folder / "all" / "0", folder / "all" / "1"]


def test_a_robot_is_told_what_the_policy_does_in_an_evaluation(bundles, tmp_path):
    """In the episode that it names; the shadow sees it too, and rolling over changes who acts."""
    config = ServeConfig(
        bundle=str(bundles[0]), acting=ActingSection(seed=11), serve=SERVE,
        shadow=ShadowSection(bundle=str(bundles[1]), log=str(tmp_path / "logs" / "shadow.jsonl")),
    )  # fmt: skip
    seen = observations(1, seed=3)
    with assembled(config) as server, listening(server) as (port, _):
        robot = Robot(port)
        said = {"observation/image": seen.images["ego"][0], "prompt": seen.instruction[0], "episode": 5, "reset": True}
        replies = [robot.send(said)]
        swap = server.swapper.swap(bundles[1])
        digest = asyncio.run_coroutine_threadsafe(swap, server._server.get_loop()).result(PATIENCE)
        replies.append(robot.send(said))
        assert until((tmp_path / "logs" / "shadow.jsonl").exists)
    assert [r["interventions"] for r in replies] == [{}, {}] and not replies[0]["held"]
    assert replies[1]["bundle"] == digest != replies[0]["bundle"] == robot.metadata["bundle"]
    for policy, reply in zip((tiny_policy(0), tiny_policy(1)), replies, strict=True):
        keys = episode_keys(1, seed=11, first=5)
        body = policy.config.embodiments[0]
        right = policy.act(policy.look(seen), keys, np.zeros(1, np.int64), body, 0.6).actions[0, :, :7]
        assert_rounded_alike(reply["actions"], right)
    line = json.loads((tmp_path / "logs" / "shadow.jsonl").read_text().splitlines()[0])
    assert line["incumbent"] == replies[0]["bundle"] and line["candidate"] == digest and max(line["rms"]) > 0


def test_what_lies_in_a_registry_under_another_digest_is_not_loaded(bundles):
    digest = _by_digest(open_bundle)(bundles[1]).digest  # its folder is called 1
    for name in (digest, "0" * 64):
        moved = bundles[1].rename(bundles[1].with_name(name))
        try:
            if name == digest:
                assert _by_digest(open_bundle)(moved).digest == digest
            else:
                with pytest.raises(UserError, match=r"manifest\.json .*got hash"):
                    _by_digest(open_bundle)(moved)
        finally:
            moved.rename(bundles[1])


def test_ever_new_prompts_do_not_fill_the_memory(monkeypatch):
    monkeypatch.setattr(backbone, "ROWS", 3)
    policy, seen = tiny_policy(), observations(1)
    right = policy.encode(seen).hidden
    for number in range(5):
        policy.encode(replace(seen, instruction=(f"reach {number}",)))
    assert len(policy.eyes._rows) == 3
    assert policy.encode(seen).hidden.equal(right)


def test_nothing_to_serve_is_said_before_anything_listens(tmp_path):
    for config in (ServeConfig(registry=str(tmp_path / "none")), ServeConfig(bundle=str(tmp_path / "none"))):
        with pytest.raises(UserError), assembled(config):
            pass
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("device", ["foo", "", "meta", "cuda:99"])
def test_a_device_that_is_not_there_is_said_before_anything_is_loaded(tmp_path, device):
    config = ServeConfig(bundle=str(tmp_path / "none"), acting=ActingSection(device=device))
    says = rf"no such device here: got acting.device={device}: .+; expected cpu"
    with pytest.raises(UserError, match=says), assembled(config):
        pass


def test_who_is_retired_or_rejected_is_not_served_whatever_way_it_is_named(tmp_path):
    registry = Registry(tmp_path / "registry")
    retired, rejected = promoted(registry, "a"), promoted(registry, "b")
    registry.record(grounds(tmp_path, "decision", rejected, outcome="reject"), by="ada")
    ours, kept = str(registry.folder), registry.bundle_folder

    def refused(**settings: object) -> str:
        with pytest.raises(UserError) as caught, assembled(ServeConfig(**settings)):
            pass
        return str(caught.value)

    assert "may not act: got a rejection on record" in refused(registry=ours)
    assert "may not act: got a rejection on record" in refused(bundle=str(kept(rejected.digest)))
    assert "may not act: got retired since" in refused(bundle=str(kept(retired.digest)))
    assert "may not act: got retired since" in refused(bundle=str(tmp_path / "a"), registry=ours)  # a copy elsewhere
    waiting = str(submitted(registry, "c").folder)
    shadow = ShadowSection(bundle=str(kept(retired.digest)), log=str(tmp_path / "logs" / "shadow.jsonl"))
    assert "shadow is retired or rejected" in refused(bundle=waiting, registry=ours, shadow=shadow)
    registry.retire(rejected.digest, by="ada")
    assert "nothing to serve" in refused(registry=ours)
    assert not (tmp_path / "logs").exists()


def test_the_shipped_settings_are_the_defaults():
    assert load(ServeConfig, "serve") == ServeConfig()
