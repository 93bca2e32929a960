"""The report page: its numbers, and the page itself in a browser."""

from __future__ import annotations

import io
import math
import re
import shutil
import subprocess
from base64 import b64decode
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from metrics_data import clip, compared, report_data, row
from PIL import Image

from rl_finetune.metrics.report import diagnostics_of, pair, render, write_report
from rl_finetune.metrics.report_data import Clip, ReportData
from rl_finetune.metrics.strip import film
from rl_finetune.metrics.svg import Chart, line_chart, nice_ticks, tick_label

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync", "--disable-dev-shm-usage", "--hide-scrollbars",
    "--enable-logging=stderr", "--force-device-scale-factor=1", "--window-size=1200,2400",
)  # fmt: skip
needs_browser = pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed: the page is not drawn")


PROBE = """
window.addEventListener("load", () => {
  const found = document.documentElement.dataset;
  // The clock of each film is set by hand: its window must show another frame than the first.
  found.moved = [...document.querySelectorAll(".film img")].filter((film) => {
    const [roll] = film.getAnimations();
    const before = getComputedStyle(film).transform;
    roll.currentTime = roll.effect.getComputedTiming().duration * 0.79;
    return getComputedStyle(film).transform !== before;
  }).length;
  const charts = [...document.querySelectorAll("svg.chart")];
  found.charts = charts.filter((chart) => chart.getBoundingClientRect().height > 50).length;
  found.overflow = document.documentElement.scrollWidth > innerWidth;
  const box = charts[0].getBoundingClientRect();
  charts[0].dispatchEvent(new PointerEvent("pointermove", { clientX: box.right, clientY: box.top }));
  const tip = document.getElementById("tip");
  found.tip = tip.getBoundingClientRect().width > 0 ? tip.textContent.split(" \u00b7 ")[0] : "hidden";
});
"""


