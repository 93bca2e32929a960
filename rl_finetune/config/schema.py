"""Every setting of every job, typed, with a sentence each. `rl-finetune show-config` prints these sentences."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from rl_finetune.config.exploration import ExplorationSection, check_law, check_measured
from rl_finetune.config.objectives import AnyObjective, PPOSection
from rl_finetune.config.section import Section, require
from rl_finetune.config.worlds import EnvSection, check_worlds


class PolicySection(Section):
    """Where the policy comes from."""

    path: str = "checkpoints/qwen-vla-tiny"
    """Local folder or hub id of a policy written by `save_pretrained`."""
    backbone: str | None = None
    """Another local folder or hub id for the backbone; null keeps the policy's own."""
    adapter: str | None = None
    """Folder of a trained adapter (written by `train`) to load on top; null loads none. It is refused on any other
    policy than it was trained on."""
    guidance: float | None = Field(None, ge=0)
    """beta of an advantage-conditioned adapter when it acts; null takes what was trained with."""


class RolloutSection(Section):
    """How experience is collected."""

    num_actors: int = Field(2, ge=1)
    """Remote EnvRunner actors, each with its share of the environments and its own renderer."""
    chunks: int | None = Field(None, ge=1)
    """Chunks that each environment plays an iteration, from a fresh episode; null plays as many as the longest episode
    has. With fewer, success in training counts only what succeeds in so short a time."""
    denoising_steps: int = Field(4, ge=1)
    """Euler steps from noise to actions. The adapter keeps the number: wherever it is loaded it acts with as many."""
    lag: int = Field(0, ge=0)
    """Updates that the acting weights are behind: the next round is collected while learners still learn."""
    store: bool = False
    """Keep every round's trajectories in the run folder, to learn from them offline later."""
    source: str | None = None
    """Folder of stored rounds to learn from in place of collecting."""
    gpus: float = Field(0.0, ge=0)
    """GPUs of each actor."""


class LoraSection(Section):
    """Which low-rank adapters train."""

    parts: list[Literal["decoder", "backbone"]] = ["decoder"]
    """Parts that get adapters. With `backbone` the contexts are encoded again in every epoch."""
    rank: int = Field(16, ge=1)
    """Rank r."""
    alpha: float = Field(32.0, gt=0)
    """Scale: the update is multiplied by alpha / r."""
    decoder_targets: list[str] = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
    """Linear layers of the decoder, by the end of their name."""
    backbone_targets: list[str] = [
        "q_proj", "k_proj", "v_proj", "o_proj", "in_proj_qkv", "in_proj_z", "out_proj", "gate_proj", "up_proj",
        "down_proj",
    ]  # fmt: skip
    """Linear layers of the language model, by the end of their name."""


class CriticSection(Section):
    """What tells the value of a state."""

    kind: Literal["auto", "linear", "privileged", "none"] = "auto"
    """`linear`: head on the mean backbone state (the paper's). `privileged`: a net on the simulator's state. `none`:
    values are zero. `auto`: linear, or none where the objective compares groups."""
    clip: float | None = Field(0.2, gt=0)
    """Change of the value that an update may make before it is clipped, as a share of the returns' root mean square in
    the round; null leaves it out."""
    huber: float | None = Field(10.0, gt=0)
    """Errors above this, in the same unit, count linearly in the value loss; null is the squared error throughout."""
    coefficient: float = Field(1.0, ge=0)
    """Weight of the value loss."""


class RegularisersSection(Section):
    """Terms that any objective can have beside its loss; a weight of 0 leaves one out and costs nothing."""

    velocity: float = Field(0.0, ge=0)
    """Weight of the mean squared distance to the starting policy's velocity."""
    kl: float = Field(0.0, ge=0)
    """Weight of the Kullback-Leibler divergence of the scored transitions from the starting policy's."""
    cloning: float = Field(0.0, ge=0)
    """Weight of the flow-matching loss on chunks of this round that were part of a success."""
    entropy: float = Field(0.0, ge=0)
    """Weight of the entropy of Flow-Noise, which is rewarded."""


