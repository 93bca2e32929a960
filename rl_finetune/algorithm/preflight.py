"""Find out in a second, in this process, what would fail in a minute on the actors."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
from safetensors import SafetensorError, safe_open

import envs
from rl_finetune.config.loader import validated
from rl_finetune.config.objectives import ObjectiveSection
from rl_finetune.config.schema import EvaluateConfig, PolicySection, TrainConfig
from rl_finetune.config.worlds import EnvSection
from rl_finetune.errors import UserError, users_code
from rl_finetune.memory import check_environments
from rl_finetune.policy import QwenVLAConfig, QwenVLAPolicy, compatibility
from rl_finetune.policy.compatibility import Bytes
from rl_finetune.policy.critics import check_state
from rl_finetune.policy.hub import local_folder
from rl_finetune.policy.loading import load_policy
from rl_finetune.policy.policy import BACKBONE_FOLDER
from rl_finetune.spec import EnvSpec, shared_state
from rl_finetune.store import load_round, rounds
from rl_finetune.types import SeedKeys

FIRST = np.zeros(1, np.int64)


def check(policy: PolicySection, env: EnvSection, group_size: int = 1) -> None:
    """Compare the policy with every world's spec, load decoder and adapter, look at the backbone's files, begin an
    episode in one of each world.

    Args:
        policy: the starting point.
        env: the worlds.
        group_size: environments that must begin alike.

    Raises:
        UserError: whatever is wrong, before anything is written or started.
    """
    worlds, specs = env.worlds(), specs_of(env)
    folder = local_folder(policy.path)
    config, own = QwenVLAConfig.load(folder), None if policy.backbone else folder / BACKBONE_FOLDER
    for spec in specs:
        compatibility.check(config, own, spec)
    load_policy(policy, specs, with_backbone=False)
    if own is not None:
        _check_backbone(own)
    for world, spec in zip(worlds, specs, strict=True):
        broken = f"environment {world.name!r} breaks down"
        with users_code(broken, certain=":" in world.name), envs.make(world.name, 1, **world.options) as single:
            require_groups(single, group_size)
            told = single.reset(SeedKeys(0, FIRST, FIRST)).instruction
        if own is not None and not spec.tasks:
            compatibility.check_prompts(own, config, spec, told)


def specs_of(env: EnvSection) -> list[EnvSpec]:
    """What each world promises; no simulator is started."""
    return [envs.spec(world.name, **world.options) for world in env.worlds()]


def require_groups(env: envs.VectorEnv, group_size: int) -> None:
    """Episodes can be compared within a group only in a world that begins them in the state that their key names.

    Raises:
        UserError: this one does not.
    """
    if group_size > 1 and not env.keyed:
        raise UserError(
            f"{env.spec.name} cannot begin the environments of a group alike", got=f"objective.group_size={group_size}",
            expected="1: the world restarts by itself, in states of its own choice",
            do="choose an objective without groups (ppo, fpo, recap)",
        )  # fmt: skip


def with_chunks(job: TrainConfig) -> TrainConfig:
    """The job with the chunks of a round settled: where none are set, those of the longest episode of each world.

    Raises:
        UserError: `objective.minibatch` is larger than a round.
    """
    chunks = [world.chunks or job.rollout.chunks or envs.spec(world.name, **world.options).episode_chunks
              for world in job.env.worlds()]  # fmt: skip
    tree = job.model_dump()
    for entry, number in zip(tree["env"]["mix"], chunks, strict=False):
        entry["chunks"] = number
    tree["rollout"]["chunks"] = job.rollout.chunks or chunks[0]
    return validated(TrainConfig, tree)


def short_rounds(job: TrainConfig) -> list[str]:
    """What to say of worlds whose rounds are shorter than an episode may be; none where all are long enough."""
    notes = []
    for world in job.env.worlds():
        spec = envs.spec(world.name, **world.options)
        chunks, needs = world.chunks or job.rollout.chunks or spec.episode_chunks, envs.expert_steps(world.name)
        steps = chunks * spec.embodiment.action.horizon
        if steps < needs:
            notes.append(
                f"{world.label}: a round of {steps} steps (rollout.chunks={chunks}) is too short to succeed in: its "
                f"expert takes {needs} on average, an episode may take {spec.time_limit}"
            )
        elif steps < spec.time_limit:
            notes.append(
                f"{world.label}: a round of {steps} steps (rollout.chunks={chunks}) is shorter than an episode of "
                f"{spec.time_limit}; success in training counts only what succeeds within a round"
            )
    return notes


def check_alone(env: EnvSection, actors: int, gpus: float, *, by: str = "") -> None:
    """Refuse to start a world more often than there is room for it; an actor with whole `gpus` has them to itself.

    Args:
        env: the worlds.
        actors: processes that each hold all of them.
        gpus: GPUs of each actor.
        by: what `num_actors` and `gpus` are under.

    Raises:
        UserError: two processes would each need the same thing for themselves.
    """
    number = Counter[str]()
    for world in env.worlds():
        if (needed := envs.alone_on(world.name, **world.options)) is not None:
            number[needed] += max(1, min(world.workers, world.num_envs // actors)) * (1 if gpus >= 1 else actors)
    for needed, times in number.items():
        if times > 1:
            raise UserError(
                f"{env.title} has {needed} to itself, once",
                got=f"{times} of it: {by}num_actors={actors}, env.workers={env.workers}, {len(env.labels)} in env.mix",
                expected="one",
                do=f"set {by}num_actors=1 and env.workers=0, or give each actor a GPU of its own with {by}gpus=1",
            )


def check_room(config: TrainConfig | EvaluateConfig) -> None:
    """Refuse more environments than this machine can hold the pictures and contexts of, by the specs alone. What the
    simulators take is not counted, nor anything on a cluster; `rollout.chunks` is settled.

    Raises:
        UserError: says how much is needed, and how much there is.
    """
    policy, needed = QwenVLAConfig.load(local_folder(config.policy.path)), 0
    for world, spec in zip(config.env.worlds(), specs_of(config.env), strict=True):
        each = Bytes.of(policy, spec)
        # An actor keeps a round's decisions until they are put together, and then hands over a copy of their contexts.
        chunks = (world.chunks or config.rollout.chunks or 0) if isinstance(config, TrainConfig) else 0
        needed += world.num_envs * (each.acting + chunks * (each.pictures + 2 * each.context))
    check_environments(needed, config.env.num_envs)


def check_prompt(config: EvaluateConfig) -> None:
    """Another embodiment for the prompt must be one that the policy knows.

    Raises:
        UserError: it is not.
    """
    policy = QwenVLAPolicy.from_pretrained(config.policy.path, config.policy.backbone, with_backbone=False)
    for told in (config.told(label) for label in config.env.labels):
        if told is not None:
            policy.body(told)


def check_critic(job: TrainConfig) -> None:
    """A privileged critic judges one kind of state.

    Raises:
        UserError: the worlds have none in common.
    """
    check_state(job, shared_state(specs_of(job.env)))


def check_source(source: str | None, objective: ObjectiveSection) -> None:
    """Read the first stored round that a job would learn from offline.

    Raises:
        UserError: there is none, it is damaged, or it holds less than the objective needs.
    """
    if source is None:
        return
    first = rounds(Path(source))[0]
    stored = load_round(first)
    if objective.credit != "gae" and all(t.keys.group == 1 for t in stored):
        raise UserError(
            f"stored rounds hold no groups, and {objective.name} compares the episodes of a group",
            got=f"group size 1 in {first}", expected="rounds collected in groups",
            do=f"collect them with objective.name={objective.name} rollout.store=true",
        )  # fmt: skip
    if objective.advised and any(t.advised is None for t in stored):
        raise UserError(
            "stored rounds hold no advised contexts", got=str(first), expected="rounds collected for this objective",
            do=f"collect them with objective.name={objective.name} rollout.store=true",
        )  # fmt: skip


def check_checkpoint(config: TrainConfig, folder: Path) -> None:
    """Put the adapters of a checkpoint on the policy that they are to go on training on.

    Raises:
        UserError: they are damaged, or the policy is not the one that the run began with.
    """
    load_policy(config.policy.model_copy(update={"adapter": str(folder / "adapter")}), with_backbone=False)


def check_adapters(saved: TrainConfig, config: TrainConfig) -> None:
    """A run can only go on with the adapters that its checkpoint holds.

    Raises:
        UserError: names the settings that differ.
    """
    want = saved.lora.model_dump()
    changed = {name: value for name, value in config.lora.model_dump().items() if value != want[name]}
    if changed:
        raise UserError(
            "a run cannot be resumed with other adapters", got=f"lora {changed}",
            expected=f"lora { {name: want[name] for name in changed} }", do="leave lora out, or begin a new run",
        )  # fmt: skip


def _check_backbone(folder: Path) -> None:
    advice = "copy the checkpoint again from its source"
    files = sorted(folder.glob("*.safetensors"))
    if not (folder / "config.json").is_file() or not files:
        raise UserError(
            "policy has no backbone", got=f"no config.json with safetensors in {folder}",
            expected="a Qwen3.5 folder", do=f"{advice}, or set policy.backbone",
        )  # fmt: skip
    for path in files:
        try:
            with safe_open(path, "pt"):
                pass
        except (OSError, SafetensorError) as error:
            raise UserError(
                "backbone weights are damaged", got=f"{path}: {error}", expected="safetensors", do=advice
            ) from error
