"""Weights that a config names, and what is measured of them: times, parity, and everything at once."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from builders import observations, origin, tiny_policy

from actors.playing import Company
from rl_finetune.config import load
from rl_finetune.config.promotion import LatencyCallsSection, PromoteConfig
from rl_finetune.config.schema import LoraSection, PolicySection
from rl_finetune.errors import UserError
from rl_finetune.policy.adapters import add_adapters, save_adapters
from rl_finetune.policy.config import WIDOWX
from rl_finetune.promotion import judge
from rl_finetune.promotion.evidence import evidence_from_dict, evidence_to_dict
from rl_finetune.promotion.evidence.bounds import limits_of
from rl_finetune.promotion.evidence.gather import _Bench, gather
from rl_finetune.promotion.evidence.latency import timed
from rl_finetune.promotion.evidence.limits import limits_for
from rl_finetune.promotion.evidence.parity import Question, compared, exported
from rl_finetune.promotion.evidence.policies import find
from rl_finetune.promotion.records import (
    Limits,
    PolicyName,
)
from rl_finetune.promotion.registry.bundle import make_bundle
from rl_finetune.promotion.registry.contents import Provenance
from rl_finetune.types import SeedKeys


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny policy on disk."""
    folder = tmp_path_factory.mktemp("policies") / "plain"
    tiny_policy().save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def adapter(plain: Path) -> Path:
    """An adapter for it that changes what it does."""
    policy = add_adapters(tiny_policy(), LoraSection(rank=4), seed=0)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in policy.named_parameters():
            if "lora_B" in name:
                parameter.copy_(0.05 * torch.randn(parameter.shape, generator=generator))
    save_adapters(policy, plain.parent / "adapter", origin(plain))
    return plain.parent / "adapter"


def test_a_policy_is_called_by_what_its_files_hold(plain: Path, adapter: Path, tmp_path: Path) -> None:
    first = find(PolicySection(path=str(plain)))
    again = tmp_path / "elsewhere"
    tiny_policy().save_pretrained(again)
    assert find(PolicySection(path=str(again))).name.digest == first.name.digest
    others = [
        find(PolicySection(path=str(plain), adapter=str(adapter))),
        find(PolicySection(path=str(plain), guidance=1.0)),
        find(PolicySection(path=str(plain), backbone=str(plain / "backbone"))),
    ]
    assert len({first.name.digest, *(other.name.digest for other in others)}) == 4
    weights = again / "model.safetensors"
    changed = bytearray(weights.read_bytes())
    changed[-1] ^= 1
    weights.write_bytes(changed)
    assert find(PolicySection(path=str(again))).name.digest != first.name.digest


def test_a_bundle_is_called_by_its_manifest_brings_its_limits_and_is_verified(
    plain: Path, adapter: Path, tmp_path: Path
) -> None:
    own = replace(limits_for("widowx"), stale_after=0.25)
    bundle = make_bundle(
        plain, tmp_path / "bundle", name="mine", provenance=Provenance("code", "config", (1,), {}), adapter=adapter,
        merge=False, limits={"widowx": own},
    )  # fmt: skip
    found = find(PolicySection(path=str(bundle.folder)))
    assert found.name == PolicyName("mine", bundle.digest)
    assert found.section.path.endswith("policy") and (found.section.adapter or "").endswith("adapter")
    assert limits_of(WIDOWX, PromoteConfig(), found) == own
    chosen = load(PromoteConfig, None, ["limits={widowx: {high: [1, 1, 1, 1, 1, 1, 1], low: [0, 0, 0, 0, 0, 0, 0]}}"])
    assert limits_of(WIDOWX, chosen, found) == Limits(low=(0.0,) * 7, high=(1.0,) * 7)
    assert limits_of(WIDOWX, PromoteConfig(), replace(found, bundle=None)) == limits_for("widowx")
    record = bundle.folder / "policy" / "config.json"
    record.write_text(record.read_text() + " ")
    with pytest.raises(UserError, match=r"config\.json"):
        find(PolicySection(path=str(bundle.folder)))


def test_calls_are_timed_one_by_one_after_the_warm_up() -> None:
    ticks = iter(np.cumsum([0, 9, 1, 9, 1, 2, 1, 3, 1, 5]).astype(float))  # two to warm up, then 2, 3 and 5 seconds
    threads = torch.get_num_threads()
    seen = observations(2)
    single = [seen.rows(np.array([row])) for row in range(2)]
    calls = LatencyCallsSection(calls=3, warmup=2, threads=2)
    record = timed(tiny_policy(), WIDOWX, single, calls, 0.6, clock=lambda: next(ticks))
    assert record.seconds == (2.0, 3.0, 5.0)
    assert (record.embodiment, record.control_period, record.horizon) == ("widowx", 0.2, 8)
    assert "2 of" in record.hardware and torch.__version__ in record.hardware
    assert torch.get_num_threads() == threads


