"""What a report page is made of."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from rl_finetune.metrics.evaluation import Comparison
from rl_finetune.metrics.intervals import Gain
from rl_finetune.metrics.rows import IterationRow
from rl_finetune.types import EvalReport, ImageArray


@dataclass(frozen=True, slots=True)
class Clip:
    """One filmed episode."""

    frames: ImageArray
    """[F, h, w, 3] uint8 RGB, in order; the last is the end of the episode."""
    instruction: str
    """Task in words."""
    success: bool
    """Whether the task was done."""
    episode: int
    """Number of the held-out episode: clips before and after with the same number show the same initial state."""
    world: str = ""
    """Label of the world."""


@dataclass(frozen=True, slots=True)
class ReportData:
    """Everything on the page of one run."""

    title: str
    """For example `widowx_reach, seed 0`."""
    compared: Comparison
    """Evaluations before and after, on the same episodes."""
    rows: tuple[IterationRow, ...]
    """Training, oldest first."""
    minutes: float
    """Training time, without the evaluations."""
    checkpoint: str
    """Path of the adapter that was evaluated last."""
    config: str
    """Resolved config as YAML."""
    clips_before: tuple[Clip, ...] = ()
    """Episodes filmed before."""
    clips_after: tuple[Clip, ...] = ()
    """Episodes filmed after."""
    frames_per_second: float = 8.0
    """Pace of the clips on the page."""
    provenance: Mapping[str, str] = field(default_factory=dict)
    """Name -> value, for example code version, seeds, command, hardware."""

    @property
    def before(self) -> EvalReport:
        """Of the policy that training started from; of several worlds the mean."""
        return self.compared.before.overall

    @property
    def after(self) -> EvalReport:
        """Of the policy that it ended with; of several worlds the mean."""
        return self.compared.after.overall

    @property
    def gain(self) -> Gain:
        """Paired difference of the two."""
        return self.compared.gain
