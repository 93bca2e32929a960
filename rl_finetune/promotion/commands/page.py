"""The page of a candidate, from what lies in its folder, in the ledger and in the book of trials."""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

from rl_finetune.config.promotion import PromoteConfig
from rl_finetune.config.schema import PolicySection
from rl_finetune.durable import canonical, sha256
from rl_finetune.errors import UserError
from rl_finetune.promotion.commands import CONFIG, EVIDENCE, REPORT, TRIALS, VERDICT, filming, shelf
from rl_finetune.promotion.commands.trials_view import view
from rl_finetune.promotion.evidence import Progress, Spoken, read_evidence
from rl_finetune.promotion.evidence.policies import Weights, find
from rl_finetune.promotion.records import Check, Evidence, PolicyName, Verdict
from rl_finetune.promotion.registry.grounds import Grounds
from rl_finetune.promotion.report import CandidateReport, EpisodeClips, HistoryEntry, TrialsView, write_report
from rl_finetune.promotion.trials import Book

ENDS = (-math.inf, math.inf)


def write(config: PromoteConfig, evidence: Evidence, verdict: Verdict, progress: Progress) -> None:
    """Film, and write the page.

    Args:
        config: resolved, as it lies in the candidate's folder.
        evidence: what was measured.
        verdict: what the gates said to it.
        progress: told that films are made.
    """
    sides = {"candidate": _side(config, config.candidate, evidence.candidate)}
    sides["incumbent"] = _side(config, config.opponent, evidence.incumbent)
    picks = filming.chosen(evidence.worlds, config.clips)
    clips: tuple[EpisodeClips, ...] = ()
    if picks:
        progress("filming", len(picks), len(picks))
        clips = filming.films(config, sides, picks)
    folder = Path(config.folder)
    data = CandidateReport(
        evidence, verdict, clips, tuple(filming.traces(config, sides, evidence.worlds)), _trials(folder),
        _history(config, evidence.candidate.digest), _provenance(config, evidence, sides["candidate"]),
    )  # fmt: skip
    write_report(folder / REPORT, data)


def again(config: PromoteConfig) -> int:
    """Write the page of a candidate that was judged.

    Raises:
        UserError: it was not, or the evidence is not what the verdict was given on.
    """
    folder = Path(config.folder)
    there, grounds = _there(folder, EVIDENCE), Grounds.load(_there(folder, VERDICT))
    evidence, _ = read_evidence(there, cast(str | None, grounds.detail.get("evidence")))
    if grounds.candidate != evidence.candidate or grounds.incumbent != evidence.incumbent:
        raise UserError(
            "verdict and evidence are about different policies", got=f"{grounds.candidate.name} and "
            f"{evidence.candidate.name}", expected="the same", do="judge the candidate again",
        )  # fmt: skip
    write(config, evidence, verdict_of(grounds), Spoken())
    print(f"report in {folder / REPORT}")
    return 0


def verdict_of(grounds: Grounds) -> Verdict:
    """The verdict that grounds were made of. What was not finite is unbounded again.

    Raises:
        UserError: they are no verdict's.
    """
    try:
        checks = cast(list[Mapping[str, Any]], grounds.detail["checks"])
        return Verdict(grounds.outcome, tuple(_check(each) for each in checks))
    except (KeyError, TypeError) as error:
        raise UserError("no verdict", got=grounds.kind, expected="the gates' verdict", do="judge again") from error


def _check(plain: Mapping[str, Any]) -> Check:
    interval = plain["interval"]
    if interval is not None:
        interval = tuple(end if given is None else given for given, end in zip(interval, ENDS, strict=True))
    value, bound = (math.nan if plain[name] is None else plain[name] for name in ("value", "bound"))
    return Check(**{**plain, "interval": interval, "value": value, "bound": bound})


def _there(folder: Path, name: str) -> Path:
    if not (folder / name).is_file():
        raise UserError(
            "nobody was judged there", got=f"{folder} without {name}", expected="the folder of a judged candidate",
            do="set `folder`, or run `rl-finetune promote`",
        )  # fmt: skip
    return folder / name


def _side(config: PromoteConfig, section: PolicySection, name: PolicyName) -> Weights:
    """The very weights that the evidence speaks of: where settings say, or in the registry."""
    kept = shelf.registry_of(config).bundle_folder(name.digest)
    found = find(PolicySection(path=str(kept)) if kept.is_dir() else section)
    if found.name.digest != name.digest:
        raise UserError(
            "evidence is about other weights", got=f"{found.name.name} {found.name.digest[:12]}",
            expected=f"{name.name} {name.digest[:12]}", do="restore them, or judge the candidate again",
        )  # fmt: skip
    return found


def _trials(folder: Path) -> TrialsView | None:
    return view(Book.open(folder / TRIALS)) if (folder / TRIALS).is_dir() else None


def _history(config: PromoteConfig, digest: str) -> tuple[HistoryEntry, ...]:
    registry = shelf.registry_of(config)
    if not registry.ledger.path.is_file():
        return ()
    try:
        entries = registry.history(digest)
    except UserError as error:  # the page is worth having although the registry is not this candidate's
        print(f"note: the page has no history: {error}", file=sys.stderr)
        return ()
    return tuple(
        HistoryEntry(entry.index, entry.time, entry.kind, shelf.words(entry), str(entry.body["by"]), entry.hash)
        for entry in entries
    )


def _provenance(config: PromoteConfig, evidence: Evidence, candidate: Weights) -> dict[str, str]:
    sealed = candidate.bundle
    code, seeds = ("", "") if sealed is None else (sealed.provenance.code, ", ".join(map(str, sealed.provenance.seeds)))
    told = {
        "Candidate": str(candidate.section.path),
        "Code that sealed it": code,
        "Seed of its training": seeds,
        "Incumbent": config.opponent.path,
        "Seed of the episodes": str(config.seed),
        "Temperature": f"{config.temperature:g}",
        "Gates": f"SHA-256 {sha256(canonical(config.gates.model_dump(mode='json')))}",
        "Evidence": f"SHA-256 {read_evidence(Path(config.folder) / EVIDENCE)[1]}",
        "Hardware": "; ".join(dict.fromkeys(record.hardware for record in evidence.latency)),
        "Command": f"rl-finetune promote --config {Path(config.folder) / CONFIG}",
    }
    return {name: value for name, value in told.items() if value}
