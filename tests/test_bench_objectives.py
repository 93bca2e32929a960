"""The benchmark's report: records that survive the disk, and numbers worked by hand."""

from __future__ import annotations

import math
import re
from pathlib import Path
from xml.etree import ElementTree

import pytest

from benchmarks.objectives import plots, records, tables
from benchmarks.objectives.records import CurvePoint, RunRecord
from rl_finetune.errors import UserError

NEVER = 10**9
SVG = "{http://www.w3.org/2000/svg}"


def run(name: str, seed: int = 0, success: float = 0.9, steps: int = 400, **changes: object) -> RunRecord:
    """A training whose curve is at 50 %, then at `steps` at 80 %: a point right on the level."""
    curve = [CurvePoint(0, 0.0, 0.5), CurvePoint(steps, 4.0, 0.8)]
    values: dict[str, object] = {
        "study": "objectives", "name": name, "settings": {"optimizer.actor_lr": 1e-3}, "seed": seed,
        "fingerprint": f"{name}-{seed}", "before": 0.4, "success": success, "successes": round(100 * success),
        "episodes": 100, "env_steps": 1000, "decisions": 250, "seconds": 60.0, "executed_std": 0.012,
        "curve": curve[: 1 if steps == NEVER else 2],
    }  # fmt: skip
    return RunRecord(**(values | changes))  # type: ignore[arg-type]


def rows(table: str) -> list[list[str]]:
    """Cells of a Markdown table, all lines of one width, without its head."""
    found = [[cell.strip() for cell in line[1:-1].split(" | ")] for line in table.splitlines()]
    assert len({len(row) for row in found if not row[0].startswith("---")}) == 1
    return found[2:]


def words(svg: str) -> list[str]:
    """Texts of a picture that stands alone."""
    root = ElementTree.fromstring(svg)
    assert root.tag == f"{SVG}svg" and "nan" not in svg and "inf" not in svg
    return ["".join(text.itertext()) for text in root.iter(f"{SVG}text")]


def test_records_survive_the_disk(tmp_path: Path) -> None:
    path = tmp_path / "results" / "runs.jsonl"
    assert records.read(path) == []
    settings = {"exploration.sde_step": None, "a": [1, 0.5]}
    for record in (run("ppo", success=0.1), run("grpo", settings=settings), run("ppo", success=0.9)):
        records.append(path, record)
    records.append(path, run("recap", executed_std=math.nan))
    assert "NaN" not in path.read_text() and '"executed_std": null' in path.read_text()
    *others, recap = records.read(path)
    assert others == [run("grpo", settings=settings), run("ppo", success=0.9)]  # of the same key the last one counts
    assert math.isnan(recap.executed_std)


@pytest.mark.parametrize(
    ("line", "why"),
    [
        ('{"study": "obj', "Unterminated string"),
        ('{"study": "grid"}', "missing or unknown: before, curve"),
        ('{"seed": true}', "missing or unknown"),
        ("[]", "not an object"),
    ],
)
def test_a_damaged_line_is_named(tmp_path: Path, line: str, why: str) -> None:
    path = tmp_path / "runs.jsonl"
    records.append(path, run("ppo"))
    with path.open("a") as file:
        file.write(line + "\n")
    with pytest.raises(UserError, match=rf"line 2 of {re.escape(str(path))} is damaged \({why}"):
        records.read(path)


@pytest.mark.parametrize("change", [{"seed": "0"}, {"seed": True}, {"seed": None}, {"study": "x"}, {"curve": [{}]}])
def test_a_field_of_another_kind_is_refused(change: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=f"{next(iter(change))} is|missing"):
        RunRecord.from_dict(run("ppo").to_dict() | change)


def test_steps_to_a_level() -> None:
    record = run("ppo", curve=[CurvePoint(i, 0.0, s) for i, s in ((0, 0.5), (100, 0.8), (200, 0.7), (300, 0.9))])
    assert [record.steps_to(level) for level in (0.5, 0.8, 0.95)] == [0, 100, None]
    # 0.85 lies three quarters of the way from 0.7 at 200 to 0.9 at 300.
    assert record.steps_to(0.85) == 275


def test_t_interval_by_hand() -> None:
    # Mean 0.8, standard deviation 0.1, t(2) = 4.303: half 4.303 * 0.1 / sqrt(3) = 0.2484, cut at 1.
    assert tables.t_interval([0.7, 0.8, 0.9]) == (pytest.approx(0.5516, abs=1e-4), 1.0)
    # Mean 0.5, variance 4 * 0.01 / 4, t(4) = 2.776: half 2.776 * 0.1 / sqrt(5) = 0.1241.
    low, high = tables.t_interval([0.4, 0.4, 0.5, 0.6, 0.6])
    assert (low, high) == (pytest.approx(0.3759, abs=1e-4), pytest.approx(0.6241, abs=1e-4))
    assert tables.t_interval([0.7]) == (0.0, 1.0)  # one seed says nothing of the spread


def test_objectives_best_first() -> None:
    ends = ((0, 0.7, 400), (1, 0.8, NEVER), (2, 0.9, 600))
    found = [run("ppo", seed, success, steps) for seed, success, steps in ends]
    found += [run("grpo", 0, 0.95, NEVER), run("grpo", 1, 0.95, NEVER), run("lost", study="laws")]
    best, ppo = rows(tables.objectives_table(found))
    # Wilson's interval of 240 of 300 is 0.7512 .. 0.8412; 12 mm; gain 0.8 - 0.4.
    assert ppo == [
        "ppo", "80.0 % [55.2, 100.0]", "[75.1, 84.1]", "70.0 %", "+40.0", "600; 2 of 3", "60", "12.0",
    ]  # fmt: skip
    assert best[0] == "grpo" and best[5] == "never; 0 of 2"


