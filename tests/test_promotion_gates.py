"""What the gates say of policies whose numbers are known: promote, hold, reject, and why."""

from __future__ import annotations

import dataclasses
import json
import math

import numpy as np
import pytest
from gate_data import LIMITS, NO_SUITES, audit, evidence, outcomes, reason, settings, world

from rl_finetune.config.gates import GatesSection
from rl_finetune.errors import UserError
from rl_finetune.metrics.intervals import wilson
from rl_finetune.promotion import judge
from rl_finetune.promotion.gates import GATES
from rl_finetune.promotion.records import (
    Evidence,
    LatencyRecord,
    Limits,
    ParityRecord,
    PolicyName,
    WorldRecord,
)
from rl_finetune.promotion.statistics import draw_pairs, score_interval, z_of


def test_a_better_policy_in_order_is_promoted_and_every_gate_says_so() -> None:
    verdict = judge(evidence(), settings(suites={"required": ["colour"], "lacking": {"a": ["colour"]}}))
    assert verdict.outcome == "promote" and verdict.objections == ()
    assert list(dict.fromkeys(check.gate for check in verdict.checks)) == ["plan", *GATES]
    success = next(check for check in verdict.checks if check.gate == "success")
    # 50 won and 10 lost of 200: +20 points; P(50 or more heads of 60) is about 8e-8.
    assert (success.value, success.unit, success.bound) == (20.0, "points", 0.0)
    assert success.interval == tuple(100 * limit for limit in score_interval(50, 10, 200, 0.025))
    assert "+20.0 points" in success.reason and "(50 won, 10 lost)" in success.reason and "e-08" in success.reason
    json.dumps(dataclasses.asdict(verdict), allow_nan=False)


@pytest.mark.parametrize(
    ("won", "lost", "said"),
    [(50, 10, "promote"), (30, 30, "hold"), (36, 24, "hold"), (0, 0, "hold"), (10, 50, "reject")],
)
def test_success(won, lost, said) -> None:
    assert outcomes(evidence(world(won=won, lost=lost)))["success:mean"] == said


def test_success_weighs_worlds_the_same_and_may_ask_for_more() -> None:
    unequal = evidence(world("a", won=40, lost=0), world("b", n=400, won=0, lost=0))
    check = next(c for c in judge(unequal, settings()).checks if c.gate == "success")
    assert check.value == 10.0 and check.outcome == "promote"
    assert outcomes(unequal, success={"gain": 9.0})["success:mean"] == "hold"
    worse = evidence(world(won=0, lost=60))
    assert outcomes(worse, success={"gain": 9.0})["success:mean"] == "reject"


def test_all_successes_of_both_show_no_gain_and_no_loss() -> None:
    sure = outcomes(evidence(world(n=200, both=200, won=0, lost=0)))
    assert sure["success:mean"] == "hold"
    assert sure["tasks:a"] == sure["worst:task"] == "promote"


def test_a_policy_that_gains_on_the_mean_but_loses_a_task_is_not_promoted() -> None:
    gained = [world(name, won=50, lost=10) for name in "abc"]
    for lost, said in ((0, "promote"), (10, "hold"), (50, "reject")):
        verdict = judge(evidence(*gained, world("d", won=0, lost=lost)), settings())
        found = {f"{check.gate}:{check.name}": check.outcome for check in verdict.checks}
        assert (found["success:mean"], found["tasks:d"], verdict.outcome) == ("promote", said, said)


def test_rejecting_one_of_many_tasks_takes_a_clearer_loss() -> None:
    # 10 won, 35 lost of 200: -12.5 points; upper limits -6.4 at 2.5 %, -4.2 at 0.25 %.
    lone, crowd = [world("z", won=10, lost=35)], [world(str(i)) for i in range(9)]
    assert 100 * score_interval(10, 35, 200, 0.025)[1] < -5 < 100 * score_interval(10, 35, 200, 0.0025)[1]
    assert outcomes(evidence(*lone))["tasks:z"] == "reject"
    assert outcomes(evidence(*lone, *crowd))["tasks:z"] == "hold"
    assert reason(evidence(*lone, *crowd), "tasks:z").endswith("not clear enough, as one of 10 that are looked at")


def test_a_margin_of_its_own_and_a_misspelt_one() -> None:
    loses = evidence(world("a"), world("b", won=10, lost=20))
    assert outcomes(loses)["tasks:b"] == "hold"
    assert outcomes(loses, tasks={"margins": {"b": 15.0}})["tasks:b"] == "promote"
    with pytest.raises(UserError, match=r"tasks\.margins .* got c; expected one of \['a', 'b'\]"):
        judge(loses, settings(tasks={"margins": {"c": 15.0}}))


