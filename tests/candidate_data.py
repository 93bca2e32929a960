"""Made-up candidates for tests of their page."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from rl_finetune.metrics.report_data import Clip
from rl_finetune.promotion.records import (
    Check,
    Evidence,
    LatencyRecord,
    Limits,
    MotionAudit,
    ParityRecord,
    PolicyName,
    Verdict,
    WorldRecord,
)
from rl_finetune.promotion.report import (
    ActionTrace,
    CandidateReport,
    EpisodeClips,
    EvidencePoint,
    HistoryEntry,
    TrialArm,
    TrialNote,
    TrialsView,
)


def world(name: str, both: int, won: int, lost: int, neither: int, **changes: object) -> WorldRecord:
    """Episodes that went these ways, in this order."""
    ours = (True,) * (both + won) + (False,) * (lost + neither)
    theirs = (True,) * both + (False,) * won + (True,) * lost + (False,) * neither
    record = WorldRecord(name, "widowx", "none", 7, ours, theirs)
    return replace(record, **changes)


def check(gate: str = "success", name: str = "mean", outcome: str = "promote", **changes: object) -> Check:
    base = Check(gate, name, outcome, 4.0, (1.0, 7.0), 0.0, "points", f"{gate} {name} said {outcome}")  # type: ignore[arg-type]
    return replace(base, **changes)


def clip(success: bool, episode: int = 0, name: str = "reach", words: str = "reach the cube") -> Clip:
    return Clip(np.full((3, 8, 8, 3), 90, np.uint8), words, success, episode, name)


def full(text: str = "", worlds: int = 3) -> CandidateReport:
    """A report with every part; `text` is put into every string that comes from outside."""
    records = tuple(
        world(f"world{i}{text}", 50, 10, 5, 35, embodiment=f"body{i}{text}", suite=suite)
        for i in range(worlds) for suite in ("none", f"light{text}")
    )  # fmt: skip
    limits = Limits((-1.0, 0.0), (1.0, 4.0), (2.0, 2.0), (5.0, 5.0), (10.0, 10.0))
    kinds = ("action", "velocity", "acceleration", "jerk", "joint", "self_collision")
    audit = MotionAudit(
        f"world0{text}", f"body0{text}", 1234, ((-0.5, 0.8), (1.0, 3.0)), (1.0, 1.5), (1.0, 1.0), (12.0, 3.0),
        {"jerk": 7}, 2, kinds, True, 154, {"jerk": 20, "velocity": 150},
    )  # fmt: skip
    policies = PolicyName(f"new{text}", "c" * 64), PolicyName(f"old{text}", "d" * 64)
    evidence = Evidence(
        *policies, records, (audit,), (LatencyRecord(f"body0{text}", (0.01, 0.02, 0.03), 0.05, 8, f"cpu{text}"),),
        (ParityRecord(f"body0{text}", 16, (0.001, 0.002), (0.1, 0.5)),), {f"body0{text}": limits},
    )  # fmt: skip
    checks = (check(), check("tasks", f"world0{text}", "hold", reason=f"why{text}"), check("motion", "m", "reject"))
    arms = TrialArm("A", 9, 6, 1, 2), TrialArm("B", 9, 4)
    return CandidateReport(
        evidence=evidence,
        verdict=Verdict("reject", checks),
        clips=(
            EpisodeClips(clip(True, words=f"go{text}"), None),
            EpisodeClips(clip(False), clip(True), f"light{text}"),
        ),
        traces=(ActionTrace(f"world0{text}", f"body0{text}", 3, 0.2, np.zeros((4, 2)), np.ones((5, 2))),),
        trials=TrialsView(
            arms, (EvidencePoint(1, 0.5, -3, 3),), 40, f"test{text}", f"on{text}", (TrialNote(2, "B", f"note{text}"),)
        ),
        history=(HistoryEntry(4, "2026-01-02", f"submit{text}", f"said{text}", f"ana{text}", "e" * 64),),
        provenance={f"seed{text}": f"seven{text}"},
        channels={f"body0{text}": (f"dx{text}",)},
    )
