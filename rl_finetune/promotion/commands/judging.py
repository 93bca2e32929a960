"""`rl-finetune promote judge`: evidence, gates, registry, report.

look (nothing is written) -> bundle -> evidence -> verdict -> registry -> page
"""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from pathlib import Path

from rl_finetune.config.loader import dump
from rl_finetune.config.promotion import PromoteConfig
from rl_finetune.config.schema import PolicySection
from rl_finetune.durable import Json, held, replace_file
from rl_finetune.errors import UserError
from rl_finetune.promotion import judge as ask
from rl_finetune.promotion.commands import CODES, CONFIG, EVIDENCE, REPORT, VERDICT, page, sealing, shelf, short
from rl_finetune.promotion.evidence import Spoken, write_evidence
from rl_finetune.promotion.evidence.bounds import check_bounds
from rl_finetune.promotion.evidence.gather import bodies_of, gather
from rl_finetune.promotion.evidence.policies import Weights, find
from rl_finetune.promotion.records import Evidence, Outcome, Verdict
from rl_finetune.promotion.registry.bundle import Bundle
from rl_finetune.promotion.registry.grounds import Grounds
from rl_finetune.promotion.registry.registry import Registry

SHOWN = 8
"""Objections that are printed; the page has all."""


@dataclass(frozen=True, slots=True)
class Sides:
    """Who is compared."""

    candidate: sealing.Candidate
    incumbent: Weights


def judge(config: PromoteConfig, *, by: str, note: str) -> int:
    """Judge the candidate that the settings name; the exit code says how.

    Raises:
        UserError: settings, policies, worlds or registry cannot be used; nothing was written.
    """
    sides, folder = look(config), Path(config.folder)
    folder.mkdir(parents=True, exist_ok=True)
    with held(folder / ".lock", os.O_RDWR | os.O_CREAT, patience=0):
        bundle = sealing.sealed(config, sides.candidate)
        config = _resolved(config, sides, bundle)
        replace_file(folder / CONFIG, dump(config).encode())
        progress = Spoken()
        drives = tuple(body.spec.tag for body in bundle.embodiments)
        evidence = replace(gather(config, progress), drives=drives)
        digest = write_evidence(folder / EVIDENCE, evidence)
        verdict = ask(evidence, config.gates)
        rests_on: dict[str, Json] = {"evidence": digest, "gates": config.gates.model_dump(mode="json")}
        Grounds.of_verdict(verdict, evidence.candidate, evidence.incumbent, rests_on).save(folder / VERDICT)
        _tell(evidence, verdict)
        outcome = _entered(config, bundle, verdict, by, note)
        page.write(config, evidence, verdict, progress)
    print(f"report in {folder / REPORT}, evidence and verdict beside it")
    return CODES[outcome]


def seal(config: PromoteConfig) -> int:
    """Make the candidate's bundle, and no more."""
    candidate = sealing.candidate_of(config)
    if candidate.bundle is not None:
        raise UserError(
            "sealed already",
            got=candidate.folder,
            expected="a policy, and no bundle there",
            do="use that bundle, or set another `folder`",
        )
    bundle = sealing.sealed(config, candidate)
    print(f"{short(bundle.digest)} {bundle.name}: sealed in {bundle.folder}")
    return 0


def look(config: PromoteConfig) -> Sides:
    """Everything that can be refused before anything is played or written.

    Raises:
        UserError: it cannot be used.
    """
    candidate, incumbent = sealing.candidate_of(config), incumbent_of(config)
    told = incumbent.name.digest if incumbent.bundle is None else sealing.source_of(incumbent.bundle)
    if told == candidate.source:
        raise UserError(
            "candidate and incumbent are the same policy", got=incumbent.name.name, expected="two policies",
            do="name another candidate, for example candidate.adapter=runs/seed1/adapter",
        )  # fmt: skip
    if incumbent.bundle is not None:
        sealing.check_acted(config, incumbent.bundle)
    bodies = bodies_of(config, candidate.weights, incumbent)
    check_bounds(bodies.values(), config, candidate.weights, incumbent)
    if config.trained is not None:
        find(config.trained)
    return Sides(candidate, incumbent)


def incumbent_of(config: PromoteConfig) -> Weights:
    """Who acts now: of a registry that has promoted a bundle, that one.

    Raises:
        UserError: the settings name somebody else; the registry would take no verdict against him.
    """
    registry = shelf.registry_of(config)
    promoted = registry.promoted() if registry.ledger.path.is_file() else None
    if promoted is None:
        return find(config.opponent)
    acting = find(PolicySection(path=str(promoted.folder)))
    if config.incumbent is not None and find(config.incumbent).name.digest != promoted.digest:
        raise UserError(
            "incumbent is not the bundle that is promoted", got=config.incumbent.path,
            expected=f"{promoted.name} {short(promoted.digest)} of {config.registry}",
            do="leave `incumbent` out: it is looked up",
        )  # fmt: skip
    return acting


def _resolved(config: PromoteConfig, sides: Sides, bundle: Bundle) -> PromoteConfig:
    """The settings with the bundle as candidate, and with whoever acts now."""
    incumbent, made = sides.incumbent, sides.candidate.weights.bundle is None
    found = config.incumbent if incumbent.bundle is None else PolicySection(path=str(incumbent.bundle.folder))
    return config.model_copy(
        update={
            "candidate": PolicySection(path=str(bundle.folder)),
            "incumbent": found or config.opponent,
            "trained": config.trained or (config.candidate if made else None),
        }
    )


def _entered(config: PromoteConfig, bundle: Bundle, verdict: Verdict, by: str, note: str) -> Outcome:
    """Bring the bundle into the registry, with its verdict; what the registry makes of it."""
    registry, grounds = shelf.registry_of(config), Path(config.folder) / VERDICT
    known = {standing.digest: standing for standing in registry.status().bundles}
    if bundle.digest not in known:
        registry.submit(bundle.folder, by=by, note=note)
    outcome = _stepped(registry, bundle.digest, verdict.outcome, grounds, by, note)
    shelf.mirrored(config, registry)
    standing = next(each for each in registry.status().bundles if each.digest == bundle.digest)
    print(f"{short(bundle.digest)} {bundle.name}: {standing.stage} in {config.registry}")
    return outcome


def _stepped(registry: Registry, digest: str, outcome: Outcome, grounds: Path, by: str, note: str) -> Outcome:
    """Advance, or record; a rejection on record stays one."""
    standing = next(each for each in registry.status().bundles if each.digest == digest)
    if outcome == "promote" and standing.stage == "candidate" and not standing.rejected:
        registry.advance(digest, "simulation-passed", by=by, note=note, grounds=grounds)
        return outcome
    sealed = Grounds.load(grounds).digest
    if not any(entry.body.get("grounds") == sealed for entry in registry.history(digest)):
        registry.record(grounds, by=by, note=note)
    if standing.rejected and outcome != "reject":
        print("it was rejected before, and stays so: make a better bundle")
        return "reject"
    return outcome


def _tell(evidence: Evidence, verdict: Verdict) -> None:
    """The verdict in a few lines."""
    sides = (f"{name.name} {short(name.digest)}" for name in (evidence.candidate, evidence.incumbent))
    off = f"; not asked: {', '.join(verdict.off)}" if verdict.off else ""
    print(f"{verdict.outcome}: {' against '.join(sides)}; {len(verdict.checks)} checks{off}")
    for check in verdict.objections[:SHOWN]:
        print(f"  {check.outcome:<6}  {check.gate} {check.name}: {check.reason}")
    if len(verdict.objections) > SHOWN:
        print(f"  and {len(verdict.objections) - SHOWN} more")
