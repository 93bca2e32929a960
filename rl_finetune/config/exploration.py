"""Settings of exploration, and which of them go together."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from rl_finetune.config.objectives import ObjectiveSection
from rl_finetune.config.section import Section, require
from rl_finetune.config.worlds import EnvSection


class ExplorationSection(Section):
    """The sampling law: where on the way from noise to actions a chain is random, and by how much."""

    law: Literal["flow_sde", "calibrated", "flow_noise", "ode"] = "flow_sde"
    """`flow_sde`: one stochastic step a sample. `calibrated`: the same with measured levels, so that `executed_std`
    is the dial. `flow_noise`: learned noise at every step. `ode`: the initial noise alone, for objectives without
    likelihood."""
    temperature: float = Field(1.0, ge=0)
    """Scale of the initial noise in training; `evaluation.temperature` is another. A policy that is judged at one and
    trained at the other gains less where it is judged."""
    noise_level: float = Field(0.5, gt=0)
    """a of Flow-SDE's sigma = a sqrt(tau / (1 - tau))."""
    sde_step: int | None = Field(None, ge=0)
    """Denoising step that is stochastic; null draws one per sample."""
    executed_std: float = Field(0.04, gt=0)
    """What the calibrated law shall add to executed actions, RMS in action units (metres where the body is moved
    so)."""
    max_level: float = Field(2.0, gt=0)
    """The calibrated law's a at any step is at most this."""
    levels: list[float] | None = None
    """a of each denoising step; measured where the law is calibrated and this is null."""
    odds: list[float] | Literal["contribution"] | None = None
    """Odds of each denoising step to be the stochastic one; `contribution` measures what each adds to executed actions.
    null is uniform, measured where the law is calibrated."""
    scale: dict[str, float] = Field(default_factory=dict)
    """Robot tag -> factor on a in its worlds (default 1): the same noise in normalised units is centimetres for an arm
    and decimetres for a base that drives."""
    correlation: dict[str, float] = Field(default_factory=dict)
    """Robot tag -> correlation of Flow-SDE's noise between neighbouring action steps in its worlds, 0 (default) to
    below 1. Independent noise averages out where many steps are executed quickly; correlated noise moves a whole chunk
    aside."""
    std_min: float = Field(0.08, gt=0)
    """Smallest standard deviation of Flow-Noise."""
    std_max: float = Field(0.16, gt=0)
    """Largest standard deviation of Flow-Noise."""


def check_law(law: ExplorationSection, objective: ObjectiveSection, steps: int) -> None:
    """Refuse a law that contradicts itself, or that the objective cannot score, over `steps` denoising steps.

    Raises:
        Impossible: names the setting.
    """
    step, known = law.sde_step, f"one number for each of rollout.denoising_steps = {steps}"
    require(step is None or step < steps, "exploration.sde_step", step, f"less than rollout.denoising_steps = {steps}")
    odds = law.odds if isinstance(law.odds, list) else None
    for name, values in (("levels", law.levels), ("odds", odds)):
        require(values is None or len(values) == steps, f"exploration.{name}", values, known)
        possible = values is None or (min(values) >= 0 and max(values) > 0)
        require(possible, f"exploration.{name}", values, "none below 0 and at least one above")
    drawn = [step] if step is not None else [k for k, p in enumerate(odds or [1.0] * steps) if p > 0]
    silent = law.levels is not None and any(law.levels[k] == 0 for k in drawn)
    require(not silent, "exploration.levels", law.levels, "above 0 at every step that may be drawn")
    free = law.law != "calibrated" or step is None
    require(free, "exploration.sde_step", step, "null: the calibrated law draws the step by what each contributes")
    require(law.std_min < law.std_max, "exploration.std_min", law.std_min, f"below std_max = {law.std_max}")
    factors = all(factor > 0 for factor in law.scale.values())
    require(factors, "exploration.scale", law.scale, "factors above 0")
    levelled = not law.scale or law.law in ("flow_sde", "calibrated")
    require(levelled, "exploration.scale", law.scale, f"none: the law {law.law} has no levels")
    possible = all(0 <= rho < 1 for rho in law.correlation.values())
    require(possible, "exploration.correlation", law.correlation, "numbers from 0 to below 1")
    may = law.law in ("flow_sde", "calibrated") and objective.view != "transitions"
    none = f"none for the law {law.law} with {objective.name}: they take steps for independent"
    require(may or not law.correlation, "exploration.correlation", law.correlation, none)
    varied = law.law != "ode" or law.temperature > 0 or objective.credit == "gae"
    above = f"above 0 for the law ode with {objective.name}: the members of a group would all do the same"
    require(varied, "exploration.temperature", law.temperature, above)
    if objective.view == "density":
        require(law.law != "ode", "exploration.law", "ode", "a stochastic law: the objective scores what was sampled")
    if objective.view == "transitions":
        allowed = law.law in ("flow_sde", "calibrated")
        require(allowed, "exploration.law", law.law, "flow_sde or calibrated: the objective scores one transition")


def check_measured(law: ExplorationSection, env: EnvSection) -> None:
    """Refuse to measure levels or odds in several worlds: it is done in one, in its action units.

    Raises:
        Impossible: names the setting.
    """
    several, expected = len(env.mix) > 1, "numbers where env.mix has several worlds: each would measure others"
    require(
        not several or law.law != "calibrated" or law.levels is not None, "exploration.levels", law.levels, expected
    )
    require(not several or law.odds != "contribution", "exploration.odds", law.odds, expected)
