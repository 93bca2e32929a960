"""Every setting of every job, typed, with a sentence each. `rl-finetune show-config` prints these sentences."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator


class Section(BaseModel):
    """Base of all sections: immutable, strict about names and types, documented by the strings under fields."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, strict=True, use_attribute_docstrings=True, allow_inf_nan=False
    )


class PolicySection(Section):
    """Where the policy comes from."""

    path: str = "checkpoints/qwen-vla-tiny"
    """Local folder or hub id of a policy written by `save_pretrained`."""
    backbone: str | None = None
    """Another local folder or hub id for the backbone; null keeps the policy's own."""
    adapter: str | None = None
    """Folder of a trained adapter (written by `train`) to load on top; null loads none."""


class EnvSection(Section):
    """The world."""

    name: str = "widowx_reach"
    """Registered environment."""
    num_envs: int = Field(128, ge=1)
    """Environments in all, spread over the actors."""
    options: dict[str, Any] = Field(default_factory=dict)
    """Options of that environment, for example `image_size` or `tolerance`."""


class RolloutSection(Section):
    """How experience is collected."""

    num_actors: int = Field(2, ge=1)
    """Remote EnvRunner actors, each with its share of the environments and its own renderer."""
    chunks: int = Field(4, ge=1)
    """Chunks that each environment plays an iteration, from a fresh episode."""
    denoising_steps: int = Field(4, ge=1)
    """Euler steps from noise to actions."""
    noise_level: float = Field(0.5, gt=0)
    """a of Flow-SDE's sigma = a sqrt(tau / (1 - tau))."""
    sde_step: int | None = Field(None, ge=0)
    """Denoising step that is stochastic; null draws one per sample."""
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


class PPOSection(Section):
    """Clipped chunk-level PPO."""

    gamma: float = Field(0.99, gt=0, le=1)
    """Discount per environment step."""
    lam: float = Field(0.95, ge=0, le=1)
    """GAE's lambda per chunk."""
    clip: float = Field(0.2, gt=0, lt=1)
    """Ratio clip."""
    dual_clip: float | None = Field(3.0, gt=1)
    """Bound on the loss of bad actions; null leaves it out."""
    value_clip: float = Field(0.2, gt=0)
    """Change of the value that a batch may make before it is clipped."""
    huber: float = Field(10.0, gt=0)
    """Errors above this count linearly in the value loss."""
    value_coefficient: float = Field(1.0, ge=0)
    """Weight of the value loss."""
    epochs: int = Field(4, ge=1)
    """Passes over each batch."""
    minibatch: int = Field(128, ge=1)
    """Chunk decisions in one optimizer step, over all learners together."""
    log_ratio_clamp: float = Field(20.0, gt=0)
    """Log-ratios are clamped to this before the exponential."""
    normalise_advantages: bool = True
    """Centre and scale advantages over the whole batch."""


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

    episodes: int = Field(500, ge=1)
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
    ppo: PPOSection = PPOSection()
    """Objective."""
    optimizer: OptimizerSection = OptimizerSection()
    """Optimizer."""
    learner: LearnerSection = LearnerSection()
    """Learners."""
    evaluation: EvaluationSection = EvaluationSection()
    """Evaluation."""
    run: RunSection = RunSection()
    """Run."""

    @model_validator(mode="after")
    def _possible(self) -> TrainConfig:
        actors, learners = self.rollout.num_actors, self.learner.num_learners
        envs, minibatch = self.env.num_envs, self.ppo.minibatch
        batch, steps, step = envs * self.rollout.chunks, self.rollout.denoising_steps, self.rollout.sde_step
        _require(envs >= actors, "env.num_envs", envs, f"at least rollout.num_actors = {actors}")
        _require(minibatch <= batch, "ppo.minibatch", minibatch, f"at most env.num_envs * rollout.chunks = {batch}")
        _require(
            minibatch % learners == 0, "ppo.minibatch", minibatch, f"a multiple of learner.num_learners = {learners}"
        )
        _require(step is None or step < steps, "rollout.sde_step", step, f"less than rollout.denoising_steps = {steps}")
        _require(steps > 1, "rollout.denoising_steps", steps, "at least 2: Flow-SDE has no finite first step with one")
        _require(len(self.lora.parts) > 0, "lora.parts", self.lora.parts, "decoder, backbone, or both")
        return self


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
    output: str | None = None
    """Where the evaluation file goes; null prints only."""


class StageSection(Section):
    """One stage of supervised training."""

    name: str
    """Shown in the log."""
    train: Literal["vision", "backbone", "decoder", "all"]
    """`vision`: tower, dense grounding. `backbone`: all grounding. `decoder`: flow matching on cached contexts. `all`:
    flow matching and grounding together, through everything."""
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
    """World that the expert acts in."""
    start: str | None = None
    """Policy to start from; null begins with a freshly initialised tiny policy."""
    demonstrations: int = Field(20_000, ge=1)
    """Expert chunks to collect."""
    expert_noise: float = Field(0.02, ge=0)
    """Standard deviation in metres of what disturbs the executed displacement; labels stay the expert's."""
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


class Impossible(ValueError):
    """A combination of settings that cannot work."""


def _require(holds: bool, field: str, got: object, expected: str) -> None:
    if not holds:
        raise Impossible(f"{field}: got {got}; expected {expected}")
