"""Settings of the objectives: one class each, chosen by `objective.name`.

A class also says what its objective is given (`view`) and how credit is assigned (`credit`); formulas stand in
`learners/objectives/`.
"""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from rl_finetune.config.section import Section


class ObjectiveSection(Section):
    """What every objective has."""

    view: ClassVar[Literal["density", "transitions", "pairs"]]
    """What the loss sees: log-densities of what was sampled, velocities at the sampled transitions, or velocities at
    fresh (tau, eps) pairs around the executed chunk."""
    credit: ClassVar[Literal["gae", "group", "leave_one_out"]] = "gae"
    """Advantages from a critic, or from episodes that began in the same state."""
    needs_old: ClassVar[bool] = False
    """Whether the loss compares with the weights at the start of the update."""
    advised: ClassVar[bool] = False
    """Whether the decoder is conditioned on the advantage in words."""

    name: str
    """Objective."""
    gamma: float = Field(0.95, gt=0, le=1)
    """Discount per second of the robot's time: the same horizon for a body that acts at 5 Hz and one at 50 Hz, whatever
    the length of a chunk. A step at rate f is discounted by gamma^(1/f)."""
    time_limit: Literal["truncation", "termination"] = "truncation"
    """What an episode that runs out of time is worth beyond its end: `truncation` bootstraps from the critic's value of
    the last state, as gymnasium has it; `termination` counts nothing, for tasks that must be done in time. Evaluation
    counts such an episode as it stands: without success unless it succeeded."""
    lam: float = Field(0.95, ge=0, le=1)
    """GAE's lambda per chunk; group objectives take whole episodes instead."""
    epochs: int = Field(4, ge=1)
    """Passes over each batch."""
    minibatch: int = Field(128, ge=1)
    """Chunk decisions in one optimizer step, over all learners together."""
    normalise_advantages: bool = True
    """Centre and scale advantages over the whole batch."""
    group_size: int = Field(1, ge=1)
    """Environments in a row that begin their episodes in the same state."""
    replay: int = Field(1, ge=1)
    """Rounds that an update learns from: this one and those before it."""


class ClippedSection(ObjectiveSection):
    """What objectives with a clipped ratio share."""

    clip: float = Field(0.2, gt=0, lt=1)
    """Ratio clip."""
    dual_clip: float | None = Field(3.0, gt=1)
    """Bound on the loss of bad actions; null leaves it out."""
    log_ratio_clamp: float = Field(20.0, gt=0)
    """Log-ratios are clamped to this before the exponential."""
    ratio_length: int | None = Field(None, ge=1)
    """Decisions of more scored numbers (steps x channels) than this have their log-ratio scaled down to as many (at 1
    it is GSPO's, arXiv 2507.18071): of several bodies, those with many joints would leave the clip at once and drown
    the others' gradients. null takes the sum as it is."""


class PPOSection(ClippedSection):
    """Clipped chunk-level PPO."""

    view: ClassVar = "density"
    name: Literal["ppo"] = "ppo"
    """Objective."""


class DecoupledPPOSection(ClippedSection):
    """PPO for stale data: the clip is around the weights at the start of the update, not around those that acted."""

    view: ClassVar = "density"
    needs_old: ClassVar = True
    name: Literal["decoupled_ppo"] = "decoupled_ppo"
    """Objective."""
    max_weight: float = Field(2.0, gt=1)
    """Decisions whose weight pi_prox / pi_behaviour is above this are dropped."""


class GRPOSection(ClippedSection):
    """Clipped ratio, advantage relative to a group: (R - mean) / (std + 1e-6)."""

    view: ClassVar = "density"
    credit: ClassVar = "group"
    name: Literal["grpo"] = "grpo"
    """Objective."""
    group_size: int = Field(8, ge=2)
    """Environments in a row that begin their episodes in the same state."""
    normalise_advantages: bool = False
    """Centre and scale advantages over the whole batch, beyond their group."""


class RLOOSection(ClippedSection):
    """Clipped ratio, advantage against the mean of the others of the group (leave-one-out)."""

    view: ClassVar = "density"
    credit: ClassVar = "leave_one_out"
    name: Literal["rloo"] = "rloo"
    """Objective."""
    group_size: int = Field(8, ge=2)
    """Environments in a row that begin their episodes in the same state."""
    normalise_advantages: bool = True
    """Scale advantages over the whole batch."""