def question(num: int = 3) -> Question:
    ids = np.arange(num)
    return Question(observations(num), SeedKeys(1, ids, np.zeros(num, np.int64)), np.zeros(num, np.int64))


def test_a_policy_is_at_parity_with_itself_and_not_with_one_that_was_changed() -> None:
    policy, other = tiny_policy(), tiny_policy()
    same = compared(policy, other, WIDOWX, [question(), question(2)], 0.6)
    assert same.chunks == 5 and same.worst == (0.0,) * 7 and min(same.scale) > 0
    quantiles = other.quantiles["widowx"]
    other.quantiles = {"widowx": replace(quantiles, q01=(-0.1, -0.3, *quantiles.q01[2:]))}
    moved = compared(policy, other, WIDOWX, [question()], 0.6)
    assert [channel for channel, by in enumerate(moved.worst) if by > 0] == [1]
    assert moved.scale == compared(policy, policy, WIDOWX, [question()], 0.6).scale  # of the first alone
    other.quantiles = {"widowx": replace(quantiles, q99=(math.nan, *quantiles.q99[1:]))}
    assert compared(policy, other, WIDOWX, [question()], 0.6).worst[0] > 1e30


def test_an_adapter_that_was_folded_written_and_read_again_acts_as_the_trained_one(plain: Path, adapter: Path) -> None:
    weights = find(PolicySection(path=str(plain), adapter=str(adapter)))
    trained = weights.load()
    record = compared(trained, exported(weights), WIDOWX, [question(8)], 0.6)
    assert max(record.worst) < 1e-4 * min(record.scale)
    without = compared(trained, find(PolicySection(path=str(plain))).load(), WIDOWX, [question(8)], 0.6)
    assert max(without.worst) > 100 * max(record.worst)  # the adapter has a say


def test_the_candidate_alone_is_asked_in_prompts_as_long_as_its_worlds_have(plain: Path) -> None:
    asked = load(PromoteConfig, None, [
        f"candidate.path={plain}", "env.name=widowx_pick", "latency.calls=2", "latency.warmup=0", "parity_chunks=2",
    ])  # fmt: skip
    bench = _Bench(asked, find(asked.candidate))
    (parity,), (latency,) = bench.parity(), bench.latency()
    assert parity.chunks == len(latency.seconds) == 2


def test_everything_is_gathered_judged_and_read_from_the_disk_the_second_time(
    plain: Path, adapter: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = load(PromoteConfig, None, [
        f"candidate.path={plain}", f"candidate.adapter={adapter}", f"incumbent.path={plain}", f"folder={tmp_path}",
        "num_actors=0", "env.num_envs=3", "episodes=4", "suite_episodes=2", "suites=[colour]", "latency.calls=2",
        "latency.warmup=0", "parity_chunks=9",
    ])  # fmt: skip
    told: list[tuple[int, int]] = []
    evidence = gather(asked, lambda what, done, of: told.append((done, of)))
    assert told[-1] == (12, 12)
    assert [(r.suite, len(r.candidate), len(r.incumbent), r.seed) for r in evidence.worlds] == [
        ("none", 4, 4, asked.seed), ("colour", 2, 2, asked.seed)
    ]  # fmt: skip
    (audit,), (latency,), (parity,) = evidence.motion, evidence.latency, evidence.parity
    assert audit.steps >= 4 and len(audit.velocity) == 7 and {"workspace", "self_collision"} <= set(audit.measured)
    assert len(latency.seconds) == 2 and parity.chunks == 9 and max(parity.worst) < 1e-3 * max(parity.scale)
    assert audit.guarded and not any(audit.over[kind] for kind in ("action", "velocity", "acceleration", "jerk"))
    assert 0 < audit.changed <= audit.steps and max(audit.interventions.values()) <= audit.changed
    assert evidence.limits == {"widowx": limits_for("widowx")}
    assert evidence_from_dict(json.loads(json.dumps(evidence_to_dict(evidence)))) == evidence
    assert judge(evidence, asked.gates).outcome != "promote"  # far too few episodes

    def nobody(*_: object) -> Company:
        raise AssertionError("played again")

    again = gather(asked, lambda *_: None, nobody)
    assert (again.worlds, again.motion, again.parity) == (evidence.worlds, evidence.motion, evidence.parity)
    with pytest.raises(UserError, match="perturb"):
        gather(asked.model_copy(update={"suites": ["colours"]}), lambda *_: None, nobody)
