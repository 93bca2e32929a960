"""Charts and numbers of a candidate's page, worked by hand."""

from __future__ import annotations

import math
import xml.etree.ElementTree as ET
from dataclasses import replace

import numpy as np
import pytest
from candidate_data import check, full, world

from rl_finetune.promotion.records import Check, LatencyRecord
from rl_finetune.promotion.report import EvidencePoint, TrialArm, TrialsView
from rl_finetune.promotion.report.canvas import Axis, cut
from rl_finetune.promotion.report.charts import GainRow, RateRow, UseRow, gain_rows, outcome_rows, rate_rows, use_rows
from rl_finetune.promotion.report.motion import uses
from rl_finetune.promotion.report.numbers import Rate, mean, pairings, suites, weakest
from rl_finetune.promotion.report.timelines import (
    BINS,
    Panel,
    action_panels,
    evidence_chart,
    histogram,
    latency,
    latency_chart,
)
from rl_finetune.promotion.report.words import breakable, milliseconds, number, points, span, value_of


def drawing(svg: str) -> ET.Element:
    """Parses as XML, too."""
    return ET.fromstring(svg)


def of_class(root: ET.Element, kind: str) -> list[ET.Element]:
    return [element for element in root.iter() if kind in element.get("class", "").split()]


@pytest.mark.parametrize(
    ("one", "words"),
    [
        (check(value=-1.25, interval=(-4.0, 1.5)), "−1.2 points [−4, 1.5]"),  # noqa: RUF001
        (check(value=0.0871, interval=(0.08, math.inf), unit="s"), "87.1 ms [80 or more]"),
        (check(value=0.00005, interval=None, unit="s"), "0.05 ms"),
        (check(value=math.inf, interval=None, unit="rad/s"), "∞ rad/s"),
        (check(value=0.0, interval=None, unit="", bound=0.0), "\u2013"),
        (check(value=0.0, interval=None, unit="points"), "0 points"),
    ],
)
def test_numbers_are_written_in_their_units(one: Check, words: str) -> None:
    assert value_of(one) == words


def test_numbers_in_words() -> None:
    assert [points(x) for x in (4.04, -0.04, -3, math.nan)] == ["+4", "0", "−3", "n/a"]  # noqa: RUF001
    assert span((-math.inf, 2.0)) == "[+2 or less]"
    assert [milliseconds(x) for x in (1.6, 0.0421, 0.0)] == ["1,600 ms", "42.1 ms", "0 ms"]
    assert number(-math.inf) == "−∞"  # noqa: RUF001
    assert breakable("a_b/<c>") == "a_<wbr>b/<wbr>&lt;c&gt;"
    assert cut("x" * 28) == "x" * 28
    assert cut("first_" + "x" * 40 + "_last", 20) == "first_xxxx…xxxx_last"


def test_episodes_of_all_seeds_pair_and_are_counted() -> None:
    pair, other = pairings([world("a", 3, 2, 1, 4, failed=1), world("b", 1, 0, 0, 0), world("a", 1, 0, 2, 0, seed=8)])
    assert (pair.seeds, pair.failed, len(pair.candidate)) == ((7, 8), 1, 13)
    assert [pair.count(*way) for way in ((True, True), (True, False), (False, True), (False, False))] == [4, 2, 3, 4]
    assert [rate.value for rate in pair.rates] == [6 / 13, 7 / 13]
    assert pair.gain is not None and pair.gain.points == pytest.approx(-100 / 13)
    together = mean([pair, other])
    assert together is not None and together.candidate.value == pytest.approx((6 / 13 + 1) / 2)
    assert mean([replace(pair, candidate=(), incumbent=())]) is None
    with pytest.raises(ValueError, match="'a' under 'none': got 1 of the candidate, 0"):
        pairings([world("a", 1, 0, 0, 0, incumbent=())])