@pytest.mark.parametrize(("won", "lost", "said"), [(50, 10, "promote"), (10, 20, "hold"), (10, 100, "reject")])
def test_suites(won, lost, said) -> None:
    found = evidence(world(), world(both=50, won=won, lost=lost, suite="colour"))
    assert outcomes(found)["suites:colour"] == said


def test_a_missing_suite_holds_unless_the_world_lacks_it() -> None:
    found = evidence(world("a"), world("b"), world("a", suite="colour"))
    asked = {"required": ["colour", "lighting"]}
    assert outcomes(found, suites=asked)["suites:colour"] == "hold"
    assert reason(found, "suites:colour", suites=asked).endswith("was not played in b")
    assert reason(found, "suites:lighting", suites=asked) == "was not played in a, b"
    excused = {**asked, "lacking": {"a": ["lighting"], "b": ["lighting", "colour"]}}
    assert judge(found, settings(suites=excused)).outcome == "promote"


def test_a_suite_that_one_world_clearly_loses_holds_though_the_mean_is_fine() -> None:
    plain = [world(name) for name in "abc"]
    fine = [world(name, suite="colour", won=60, lost=0) for name in "ab"]
    found = outcomes(evidence(*plain, *fine, world("c", suite="colour", won=0, lost=60)))
    assert (found["suites:colour"], found["suites:colour/c"]) == ("promote", "hold")


def test_the_worst_task_is_held_to_the_floor_and_to_the_incumbents_worst() -> None:
    easy = world("a", both=180, won=10, lost=5)
    low = outcomes(evidence(easy, world("b", both=10, won=35, lost=0)))
    assert (low["worst:task"], low["worst:task_against_incumbent"]) == ("hold", "promote")
    lost = outcomes(evidence(easy, world("b", both=10, won=0, lost=80)))
    assert (lost["worst:task"], lost["worst:task_against_incumbent"]) == ("reject", "reject")
    near = outcomes(evidence(easy, world("b", both=100, won=10, lost=12)))
    assert (near["worst:task"], near["worst:task_against_incumbent"]) == ("promote", "hold")


def test_four_checks_of_the_worst_share_the_chance_to_reject() -> None:
    # 28 of 200: Wilson's upper limits are 19.5 points at 2.5 % and 21.3 at a fourth of it; of 20: 16.4 at that.
    assert 100 * wilson(28, 200, z_of(0.025))[1] < 20 < 100 * wilson(28, 200, z_of(0.025 / 4))[1]
    assert outcomes(evidence(world(both=28, won=0, lost=0)))["worst:task"] == "hold"
    assert outcomes(evidence(world(both=20, won=0, lost=0)))["worst:task"] == "reject"


def test_a_wider_margin_does_not_let_a_task_become_the_worst_of_all() -> None:
    found = evidence(world("a", both=120, won=20, lost=0), world("b", both=60, won=0, lost=100))
    wide = outcomes(found, tasks={"margins": {"b": 60.0}})
    assert wide["tasks:b"] == "promote" and wide["worst:task_against_incumbent"] == "reject"


def test_the_worst_embodiment_is_a_mean_over_its_worlds() -> None:
    arm = [world("a", both=10, won=10, lost=0, body="arm"), world("b", both=170, won=10, lost=0, body="arm")]
    verdict = judge(evidence(*arm, world("c", both=120, won=10, lost=0, body="rover")), settings())
    found = {check.name: check for check in verdict.checks if check.gate == "worst"}
    # 20 and 180 of 200: 50 % for the arm, whose worse task has 10 %; 65 % for the rover.
    assert found["embodiment"].value == 50.0 and found["embodiment"].reason.startswith("arm")
    assert found["task"].value == 10.0 and found["task"].reason.startswith("a:")


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"worlds": (world(), world())}, "twice: got .* 2 times"),
        ({"worlds": (dataclasses.replace(world(), incumbent=(True,) * 199),)}, "do not pair: got 200 .* 199"),
        ({"worlds": (world(n=0, both=0, won=0, lost=0),)}, "at least 1"),
        ({"worlds": (dataclasses.replace(world(), candidate=(math.nan,) * 200),)}, "true or false"),
        ({"worlds": (world(failed=51),)}, "breakdowns"),
        ({"worlds": (world(), world(suite="colour", body="other"))}, "two bodies"),
        ({"latency": (LatencyRecord("body_a", (math.nan,), 0.1, 10),)}, "latency of body_a: got nan"),
        ({"latency": (LatencyRecord("body_a", (0.1,), 0.0, 10),)}, "a duration above 0"),
        ({"motion": (audit(jerk=(math.inf, 0.0)),)}, "motion in a: got inf"),
        ({"motion": (audit(over={"jerk": 5001}),)}, "5001 of 5000"),
        ({"motion": (audit(changed=5001),)}, "5001 of 5000"),
        ({"motion": (audit(changed=1, interventions={"jerk": 1}),)}, "1 changed steps for 1 reasons"),
        ({"motion": (audit(guarded=True, changed=1, interventions={"jerk": 2}),)}, "1 changed steps for 2 reasons"),
        ({"motion": (audit(guarded=True, changed=3, interventions={"jerk": 2}),)}, "3 changed steps for 2 reasons"),
        ({"limits": {"body_a": Limits(velocity=(1.0,))}}, "velocity: got 1 values; .* each of 2 channels"),
        ({"limits": {"body_a": dataclasses.replace(LIMITS, jerk=(math.nan, 4.0))}}, "finite numbers"),
        ({"motion": (audit(embodiment="other"),)}, "two bodies"),
        ({"parity": (ParityRecord("body_a", 32, (0.1, 0.1), (0.1,)),)}, "scale"),
    ],
)
def test_evidence_that_contradicts_itself_is_refused(changes, match) -> None:
    with pytest.raises(UserError, match=match):
        judge(evidence(**changes), settings())


