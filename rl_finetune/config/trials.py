"""Settings of trials on real robots."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from rl_finetune.config.section import Section, require


class TaskSection(Section):
    """One task that the robot is given."""

    name: str = Field(min_length=1, max_length=100)
    """For sheet and report."""
    instruction: str = Field("", max_length=500)
    """What the policy is told; empty leaves it to the robot's client."""
    conditions: list[str] = Field(default=["as usual"], min_length=1)
    """Initial conditions that an operator can set up again: both policies of a pair begin in the same one."""


class TrialsSection(Section):
    """Blinded trials of a candidate against the incumbent, in pairs, until the evidence suffices."""

    tasks: list[TaskSection] = []
    """Tasks; every one is played equally often. Their conditions take turns."""
    alpha: float = Field(0.05, gt=0, lt=0.5)
    """Chance to promote a candidate that is not better; likewise to reject one that is not worse."""
    beta: float = Field(0.1, gt=0, lt=0.5)
    """Chance to miss a candidate that is better by `gain`."""
    gain: float = Field(20.0, ge=10, le=80)
    """Smallest gain in success worth finding, points."""
    pairs: int | None = Field(None, ge=5, le=1000)
    """Most pairs of trials; null is as many as `alpha`, `beta` and `gain` need. Fewer cost power, never `alpha`."""
    prove_worse: bool = False
    """Play on with a candidate that does not gain enough until it is proven worse: `reject` instead of `hold`, at the
    price of more trials with it."""
    interventions: Literal["failure", "abort"] = "failure"
    """What a trial counts as in which somebody had to step in: lost, or played again like an abort."""
    attempts: int = Field(3, ge=1, le=20)
    """Times that one trial is tried; if the last is aborted as well it counts as lost."""
    seed: int = Field(0, ge=0)
    """Of the order of tasks and conditions, which is no secret. Which letter is the candidate comes from elsewhere."""

    @model_validator(mode="after")
    def _possible(self) -> TrialsSection:
        names = [task.name for task in self.tasks]
        require(len(set(names)) == len(names), "trials.tasks", names, "every name once")
        for task in self.tasks:
            once = len(set(task.conditions)) == len(task.conditions)
            require(once, f"trials.tasks.{task.name}.conditions", task.conditions, "every condition once")
        return self
