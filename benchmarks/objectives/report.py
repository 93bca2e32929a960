"""Tables and pictures of the comparison, from its records."""

from __future__ import annotations

from pathlib import Path

from benchmarks.objectives.plots import heat_map, learning_curves
from benchmarks.objectives.records import RunRecord
from benchmarks.objectives.tables import grid_table, laws_table, objectives_table, tuning_table


def write(records: list[RunRecord], folder: Path) -> None:
    """Write `objectives.md` and the two pictures into `folder`, each beside and renamed."""
    tables = (
        ("Objectives", objectives_table(records)),
        ("Sampling laws", laws_table(records)),
        ("Which step, how much noise", grid_table(records)),
        ("Tuning", tuning_table(records)),
    )
    text = "".join(f"## {title}\n\n{table}\n" for title, table in tables)
    for name, content in (
        ("objectives.md", text),
        ("objectives.svg", learning_curves(records)),
        ("exploration.svg", heat_map(records)),
    ):
        beside = folder / f"{name}.part"
        beside.write_text(content)
        beside.replace(folder / name)
        print(folder / name, flush=True)
