"""One gate, one file: a pure function of evidence and its settings.

Adding one is a file, a section (`rl_finetune.config.gates`) of the same name and a line here.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from rl_finetune.promotion.gates.latency import latency_gate
from rl_finetune.promotion.gates.motion import motion_gate
from rl_finetune.promotion.gates.parity import parity_gate
from rl_finetune.promotion.gates.success import success_gate
from rl_finetune.promotion.gates.suites import suites_gate
from rl_finetune.promotion.gates.tasks import tasks_gate
from rl_finetune.promotion.gates.worst import worst_gate
from rl_finetune.promotion.records import Check, Evidence

Gate = Callable[[Evidence, Any], tuple[Check, ...]]
"""(evidence, section of its name) -> what it asked."""

GATES: dict[str, Gate] = {
    "success": success_gate,
    "tasks": tasks_gate,
    "suites": suites_gate,
    "worst": worst_gate,
    "motion": motion_gate,
    "latency": latency_gate,
    "parity": parity_gate,
}
