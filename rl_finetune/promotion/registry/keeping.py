"""The registry's files, brought in line with what its ledger tells."""

from __future__ import annotations

import shutil
from pathlib import Path

from rl_finetune.durable import Step, sha256, sync_folder
from rl_finetune.errors import UserError
from rl_finetune.promotion.registry.grounds import Grounds
from rl_finetune.promotion.registry.manifest import read_small
from rl_finetune.promotion.registry.stages import State


def place(folder: Path, kind: str, name: str) -> Path:
    """Where one of the ledger's `bundles` or `grounds` lies: in its place, or still in `incoming` if who brought it was
    killed."""
    settled, incoming = folder / kind / name, folder / "incoming" / name
    return incoming if incoming.exists() and not settled.exists() else settled


def names_in(folder: Path) -> set[str]:
    """What lies in a folder; nothing where there is no such folder.

    Raises:
        UserError: it cannot be read.
    """
    try:
        return {path.name for path in folder.iterdir()}
    except FileNotFoundError:
        return set()
    except OSError as error:
        raise UserError(
            "registry cannot be read", got=f"{folder}: {error.strerror}", expected="a folder to read",
            do="check its permissions",
        ) from error  # fmt: skip


def settle(folder: Path, state: State, step: Step) -> None:
    """Bring files from `incoming` to their places; throw away what never happened."""
    incoming, bundles, grounds = (folder / name for name in ("incoming", "bundles", "grounds"))
    for each in (incoming, bundles, grounds):
        each.mkdir(exist_ok=True)
    for digest in state.bundles:
        _bring(incoming / digest, bundles, step)
    for digest in state.grounds:
        _bring(incoming / f"{digest}.json", grounds, step)
    for left in incoming.iterdir():
        step("throw away what never happened")
        shutil.rmtree(left) if left.is_dir() else left.unlink()


def check_only(folder: Path, kind: str, found: set[str], known: set[str]) -> None:
    """Verify that what the ledger tells of is there, and nothing else.

    Args:
        folder: of the registry.
        kind: `bundles` or `grounds`.
        found: names that lay there before the ledger was read.
        known: names that the ledger tells of.

    Raises:
        UserError: something is unknown, or missing.
    """
    missing = {name for name in known - found if not place(folder, kind, name).exists()}
    for name in sorted((found - known) | missing):
        got, expected = ("nothing", "what the ledger tells of") if name in missing else ("something unknown", "nothing")
        raise UserError(
            f"{folder / kind / name} is not what the ledger tells", got=got, expected=expected,
            do="restore the registry from a copy; find out who changed it",
        )  # fmt: skip


def check_kept(folder: Path, digest: str, bundle: str) -> None:
    """Verify a file of grounds.

    Raises:
        UserError: it is not what was recorded, or about another bundle.
    """
    path = place(folder, "grounds", f"{digest}.json")
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
