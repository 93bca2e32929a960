"""Intervals against numbers worked by hand, the journal against kills, the screen against a pipe."""

from __future__ import annotations

import io
import json
import math
import os
import random
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from metrics_data import evaluation, row
from rich.console import Console

from rl_finetune.errors import UserError
from rl_finetune.metrics.console import Dashboard, clock, number, share, sparkline
from rl_finetune.metrics.evaluation import Comparison, Evaluation
from rl_finetune.metrics.intervals import paired_gain, student, wilson
from rl_finetune.metrics.journal import Journal
from rl_finetune.metrics.rows import IterationRow
from rl_finetune.metrics.wandb_sink import WandbSink


def test_wilson_by_hand() -> None:
    # 8 of 10, z = 2: centre (0.8 + 4/20) / 1.4 = 5/7; half 2/1.4 * sqrt(0.16/10 + 4/400) = sqrt(0.026)/0.7.
    low, high = wilson(8, 10, z=2)
    assert low == pytest.approx(5 / 7 - math.sqrt(0.026) / 0.7)
    assert high == pytest.approx(5 / 7 + math.sqrt(0.026) / 0.7)


def test_wilson_at_the_ends() -> None:
    assert wilson(0, 10) == (0.0, pytest.approx(0.2775, abs=1e-4))
    assert wilson(10, 10) == (pytest.approx(0.7225, abs=1e-4), 1.0)
    assert wilson(0, 0) == (0.0, 1.0)
    with pytest.raises(ValueError, match=r"got 11; expected 0\.\.10"):
        wilson(11, 10)


def test_paired_gain_by_hand() -> None:
    # 10 episodes, 5 won, 1 lost: p = 6/12, q = 2/12, p - q = 1/3, variance (2/3 - 1/9) / 12 = 5/108.
    before = [False] * 5 + [True] * 5
    after = [True] * 5 + [False] + [True] * 4
    gain = paired_gain(before, after)
    half = 1.96 * math.sqrt(5 / 108)
    assert (gain.points, gain.won, gain.lost, gain.episodes) == (40.0, 5, 1, 10)
    assert gain.interval == (pytest.approx(100 * (1 / 3 - half)), pytest.approx(100 * (1 / 3 + half)))


def test_paired_gain_of_the_same_policy_covers_zero_and_is_not_of_width_zero() -> None:
    gain = paired_gain([True, False] * 50, [True, False] * 50)
    assert gain.points == 0 and gain.interval[0] < 0 < gain.interval[1]


def test_paired_gain_swaps_sign_and_stays_within_100_points() -> None:
    up, down = paired_gain([False] * 3, [True] * 3), paired_gain([True] * 3, [False] * 3)
    assert up.points == 100 and up.interval[1] <= 100
    assert down.interval == (-up.interval[1], -up.interval[0])


def test_paired_gain_covers_the_truth_as_often_as_it_says() -> None:
    # Success 0.5 -> 0.7 with dependence; the true gain is 20 points.
    generator = random.Random(0)
    covered = 0
    for _ in range(1000):
        draws = [generator.random() for _ in range(100)]
        before = [u < 0.5 for u in draws]
        after = [0.1 < u < 0.8 for u in draws]
        low, high = paired_gain(before, after).interval
        covered += low <= 20 <= high
    assert 930 <= covered <= 975


def test_mean_return_by_hand() -> None:
    mean, (low, high) = student([1.0, 2.0, 3.0, 6.0])
    # Standard deviation sqrt(14 / 3), t of 3 degrees of freedom 3.18245.
    assert mean == 3 and high - 3 == pytest.approx(3.182446 * math.sqrt(14 / 3) / 2) == 3 - low
    with pytest.raises(ValueError, match="got 1; expected at least 2"):
        student([1.0])


def test_a_task_without_success_shows_its_gain_in_returns() -> None:
    returns = ((1.0, 2.0, 3.0, 4.0), (2.0, 3.0, 4.0, 5.5))
    before, after = (replace(evaluation([False] * 4, 0), returns=r, mean_return=sum(r) / 4) for r in returns)
    compared = Comparison(Evaluation({"run": before}), Evaluation({"run": after}))
    mean, (low, high) = compared.return_gain
    assert mean == 1.125 and (high - low) / 2 == pytest.approx(3.182446 * 0.25 / 2)
    assert "return 2.5 -> 3.625, gain +1.12 [+0.727, +1.52]" in compared.line()
    record = compared.to_dict()
    assert record["return_gain"]["mean"] == record["worlds"]["run"]["return_gain"]["mean"] == 1.125
    assert record["returns_after"] == returns[1] and record["gain"]["points"] == 0
    plain = Comparison(*(Evaluation({"run": evaluation([False, done], 0)}) for done in (False, True)))
    assert "return" not in plain.line()  # where it is success over again


def test_gain_needs_pairs() -> None:
    for pair in (([], []), ([True], [True, False])):
        with pytest.raises(ValueError, match="episodes to pair"):
            paired_gain(*pair)


def test_journal_round_trip(tmp_path: Path) -> None:
    rows = [row(i, events=("actor 1 lost",) if i == 2 else ()) for i in (1, 2, 3)]
    with Journal(tmp_path) as journal:
        for item in rows:
            journal.append(item.to_dict())
        # Readable while it is still open: every line is flushed.
        found = [IterationRow.from_dict(record) for record in Journal(tmp_path).read()]
    assert math.isnan(found[0].explained_variance)
    assert found[1:] == rows[1:]
    for line in journal.path.read_text().splitlines():
        json.loads(line, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))


