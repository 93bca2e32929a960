"""The registry's side: who acts, where everybody stands, and one step at a time."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import cast, get_args

from rl_finetune.config.promotion import PromoteConfig
from rl_finetune.durable import Json
from rl_finetune.errors import UserError
from rl_finetune.promotion.commands import short
from rl_finetune.promotion.registry import signing
from rl_finetune.promotion.registry.bundle import open_bundle
from rl_finetune.promotion.registry.ledger import Entry
from rl_finetune.promotion.registry.registry import Registry
from rl_finetune.promotion.registry.stages import NEXT, Stage


def registry_of(config: PromoteConfig) -> Registry:
    """The registry that the settings name; made when something is brought into it."""
    return Registry(Path(config.registry), [Path(key) for key in config.trusted], config.require_signature)


def existing(config: PromoteConfig) -> Registry:
    """A registry that somebody has brought something into.

    Raises:
        UserError: there is none.
    """
    registry = registry_of(config)
    if not registry.ledger.path.is_file():  # opening it would make it
        raise UserError(
            "no registry there", got=config.registry, expected="a folder with ledger.jsonl",
            do="correct `registry`, or let `rl-finetune promote` make one",
        )  # fmt: skip
    return registry


def mirrored(config: PromoteConfig, registry: Registry) -> None:
    """Bring wandb in line where that is wanted. What the registry did stands whatever wandb says."""
    if config.wandb == "disabled":
        return
    from rl_finetune.promotion.registry.wandb_mirror import mirror

    try:
        mirror(registry, project=config.project, mode=config.wandb)
    except UserError as error:
        print(f"note: {error}; the next step catches up", file=sys.stderr)


def status(config: PromoteConfig) -> int:
    """Print who acts, and a line a bundle."""
    found = existing(config).status()
    names = {standing.digest: standing.name for standing in found.bundles}
    for word, digest in (("acts", found.promoted), ("before", found.before)):
        print(f"{word:<7} {'nobody' if digest is None else f'{short(digest)} {names[digest]}'}")
    for standing in found.bundles:
        since = f"since {standing.since} by {standing.by}"
        rejected = ", rejected" if standing.rejected else ""
        print(f"{short(standing.digest)}  {standing.stage:<17} {standing.name}  {since}{rejected}")
    return 0


def history(config: PromoteConfig, digest: str | None) -> int:
    """Print the ledger."""
    for entry in existing(config).history(digest):
        bundle = short(str(entry.body["bundle"]))
        print(f"{entry.index:>4}  {entry.time}  {entry.body['by']}  {bundle}  {words(entry)}")
    return 0


def words(entry: Entry) -> str:
    """What an entry of the ledger says, in words, with the note."""
    body: Mapping[str, Json] = entry.body
    note = f" ({body['note']})" if body.get("note") else ""
    grounds = f"{body.get('kind')} {body.get('outcome')}: {body.get('reason')}" if body.get("grounds") else ""
    match entry.kind:
        case "submit":
            said = f"submitted as {body['name']}"
        case "advance":
            why = f"waived: {body['waiver']}" if body.get("waiver") else grounds
            said = f"became {body['stage']}" + (f"; {why}" if why else "")
        case "judged":
            said = grounds
        case "serve":
            said = "let act on a server"
        case "rollback":
            said = "promoted again; " + (f"{short(str(body['from']))} retired" if body.get("from") else "nobody acted")
        case _:
            said = "retired"
    return said + note


def verify(config: PromoteConfig, bundle: str | None) -> int:
    """Verify one bundle, or everything."""
    if bundle is not None:
        trusted = [Path(key) for key in config.trusted]
        found = open_bundle(Path(bundle), trusted=trusted, require_signature=config.require_signature)
        by = f"signed by {short(found.signer)}" if found.signer else "not signed"
        print(f"whole: {found.name} {found.digest}, {len(found.manifest.files)} files, {by}")
        return 0
    audit = existing(config).verify()
    print(
        f"whole: {audit.entries} entries, {audit.bundles} bundles of {audit.files} files, {audit.grounds} verdicts and "
        "decisions"
    )
    return 0


def submit(config: PromoteConfig, folder: Path, *, by: str, note: str) -> int:
    """Bring a bundle in."""
    open_bundle(folder)  # a registry is not made for nothing
    registry = registry_of(config)
    bundle = registry.submit(folder, by=by, note=note)
    mirrored(config, registry)
    print(f"{short(bundle.digest)} {bundle.name}: candidate in {config.registry}")
    return 0


def advance(
    config: PromoteConfig, digest: str, stage: str, *, by: str, note: str, grounds: str | None, waiver: str
) -> int:
    """One stage on."""
    stages = [name for name in get_args(Stage) if name in NEXT.values()]
    if stage not in stages:
        raise UserError("no such stage to get to", got=stage, expected=" | ".join(stages), do="name the next one")
    registry = existing(config)
    path = None if grounds is None else Path(grounds)
    standing = registry.advance(digest, cast(Stage, stage), by=by, note=note, grounds=path, waiver=waiver)
    mirrored(config, registry)
    print(f"{short(standing.digest)} {standing.name}: {standing.stage}")
    return 0


def rollback(config: PromoteConfig, *, by: str, note: str) -> int:
    """The one before acts again."""
    registry = existing(config)
    bundle = registry.rollback(by=by, note=note)
    mirrored(config, registry)
    print(f"{short(bundle.digest)} {bundle.name}: promoted again")
    return 0


def retire(config: PromoteConfig, digest: str, *, by: str, note: str) -> int:
    """Out of service."""
    registry = existing(config)
    standing = registry.retire(digest, by=by, note=note)
    mirrored(config, registry)
    print(f"{short(standing.digest)} {standing.name}: retired")
    return 0


def keys(private: Path) -> int:
    """A key pair."""
    print(f"keep {private} to yourself; give away {signing.make_keys(private)}")
    return 0
