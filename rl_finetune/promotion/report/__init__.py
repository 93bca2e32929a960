"""One page a candidate."""

from rl_finetune.promotion.report.data import (
    ActionTrace,
    CandidateReport,
    EpisodeClips,
    EvidencePoint,
    HistoryEntry,
    TrialArm,
    TrialNote,
    TrialsView,
)
from rl_finetune.promotion.report.page import render, write_report

__all__ = [
    "ActionTrace",
    "CandidateReport",
    "EpisodeClips",
    "EvidencePoint",
    "HistoryEntry",
    "TrialArm",
    "TrialNote",
    "TrialsView",
    "render",
    "write_report",
]
