"""Gathers what the gates look at: paired episodes, an audit of motion, times of inference, parity of what is exported.

Nothing heavy is imported until `gather` is asked for.
"""

from __future__ import annotations

from rl_finetune.promotion.evidence.codec import (
    evidence_from_dict,
    evidence_to_dict,
    read_evidence,
    write_evidence,
)
from rl_finetune.promotion.evidence.limits import limits_for
from rl_finetune.promotion.evidence.progress import Progress, Spoken, silent

__all__ = [
    "Progress",
    "Spoken",
    "evidence_from_dict",
    "evidence_to_dict",
    "limits_for",
    "read_evidence",
    "silent",
    "write_evidence",
]
