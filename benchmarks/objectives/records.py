"""What one training of the comparison leaves behind: a line of JSON in a file that only grows."""

from __future__ import annotations

import json
import math
import re
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from rl_finetune.errors import UserError

STUDIES = ("objectives", "tuning", "grid", "laws")

_CELL = re.compile(r"k=(\S+) a=(\d+(?:\.\d+)?)")
_NUMBER = (int, float, type(None))
_KINDS: dict[str, Any] = {"str": str, "int": int, "float": _NUMBER, "dict[str, Any]": dict, "list[CurvePoint]": list}


@dataclass(frozen=True, slots=True)
class CurvePoint:
    """Success part-way through a training."""

    env_steps: int
    """Environment steps until then."""
    seconds: float
    """Training seconds until then, evaluations not counted."""
    success: float
    """Share of a fixed, smaller set of held-out episodes."""


@dataclass(frozen=True, slots=True)
class RunRecord:
    """One training: what was asked for, what it cost and how well the policy did in the end."""

    study: str
    """Which comparison it belongs to: one of `STUDIES`."""
    name: str
    """What it tries there: `ppo`, `flow_sde`, in the grid `k=2 a=1`; when tuning a number follows: `ppo 3`."""
    settings: dict[str, Any]
    """Dotted setting -> value."""
    seed: int
    """Seed of the run."""
    fingerprint: str
    """Digest of everything the result depends on."""
    before: float
    """Success of the starting policy on the held-out episodes."""
    success: float
    """Success of the trained policy on the same episodes."""
    successes: int
    """How many of them it solved."""
    episodes: int
    """How many there are."""
    env_steps: int
    """Environment steps of the whole training."""
    decisions: int
    """Chunks decided in the whole training."""
    seconds: float
    """Training on one thread, evaluations not counted."""
    executed_std: float
    """What exploration adds to executed actions, mean over the rounds, metres; NaN where nothing was measured."""
    curve: list[CurvePoint]
    """Success during training, ascending in steps."""

    @property
    def key(self) -> tuple[str, str, int, str]:
        """Of two records with the same key the later one counts."""
        return self.study, self.name, self.seed, self.fingerprint

    def steps_to(self, level: float) -> int | None:
        """Environment steps at which the curve first meets `level`, interpolated between points; None if never."""
        before = None
        for point in self.curve:
            if point.success >= level:
                return point.env_steps if before is None else round(_crossing(before, point, level))
            before = point
        return None

    def to_dict(self) -> dict[str, Any]:
        """As JSON has it: numbers that are not finite are None."""
        return {f.name: _finite(getattr(self, f.name)) for f in fields(self)}

    @classmethod
    def from_dict(cls, found: Mapping[str, Any]) -> RunRecord:
        """Inverse of `to_dict`; None becomes NaN again.

        Raises:
            ValueError: a field is missing, unknown or of another kind.
        """
        values = _values(cls, found)
        if values["study"] not in STUDIES:
            raise ValueError(f"study is {values['study']!r}")
        return cls(**values | {"curve": [CurvePoint(**_values(CurvePoint, point)) for point in values["curve"]]})


@dataclass(frozen=True, slots=True)
class Grid:
    """Runs of the grid by where noise enters and how much of it."""

    rows: tuple[str, ...]
    """k: denoising steps ascending, then `random`, `contribution` and anything else."""
    columns: tuple[str, ...]
    """a: noise levels, ascending."""
    cells: dict[tuple[str, str], list[RunRecord]]
    """(k, a) -> its runs, one a seed; pairs that were not tried are absent."""


@dataclass(frozen=True, slots=True)
class Candidate:
    """Settings tried for an objective or a law, and how they did."""

    settings: dict[str, Any]
    """As `own_settings` gives them."""
    runs: list[RunRecord]
    """One a seed."""
    merit: float
    """What it is chosen by, mean over its runs."""


def _crossing(one: CurvePoint, other: CurvePoint, level: float) -> float:
    """Steps at which the straight line between two points meets `level`."""
    share = (level - one.success) / (other.success - one.success)
    return one.env_steps + share * (other.env_steps - one.env_steps)


def append(path: Path, record: RunRecord) -> None:
    """Add one line, and hand it to the system."""
    path.parent.mkdir(parents=True, exist_ok=True)
    line = json.dumps(record.to_dict(), allow_nan=False) + "\n"
    with path.open("a", encoding="utf-8") as file:
        file.write(line)
        file.flush()


