"""What `rl-finetune promote` does: a thin shell between settings and the parts. It prints, and returns exit codes."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from rl_finetune.promotion.records import Outcome

CODES: Mapping[Outcome, int] = MappingProxyType({"promote": 0, "hold": 3, "reject": 4})
"""Exit code of a verdict or decision."""
EVIDENCE, VERDICT, REPORT, CONFIG, BUNDLE, TRIALS = (
    "evidence.json", "verdict.json", "report.html", "config.yaml", "bundle", "trials",
)  # fmt: skip
"""What lies in a candidate's folder."""


def short(digest: str) -> str:
    """First digits of a digest, as people name a bundle."""
    return digest[:12]
