"""What is known of a candidate, and what follows from it. numpy only; every record survives JSON."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

Outcome = Literal["promote", "hold", "reject"]
"""`reject`: shown to be worse or unsafe. `hold`: not shown to be good enough."""
NONE = "none"
"""Name of the suite of unperturbed episodes."""
OFF = "off"
"""Name of the one check of a gate that is switched off."""


@dataclass(frozen=True, slots=True)
class Limits:
    """What one body may be told, by action channel; empty tuples limit nothing."""

    low: tuple[float, ...] = ()
    """[c] smallest action, action units."""
    high: tuple[float, ...] = ()
    """[c] largest action."""
    velocity: tuple[float, ...] = ()
    """[c] largest change of the commanded state, units/s."""
    acceleration: tuple[float, ...] = ()
    """[c] largest change of that, units/s^2."""
    jerk: tuple[float, ...] = ()
    """[c] largest change of that, units/s^3."""
    workspace: tuple[tuple[float, float], ...] = ()
    """(low, high) of the tool in x, y, z, metres in the robot's base frame; empty where there is none."""
    stale_after: float = 0.5
    """Seconds that an observation may be old before the robot is held."""


@dataclass(frozen=True, slots=True)
class PolicyName:
    """Which weights a record speaks of."""

    name: str
    """For a person."""
    digest: str
    """SHA-256 of the bundle's manifest, or of the policy's files where it is no bundle."""


@dataclass(frozen=True, slots=True)
class WorldRecord:
    """Both policies in the same episodes of one world, under one suite."""

    world: str
    """Label of the world: the task."""
    embodiment: str
    """Robot tag."""
    suite: str
    """Perturbation suite, or `none`."""
    seed: int
    """Of the evaluation's initial states."""
    candidate: tuple[bool, ...]
    """Success by episode."""
    incumbent: tuple[bool, ...]
    """Success in the same episodes."""
    failed: int = 0
    """Episodes in which the world broke down under either; they count as lost by both."""


@dataclass(frozen=True, slots=True)
class MotionAudit:
    """How the candidate moved one body in simulation: extremes over all episodes, how often limits were broken, and how
    often the safety envelope kept them from being broken."""

    world: str
    """Label of the world."""
    embodiment: str
    """Robot tag."""
    steps: int
    """Control steps that were looked at."""
    actions: tuple[tuple[float, float], ...]
    """[c] least and greatest commanded action, action units."""
    velocity: tuple[float, ...]
    """[c] greatest |d/dt| of the commanded state, units/s."""
    acceleration: tuple[float, ...]
    """[c] greatest second derivative, units/s^2."""
    jerk: tuple[float, ...]
    """[c] greatest third derivative, units/s^3."""
    over: Mapping[str, int] = field(default_factory=dict)
    """Kind of limit (`action`, `velocity`, `acceleration`, `jerk`, `workspace`, `joint`) -> control steps beyond it."""
    self_collisions: int = 0
    """Control steps in which the body touched itself."""
    measured: tuple[str, ...] = ()
    """Kinds that were looked at, `self_collision` included; what a world cannot tell is not among them."""
    guarded: bool = False
    """Whether the safety envelope stood between; then everything above is of what the body was told."""
    changed: int = 0
    """Control steps that the envelope changed."""
    interventions: Mapping[str, int] = field(default_factory=dict)
    """Why it did (see `serving.envelope.Guarded`) -> control steps; a step may have several reasons."""


@dataclass(frozen=True, slots=True)
class LatencyRecord:
    """Seconds from observation to chunk, call by call, as the server will run it."""

    embodiment: str
    """Robot tag."""
    seconds: tuple[float, ...]
    """One a call, after warming up."""
    control_period: float
    """Seconds of one control step."""
    horizon: int
    """Control steps that one chunk covers."""
    hardware: str = ""
    """What it ran on."""


@dataclass(frozen=True, slots=True)
class ParityRecord:
    """The exported policy against the trained one: same observations, same noise."""

    embodiment: str
    """Robot tag."""
    chunks: int
    """Chunks that were compared."""
    worst: tuple[float, ...]
    """[c] greatest |difference| of an action, action units."""
    scale: tuple[float, ...]
    """[c] standard deviation of the trained policy's actions there, action units."""


@dataclass(frozen=True, slots=True)
class Evidence:
    """Everything that the gates look at."""

    candidate: PolicyName
    """Who wants to be promoted."""
    incumbent: PolicyName
    """Who acts now."""
    worlds: tuple[WorldRecord, ...]
    """One for each world and suite."""
    motion: tuple[MotionAudit, ...] = ()
    """One for each world."""
    latency: tuple[LatencyRecord, ...] = ()
    """One for each embodiment."""
    parity: tuple[ParityRecord, ...] = ()
    """One for each embodiment."""
    limits: Mapping[str, Limits] = field(default_factory=dict)
    """Robot tag -> what it may be told."""
    drives: tuple[str, ...] = ()
    """Robot tags that the candidate can drive, played or not; empty where nobody has asked."""


@dataclass(frozen=True, slots=True)
class Check:
    """One question that a gate asked."""

    gate: str
    """Which gate, for example `success`."""
    name: str
    """What it looked at, for example `widowx_reach` or `mean`."""
    outcome: Outcome
    """`promote` where it has no objection."""
    value: float
    """The number that decides, in `unit`."""
    interval: tuple[float, float] | None
    """Its interval at the gate's confidence, where it is an estimate."""
    bound: float
    """What it is held against, in `unit`."""
    unit: str
    """For example `points`, `s`, `rad/s`."""
    reason: str
    """In words, with the numbers."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """What all gates together say: the worst of their outcomes."""

    outcome: Outcome
    checks: tuple[Check, ...]
    """Every question, in the gates' order; those that were passed too."""

    @property
    def off(self) -> tuple[str, ...]:
        """Gates that were switched off: they have no objection because they were not asked."""
        return tuple(check.gate for check in self.checks if check.name == OFF)

    @property
    def objections(self) -> tuple[Check, ...]:
        """What stands against promotion, rejections first."""
        found = [check for check in self.checks if check.outcome != "promote"]
        return tuple(sorted(found, key=lambda check: check.outcome != "reject"))
