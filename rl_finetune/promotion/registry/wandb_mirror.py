"""The registry at wandb: a version of one artifact for each bundle, its stage as alias. The folder stays the truth."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from rl_finetune.durable import canonical, replace_file
from rl_finetune.metrics.wandb_sink import Mode, WandbSink
from rl_finetune.promotion.registry.registry import Registry, Status

DONE = "mirrored.json"
"""Digest -> aliases that wandb was given last; beside wandb's own files."""
KIND = "policy-bundle"


def aliases(status: Status) -> dict[str, list[str]]:
    """Digest -> its own alias, and its stage where it was the last to get there; whoever is promoted comes last."""
    newest = {standing.stage: standing for standing in sorted(status.bundles, key=lambda standing: standing.entry)}
    wanted = {
        standing.digest: [f"sha256-{standing.digest[:16]}"]
        + ([standing.stage] if newest[standing.stage] is standing else [])
        for standing in status.bundles
    }
    return dict(sorted(wanted.items(), key=lambda item: item[0] == status.promoted))


def mirror(registry: Registry, *, project: str, mode: Mode, name: str = "policy") -> tuple[str, ...]:
    """Bring wandb in line with the registry; only what changed since the last time is sent.

    Offline, what is logged waits for `wandb sync`; aliases then move to other bundles, but none is only taken away.

    Args:
        registry: whose bundles.
        project: at wandb.
        mode: `disabled` does nothing.
        name: of the artifact whose versions the bundles are.

    Returns:
        Digests of the bundles that were sent.

    Raises:
        UserError: wandb cannot be reached; the registry is as it was, and the next call catches up.
    """
    status, folder = registry.status(), registry.folder / "wandb"
    wanted, done = aliases(status), _done(folder)
    changed = [digest for digest in wanted if done.get(digest) != wanted[digest]]
    if mode == "disabled" or not changed:
        return ()
    folder.mkdir(exist_ok=True)
    sink = WandbSink(mode, project, folder, {"registry": registry.folder.name}, f"registry {registry.folder.name}")
    standings = {standing.digest: standing for standing in status.bundles}
    try:
        for digest in changed:
            said = {"digest": digest, "bundle": standings[digest].name}
            sink.log_folder(registry.bundle_folder(digest), name=name, kind=KIND, aliases=wanted[digest], metadata=said)
            done[digest] = wanted[digest]
            replace_file(folder / DONE, canonical(done) + b"\n")
    finally:
        sink.finish()
    return tuple(changed)


def _done(folder: Path) -> dict[str, list[str]]:
    path = folder / DONE
    found: Mapping[str, list[str]] = json.loads(path.read_text()) if path.is_file() else {}
    return dict(found)