def test_a_half_written_last_line_is_dropped_and_does_not_spoil_the_next(tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    journal.path.write_text('{"iteration": 1}\n{"iterat')
    assert journal.read() == [{"iteration": 1}]
    journal.append({"iteration": 2})
    assert journal.read() == [{"iteration": 1}, {"iteration": 2}]


def test_a_last_line_that_only_lacks_its_end_is_kept(tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    journal.path.write_text('{"iteration": 1}')
    journal.append({"iteration": 2})
    assert [record["iteration"] for record in journal.read()] == [1, 2]


def test_a_damaged_line_in_the_middle_is_an_error(tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    journal.path.write_text('{"iteration": 1}\nrubbish\n{"iteration": 2}\n')
    with pytest.raises(UserError, match=r"line 2 of .* is damaged: got 'rubbish'"):
        journal.read()


def test_resuming_drops_what_came_after_the_checkpoint(tmp_path: Path) -> None:
    with Journal(tmp_path) as journal:
        for i in range(1, 6):
            journal.append({"iteration": i, "loss": math.inf})
        journal.truncate_after(3)
        journal.append({"iteration": 4, "loss": 1.0})
        assert [(r["iteration"], r["loss"]) for r in journal.read()] == [(1, None), (2, None), (3, None), (4, 1.0)]
    assert [p.name for p in tmp_path.iterdir()] == ["metrics.jsonl"]


def test_an_empty_journal(tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    assert journal.read() == []
    journal.truncate_after(0)
    assert journal.read() == []


def dashboard(terminal: bool, total: int = 10, max_minutes: float | None = None) -> tuple[Dashboard, io.StringIO]:
    """A dashboard that writes into a string."""
    out = io.StringIO()
    return Dashboard("run", total, max_minutes, Console(file=out, force_terminal=terminal, width=110)), out


def test_a_log_gets_one_plain_line_an_iteration() -> None:
    board, out = dashboard(terminal=False)
    with board:
        board.note("evaluating")
        board.update(row(1))
        board.update(row(2, events=("actor 2 lost [SIGKILL]",), actors_healthy=1, actors_lost=1))
    title, note, first, second, event = out.getvalue().splitlines()
    assert (title, note, event) == ("run", "  * evaluating", "  * 2: actor 2 lost [SIGKILL]")
    assert first == (
        "[ 1/10] success 50.0% [40, 60] return 1.25 | ratio error 2.0e-06 clip 0.08 kl 0.01 ev - std 0.012 | "
        "1900 steps/s 5.0 s left 0:45 | actors 2 lost 0 v1"
    )
    assert second.endswith("left 0:40 | actors 1 lost 1 v2")
    assert "\x1b" not in out.getvalue()


def test_a_terminal_gets_a_table() -> None:
    board, out = dashboard(terminal=True)
    with board:
        board.update(row(1))
        board.update(row(2, actors_lost=1, events=("actor 2 lost",)))
    text = out.getvalue()
    for part in ("iteration 2/10", "time left 0:40", "50.0%", "1 was lost and restarted", "2: actor 2 lost"):
        assert part in text, part


def test_time_left_follows_the_latest_pace_and_the_time_limit() -> None:
    board, _ = dashboard(terminal=False)
    assert math.isnan(board.seconds_left())
    # Resumed at iteration 5, ten seconds an iteration since.
    board.rows.extend([row(5, minutes=1.0), row(6, minutes=1.0 + 10 / 60), row(7, minutes=1.0 + 20 / 60)])
    assert board.seconds_left() == pytest.approx(30)
    board.max_minutes = 1.5
    assert board.seconds_left() == pytest.approx(10)
    board.max_minutes = 1.0
    assert board.seconds_left() == 0


def test_short_numbers() -> None:
    assert [number(x) for x in (0, 1.5e-7, 0.012345, 12.345, 1234.5, 2.5e6, math.nan)] == [
        "0", "1.5e-07", "0.0123", "12.3", "1,234", "2.5e+06", "-",
    ]  # fmt: skip
    assert (share(0.5, (0.4, 0.6)), share(math.nan, (0, 1))) == ("50.0% [40, 60]", "-")
    assert [clock(x) for x in (5, 65, 3725, math.nan)] == ["0:05", "1:05", "1:02:05", "-"]
    assert sparkline([0.0, math.nan, 0.5, 1.0]) == "▁ ▅█"
    assert sparkline([2.0, 2.0]) == "▁▁" and sparkline([]) == ""


WANDB = """
import sys
from pathlib import Path
from rl_finetune.metrics.wandb_sink import WandbSink
folder = Path(sys.argv[1])
for step in (1, 2):
    sink = WandbSink("offline", "test", folder, {"run": {"seed": 0}}, "name", WandbSink.saved_id(folder))
    sink.log({"success": 0.5, "events": ["x"]}, step)
    sink.finish()
    sink.finish()
"""


def test_wandb_offline_is_silent_needs_no_key_and_keeps_its_id(tmp_path: Path) -> None:
    pytest.importorskip("wandb")
    home = tmp_path / "home"
    home.mkdir()
    folder = tmp_path / "run"
    folder.mkdir()
    environment = {name: value for name, value in os.environ.items() if not name.startswith("WANDB")}
    result = subprocess.run(
        [sys.executable, "-c", WANDB, str(folder)],
        env={**environment, "HOME": str(home), "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
        timeout=90,
        check=True,
    )
    assert result.stdout + result.stderr == ""
    name = WandbSink.saved_id(folder)
    runs = [path for path in (folder / "wandb").iterdir() if path.name.startswith("offline-run-")]
    assert runs and all(f"-{name}" in path.name for path in runs)


def test_wandb_disabled_writes_nothing(tmp_path: Path) -> None:
    sink = WandbSink("disabled", "test", tmp_path, {}, "name")
    sink.log({"a": 1.0}, 1)
    sink.finish()
    assert list(tmp_path.iterdir()) == []
