"""The page of one candidate: what it says, that it is whole, and how a browser draws it."""

from __future__ import annotations

import re
import shutil
import subprocess
import xml.etree.ElementTree as ET
from dataclasses import replace
from html import escape
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from candidate_data import check, clip, full, world

from rl_finetune.promotion.records import Evidence, LatencyRecord, PolicyName, Verdict
from rl_finetune.promotion.report import ActionTrace, CandidateReport, EpisodeClips, TrialsView, render, write_report
from rl_finetune.promotion.report.sections import failures_first, sections
from rl_finetune.promotion.report.words import value_of

EVIL = "<script>alert('x')</script>\"&"
VOID = ("meta", "link", "img", "br", "wbr")
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


class _Page(HTMLParser):
    """Addresses, tags and words of a page; asserts that tags close in order."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.addresses: list[str] = []
        self.tags: list[str] = []
        self.ids: list[str] = []
        self.open: list[str] = []
        self.words = ""
        self.feed(text)
        self.words = " ".join(self.words.split())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.addresses += [value or "" for name, value in attrs if name in ("src", "href", "srcset", "data")]
        self.ids += [value or "" for name, value in attrs if name == "id"]
        if tag == "wbr":
            self.words = self.words.removesuffix(" ")
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if not {"style", "script"} & set(self.open):
            self.words += data + " "


def outermost(source: str) -> list[str]:
    """Every drawing of a page; those inside of others are parts of these."""
    found, depth, start = [], 0, 0
    for tag in re.finditer("<svg|</svg>", source):
        if depth == 0:
            start = tag.start()
        depth += 1 if tag[0] == "<svg" else -1
        if depth == 0:
            found.append(source[start : tag.end()])
    return found


def test_the_page_says_the_verdict_and_the_objections_in_words() -> None:
    words = _Page(render(full())).words
    assert "✕ Reject 2 of 3 checks object." in words
    assert words.index("motion m said reject") < words.index("tasks · world0 ○ hold why")  # rejections first
    passed = replace(full(), verdict=Verdict("promote", (check(), check("parity"))))
    assert "✓ Promote All 2 checks passed." in _Page(render(passed)).words
    silent = replace(full(), verdict=Verdict("promote", (check(), check("parity", "off", value=0, unit=""))))
    words = _Page(render(silent)).words
    assert "All 1 checks passed. Not asked: parity." in words and "– parity off" in words  # noqa: RUF001
    assert "parity switched off check" in words and "parity 1 of 1 passed" not in words
    assert "No gate asked anything." in _Page(render(replace(full(), verdict=Verdict("hold", ())))).words


def test_every_check_is_in_the_table_with_its_numbers() -> None:
    checks = tuple(
        check(f"gate{i % 3}", f"n{i}", value=i + 0.5, interval=(i - 1.25, i + 2.0), bound=-5.0, reason=f"reason {i}.")
        for i in range(40)
    )  # fmt: skip
    page = render(replace(full(), verdict=Verdict("promote", checks)))
    words = _Page(page).words
    for i, one in enumerate(checks):
        assert f"n{i} {value_of(one)} −5 points ✓ promote reason {i}." in words  # noqa: RUF001
    assert page.count('<details class="gate"') == 3
    assert '<details class="gate" id="gate-1">' in page  # 14 checks, all passed: folded


def test_motion_says_how_often_the_envelope_stepped_in_and_why() -> None:
    words = _Page(render(full())).words
    assert "changed by the safety envelope: 154 steps (12.5 %) velocity: 150 jerk: 20" in words  # of 1,234
    (audit,) = full().evidence.motion
    raw = replace(full(), evidence=replace(full().evidence, motion=(replace(audit, guarded=False),)))
    assert "played without the safety envelope" in _Page(render(raw)).words


def test_gains_are_as_the_gates_have_them() -> None:
    asked = check("tasks", "world1", "hold", value=5.5, interval=(-7.0, 12.0), bound=-6.0)
    unmeasured = check("tasks", "world2", interval=None, value=0.0)
    found = sections(replace(full(), verdict=Verdict("hold", (asked, unmeasured)))).success
    assert found is not None
    rows = {row.name: row for row in found.gains}
    assert (rows["world1"].interval, rows["world1"].bound, rows["world1"].outcome) == ((-7.0, 12.0), -6.0, "hold")
    assert (rows["world2"].points, rows["world2"].bound) == (5.0, None)  # 10 won, 5 lost of 100
    assert list(rows) == ["world0", "world1", "world2", "mean"]


def test_letters_stay_letters_until_the_trials_are_unblinded() -> None:
    data = full()
    assert data.trials is not None
    words = _Page(render(data)).words
    assert "Trials on the robot blinded" in words and "A 6 of 9 done, 1 aborted, 2 interventions" in words
    arms = data.trials.arms
    known = tuple(replace(arm, policy=PolicyName(f"policy{arm.letter}", "")) for arm in arms)
    words = _Page(render(replace(data, trials=replace(data.trials, arms=known)))).words
    assert TrialsView((known[0], arms[1]), (), 4).blinded and TrialsView((), (), 4).blinded
    assert "Trials on the robot unblinded" in words and "B: policyB 4 of 9 done" in words


def test_failures_come_first() -> None:
    ways = [(True, True), (False, False), (True, False), (False, True), (False, None)]
    clips = [
        EpisodeClips(clip(ours, i), None if theirs is None else clip(theirs, i))
        for i, (ours, theirs) in enumerate(ways)
    ]
    assert [one.shown.episode for one in failures_first(clips)] == [3, 1, 4, 2, 0]
    with pytest.raises(ValueError, match="got none of either policy"):
        failures_first([EpisodeClips(None, None)])


@pytest.mark.parametrize("worlds", [1, 12])
@pytest.mark.parametrize("text", ["", EVIL, "_a_very_long_name_without_any_end" * 4])
def test_the_page_is_well_formed_whole_and_asks_nobody(worlds: int, text: str) -> None:
    source = render(full(text, worlds))
    page = _Page(source)
    assert page.open == [] and "alert(" not in re.sub(r"&lt;script&gt;alert\(", "", source)
    assert all(address.startswith(("data:", "#gate-")) for address in page.addresses)
    assert {address[1:] for address in page.addresses if address.startswith("#")} <= set(page.ids)
    assert page.tags.count("script") == 1 and page.tags.count("img") == 3
    plots = outermost(source)
    assert len(plots) == 7 + (1 if worlds == 1 else worlds + 1)  # one chart of suites a world, and their mean
    for plot in plots:
        assert ET.fromstring(plot).get("role") == "img" and ET.fromstring(plot).get("aria-label")
    assert page.words.count("Nothing is known here") == 0


def test_what_is_missing_is_said_and_not_drawn() -> None:
    names = PolicyName("new", "c" * 64), PolicyName("old", "d" * 64)
    page = _Page(render(CandidateReport(Evidence(*names, ()), Verdict("hold", ()))))
    assert page.open == [] and "svg" not in page.tags and "table" not in page.tags
    said = "success, perturbation suites, clips, the motion audit, action traces, latency, parity of the export"
    assert f"Nothing is known here of {said}, trials on the robot, the ledger." in page.words
    assert "c" * 64 in page.words and "d" * 64 in page.words
    empty = Evidence(*names, (world("a", 0, 0, 0, 0),), latency=(LatencyRecord("b", (), 0.1, 8),))
    words = _Page(
        render(CandidateReport(empty, Verdict("hold", ()), traces=(ActionTrace("a", "b", 0, 0.1, np.zeros((0, 2))),)))
    ).words
    assert "Success by task" in words and "no episodes" in words and "Latency" not in words


def test_numbers_of_the_tables_are_those_of_the_records() -> None:
    words = _Page(render(full())).words
    assert "world1 body1 100 55.0 [45.2, 64.4] 60.0 [50.2, 69.1] 50 10 5 35 +5 [−3, +12.8] 0 7" in words  # noqa: RUF001
    assert "world0 jerk dx 12 10 120.0 7" in words and "self-collision: ✕ 2 steps" in words
    assert "world0 action dx 0.8 1 80.0 0" in words and "workspace: not measured" in words
    assert "body0 16 dx 0.001 0.01" in words
    assert "p50 20 ms p99 30 ms control step 50 ms one chunk covers 400 ms" in words


def test_a_failed_page_leaves_the_old_one(tmp_path: Path) -> None:
    path = tmp_path / "report.html"
    write_report(path, full())
    before = path.read_text()
    broken = Evidence(PolicyName("n", ""), PolicyName("o", ""), (world("a", 1, 0, 0, 0, incumbent=()),))
    with pytest.raises(ValueError, match="expected as many"):
        write_report(path, CandidateReport(broken, Verdict("hold", ())))
    assert path.read_text() == before and [one.name for one in tmp_path.iterdir()] == ["report.html"]


PROBE = """window.addEventListener("load", () => {
  const inside = document.querySelector("iframe").contentDocument, found = document.documentElement.dataset;
  const every = (kind, test) => [...inside.querySelectorAll(kind)].every(test);
  found.overflow = inside.documentElement.scrollWidth - inside.documentElement.clientWidth;
  found.films = [...inside.images].filter((film) => film.naturalWidth > 0).length;
  found.whole = every("svg.plot", (plot) => plot.getBoundingClientRect().height === parseFloat(plot.style.height));
  found.unstretched = every("svg.stretched", (inner) => Math.abs(inner.getScreenCTM().d - 1) < 1e-3);
});"""


@pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed: the page is not drawn")
@pytest.mark.parametrize("width", [360, 1200])
def test_a_browser_draws_the_page_within_its_width(tmp_path: Path, width: int) -> None:
    """Inside a frame, which may be narrower than a browser's window."""
    host, page = tmp_path / "host.html", escape(render(full("_long" * 20)).replace("<details", "<details open"))
    host.write_text(f'<iframe width="{width}" height="900" srcdoc="{page}"></iframe><script>{PROBE}</script>')
    command = [
        str(CHROMIUM), "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-dev-shm-usage",
        "--disable-background-networking", "--disable-component-update", "--disable-sync", "--enable-logging=stderr",
        f"--user-data-dir={tmp_path / 'profile'}", "--dump-dom", host.as_uri(),
    ]  # fmt: skip
    result = subprocess.run(command, capture_output=True, text=True, timeout=90, check=True)
    assert "CONSOLE" not in result.stderr, result.stderr
    found = dict(re.findall(r' data-(\w+)="([^"]*)"', result.stdout[:200]))
    assert found == {"overflow": "0", "films": "3", "whole": "true", "unstretched": "true"}