def test_the_ratio_of_steps() -> None:
    found = [run("a", seed, steps=100 * (seed + 1)) for seed in range(5)]
    found += [run("b", seed, steps=200 * (seed + 1)) for seed in range(5)]
    found.append(run("a", 9, steps=1))  # without a pair: left out
    ratio = tables.paired_steps_ratio(found, "a", "b", 0.8)
    # Seed for seed b takes twice as long, so every draw of seeds gives one half.
    assert ratio is not None and (ratio.value, ratio.interval, ratio.seeds) == (0.5, (0.5, 0.5), 5)
    assert tables.paired_steps_ratio(found, "a", "b", 0.9) is None  # nobody gets there
    assert tables.paired_steps_ratio(found, "a", "c", 0.8) is None
    with pytest.raises(ValueError, match="got studies laws, objectives"):
        tables.paired_steps_ratio([*found, run("a", study="laws")], "a", "b", 0.8)


def test_seeds_that_never_arrive_open_the_ratio() -> None:
    found = [run("b", seed, steps=100) for seed in range(5)]
    found += [run("a", seed, steps=NEVER if seed > 2 else 50) for seed in range(5)]
    ratio = tables.paired_steps_ratio(found, "a", "b", 0.8)
    assert ratio is not None and ratio.value == 0.5 and ratio.interval == (0.5, math.inf)
    assert str(ratio) == "0.50 [0.50, ∞]"


def test_the_laws_against_the_baseline() -> None:
    found = [run("calibrated", seed, 0.99, 200, study="laws") for seed in range(3)]
    found += [run("flow_sde", seed, 0.9, 400, study="laws") for seed in range(3)] + [run("flow_sde", 7)]
    baseline, other = rows(tables.laws_table(found))
    assert baseline[0] == "flow_sde" and baseline[5:] == ["400; 3 of 3", "1", "never; 0 of 3", "1"]
    assert other[5:] == ["200; 3 of 3", "0.50 [0.50, 0.50]", "never; 0 of 3", "n/a"]


def test_the_chosen_candidate_is_bold() -> None:
    def tried(number: int, rate: float, success: float) -> RunRecord:
        settings = {"optimizer.actor_lr": rate, "objective.name": "ppo", "run.seed": 100}
        return run(f"ppo {number}", 100, success, study="tuning", settings=settings)

    table = rows(tables.tuning_table([tried(0, 5e-4, 0.8), tried(1, 1e-3, 0.9)]))
    # Merit: (second half of the curve + end) / 2 = (0.8 + 0.9) / 2 = 0.85.
    assert table[0] == ["ppo", "**`optimizer.actor_lr=0.001`**", "**90.0 %**", "[82.6, 94.5]", "85.0 %", "1"]
    assert table[1][1] == "`optimizer.actor_lr=0.0005`"


def cells() -> list[RunRecord]:
    """A grid with a gap at (3, 1)."""
    tried = [(k, a) for k in ("contribution", "random", "3", "0") for a in ("1", "0.25") if (k, a) != ("3", "1")]
    shares = {0: 0.7, 1: 0.8, 2: 0.9}
    return [run(f"k={k} a={a}", seed, share, study="grid") for k, a in tried for seed, share in shares.items()]


def test_the_grid_in_order() -> None:
    table = tables.grid_table(cells())
    assert table.startswith("| k | a = 0.25 | a = 1 |\n")
    assert [row[0] for row in rows(table)] == ["0", "3", "random", "contribution"]
    assert rows(table)[1][1:] == ["80.0 % ± 24.8 (12.0 mm)", "-"]
    with pytest.raises(ValueError, match="got 'k=0'"):
        tables.grid_table([run("k=0", study="grid")])


def test_the_heat_map_says_what_the_table_says() -> None:
    texts = words(plots.heat_map(cells()))
    assert {"a = 0.25", "a = 1", "0", "3", "random", "contribution"} <= set(texts)
    # Seven cells, and one end of the colours' key.
    assert (texts.count("80 %"), texts.count("12.0 mm"), texts.count("-")) == (7 + 1, 2 * 7, 2)


def test_text_on_colour_flips() -> None:
    svg = plots.heat_map([run(f"k={k} a=1", success=share, study="grid") for k, share in ((0, 0.31), (1, 0.99))])
    inks = {text.text: text.get("fill") for text in ElementTree.fromstring(svg).iter(f"{SVG}text")}
    assert (inks["31 %"], inks["99 %"]) == ("#1d2126", "#ffffff")


def test_the_curves_are_labelled_apart() -> None:
    names = [f"<objective> & {i}" for i in range(12)]
    svg = plots.learning_curves([run(name, seed, steps=400 + seed) for name in names for seed in range(2)])
    texts = words(svg)
    assert {*names, "environment steps", "success on held-out episodes (%)", "0", "400"} <= set(texts)
    heights = [
        float(text.get("y", "nan")) for text in ElementTree.fromstring(svg).iter(f"{SVG}text") if text.text in names
    ]
    assert min(b - a for a, b in zip(sorted(heights), sorted(heights)[1:], strict=False)) > 15
    assert len(set(re.findall(r'stroke="(#\w+)" stroke-width="2.2"', svg))) == 10


def test_nothing_yet_is_no_error() -> None:
    for table in (tables.objectives_table, tables.grid_table, tables.tuning_table, tables.laws_table):
        assert rows(table([])) == []
    assert words(plots.learning_curves([])) and words(plots.heat_map([]))
