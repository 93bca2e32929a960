"""Settings of `rl-finetune promote`: who is compared with whom, in which worlds, and what it is held against."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, model_validator

from rl_finetune.config.gates import GatesSection
from rl_finetune.config.schema import EvaluationSection, PolicySection
from rl_finetune.config.section import Section, require
from rl_finetune.config.trials import TrialsSection
from rl_finetune.config.worlds import EnvSection, check_worlds

Channels = list[float]


class LimitsSection(Section):
    """What one body may be told, by action channel; an empty list limits nothing."""

    low: Channels = []
    """Smallest action, action units."""
    high: Channels = []
    """Largest action."""
    velocity: Channels = []
    """Largest change of the commanded state, units/s."""
    acceleration: Channels = []
    """Largest change of that, units/s^2."""
    jerk: Channels = []
    """Largest change of that, units/s^3."""
    workspace: list[tuple[float, float]] = []
    """Low and high of the tool in x, y and z, metres; empty where there is none."""
    stale_after: float = Field(0.5, gt=0)
    """Seconds that an observation may be old before the robot is held."""

    @model_validator(mode="before")
    @classmethod
    def _pairs_from_lists(cls, values: Any) -> Any:
        if isinstance(values, dict) and isinstance(values.get("workspace"), list):
            return {**values, "workspace": [tuple(p) if isinstance(p, list) else p for p in values["workspace"]]}
        return values

    @model_validator(mode="after")
    def _possible(self) -> LimitsSection:
        widths = {len(part) for name in ("low", "high", "velocity", "acceleration", "jerk") if (part := self._of(name))}
        require(len(widths) <= 1, "limits", f"lists of {sorted(widths)} channels", "one number a channel everywhere")
        ordered = all(a <= b for a, b in zip(self.low, self.high, strict=False))
        require(ordered, "limits.low", self.low, f"at most limits.high = {self.high}")
        require(len(self.workspace) in (0, 3), "limits.workspace", len(self.workspace), "three pairs, or none")
        return self

    def _of(self, name: str) -> Channels:
        values: Channels = getattr(self, name)
        return values


class LatencyCallsSection(Section):
    """How inference is timed: a batch of one, as for a single robot."""

    calls: int = Field(500, ge=1)
    """Timed calls for each embodiment, after the warm-up."""
    warmup: int = Field(10, ge=0)
    """Calls before them."""
    threads: int = Field(1, ge=1)
    """CPU threads of the policy, as the server will have."""


class BundleSection(Section):
    """The bundle that is made of a candidate which is none yet."""

    name: str | None = Field(None, min_length=1, max_length=100)
    """For a person; null names it after policy and run."""
    merge: bool = True
    """Fold the adapter into the weights; otherwise it is kept beside them."""
    sign_with: str | None = None
    """Private key (PEM, made by `rl-finetune promote keys`) to sign it with."""


class PromoteConfig(Section):
    """`rl-finetune promote`: what speaks for a candidate, and what against it."""

    candidate: PolicySection = PolicySection(adapter="runs/train/adapter")
    """Who wants to be promoted: a policy with or without an adapter, or a bundle's folder."""
    incumbent: PolicySection | None = None
    """Who acts now; null is the bundle that the registry has promoted, and before there is one the candidate's own
    policy without its adapter."""
    trained: PolicySection | None = None
    """What the candidate was exported from, where it is an export already: parity is between the two. null exports the
    candidate itself, adapter folded in, and compares what comes back from the disk."""
    env: EnvSection = EnvSection()
    """World, or several; every one is compared on its own."""
    suites: list[str] | None = None
    """Perturbation suites, in every world that has them; null plays those that `gates.suites.required` names."""
    episodes: int | None = Field(None, ge=1)
    """Unperturbed held-out episodes of each world; null plays as many as `gates.plan` asks for."""
    suite_episodes: int | None = Field(None, ge=1)
    """Held-out episodes of each world under each suite; null plays as many as `gates.plan` asks for."""
    seed: int = Field(2_000_003, ge=0)
    """Seed of the held-out episodes: not the one by which training was watched."""
    temperature: float = Field(0.6, ge=0)
    """Scale of the initial noise of the ODE sampler; sealed into the bundle, and served with."""
    guarded: bool = True
    """Play both as they are served: through the server's safety envelope, each with its own bundle's limits. false
    plays what they ask for, to compare; no robot is told that."""
    num_actors: int = Field(2, ge=0)
    """Processes that play; 0 plays in this one, without Ray."""
    gpus: float = Field(0.0, ge=0)
    """GPUs of each."""
    latency: LatencyCallsSection = LatencyCallsSection()
    """Time of inference."""
    parity_chunks: int | None = Field(None, ge=1)
    """Chunks that are compared for each embodiment; null compares as many as `gates.parity` asks for."""
    limits: dict[str, LimitsSection] = {}
    """Robot tag -> what it may be told, in place of what its model says; needed for bodies that are not modelled
    here."""
    gates: GatesSection = GatesSection()
    """What the candidate is held against."""
    clips: int = Field(6, ge=0)
    """Episodes that are filmed for the report with both policies, those that the candidate lost first."""
    trials: TrialsSection = TrialsSection()
    """Trials on the robot (`rl-finetune promote trials`)."""
    bundle: BundleSection = BundleSection()
    """What is made of the candidate."""
    folder: str = "runs/promote"
    """Where bundle, evidence, verdict, report and trials go; what was played is kept there, too, so that an interrupted
    run goes on."""
    registry: str = "runs/registry"
    """Folder of the registry."""
    trusted: list[str] = []
    """Public keys (PEM) whose signatures count."""
    require_signature: bool = False
    """Take no bundle into the registry, and promote none, that none of them has signed."""
    wandb: Literal["online", "offline", "disabled"] = "disabled"
    """Weights & Biases: a version of one artifact for each bundle, its stage as alias. The folder stays the truth."""
    project: str = "rl-finetune"
    """wandb project."""

    @model_validator(mode="after")
    def _possible(self) -> PromoteConfig:
        check_worlds(self.env, max(1, self.num_actors), by="num_actors")
        return self

    @property
    def opponent(self) -> PolicySection:
        """The incumbent as far as settings tell."""
        return self.incumbent or PolicySection(path=self.candidate.path, backbone=self.candidate.backbone)

    @property
    def asked_suites(self) -> tuple[str, ...]:
        """Perturbation suites to play."""
        return tuple(self.gates.suites.required if self.suites is None else self.suites)

    def evaluation(self, *, perturbed: bool) -> EvaluationSection:
        """Episodes, seed and temperature, without a suite or under one."""
        plan = self.gates.plan
        episodes = (self.suite_episodes or plan.suite_episodes) if perturbed else (self.episodes or plan.episodes)
        return EvaluationSection(episodes=episodes, seed=self.seed, temperature=self.temperature, clips=0)