class DiffusionNFTSection(ObjectiveSection):
    """Negative-aware fine-tuning on predicted actions; no likelihood."""

    view: ClassVar = "pairs"
    credit: ClassVar = "group"
    needs_old: ClassVar = True
    name: Literal["diffusion_nft"] = "diffusion_nft"
    """Objective."""
    beta: float = Field(1.0, gt=0)
    """How far v+ and v- stand from the old velocity."""
    pairs: int = Field(2, ge=1)
    """(tau, eps) pairs a decision."""
    adaptive_weight: bool = True
    """Divide each pair's squared error by its mean absolute error, as the published code does: errors of predicted
    actions grow with tau, and without it pairs near the clean end hardly count."""
    advantage_clip: float = Field(1.0, gt=0)
    """Advantage at which a chunk counts as wholly good (r = 1) or bad (r = 0)."""
    group_size: int = Field(8, ge=2)
    """Environments in a row that begin their episodes in the same state."""
    normalise_advantages: bool = False
    """Centre and scale advantages over the whole batch, beyond their group."""


class StepNFTSection(ObjectiveSection):
    """Negative-aware fine-tuning on the next solver state of the sampled transition."""

    view: ClassVar = "transitions"
    credit: ClassVar = "group"
    needs_old: ClassVar = True
    name: Literal["step_nft"] = "step_nft"
    """Objective."""
    beta: float = Field(1.0, gt=0)
    """How far v+ and v- stand from the old velocity."""
    advantage_clip: float = Field(1.0, gt=0)
    """Advantage at which a chunk counts as wholly good (r = 1) or bad (r = 0)."""
    group_size: int = Field(8, ge=2)
    """Environments in a row that begin their episodes in the same state."""
    normalise_advantages: bool = False
    """Centre and scale advantages over the whole batch, beyond their group."""


class FPOSection(ObjectiveSection):
    """Flow policy optimisation: one ratio a decision, from the mean flow-matching loss of its pairs."""

    view: ClassVar = "pairs"
    needs_old: ClassVar = True
    name: Literal["fpo"] = "fpo"
    """Objective."""
    clip: float = Field(0.05, gt=0, lt=1)
    """Ratio clip."""
    pairs: int = Field(4, ge=1)
    """(tau, eps) pairs a decision."""
    log_ratio_clamp: float = Field(3.0, gt=0)
    """Differences of losses, each a mean over the chunk's numbers, are clamped to this."""


class FPOPlusSection(ObjectiveSection):
    """FPO++: one ratio a pair, and a quadratic penalty in place of the clip for bad actions."""

    view: ClassVar = "pairs"
    needs_old: ClassVar = True
    name: Literal["fpo_plus"] = "fpo_plus"
    """Objective."""
    clip: float = Field(0.05, gt=0, lt=1)
    """Ratio clip of good actions; for bad ones, how narrow the penalty is."""
    pairs: int = Field(4, ge=1)
    """(tau, eps) pairs a decision."""
    log_ratio_clamp: float = Field(3.0, gt=0)
    """Differences of losses, each a mean over the chunk's numbers, are clamped to this."""


class RECAPSection(ObjectiveSection):
    """Advantage-conditioned supervised learning on stored rounds; the policy is then asked for good chunks."""

    view: ClassVar = "pairs"
    advised: ClassVar = True
    name: Literal["recap"] = "recap"
    """Objective."""
    lam: float = Field(1.0, ge=0, le=1)
    """GAE's lambda per chunk; 1 is the return minus the value."""
    quantile: float = Field(0.7, gt=0, lt=1)
    """Chunks above this quantile of the advantages are called positive, the others negative. Equal advantages are
    called alike: with many equal ones the share of positive chunks is the nearest that can be had, never none or all;
    where all are equal none has advice."""
    dropout: float = Field(0.1, ge=0, lt=1)
    """Share of chunks that are learned without advice."""
    guidance: float = Field(1.5, ge=0)
    """beta of v = v_0 + beta (v_positive - v_0), when acting."""
    warmup: int = Field(4, ge=0)
    """Rounds in which the policy acts without guidance: advice means nothing before it has been learned."""
    pairs: int = Field(1, ge=1)
    """(tau, eps) pairs a decision."""
    replay: int = Field(8, ge=1)
    """Rounds that an update learns from: this one and those before it."""
    normalise_advantages: bool = False
    """Centre and scale advantages over the whole batch; their order is all that counts here."""


AnyObjective = Annotated[
    PPOSection
    | DecoupledPPOSection
    | GRPOSection
    | RLOOSection
    | DiffusionNFTSection
    | StepNFTSection
    | FPOSection
    | FPOPlusSection
    | RECAPSection,
    Field(discriminator="name"),
]
"""Whichever `objective.name` names; `ppo` where it names none."""