def test_the_worst_is_named() -> None:
    records = [
        world("a", 8, 0, 0, 2), world("b", 4, 1, 0, 5, embodiment="rover"), world("c", 9, 0, 1, 0, embodiment="rover"),
        world("a", 2, 0, 6, 2, suite="camera"), world("a", 7, 0, 0, 3, suite="light"),
    ]  # fmt: skip
    found = {weak.title: (weak.where, weak.mean.candidate.value) for weak in weakest(pairings(records))}
    assert found == {
        "Worst task": ("b", 0.5), "Worst embodiment": ("rover", pytest.approx(0.7)), "Worst suite": ("camera", 0.2),
        "Greatest loss": ("a, camera", 0.2),
    }  # fmt: skip
    assert [suite for suite, _ in suites(pairings(records[::-1]))] == ["none", "light", "camera"]
    assert [weak.title for weak in weakest(pairings([world("a", 1, 1, 0, 0)]))] == ["Smallest gain"]


def test_shares_are_drawn_where_they_belong() -> None:
    root = drawing(rate_rows([RateRow("a", Rate(0.4, (0.3, 0.55)), Rate(0.25, (0.1, 0.4)))]))
    ours, theirs = of_class(root, "rate")
    assert of_class(ours, "mark")[0].get("cx") == "40%" and of_class(theirs, "mark")[0].get("x") == "25%"
    (interval,) = of_class(ours, "range")
    assert (interval.get("x1"), interval.get("x2")) == ("30%", "55%")
    bar = of_class(drawing(rate_rows([RateRow("a", Rate(0.4, (0.3, 0.5)), Rate(0.1, (0, 1)))], bars=True)), "mass")
    assert [(mass.get("x"), mass.get("width")) for mass in bar] == [("0%", "40%"), ("0%", "10%")]
    assert "no episodes" in rate_rows([RateRow("a", Rate(math.nan, (0, 1)), Rate(0.1, (0, 1)))])


def test_won_and_lost_fill_the_bar_in_proportion() -> None:
    root = drawing(outcome_rows(pairings([world("a", 10, 5, 0, 5)])))
    pieces = of_class(root, "mass")
    assert [(piece.get("x"), piece.get("width")) for piece in pieces] == [("0%", "50%"), ("50%", "25%"), ("75%", "25%")]
    assert [element.text for element in of_class(root, "count")] == ["10", "5", "5"]
    assert root.get("aria-label") == "Episodes. a: 10 both, 5 won, 0 lost, 5 neither"
    assert of_class(drawing(outcome_rows(pairings([world("a", 0, 0, 0, 0)]))), "mass") == []


def test_gains_are_drawn_with_what_they_are_held_against() -> None:
    rows = [GainRow("a", 5.0, (-5.0, 15.0), -10.0, "hold"), GainRow("b", -2.0, (-math.inf, 20.0))]
    root = drawing(gain_rows(rows))  # axis -10, 0, 10, 20
    first, second = of_class(root, "gain")
    assert of_class(first, "mark")[0].get("cx") == "50%" and of_class(first, "bound")[0].get("x1") == "0%"
    assert (of_class(first, "range")[0].get("x1"), of_class(first, "range")[0].get("x2")) == ("16.667%", "83.333%")
    assert of_class(second, "bound") == [] and of_class(second, "range")[0].get("x1") == "0%"
    assert of_class(root, "zero")[0].get("x1") == "33.333%"
    assert "hold" in first.get("class", "").split() and first[0].text == "+5 [−5, +15], against −10"  # noqa: RUF001


def test_limits_are_used_up_by_the_channel_that_comes_closest() -> None:
    report = full()
    audit, limits = report.evidence.motion[0], report.evidence.limits["body0"]
    found = {use.kind: (use.share, use.channel, use.value, use.limit) for use in uses(audit, limits)}
    assert found["action"] == (pytest.approx(0.8), 0, 0.8, 1.0)  # 0.8 of 1; the other is 1 of 2 from its middle
    assert found["velocity"] == (0.75, 1, 1.5, 2.0) and found["jerk"] == (1.2, 0, 12.0, 10.0)
    assert all(math.isnan(use.share) and use.measured for use in uses(audit, None))
    blind = replace(audit, measured=("velocity",), velocity=(math.nan, 1.0))
    assert [(use.kind, use.measured) for use in uses(blind, limits) if use.measured] == [("velocity", True)]
    assert uses(blind, limits)[1].share == math.inf  # NaN is not within any limit
    free = replace(limits, low=(-math.inf, 0.0), high=(1.0, 4.0))
    assert uses(replace(audit, actions=((-9.0, 1.5), (2.0, 2.0))), free)[0].share == math.inf


