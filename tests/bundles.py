"""Bundles on paper: everything that a registry looks at, with a few bytes in place of weights. No torch."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

from rl_finetune.promotion.records import Outcome, PolicyName
from rl_finetune.promotion.registry.bundle import Bundle, open_bundle
from rl_finetune.promotion.registry.contents import BundledBody, Contents, Provenance
from rl_finetune.promotion.registry.grounds import Grounds, Kind
from rl_finetune.promotion.registry.limits import default_limits
from rl_finetune.promotion.registry.manifest import MANIFEST, RECORD, Manifest
from rl_finetune.promotion.registry.registry import Registry
from rl_finetune.promotion.registry.stages import STAGES
from rl_finetune.spec import ActionConvention, EmbodimentSpec

BODY = EmbodimentSpec(
    tag="arm", arms="single arm", views=("ego",),
    action=ActionConvention(
        channels=2, horizon=4, control="delta_ee", rotation="none", gripper="open_positive", rate=2.0
    ),
)  # fmt: skip
LOW, HIGH = (-0.5, -1.0), (0.5, 1.0)


def paper_bundle(folder: Path, name: str = "paper") -> Bundle:
    """A small bundle that verifies but cannot act."""
    (folder / "policy" / "backbone").mkdir(parents=True)
    table = {"arm": {"q01": LOW, "q99": HIGH}}
    for path, value in {
        "config.json": {"embodiments": [asdict(BODY)]}, "normalisation.json": table, "backbone/config.json": {},
    }.items():  # fmt: skip
        (folder / "policy" / path).write_text(json.dumps(value))
    (folder / "policy" / "model.safetensors").write_bytes(b"weights of " + name.encode())
    body = BundledBody(BODY, "The robot is arm", LOW, HIGH)
    limits = {"arm": default_limits(BODY, LOW, HIGH)}
    (folder / RECORD).write_bytes(Contents(name, "plain", (body,), limits, Provenance("0")).data)
    return sealed(folder)


def sealed(folder: Path) -> Bundle:
    """Write the manifest of what lies there, as somebody would who has changed it, and open it."""
    (folder / MANIFEST).write_bytes(Manifest.of(folder).data)
    return open_bundle(folder)


def grounds(folder: Path, kind: Kind, bundle: Bundle, incumbent: str = "0" * 64, outcome: Outcome = "promote") -> Path:
    """A file that speaks for (or against) a bundle."""
    found = Grounds(kind, bundle.called, PolicyName("incumbent", incumbent), outcome, "63 of 64 against 40 of 64")
    path = folder / f"{kind}-{bundle.name}-{outcome}-{incumbent[:6]}.json"
    found.save(path)
    return path


def submitted(registry: Registry, name: str) -> Bundle:
    """A paper bundle of that name, as a candidate."""
    return registry.submit(paper_bundle(registry.folder.parent / name, name).folder, by="ada")


def promoted(registry: Registry, name: str) -> Bundle:
    """Through all stages."""
    bundle, incumbent = submitted(registry, name), registry.status().promoted or "0" * 64
    for stage in STAGES[1:5]:
        kind = {"simulation-passed": "verdict", "promoted": "decision"}.get(stage)
        file = None if kind is None else grounds(registry.folder.parent, kind, bundle, incumbent)  # type: ignore[arg-type]
        registry.advance(bundle.digest, stage, by="ada", grounds=file)
    return bundle
