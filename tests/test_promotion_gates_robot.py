"""What the gates of motion, latency and parity say: the policy as a robot would meet it."""

from __future__ import annotations

import dataclasses

import pytest
from gate_data import KINDS, audit, evidence, outcomes, reason, settings, world

from rl_finetune.errors import UserError
from rl_finetune.promotion import judge
from rl_finetune.promotion.records import LatencyRecord, ParityRecord


@pytest.mark.parametrize(
    ("changes", "said", "why"),
    [
        ({}, "promote", "0 of 5000 control steps"),
        ({"over": {"velocity": 1}, "velocity": (1.0, 2.5)}, "reject", "channel 1 reached 2.5 where 2 is the limit"),
        ({"velocity": (1.0, 2.5)}, "hold", "yet no step was counted"),
        ({"measured": ("action",)}, "hold", "velocity was not measured, and motion.required asks for it"),
        ({"steps": 100}, "hold", "expected at least 3000 steps"),
        ({"steps": 100, "over": {"velocity": 1}}, "reject", "1 of 100"),
    ],
)
def test_motion(changes, said, why) -> None:
    found = evidence(motion=(audit(**changes),))
    assert outcomes(found)["motion:a/velocity"] == said
    assert why in reason(found, "motion:a/velocity")


def test_motion_counts_what_is_allowed_and_what_is_excused() -> None:
    touched = evidence(motion=(audit(self_collisions=5),))
    assert outcomes(touched)["motion:a/self_collision"] == "reject"
    assert outcomes(touched, motion={"allowed": {"self_collision": 0.001}})["motion:a/self_collision"] == "promote"
    blind = evidence(motion=(audit(measured=KINDS[:-1]),))
    excused = {"excused": {"body_a": ["self_collision"]}}
    assert outcomes(blind)["motion:a/self_collision"] == "hold"
    assert outcomes(blind, motion=excused)["motion:a/self_collision"] == "promote"
    with pytest.raises(UserError, match=r"motion\.excused .* got rover"):
        judge(blind, settings(motion={"excused": {"rover": ["jerk"]}}))


@pytest.mark.parametrize(("changed", "said"), [(0, "promote"), (1250, "promote"), (1251, "hold"), (5000, "hold")])
def test_a_policy_that_leans_on_the_envelope_is_held_and_not_rejected(changed, said) -> None:
    # A quarter of 5000 steps is 1250.
    leaning = audit(guarded=True, changed=changed, interventions={"jerk": changed // 2, "velocity": changed})
    found = evidence(motion=(leaning,))
    assert outcomes(found)["motion:a/interventions"] == judge(found, settings()).outcome == said
    why = f"(velocity {changed}, jerk {changed // 2})" if changed else "0 of 5000"
    assert why in reason(found, "motion:a/interventions")
    assert outcomes(found, motion={"interventions": 0.1})["motion:a/interventions"] == ("hold" if changed else said)
    broken = evidence(motion=(dataclasses.replace(leaning, over={"jerk": 1}, jerk=(9.0, 1.0)),))
    assert judge(broken, settings()).outcome == "reject", "an envelope that lets something through"


@pytest.mark.parametrize(("jerky", "said"), [(0, "promote"), (1250, "promote"), (1251, "hold")])
def test_a_policy_that_would_lean_on_the_envelope_is_held_though_its_steps_are_allowed(jerky, said) -> None:
    free = audit(
        over={"jerk": jerky, "velocity": jerky // 2, "workspace": 4900}, jerk=(9.0, 1.0) if jerky else (1.0, 1.0)
    )
    allowed = {"allowed": {"jerk": 0.99, "velocity": 0.99, "workspace": 0.99}}
    found = evidence(motion=(free,))
    assert outcomes(found, motion=allowed)["motion:a/interventions"] == said
    assert judge(found, settings(motion=allowed)).outcome == said
    assert f"without the safety envelope; {jerky} of 5000" in reason(found, "motion:a/interventions", motion=allowed)


def test_the_shipped_policys_share_passes_by_default_and_stands_in_the_verdict() -> None:
    # 129 of 923 steps, as docs/promotion.md has them.
    found = evidence(
        motion=(audit(guarded=True, steps=9230, changed=1290, interventions={"velocity": 1000, "jerk": 400}),)
    )
    verdict = judge(found, settings())
    (check,) = [each for each in verdict.checks if each.name == "a/interventions"]
    assert verdict.outcome == check.outcome == "promote" and round(check.value, 3) == 0.14
    assert "changed 1290 of 9230 control steps: 0.14 where 0.25 is allowed (velocity 1000, jerk 400)" in check.reason


def test_motion_that_nothing_limits_or_nobody_audited_is_held() -> None:
    free = evidence(limits={})
    assert reason(free, "motion:a/jerk") == "body_a has no limit of jerk, and motion.required asks for it"
    assert outcomes(free)["motion:a/joint"] == "promote", "joints are limited by the model"
    assert outcomes(evidence(world("a"), world("b"), motion=(audit("a"),)))["motion:b"] == "hold"


@pytest.mark.parametrize(
    ("seconds", "p50", "p99"),
    [
        ((0.1,) * 400, "promote", "promote"),
        ((0.1,) * 367, "promote", "hold"),
        ((0.6,) * 400, "hold", "promote"),
        ((0.1,) * 396 + (0.9,) * 4, "promote", "hold"),
        ((0.1,) * 380 + (0.9,) * 20, "promote", "hold"),
        ((9.0,) * 400, "hold", "hold"),
        ((), "hold", "hold"),
    ],
)
def test_latency(seconds, p50, p99) -> None:
    # A chunk of 10 steps of 0.1 s lasts 1 s: p50 may take 0.5 s of it, p99 0.8 s.
    found = outcomes(evidence(latency=(LatencyRecord("body_a", seconds, 0.1, 10),)))
    assert (found["latency:body_a/p50"], found["latency:body_a/p99"]) == (p50, p99)


def test_latency_above_its_bound_is_said_of_the_hardware() -> None:
    slow = evidence(latency=(LatencyRecord("body_a", (0.6,) * 400, 0.1, 10, "a toaster"),))
    said = reason(slow, "latency:body_a/p50")
    assert "shown to be above 500.0 ms" in said and "on a toaster; time it again on the robot's hardware" in said
    assert judge(slow, settings()).outcome == "hold"


def test_latency_names_the_calls_it_needs_and_the_body_nobody_timed() -> None:
    few = evidence(latency=(LatencyRecord("body_a", (0.1,) * 20, 0.1, 10),))
    assert "at least 368 calls are needed" in reason(few, "latency:body_a/p99")
    assert outcomes(evidence(latency=()))["latency:body_a/p99"] == "hold"


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({}, "promote"),
        ({"worst": (0.003, 0.0)}, "reject"),
        ({"chunks": 31}, "hold"),
        ({"worst": (0.0, 1e-6)}, "reject"),
    ],
)
def test_parity(changes, said) -> None:
    # Spreads 0.1 and 0: 2 % is 0.002 in the first channel and 2e-8 in the second, which stands still.
    record = dataclasses.replace(ParityRecord("body_a", 32, (0.002, 1e-8), (0.1, 0.0)), **changes)
    assert outcomes(evidence(parity=(record,)))["parity:body_a"] == said
    assert outcomes(evidence(parity=()))["parity:body_a"] == "hold"