def test_bars_of_limits_end_at_their_share() -> None:
    root = drawing(use_rows([UseRow("velocity", 0.75, "75 %"), UseRow("jerk", 7.0, "700 %")]))  # axis to 2
    within, over = of_class(root, "mass")
    assert (within.get("width"), over.get("width")) == ("37.5%", "100%")
    assert of_class(root, "limit")[0].get("x1") == "50%" and len(of_class(root, "over")) == 1
    assert use_rows([UseRow("jerk", math.nan, "not measured")]) == '<p class="unsaid">jerk: not measured</p>'


def test_latency_is_counted_and_marked() -> None:
    found = latency(LatencyRecord("b", (0.010, 0.012, 0.021, 0.9), 0.1, 8))
    assert found is not None and (found.p50, found.p99, found.late) == (0.012, 0.9, 1)
    slow = latency(LatencyRecord("b", (0.01,) * 999 + (9.0,), 0.1, 8))
    assert slow is not None
    shown = histogram(slow)  # reaches 0.17 s: an axis to 0.2 s
    assert shown.axis.ticks[-1] == pytest.approx(0.2) and shown.beyond == 1
    assert shown.counts[2] == 999 and shown.counts[BINS - 1] == 1 and sum(shown.counts) == 1000
    flags = of_class(drawing(latency_chart(slow)), "flag")
    assert [flag[0].text for flag in flags] == ["p50 10 ms", "p99 10 ms", "control step 100 ms"]
    assert [pole.get("x1") for flag in flags for pole in of_class(flag, "pole")] == ["5%", "5%", "50%"]
    assert latency(LatencyRecord("b", (), 0.1, 8)) is None


def test_commands_are_steps_with_gaps_where_they_are_no_numbers() -> None:
    panel = Panel("dx", np.array([0.0, 2.0, math.nan, 1.0]), None, (0.0, 2.0))
    root = drawing(action_panels([panel], 0.25))  # 1 s; 40 px from 2 at 18 down to 0 at 58
    (path,) = of_class(root, "step")
    assert path.get("d") == "M0.000 58.00H25.000V18.00H50.000M75.000 38.00H100.000"
    assert [(line.get("y1"), line.get("x2")) for line in of_class(root, "bound")] == [("58", "100%"), ("18", "100%")]
    assert "0 … 2, 1 not finite" in action_panels([panel], 0.25)
    assert drawing(action_panels([Panel("dx", np.full(3, math.nan), np.zeros(9), None)], 0.1)) is not None


def test_evidence_is_drawn_between_its_boundaries() -> None:
    curve = (EvidencePoint(10, 1.0, -math.inf, 2.0), EvidencePoint(20, 2.0, -math.inf, 2.0))
    root = drawing(evidence_chart(TrialsView((TrialArm("A", 9, 6),), curve, 40)))  # axis 0 to 2 in 200 px from 214
    assert [path.get("d") for path in of_class(root, "line")] == ["M25.000 114.00L50.000 14.00"]
    assert [path.get("d") for path in of_class(root, "edge")] == ["M25.000 14.00L50.000 14.00"]
    assert of_class(root, "band") == [] and "No decision yet." in root.get("aria-label", "")
    assert "40 pairs at most" in evidence_chart(TrialsView((TrialArm("A", 9, 6),), curve, 40))
    blinded = evidence_chart(TrialsView((), (), 40, taken=7))
    assert "7 of at most 40 pairs are complete; who did better" in blinded and "svg" not in blinded


def test_an_axis_holds_its_edges() -> None:
    axis = Axis((0.0, 1.0, 4.0))
    assert [axis(value) for value in (-1, 1, 4, math.inf)] == [0, 25, 100, 100]
    with pytest.raises(ValueError, match="finite"):
        drawing(rate_rows([RateRow("a", Rate(0.5, (math.nan, 1)), Rate(0.1, (0, 1)))]))
