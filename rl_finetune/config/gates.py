"""Settings of the gates between simulation and a robot: one class each. What a gate asks stands in
`rl_finetune/promotion/gates/`.

Success is in percentage points throughout. A `level` is the chance that a gate may be wrong on one side: the limits of
an interval at level 0.025 are those of the usual 95 % interval.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from rl_finetune.config.section import Section, require

Motion = Literal["action", "velocity", "acceleration", "jerk", "workspace", "joint", "self_collision"]
"""What an audit of motion can look at."""
Points = Annotated[float, Field(gt=0, le=100)]
"""Of success."""
Share = Annotated[float, Field(ge=0, lt=1)]
"""Of control steps."""


class GateSection(Section):
    """What every gate has."""

    on: bool = True
    """Whether it is asked. The verdict shows a gate that is off, too."""


class StatisticalSection(GateSection):
    """What every gate has that decides by an interval."""

    level: float = Field(0.025, gt=0, lt=0.5)
    """Largest chance of passing a policy that is exactly at the bound. The same chance, shared among all that the gate
    looks at, is that of rejecting such a policy (latency never rejects)."""


class PlanSection(Section):
    """What the evidence must hold for the error rates of the gates to mean anything. Cannot be switched off."""

    episodes: int = Field(600, ge=1)
    """Unperturbed episodes of each world, for both policies. 600 promote a gain of 10 points in a single world and its
    suites in at least nine of ten evaluations, even were the policies' episodes independent and success around one
    half, provided that it is well above `worst.floor`."""
    suite_episodes: int = Field(300, ge=1)
    """Episodes of each world under each perturbation suite, for both policies."""
    failed: float = Field(0.02, ge=0, lt=1)
    """Share of a record's episodes in which the world may break down."""
    unplayed: list[str] = []
    """Robot tags that the candidate can drive and that need not be played: a promoted bundle is served for them all the
    same."""


class SuccessSection(StatisticalSection):
    """Is the candidate better? The mean gain over unperturbed worlds, each weighing the same."""

    gain: float = Field(0.0, ge=0, le=100)
    """Points that it must be shown to gain on the mean."""


class TasksSection(StatisticalSection):
    """Is any task lost? The gain in each unperturbed world."""

    margin: float = Field(5.0, gt=0, le=100)
    """Points that one task may lose."""
    margins: dict[str, Points] = {}
    """World -> points, where it is another margin."""


class SuitesSection(StatisticalSection):
    """Does the candidate withstand what the incumbent withstands? The mean gain over worlds under each suite."""

    required: list[str] = [
        "colour", "instance", "position", "background", "lighting", "paraphrase", "distractors", "all",
    ]  # fmt: skip
    """Perturbation suites that every world must have been played under."""
    lacking: dict[str, list[str]] = {}
    """World -> suites that it has nothing of; nobody misses them there."""
    margin: float = Field(10.0, gt=0, le=100)
    """Points that the mean under one suite may lose, and that no world may be shown to lose there."""
    margins: dict[str, Points] = {}
    """Suite -> points, where it is another margin."""


class WorstSection(StatisticalSection):
    """How bad is the worst? The least successful task, and the least successful embodiment, of unperturbed worlds."""

    floor: float = Field(20.0, ge=0, lt=100)
    """Success, in points, that the worst of either must be shown to have."""
    margin: float = Field(5.0, gt=0, le=100)
    """Points by which it may lie below the incumbent's worst."""


class MotionSection(GateSection):
    """Does it move as it may? Control steps beyond a limit, in every world."""

    required: list[Motion] = ["action", "velocity", "acceleration", "jerk", "workspace", "joint", "self_collision"]
    """Kinds that must have been measured."""
    excused: dict[str, list[Motion]] = {}
    """Robot tag -> kinds that need not be measured there: a rover has no arm to hit itself with."""
    allowed: dict[Motion, Share] = {}
    """Kind -> share of control steps that may be beyond the limit; 0 where it is not named."""
    interventions: Share = 0.25
    """Share of control steps that the safety envelope may have changed; a candidate with more is held. The scripted
    experts never exceed a limit; where the envelope has to step in for more than one step in four, two in a chunk of
    eight, the path on the robot is its work as much as the policy's, and nobody has trained it."""
    steps: int = Field(3000, ge=1)
    """Control steps that must have been looked at in each world. None over in n steps means, at 95 %, a share below
    3 / n, were steps independent; they are not quite."""


class LatencySection(StatisticalSection):
    """Is it in time? Quantiles of the time from observation to chunk, against the time that a chunk lasts."""

    median: float = Field(0.5, gt=0, le=1)
    """Share of a chunk's duration (horizon x control period) that p50 may take."""
    p99: float = Field(0.8, gt=0, le=1)
    """Share of it that p99 may take."""

    @model_validator(mode="after")
    def _possible(self) -> LatencySection:
        require(self.median <= self.p99, "latency.median", self.median, f"at most latency.p99 = {self.p99}")
        return self


class ParitySection(GateSection):
    """Is what will be served what was evaluated? Differences between the exported and the trained policy's actions."""

    tolerance: float = Field(0.02, gt=0)
    """Largest difference of any action, in standard deviations of the trained policy's actions in that channel."""
    still: float = Field(1e-6, gt=0)
    """Standard deviation, in action units, that a channel is taken to have at least."""
    chunks: int = Field(32, ge=1)
    """Chunks that must have been compared for each embodiment."""


class GatesSection(Section):
    """What a candidate must show in simulation."""

    plan: PlanSection = PlanSection()
    """The evidence itself."""
    success: SuccessSection = SuccessSection()
    """Better on the mean."""
    tasks: TasksSection = TasksSection()
    """No task lost."""
    suites: SuitesSection = SuitesSection()
    """No perturbation suite lost."""
    worst: WorstSection = WorstSection()
    """Worst task and worst embodiment."""
    motion: MotionSection = MotionSection()
    """Limits of motion."""
    latency: LatencySection = LatencySection()
    """Time."""
    parity: ParitySection = ParitySection()
    """Numbers of the exported policy."""

    @model_validator(mode="after")
    def _possible(self) -> GatesSection:
        compared = self.success.on or self.tasks.on
        require(compared, "gates", "success.on=false, tasks.on=false", "one of them on: nothing else compares policies")
        return self