@pytest.mark.parametrize(
    ("found", "name", "why"),
    [
        (evidence(world(n=199)), "episodes", "a has 199 of 200"),
        (evidence(world("a"), world("b", seed=1)), "seeds", r"[0, 1]"),
        (evidence(world(failed=5)), "breakdowns", "5 of 200"),
        (evidence(world("a"), world("b", suite="colour")), "worlds", "b was only played under perturbation"),
        (evidence(incumbent=PolicyName("candidate", "1")), "candidate", "it is the incumbent"),
        (evidence(drives=("body_a", "rover")), "bodies", "rover is among what it can drive, and was not played"),
        (evidence(world(), world("b", suite="colour"), drives=("body_b",)), "bodies", "body_b is among"),
    ],
)
def test_evidence_that_is_not_as_planned_holds(found, name, why) -> None:
    assert outcomes(found)[f"plan:{name}"] == "hold"
    assert why in reason(found, f"plan:{name}")


def test_a_body_that_is_not_played_can_be_excused_by_name() -> None:
    found = evidence(drives=("body_a", "rover"))
    assert judge(found, settings(plan={"episodes": 200, "unplayed": ["rover"]})).outcome == "promote"


def test_no_evidence_is_held_by_every_gate() -> None:
    nothing = Evidence(PolicyName("candidate", "1"), PolicyName("incumbent", "0"), ())
    held = {check.gate for check in judge(nothing, settings()).objections}
    assert held == {"success", "tasks", "worst", "motion", "latency", "parity"}


def test_a_gate_that_is_off_is_seen_to_be_off() -> None:
    other = evidence(parity=(ParityRecord("body_a", 32, (1.0, 0.0), (0.1, 0.0)),))
    assert judge(other, settings()).outcome == "reject"
    verdict = judge(other, settings(parity={"on": False}))
    assert verdict.outcome == "promote"
    (check,) = [check for check in verdict.checks if check.gate == "parity"]
    assert (check.name, check.reason) == ("off", "not asked: gates.parity.on is false")
    assert verdict.off == ("parity",) and judge(other, settings()).off == ()
    with pytest.raises(ValueError, match="one of them on"):
        settings(success={"on": False}, tasks={"on": False})


def test_objections_put_rejections_first() -> None:
    found = evidence(world(won=30, lost=30), parity=(ParityRecord("body_a", 32, (1.0,), (0.1,)),))
    assert [check.gate for check in judge(found, settings()).objections][:2] == ["parity", "success"]


def test_error_and_power_of_the_whole_verdict_at_the_default_number_of_episodes() -> None:
    """One world, independent episodes around one half; `benchmarks/bench_gates.py` has the rest."""
    rng, runs, plan = np.random.default_rng(0), 300, GatesSection().plan
    promoted = {}
    for gain in (0.0, 0.1):
        said = []
        for _ in range(runs):
            before, after = draw_pairs(rng, (plan.episodes,), 0.45, 0.45 + gain)
            record = WorldRecord("a", "body_a", "none", 0, tuple(after.tolist()), tuple(before.tolist()))
            said.append(judge(evidence(record), GatesSection.model_validate(NO_SUITES)).outcome)
        promoted[gain] = said.count("promote") / runs
    # Three standard errors of 300 runs from what is promised: at most 5 %, at least 90 %.
    assert promoted[0.0] <= 0.05
    assert promoted[0.1] >= 0.9 - 3 * math.sqrt(0.9 * 0.1 / runs)
