"""What stays: checkpoints written beside, then renamed, with a manifest of hashes.

<run>/checkpoints/000010/
    state.json          counters; random keys are functions of them, so they are all there is
    adapter/            adapters in peft's layout and the value head
    optimizer-rank-*.safetensors
    manifest.json       SHA-256 of every file above
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import rl_finetune
from rl_finetune.errors import UserError

FOLDER, STATE, MANIFEST = "checkpoints", "state.json", "manifest.json"
KEEP = 3
"""Newest checkpoints that are kept."""


@dataclass(frozen=True, slots=True)
class RunState:
    """Where a run stands: everything that is not a weight."""

    iteration: int
    """Rounds done."""
    version: int
    """Version of the weights."""
    env_steps: int
    """Environment steps so far."""
    minutes: float
    """Training time so far."""
    actors_lost: int
    """Actors lost and restarted so far."""
    recent: tuple[bool, ...]
    """Latest training episodes' successes, for the rolling rate."""
    num_learners: int
    """Learners that share the optimizer state."""
    recent_by_world: Mapping[str, tuple[bool, ...]] = field(default_factory=dict)
    """The same as `recent` for each of several worlds."""
    code_version: str = rl_finetune.__version__
    """Version of this package that wrote it."""

    def losing(self, actors: int) -> RunState:
        """The same with more actors lost."""
        return replace(self, actors_lost=self.actors_lost + actors)


def complete(folder: Path, state: RunState) -> None:
    """Add state and manifest to a folder that already holds weights and shards."""
    (folder / STATE).write_text(json.dumps(asdict(state)) + "\n")
    (folder / MANIFEST).write_text(json.dumps(_hashes(folder), indent=1) + "\n")


def save(run: Path, iteration: int, write: Callable[[str], None]) -> Path:
    """Let `write` fill the checkpoint of that iteration, ending with `complete`.

    The folder appears under its name only when it is whole. Older ones beyond `KEEP` are removed afterwards.
    """
    final = run / FOLDER / f"{iteration:06d}"
    beside = final.with_name(f".{final.name}.part")
    shutil.rmtree(beside, ignore_errors=True)
    beside.mkdir(parents=True)
    write(str(beside))
    shutil.rmtree(final, ignore_errors=True)
    beside.rename(final)
    for old in _all(run)[:-KEEP]:
        shutil.rmtree(old)
    return final


def newest(run: Path) -> Path:
    """Folder of the newest checkpoint.

    Raises:
        UserError: the run has none.
    """
    found = _all(run)
    if not found:
        raise UserError(
            "nothing to resume", got=f"no checkpoint under {run / FOLDER}", expected="at least one",
            do="start again in a new run.folder: this run was stopped before its first checkpoint",
        )  # fmt: skip
    return found[-1]


def load_state(folder: Path) -> RunState:
    """Verify every file of a checkpoint against its manifest and read its state.

    Raises:
        UserError: a file is missing, truncated or changed, or another version of this code wrote it.
    """
    advice = f"remove {folder} to go on from the checkpoint before it"
    try:
        manifest = json.loads((folder / MANIFEST).read_text())
        found = _hashes(folder)
        state = json.loads((folder / STATE).read_text())
    except (OSError, ValueError) as error:
        raise UserError(
            "checkpoint cannot be read", got=str(error), expected="a whole checkpoint", do=advice
        ) from error
    for name, digest in manifest.items():
        if found.get(name) != digest:
            got = "missing" if name not in found else f"hash {found[name][:12]}"
            raise UserError(
                f"checkpoint file {folder / name} is damaged", got=got, expected=f"hash {digest[:12]}", do=advice
            )
    try:
        by_world = {label: tuple(successes) for label, successes in state.get("recent_by_world", {}).items()}
        return RunState(**{**state, "recent": tuple(state["recent"]), "recent_by_world": by_world})
    except (TypeError, KeyError) as error:
        raise UserError(
            "checkpoint is of another version of this code", got=f"{folder / STATE}: {error}",
            expected=f"counters of version {rl_finetune.__version__}", do="resume with the version that wrote it",
        ) from error  # fmt: skip


def check_learners(state: RunState, num_learners: int) -> None:
    """Each learner reads the optimizer shard of its own rank: there must be as many as wrote them.

    Raises:
        UserError: there are not.
    """
    if state.num_learners != num_learners:
        raise UserError(
            "checkpoint was written by another number of learners", got=f"learner.num_learners={num_learners}",
            expected=state.num_learners, do=f"resume with learner.num_learners={state.num_learners}",
        )  # fmt: skip


def _all(run: Path) -> list[Path]:
    return sorted(p for p in (run / FOLDER).glob("[0-9]*") if p.is_dir())


def _hashes(folder: Path) -> dict[str, str]:
    files = sorted(p for p in folder.rglob("*") if p.is_file() and p.name != MANIFEST)
    return {str(p.relative_to(folder)): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}