class _Page(HTMLParser):
    """Every address on the page, and whether tags close in order."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.addresses: list[str] = []
        self.open: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.addresses += [value or "" for name, value in attrs if name in ("src", "href", "srcset", "data")]
        if tag not in ("meta", "link", "img", "br"):
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        pass

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def browse(path: Path, profile: Path, *flags: str) -> subprocess.CompletedProcess[str]:
    """Open a page in a fresh browser."""
    command = [str(CHROMIUM), *FLAGS, f"--user-data-dir={profile}", *flags, path.as_uri()]
    return subprocess.run(command, capture_output=True, text=True, timeout=90, check=True)


def test_the_page_says_what_was_gained() -> None:
    text = re.sub(r"<[^>]+>", "", render(report_data()))
    assert "40.0%" in text and "80.0%" in text
    assert "Success rose by" not in text  # ten episodes show nothing: the interval covers 0
    assert "No change is shown: +40.0 points" in " ".join(text.split())
    assert "runs/train/adapter" in text and "actor 2 lost; restarting" in text


@pytest.mark.parametrize(("before", "after", "words"), [(0, 90, "Success rose by"), (90, 0, "Success fell by")])
def test_the_page_says_which_way_it_went(before: int, after: int, words: str) -> None:
    old, new = ([i < count for i in range(100)] for count in (before, after))
    data = report_data(compared=compared(old, new))
    assert f"{words} <strong>90.0 points</strong>" in render(data)


def test_the_page_asks_nobody_for_anything_and_is_well_formed() -> None:
    page = _Page(render(report_data()))
    assert page.open == []
    assert len(page.addresses) > 4
    assert all(address.startswith("data:") for address in page.addresses)


def test_foreign_text_is_escaped() -> None:
    text = render(report_data(title="<script>alert(1)</script>", provenance={"<i>": "<b>"}))
    assert "<script>alert" not in text and "&lt;red&gt; cube" in text and "&lt;b&gt;&amp;" in text
    assert "<i>" not in text


@pytest.mark.parametrize("data", [report_data(rows=(), clips_before=(), clips_after=()), report_data(rows=(row(1),))])
def test_a_run_that_hardly_began_has_a_page_too(data: ReportData) -> None:
    assert _Page(render(data)).open == []


def test_the_page_is_written_beside_and_renamed(tmp_path: Path) -> None:
    write_report(tmp_path / "report.html", report_data())
    assert [path.name for path in tmp_path.iterdir()] == ["report.html"]


def test_clips_pair_by_episode() -> None:
    pairs = pair([clip(3, False), clip(1, True)], [clip(1, False), clip(7, True)], 8.0)
    assert [(p.episode, p.before is not None, p.after is not None) for p in pairs] == [
        (1, True, True), (3, True, False), (7, False, True),
    ]  # fmt: skip


def test_a_film_holds_every_frame_exactly() -> None:
    source = clip(0, True, frames=7, side=12)
    strip = film(source, frames_per_second=7.0)
    picture = np.asarray(Image.open(io.BytesIO(b64decode(strip.uri.split(",")[1]))).convert("RGB"))
    assert np.array_equal(picture.reshape(7, 12, 12, 3), source.frames)
    assert (strip.frames, strip.width, strip.height, strip.seconds) == (7, 12, 12, 1.0)


def test_a_film_too_long_for_one_picture_keeps_its_ends_and_its_duration() -> None:
    source = clip(0, True, frames=100, side=224)
    strip = film(source, frames_per_second=10.0)
    picture = np.asarray(Image.open(io.BytesIO(b64decode(strip.uri.split(",")[1]))).convert("RGB"))
    frames = picture.reshape(strip.frames, 224, 224, 3)
    assert strip.frames == 71 and strip.seconds == 10.0
    assert np.array_equal(frames[0], source.frames[0]) and np.array_equal(frames[-1], source.frames[-1])


def test_frames_must_be_pictures() -> None:
    with pytest.raises(ValueError, match=r"got float64 \(2, 4, 4, 3\); expected uint8"):
        film(Clip(np.zeros((2, 4, 4, 3)), "x", True, 0), 8.0)


def test_ticks_are_round_and_cover_the_values() -> None:
    assert nice_ticks(0, 0.3) == pytest.approx([0, 0.1, 0.2, 0.3])
    assert nice_ticks(-0.004, 0.009) == pytest.approx([-0.005, 0, 0.005, 0.01])
    assert nice_ticks(2, 2)[0] <= 1 and nice_ticks(2, 2)[-1] >= 3
    for low, high in ((1e-7, 3e-7), (-5, 1e6), (0.999, 1.0)):
        ticks = nice_ticks(low, high)
        assert ticks[0] <= low and ticks[-1] >= high and 2 <= len(ticks) <= 6
    assert [tick_label(x) for x in (0, -0.005, 2500, 15000, 2e-6)] == ["0", "−0.005", "2500", "15k", "2·10⁻⁶"]  # noqa: RUF001


def test_a_gap_in_the_values_is_a_gap_in_the_line() -> None:
    nan = float("nan")
    svg = line_chart(Chart("t", [1, 2, 3, 4, 5, 6], [0.0, 1.0, nan, 1.0, 2.0, nan], ["tip"] * 6))
    assert svg.count('class="line"') == 2
    assert "no values" in line_chart(Chart("t", [1.0], [nan], ["tip"]))


def test_charts_are_of_what_the_run_has_numbers_for() -> None:
    rows = report_data().rows
    labels = [d.label for d in diagnostics_of(rows)]
    assert labels[-5:] == ["Noise of step 0", "Noise of step 1", "Noise of step 2", "Noise of step 3", "stale weight"]
    without_ratio = [replace(r, clip_fraction=math.nan, kl=math.nan, terms={}, contribution=()) for r in rows]
    left = [d.label for d in diagnostics_of(without_ratio)]
    assert set(labels) - set(left) == {"Clip fraction", "KL divergence", *labels[-5:]}
    assert [d.value(rows[0]) for d in diagnostics_of(rows)][-5:] == [0.01, 0.02, 0.012, 0.03, 0.9]


@needs_browser
def test_a_browser_draws_the_page_without_complaint(tmp_path: Path) -> None:
    page = tmp_path / "report.html"
    write_report(page, report_data())
    page.write_text(page.read_text().replace("</script>", PROBE + "</script>"))
    result = browse(page, tmp_path / "profile", "--dump-dom")
    assert "CONSOLE" not in result.stderr, result.stderr
    found = dict(re.findall(r' data-(\w+)="([^"]*)"', result.stdout[:600]))
    assert found == {
        "pictures": "5/5",
        "moved": "5",
        "charts": str(len(diagnostics_of(report_data().rows)) + 1),
        "overflow": "false",
        "tip": "iteration 12",
    }


@needs_browser
def test_the_browser_check_sees_errors(tmp_path: Path) -> None:
    page = tmp_path / "report.html"
    page.write_text(render(report_data()).replace("</script>", "throw new Error('planted');</script>"))
    assert "planted" in browse(page, tmp_path / "profile", "--dump-dom").stderr


@needs_browser
def test_pictures_and_curves_are_on_the_screen(tmp_path: Path) -> None:
    page, shot = tmp_path / "report.html", tmp_path / "shot.png"
    red = np.full((3, 16, 16, 3), (250, 10, 20), np.uint8)
    write_report(page, report_data(clips_before=(Clip(red, "reach", False, 0),), clips_after=()))
    browse(page, tmp_path / "profile", f"--screenshot={shot}")
    pixels = np.asarray(Image.open(shot).convert("RGB")).astype(int)

    def count(colour: tuple[int, int, int]) -> int:
        return int((np.abs(pixels - np.array(colour)).max(axis=-1) <= 3).sum())

    assert count((250, 10, 20)) > 10_000
    assert count((0, 114, 178)) > 1_000