def read(path: Path) -> list[RunRecord]:
    """All records, oldest first, the last of each key; none where there is no file.

    Raises:
        UserError: a line is damaged.
    """
    if not path.exists():
        return []
    kept: dict[tuple[str, str, int, str], RunRecord] = {}
    for number, line in enumerate(path.read_bytes().split(b"\n"), start=1):
        if line.strip():
            record = _record(path, number, line)
            kept.pop(record.key, None)
            kept[record.key] = record
    return list(kept.values())


def by_name(records: Iterable[RunRecord], study: str) -> dict[str, list[RunRecord]]:
    """Runs of one study by name, in the order they first appear; of one name and seed the last record only."""
    found: dict[str, dict[int, RunRecord]] = {}
    for record in records:
        if record.study == study:
            found.setdefault(record.name, {})[record.seed] = record
    return {name: [seeds[seed] for seed in sorted(seeds)] for name, seeds in found.items()}


def grid(records: Iterable[RunRecord]) -> Grid:
    """The study `grid`, whose names are `k=... a=...`.

    Raises:
        ValueError: a name is not like that.
    """
    cells: dict[tuple[str, str], list[RunRecord]] = {}
    for name, runs in by_name(records, "grid").items():
        match = _CELL.fullmatch(name)
        if not match:
            raise ValueError(f"name in the grid: got {name!r}; expected 'k=2 a=1'")
        cells[match[1], match[2]] = runs
    rows, columns = sorted({k for k, _ in cells}, key=_place), sorted({a for _, a in cells}, key=float)
    return Grid(tuple(rows), tuple(columns), cells)


def candidates(records: Iterable[RunRecord], merit: Callable[[RunRecord], float]) -> dict[str, list[Candidate]]:
    """What was tuned -> its candidates, the one of highest mean merit first, between equals the one tried first."""
    seeds: dict[tuple[str, str], dict[int, RunRecord]] = {}
    for r in records:
        if r.study == "tuning":
            seeds.setdefault((r.name.rsplit(" ", 1)[0], json.dumps(own_settings(r), sort_keys=True)), {})[r.seed] = r
    found: dict[str, list[Candidate]] = {}
    for (name, settings), runs in seeds.items():
        score = statistics.fmean(merit(run) for run in runs.values())
        found.setdefault(name, []).append(Candidate(json.loads(settings), list(runs.values()), score))
    return {name: sorted(tried, key=lambda candidate: -candidate.merit) for name, tried in found.items()}


def own_settings(record: RunRecord) -> dict[str, Any]:
    """Settings but those of the run itself (seed, folder)."""
    return {name: value for name, value in record.settings.items() if not name.startswith("run.")}


def mean_success(runs: Sequence[RunRecord]) -> float:
    """Over the seeds."""
    return statistics.fmean(r.success for r in runs)


def mean_std(runs: Sequence[RunRecord]) -> float:
    """Executed standard deviation over the seeds that measured it, metres; NaN without any."""
    found = [r.executed_std for r in runs if math.isfinite(r.executed_std)]
    return statistics.fmean(found) if found else math.nan


def _place(k: str) -> tuple[int, int, str]:
    if k.isdigit():
        return 0, int(k), k
    return {"random": 1, "contribution": 2}.get(k, 3), 0, k


def _record(path: Path, number: int, line: bytes) -> RunRecord:
    try:
        return RunRecord.from_dict(json.loads(line))
    except ValueError as error:
        raise UserError(
            f"line {number} of {path} is damaged ({error})",
            got=repr(line[:40].decode(errors="replace")),
            expected="one record as JSON",
            do="repair or delete the line",
        ) from error


def _values(kind: type, found: Any) -> dict[str, Any]:
    """The fields of a dataclass, each of its declared kind."""
    if not isinstance(found, Mapping):
        raise ValueError("not an object")
    declared = {f.name: str(f.type) for f in fields(kind)}
    if found.keys() != declared.keys():
        raise ValueError(f"missing or unknown: {', '.join(sorted(found.keys() ^ declared.keys()))}")
    values = dict(found)
    for name, type_name in declared.items():
        if not isinstance(values[name], _KINDS[type_name]) or isinstance(values[name], bool):
            raise ValueError(f"{name} is {values[name]!r}")
        if type_name == "float":
            values[name] = math.nan if values[name] is None else float(values[name])
    return values


def _finite(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, CurvePoint):
        return {f.name: _finite(getattr(value, f.name)) for f in fields(value)}
    if isinstance(value, Mapping):
        return {key: _finite(item) for key, item in value.items()}
    return [_finite(item) for item in value] if isinstance(value, list | tuple) else value