class OptimizerSection(Section):
    """Adam, as DeepSpeed drives it."""

    actor_lr: float = Field(5e-4, ge=0)
    """Learning rate of the adapters; 0 is the control that must gain nothing."""
    value_lr: float = Field(1e-3, ge=0)
    """Learning rate of the value head."""
    betas: tuple[float, float] = (0.9, 0.95)
    """Adam's decay rates."""
    weight_decay: float = Field(0.01, ge=0)
    """Decoupled weight decay."""
    grad_clip: float = Field(1.0, gt=0)
    """Global gradient norm."""
    schedule: Literal["cosine", "constant"] = "cosine"
    """Shape of the learning rate over the run."""

    @model_validator(mode="before")
    @classmethod
    def _betas_from_list(cls, values: Any) -> Any:
        if isinstance(values, dict) and isinstance(values.get("betas"), list):
            return {**values, "betas": tuple(values["betas"])}
        return values


class LearnerSection(Section):
    """The DeepSpeed learners."""

    num_learners: int = Field(2, ge=1)
    """Data-parallel learner processes."""
    zero_stage: Literal[1, 2] = 2
    """ZeRO stage. Stage 3 is left out: its weights cannot be published to the actors while sharded."""
    gpus: float = Field(0.0, ge=0)
    """GPUs of each learner."""
    threads: int = Field(1, ge=1)
    """CPU threads of each learner."""


class EvaluationSection(Section):
    """Success on held-out episodes, before and after."""

    episodes: int = Field(500, ge=2)
    """Held-out episodes; the same initial states and noise for every policy, so that gains pair."""
    seed: int = Field(1_000_003, ge=0)
    """Seed of the held-out episodes."""
    temperature: float = Field(0.6, ge=0)
    """Scale of the initial noise of the ODE sampler (the paper evaluates at 0.6)."""
    clips: int = Field(6, ge=0)
    """Episodes filmed before and after for the report."""


class RunSection(Section):
    """The run itself."""

    folder: str = "runs/train"
    """Run folder: config, metrics, checkpoints, evaluation, report."""
    seed: int = Field(0, ge=0)
    """Seed of scenes, noise and minibatches."""
    iterations: int = Field(150, ge=1)
    """Collect-and-update rounds."""
    max_minutes: float | None = Field(None, gt=0)
    """Stop after the round in which this much training time has passed; null trains all iterations."""
    checkpoint_every: int = Field(10, ge=1)
    """Iterations between checkpoints."""
    resume: bool = False
    """Go on from the newest checkpoint of the run folder."""
    wandb: Literal["offline", "online", "disabled"] = "offline"
    """Weights & Biases mode; offline needs no network and no key."""
    project: str = "rl-finetune"
    """wandb project."""


