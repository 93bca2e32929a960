"""The registry's files, brought in line with what its ledger tells."""

from __future__ import annotations

import shutil
from pathlib import Path

from rl_finetune.errors import UserError
from rl_finetune.promotion.registry.durable import Json, Step, canonical, replace_file, sha256, sync_folder
from rl_finetune.promotion.registry.grounds import Grounds
from rl_finetune.promotion.registry.manifest import read_small
from rl_finetune.promotion.registry.stages import Stage, State

POINTED: tuple[Stage, ...] = ("shadow", "canary", "promoted")
"""Stages in which a bundle is served."""


def pointer(folder: Path, stage: Stage) -> Path:
    """File that names the bundle in a stage."""
    return folder / "pointers" / f"{stage}.json"


def settle(folder: Path, state: State, step: Step) -> None:
    """Bring files from `incoming` to their places and pointers up to date; throw away what never happened.

    Raises:
        UserError: there are bundles but no ledger that tells of them.
    """
    incoming, bundles, grounds = (folder / name for name in ("incoming", "bundles", "grounds"))
    for place in (incoming, bundles, grounds):
        place.mkdir(exist_ok=True)
    if not state.bundles and any(bundles.iterdir()):
        raise UserError(
            "registry has bundles but no ledger", got=str(folder), expected="ledger.jsonl that tells of them",
            do="restore ledger.jsonl and ledger.head.json from a copy; find out who removed them",
        )  # fmt: skip
    for digest in state.bundles:
        _bring(incoming / digest, bundles, step)
    for digest in state.grounds:
        _bring(incoming / f"{digest}.json", grounds, step)
    for left in incoming.iterdir():
        step("throw away what never happened")
        shutil.rmtree(left) if left.is_dir() else left.unlink()
    _point(folder, state, step)


def only(folder: Path, known: set[str]) -> None:
    """Verify that nothing lies in a folder that the ledger does not tell of.

    Raises:
        UserError: something does, or is missing.
    """
    found = {path.name for path in folder.iterdir()}
    for name in sorted(found ^ known):
        got, expected = ("something unknown", "nothing") if name in found else ("nothing", "what the ledger tells of")
        raise UserError(
            f"{folder / name} is not what the ledger tells", got=got, expected=expected,
            do="restore the registry from a copy; find out who changed it",
        )  # fmt: skip


def check_kept(folder: Path, digest: str, bundle: str) -> None:
    """Verify a file of grounds.

    Raises:
        UserError: it is not what was recorded, or about another bundle.
    """
    path = folder / "grounds" / f"{digest}.json"
    found = sha256(read_small(path) or b"")
    if found != digest or Grounds.load(path).candidate.digest != bundle:
        raise UserError(
            f"{path} is not what was recorded", got=f"hash {found[:12]}", expected=f"hash {digest[:12]}",
            do="restore the file from a copy; find out who changed it",
        )  # fmt: skip


def _bring(source: Path, place: Path, step: Step) -> None:
    if source.exists() and not (place / source.name).exists():
        step(f"bring something to {place.name}")
        source.rename(place / source.name)
        sync_folder(place)


def _point(folder: Path, state: State, step: Step) -> None:
    for stage in POINTED:
        path, standing = pointer(folder, stage), state.newest(stage)
        path.parent.mkdir(exist_ok=True)
        if standing is not None:
            plain: dict[str, Json] = {"digest": standing.digest, "entry": standing.entry, "name": standing.name,
                     "since": standing.since, "stage": stage}  # fmt: skip
            data = canonical(plain) + b"\n"
            if not path.is_file() or path.read_bytes() != data:
                replace_file(path, data, step)
        elif path.exists():
            step(f"remove the pointer {stage}")
            path.unlink()