class TrainConfig(Section):
    """`rl-finetune train`: reinforcement learning of adapters."""

    policy: PolicySection = PolicySection()
    """Starting point."""
    env: EnvSection = EnvSection()
    """World."""
    rollout: RolloutSection = RolloutSection()
    """Collection."""
    lora: LoraSection = LoraSection()
    """Adapters."""
    exploration: ExplorationSection = ExplorationSection()
    """Sampling law."""
    objective: AnyObjective = PPOSection()
    """What is learned from; its name decides which settings it has."""
    critic: CriticSection = CriticSection()
    """Values."""
    regularisers: RegularisersSection = RegularisersSection()
    """Terms beside the objective's loss."""
    optimizer: OptimizerSection = OptimizerSection()
    """Optimizer."""
    learner: LearnerSection = LearnerSection()
    """Learners."""
    evaluation: EvaluationSection = EvaluationSection()
    """Evaluation."""
    run: RunSection = RunSection()
    """Run."""

    @field_validator("objective", mode="before")
    @classmethod
    def _ppo_by_default(cls, value: Any) -> Any:
        return {"name": "ppo", **value} if isinstance(value, dict) else value

    @property
    def critic_kind(self) -> Literal["linear", "privileged", "none"]:
        """The critic, `auto` resolved."""
        if self.critic.kind != "auto":
            return self.critic.kind
        return "linear" if self.objective.credit == "gae" else "none"

    @model_validator(mode="after")
    def _possible(self) -> TrainConfig:
        actors, learners, seed = self.rollout.num_actors, self.learner.num_learners, self.evaluation.seed
        require(self.run.seed != seed, "run.seed", seed, "another than evaluation.seed: held-out episodes are not seen")
        check_worlds(self.env, actors, self.objective.group_size)
        worlds, minibatch = self.env.worlds(self.objective.group_size), self.objective.minibatch
        chunks = [world.chunks or self.rollout.chunks or 0 for world in worlds]
        batch = sum(world.num_envs * number for world, number in zip(worlds, chunks, strict=True))
        steps = self.rollout.denoising_steps
        require(
            minibatch <= batch or 0 in chunks, "objective.minibatch", minibatch,
            f"at most env.num_envs * rollout.chunks = {batch}",
        )  # fmt: skip
        require(
            minibatch % learners == 0, "objective.minibatch", minibatch,
            f"a multiple of learner.num_learners = {learners}",
        )  # fmt: skip
        require(steps > 1, "rollout.denoising_steps", steps, "at least 2: Flow-SDE has no finite first step with one")
        require(len(self.lora.parts) > 0, "lora.parts", self.lora.parts, "decoder, backbone, or both")
        check_law(self.exploration, self.objective, steps)
        check_measured(self.exploration, self.env)
        _check_objective(self)
        return self


def _check_objective(job: TrainConfig) -> None:
    objective, terms, source = job.objective, job.regularisers, job.rollout.source
    epochs = objective.replay
    grouped = objective.credit != "gae"
    kind = job.critic.kind
    require(not grouped or kind in ("auto", "none"), "critic.kind", kind, f"none: {objective.name} compares groups")
    scored = objective.view != "pairs"
    noisy = job.exploration.law == "flow_noise" and scored
    allowed = "0 unless exploration.law=flow_noise and the objective scores it"
    require(terms.entropy == 0 or noisy, "regularisers.entropy", terms.entropy, allowed)
    require(terms.kl == 0 or scored, "regularisers.kl", terms.kl, f"0: {objective.name} scores no transitions")
    likely = objective.view == "density" and not objective.needs_old
    require(epochs == 1 or not likely, "objective.replay", epochs, f"1: {objective.name} learns from what it just did")
    require(source is None or not likely, "rollout.source", source, f"null: {objective.name} cannot learn offline")
    require(
        not objective.advised or "backbone" not in job.lora.parts, "lora.parts", job.lora.parts,
        f"decoder alone: {objective.name} caches its contexts",
    )  # fmt: skip


class EvaluateConfig(Section):
    """`rl-finetune evaluate`: success of one policy on held-out episodes."""

    policy: PolicySection = PolicySection()
    """Policy, with or without an adapter."""
    env: EnvSection = EnvSection()
    """World."""
    evaluation: EvaluationSection = EvaluationSection()
    """Episodes."""
    num_actors: int = Field(2, ge=1)
    """Processes."""
    gpus: float = Field(0.0, ge=0)
    """GPUs of each process."""
    shuffle: Literal["none", "images", "instructions"] = "none"
    """Break the link between what is asked and what is seen: a policy that uses both must drop to chance."""
    prompt_as: str | dict[str, str] | None = None
    """Robot tag that the prompt names in place of the true one, everywhere or by world: its arms, rate and chunk size
    too. Pictures, views, action normalisation and mask stay the true body's. A policy that minds the words must get
    worse. null tells the truth."""
    suites: list[str] = []
    """Perturbation suites to evaluate as well, one after the other, in the same episodes: `colour`, `instance`,
    `position`, `background`, `lighting`, `paraphrase`, `distractors`, `all`."""
    output: str | None = None
    """Where the evaluation file goes; null prints only."""

    @model_validator(mode="after")
    def _possible(self) -> EvaluateConfig:
        labels = list(self.env.labels)
        if self.env.mix:
            check_worlds(self.env, self.num_actors, by="num_actors")
        for label in self.prompt_as if isinstance(self.prompt_as, dict) else ():
            require(label in labels, "prompt_as", label, f"worlds among {labels}")
        least = min(self.evaluation.episodes, *(world.num_envs for world in self.env.worlds())) // self.num_actors
        company = f"none with {least} at a time in each of {self.num_actors} processes: others' takes two"
        require(self.shuffle == "none" or least > 1, "shuffle", self.shuffle, company)
        return self

    def told(self, label: str) -> str | None:
        """The robot tag that the prompt names in that world; None is the true one."""
        return self.prompt_as.get(label) if isinstance(self.prompt_as, dict) else self.prompt_as


class StageSection(Section):
    """One stage of supervised training."""

    name: str
    """Shown in the log."""
    train: Literal["vision", "backbone", "decoder", "all"]
    """`vision`: tower, dense grounding. `backbone`: all grounding. `decoder`: flow matching on cached contexts. `all`:
    flow matching and grounding together, through everything; in a world without labels flow matching alone."""
    steps: int = Field(ge=1)
    """Optimizer steps."""
    batch: int = Field(64, ge=1)
    """Samples a step."""
    lr: float = Field(1e-3, gt=0)
    """Peak learning rate, cosine with 5 % warm-up."""
    demonstrations: int | None = Field(None, ge=1)
    """Chunks of the data this stage may see; null is all of them."""
    time_distribution: Literal["beta", "logit_normal", "uniform"] = "beta"
    """p(tau): `beta` leans to the clean end (the paper's SFT), `logit_normal` is its text-to-action stage."""


class SFTConfig(Section):
    """`rl-finetune sft`: train a policy by flow matching on expert demonstrations."""

    env: EnvSection = EnvSection()
    """World that the expert acts in, or several; a mix's shares are those of its worlds in every batch."""
    start: str | None = None
    """Policy to start from, which is taught the bodies that it does not know yet; null begins with a fresh tiny
    policy."""
    decoder_depth: int | None = Field(None, ge=1)
    """Blocks of the action decoder; where the starting policy has another number its decoder starts afresh."""
    demonstrations: int = Field(20_000, ge=1)
    """Expert chunks to collect in each world."""
    expert_noise: float = Field(0.02, ge=0)
    """Standard deviation in metres of what disturbs the executed displacement; labels stay the expert's. In a world of
    `envs.simple`, of what is added to the executed actions, in their own units."""
    stages: list[StageSection] = Field(min_length=1)
    """Stages, in order."""
    grounding_weight: float = Field(0.1, ge=0)
    """Weight of the grounding loss beside the flow loss of weight 1 (the paper's vision-language weight)."""
    weight_decay: float = Field(0.01, ge=0)
    """Decoupled weight decay."""
    seed: int = Field(0, ge=0)
    """Seed of initialisation, data and noise."""
    threads: int = Field(2, ge=1)
    """CPU threads."""
    folder: str = "runs/sft"
    """Run folder: progress, per-stage checkpoints; the policy lies in `policy/`."""
    resume: bool = False
    """Skip stages whose checkpoint is already in the folder."""
    evaluation: EvaluationSection = EvaluationSection()
    """Success of the result."""

    @model_validator(mode="after")
    def _possible(self) -> SFTConfig:
        seed = self.evaluation.seed
        require(self.seed != seed, "seed", seed, "another than evaluation.seed: held-out episodes are not seen")
        for name in ("num_envs", "workers", "patience"):
            value, default = getattr(self.env, name), EnvSection.model_fields[name].default
            why = f"{default}, which sft does not read: the expert plays a batch of its own in this process"
            require(value == default, f"env.{name}", value, why)
        for number, world in enumerate(self.env.mix):
            field = f"env.mix.{number}.chunks"
            require(world.chunks is None, field, world.chunks, "null: `demonstrations` counts the chunks of sft")
        return self
