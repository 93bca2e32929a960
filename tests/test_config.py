"""Settings: what loads, and what each kind of bad input is told."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
import yaml

from rl_finetune.config import EvaluateConfig, Section, SFTConfig, TrainConfig, describe, dump, find, load
from rl_finetune.config.describe import members, walk
from rl_finetune.config.files import FOLDER, merge
from rl_finetune.config.promotion import PromoteConfig
from rl_finetune.config.serving import ServeConfig
from rl_finetune.errors import UserError

SHIPPED = sorted(FOLDER.glob("*.yaml"))
OBJECTIVES = members(TrainConfig.model_fields["objective"])
STAGE = "stages=[{name: a, train: decoder, steps: 1}]"


def kind_of(file: Path) -> type[Section]:
    """The job that a shipped file is for, by its name."""
    kinds = {"evaluate": EvaluateConfig, "sft": SFTConfig, "promote": PromoteConfig, "serve": ServeConfig}
    return kinds.get(re.split("[-_]", file.stem)[0], TrainConfig)


def refused(*overrides: str, kind: type[Section] = TrainConfig, file: Path | None = None) -> str:
    """The one line that these settings are refused with."""
    with pytest.raises(UserError) as caught:
        load(kind, file, overrides)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("file", SHIPPED, ids=lambda file: file.stem)
def test_each_shipped_file_loads_and_survives_a_round_trip(file: Path, tmp_path: Path) -> None:
    config = load(kind_of(file), file)
    saved = tmp_path / "config.yaml"
    saved.write_text(dump(config))
    assert load(kind_of(file), saved) == config


def test_the_control_differs_from_the_main_job_in_the_learning_rate_alone() -> None:
    main, control = load(TrainConfig, "train").model_dump(), load(TrainConfig, "control").model_dump()
    assert control["optimizer"].pop("actor_lr") == 0.0 and main["optimizer"].pop("actor_lr") > 0
    assert control["run"].pop("folder") != main["run"].pop("folder")
    assert control == main


@pytest.mark.parametrize(
    ("text", "value"), [("5e-4", 5e-4), ("1E-4", 1e-4), ("+2.5e-1", 0.25), (".5", 0.5), ("1", 1.0), ("1_0.5", 10.5)]
)
def test_numbers_as_people_write_them(text: str, value: float, tmp_path: Path) -> None:
    file = tmp_path / "a.yaml"
    file.write_text(f"optimizer:\n  value_lr: {text}\n")
    assert load(TrainConfig, file).optimizer.value_lr == value
    assert load(TrainConfig, None, [f"optimizer.value_lr={text}"]).optimizer.value_lr == value


def test_text_that_other_readers_turn_into_dates_booleans_and_minutes_stays_text() -> None:
    for text in ("2024-01-01", "no", "on", "12:30", "007"):
        assert load(TrainConfig, None, [f"run.folder={text}"]).run.folder == text


def test_files_extend_one_another_and_overrides_come_last(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("run: {seed: 1, iterations: 7}\nenv: {options: {image_size: 32}}\n")
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub/b.yaml").write_text("extends: ../a.yaml\nrun: {seed: 2}\nenv: {options: {tolerance: 0.1}}\n")
    config = load(TrainConfig, tmp_path / "sub/b.yaml", ["run.iterations=8", "policy.adapter="])
    assert (config.run.seed, config.run.iterations, config.policy.adapter) == (2, 8, None)
    assert config.env.options == {"image_size": 32, "tolerance": 0.1}


def test_an_override_of_a_whole_mapping_replaces_it() -> None:
    assert load(TrainConfig, None, ["env.options.a=1", "env.options={b: 2}"]).env.options == {"b": 2}


def test_a_number_steps_into_a_list() -> None:
    config = load(SFTConfig, None, [STAGE, "stages.0.steps=9"])
    assert config.stages[0].steps == 9


def test_merging_leaves_both_sides_alone() -> None:
    under, over = {"a": {"b": [1], "c": 2}}, {"a": {"b": [3]}}
    merged = merge(under, over)
    merged["a"]["b"].append(4)
    assert (under, over) == ({"a": {"b": [1], "c": 2}}, {"a": {"b": [3]}})
    assert merged == {"a": {"b": [3, 4], "c": 2}}


@pytest.mark.parametrize(
    ("override", "parts"),
    [
        ("objective.clp=1", ["unknown setting 'objective.clp'", "got 1", "replay", "did you mean 'objective.clip'?"]),
        ("clip=0.1", ["unknown setting 'clip'", "did you mean 'objective.clip'?"]),
        ("optimiser.actor_lr=1", ["unknown setting 'optimiser'", "did you mean 'optimizer'?"]),
        ("zzz=1", ["unknown setting 'zzz'", "show-config --describe"]),
        ("optimizer.zzz=1", ["unknown setting 'optimizer.zzz'", "optimizer.{actor_lr, ", "show-config --describe"]),
        ("objective.clip=x", ["'objective.clip' has a wrong value", "got 'x'", "number > 0 and < 1"]),
        ("objective.clip=-5e-1", ["got -0.5", "number > 0 and < 1"]),
        ("objective.clip=", ["got null", "number > 0 and < 1"]),
        ("optimizer.actor_lr=.inf", ["got '.inf'", "number >= 0"]),
        ("run.resume=1", ["got 1", "true or false"]),
        ("env.num_envs=1.5", ["got 1.5", "whole number >= 1"]),
        ("env.num_envs=true", ["got true", "whole number >= 1"]),
        ("run.folder=5", ["got 5", "expected text", 'run.folder="5"']),
        ("run.wandb=offlin", ["got 'offlin'", "offline | online | disabled", "did you mean 'offline'?"]),
        ("lora.parts=[decodr]", ["'lora.parts.0'", "decoder | backbone", "did you mean 'decoder'?"]),
        ("learner.zero_stage=3", ["got 3", "1 | 2"]),
        ("run=5", ["'run'", "got 5", "a section of name: value pairs"]),
        ("optimizer.betas=[0.9]", ["'optimizer.betas", "list of 2 numbers"]),
        ("objective.minibatch=7", ["impossible combination at 'objective.minibatch': got 7", "num_learners = 2"]),
        ("exploration.sde_step=9", ["impossible combination at 'exploration.sde_step'", "rollout.denoising_steps"]),
        ("exploration.levels=[1, x, 1, 1]", ["'exploration.levels.1'", "got 'x'", "list of numbers, or null"]),
        ("rollout.noise_level=1", ["unknown setting 'rollout.noise_level'", "did you mean 'exploration.noise_level'?"]),
        ("ppo.clip=0.1", ["unknown setting 'ppo'", "did you mean 'objective.name=ppo'?"]),
        ("run.seed", ["override without", "got 'run.seed'", "key=value"]),
        ("=3", ["override without", "got '=3'"]),
        ("run..seed=3", ["override without", "got 'run..seed=3'"]),
        ("run.seed.x=3", ["run.seed is a single setting", "expected run.seed=value"]),
        ("objective.clip=[", ["override 'objective.clip' is not valid YAML"]),
    ],
)  # fmt: skip
def test_a_bad_override_is_told_what_got_expected_and_what_to_do(
    override: str, parts: list[str], tmp_path: Path
) -> None:
    file = tmp_path / "a.yaml"
    file.write_text("run: {seed: 0}\n")
    line = refused(override, file=file)
    assert all(part in line for part in parts), line


@pytest.mark.parametrize(
    ("overrides", "told"),
    [
        (
            ["objective.name=grpp"],
            "setting 'objective.name' has a wrong value: got 'grpp'; expected ppo | decoupled_ppo | grpo | rloo | "
            "diffusion_nft | step_nft | fpo | fpo_plus | recap; did you mean 'grpo'?",
        ),
        (["objective.name="], "setting 'objective.name' has a wrong value: got null; expected ppo | "),
        (["objective.name=[grpo]"], "setting 'objective.name' has a wrong value: got ['grpo']; expected ppo | "),
        (
            ["objective=grpo"],
            "setting 'objective' has a wrong value: got 'grpo'; expected a section of name: value pairs; "
            "did you mean 'objective.name=grpo'?",
        ),
        (["objective=5"], "setting 'objective' has a wrong value: got 5; expected a section of name: value pairs; "),
        (
            ["objective.name=grpo", "objective.beta=1"],
            "unknown setting 'objective.beta': got 1; expected one of objective.{name, gamma, time_limit, lam, epochs, "
            "minibatch, normalise_advantages, group_size, replay, clip, dual_clip, log_ratio_clamp, ratio_length}; "
            "objective.name=diffusion_nft or step_nft has it",
        ),
        (["objective.quantile=0.9"], "objective.name=recap has it"),
        (["objective.name=grpo", "objective.dual_clp=2"], "did you mean 'objective.dual_clip'?"),
        (["objective.name=grpo", "objective.zzz=2"], "see `rl-finetune show-config --describe`"),
        (["objective.name=fpo", "objective.dual_clip=2"], "objective.{name, gamma, "),
        (["objective.name=fpo", "objective.dual_clip=2"], "objective.name=ppo or decoupled_ppo or grpo or rloo has it"),
        (
            ["objective.clip=2"],
            "setting 'objective.clip' has a wrong value: got 2; expected number > 0 and < 1; correct it",
        ),
        (
            ["objective.name=rloo", "objective.dual_clip=1"],
            "setting 'objective.dual_clip' has a wrong value: got 1; expected number > 1, or null; correct it",
        ),
        (["objective.name=rloo", "objective.group_size=1"], "'objective.group_size' has a wrong value: got 1; "),
        (["objective.name=grpo", "env.num_envs=x", "objective.gama=1"], "'objective.gamma'? (and 1 more)"),
    ],
)  # fmt: skip
def test_a_bad_setting_of_an_objective_is_told_in_that_objectives_terms(overrides: list[str], told: str) -> None:
    assert told in refused(*overrides)


@pytest.mark.parametrize(
    ("field", "got", "overrides"),
    [
        ("env.num_envs", "1; expected at least rollout.num_actors = 2", ["env.num_envs=1"]),
        ("objective.minibatch", "514; expected at most", ["objective.minibatch=514", "rollout.chunks=4"]),
        ("objective.minibatch", "129; expected a multiple of", ["objective.minibatch=129"]),
        ("rollout.denoising_steps", "1; expected at least 2", ["rollout.denoising_steps=1"]),
        ("lora.parts", "[]", ["lora.parts=[]"]),
        ("exploration.sde_step", "4; expected less than", ["exploration.sde_step=4"]),
        ("exploration.correlation", "{'gr1': 0.5}; expected none for the law flow_noise", [
            "exploration.law=flow_noise", "exploration.correlation={gr1: 0.5}",
        ]),
        ("exploration.correlation", "{'gr1': 0.5}; expected none for the law flow_sde with step_nft", [
            "objective.name=step_nft", "exploration.correlation={gr1: 0.5}",
        ]),
        ("exploration.correlation", "{'gr1': 1.0}; expected numbers", ["exploration.correlation={gr1: 1.0}"]),
        ("exploration.levels", "[1.0]; expected one number for each", ["exploration.levels=[1]"]),
        ("exploration.levels", "[]; expected one number for each", ["exploration.levels=[]"]),
        ("exploration.odds", "[1.0, 1.0, 1.0]; expected one number for each", ["exploration.odds=[1, 1, 1]"]),
        ("exploration.levels", "[-1.0, 1.0, 1.0, ", ["exploration.levels=[-1,1,1,1]", "exploration.odds=[0,1,1,1]"]),
        ("exploration.odds", "[-1.0, 1.0, 1.0, 1.0]", ["exploration.odds=[-1, 1, 1, 1]"]),
        ("exploration.odds", "[0.0, 0.0, 0.0, 0.0]", ["exploration.odds=[0, 0, 0, 0]"]),
        ("exploration.levels", "[0.0, 1.0, 1.0, 1.0]; expected above 0 at every", ["exploration.levels=[0, 1, 1, 1]"]),
        ("exploration.std_min", "0.16; expected below", ["exploration.std_min=0.16"]),
        ("exploration.law", "ode; expected a stochastic law", ["exploration.law=ode"]),
        ("exploration.law", "ode; expected flow_sde or", ["objective.name=step_nft", "exploration.law=ode"]),
        ("exploration.law", "flow_noise; expected flow_sde", ["objective.name=step_nft", "exploration.law=flow_noise"]),
        ("objective.group_size", "3; expected a divisor of", ["objective.group_size=3"]),
        ("objective.group_size", "8; expected a divisor of", ["objective.name=grpo", "env.num_envs=100"]),
        (
            "exploration.temperature", "0.0; expected above 0",
            ["objective.name=diffusion_nft", "exploration.law=ode", "exploration.temperature=0"],
        ),
        ("critic.kind", "linear; expected none", ["objective.name=grpo", "critic.kind=linear"]),
        ("critic.kind", "privileged; expected none", ["objective.name=rloo", "critic.kind=privileged"]),
        ("regularisers.entropy", "0.1; expected 0 unless", ["regularisers.entropy=0.1"]),
        ("regularisers.kl", "0.1; expected 0", ["objective.name=fpo", "regularisers.kl=0.1"]),
        ("objective.replay", "2; expected 1", ["objective.replay=2"]),
        ("rollout.source", "runs/a; expected null", ["rollout.source=runs/a"]),
        ("run.seed", "7; expected another than evaluation.seed", ["run.seed=7", "evaluation.seed=7"]),
        ("lora.parts", "['backbone', 'decoder']", ["objective.name=recap", "lora.parts=[backbone, decoder]"]),
    ],
)  # fmt: skip
def test_impossible_combinations_name_the_setting(field: str, got: str, overrides: list[str]) -> None:
    assert f"impossible combination at {field!r}: got {got}" in refused(*overrides)


@pytest.mark.parametrize(
    ("field", "got"),
    [("env.num_envs", "64"), ("env.workers", "2"), ("env.patience", "9.0"), ("env.mix.1.chunks", "5")],
)
def test_supervised_training_refuses_what_it_does_not_read(field: str, got: str) -> None:
    mix = "env.mix=[{name: widowx_reach, share: 3}, {name: rover_navigate}]"
    assert load(SFTConfig, None, [STAGE, mix]).env.shares == (3.0, 1.0)
    assert f"impossible combination at {field!r}: got {got}; expected" in refused(
        STAGE, mix, f"{field}={got}", kind=SFTConfig
    )


@pytest.mark.parametrize(
    "overrides",
    [
        ["env.num_envs=2", "objective.minibatch=8"],
        ["objective.minibatch=512"],
        ["rollout.denoising_steps=2", "exploration.sde_step=1"],
        ["exploration.levels=[0, 1, 1, 1]", "exploration.odds=[0, 1, 1, 1]"],
        ["exploration.law=flow_noise", "regularisers.entropy=0.1"],
        ["objective.name=diffusion_nft", "exploration.law=ode"],
        ["objective.name=fpo", "exploration.law=ode", "exploration.temperature=0"],
        ["objective.name=grpo", "exploration.temperature=0"],
        ["objective.name=step_nft", "exploration.law=calibrated", "regularisers.kl=0.1"],
        ["objective.name=grpo", "critic.kind=none"],
        ["objective.name=fpo", "objective.replay=2", "rollout.source=runs/a"],
        ["critic.kind=privileged", "lora.parts=[decoder, backbone]"],
    ],
    ids=" ".join,
)
def test_what_is_next_to_the_impossible_is_possible(overrides: list[str]) -> None:
    load(TrainConfig, None, overrides)


@pytest.mark.parametrize("name", OBJECTIVES)
def test_each_objective_loads_by_its_name_and_survives_a_round_trip(name: str, tmp_path: Path) -> None:
    saved = tmp_path / "config.yaml"
    for file in (None, "train", "smoke"):
        config = load(TrainConfig, file, [f"objective.name={name}", "objective.gamma=0.5"])
        assert type(config.objective) is OBJECTIVES[name]
        assert (config.objective.name, config.objective.gamma) == (name, 0.5)
        saved.write_text(dump(config))
        assert load(TrainConfig, saved) == config


def test_settings_of_an_objective_without_a_name_are_those_of_ppo() -> None:
    objective = load(TrainConfig, None, ["objective.dual_clip=", "objective.clip=0.1"]).objective
    assert objective == OBJECTIVES["ppo"](clip=0.1, dual_clip=None)


def test_more_than_one_problem_is_counted_and_unknown_names_come_first() -> None:
    line = refused("objective.clip=9", "run.seeed=1", "env.num_envs=0")
    assert "run.seeed" in line and "(and 2 more)" in line


def test_missing_settings_and_entries_of_lists() -> None:
    assert "'stages' is missing" in refused(kind=SFTConfig)
    assert "'stages.0.steps' is missing" in refused("stages=[{name: a, train: decoder}]", kind=SFTConfig)
    assert "stages has no entry '3'" in refused(STAGE, "stages.3.steps=1", kind=SFTConfig)
    assert "did you mean 'stages.0.steps'?" in refused(STAGE, "stages.0.step=1", kind=SFTConfig)


def test_names_of_config_files() -> None:
    assert find("train") == FOLDER / "train.yaml"
    with pytest.raises(UserError, match=r"no such config file: got 'trian'; expected .*'train'"):
        find("trian")


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("run: [", ["is not valid YAML", "line"]),
        ("run: {seed: 1}\nrun: {seed: 2}\n", ["key 'run' stands twice", "line 2"]),
        ("- 1\n", ["is no list of settings", "name: value pairs"]),
        ("extends: a.yaml\n", ["in a circle", "a.yaml -> a.yaml"]),
        ("extends: [b.yaml]\n", ["`extends`", "names no file"]),
        ("extends: b.yaml\n", ["b.yaml, which a.yaml extends, cannot be read", "No such file"]),
        ("\x00", ["is not valid YAML"]),
    ],
)
def test_bad_files(text: str, parts: list[str], tmp_path: Path) -> None:
    file = tmp_path / "a.yaml"
    file.write_text(text)
    line = refused(file=file)
    assert all(part in line for part in parts), line


def test_a_file_that_is_not_text(tmp_path: Path) -> None:
    file = tmp_path / "a.yaml"
    file.write_bytes(b"\xff\xfe\x00")
    assert "not UTF-8 text" in refused(file=file)


@pytest.mark.parametrize("kind", [TrainConfig, EvaluateConfig, SFTConfig])
def test_every_setting_has_a_sentence_and_is_described(kind: type[Section]) -> None:
    text = describe(kind)
    for name, field, _ in walk(kind):
        assert field.description and field.description.rstrip().endswith("."), name
        assert f"\n{name}  (" in text


def test_what_only_some_objectives_have_is_described_with_their_names() -> None:
    blocks = describe(TrainConfig).split("\n\n")
    chooser = next(block for block in blocks if block.startswith("objective.name  ("))
    assert chooser.startswith(f"objective.name  ({' | '.join(OBJECTIVES)}; default ppo)\n    What is learned from")
    assert "\n    `rloo`: Clipped ratio, advantage against the mean of the others" in chooser
    gamma = "objective.gamma  (number > 0 and <= 1; default 0.95)\n    Discount per second of the robot's time"
    assert any(block.startswith(gamma) for block in blocks)
    heads = [block.splitlines()[0] for block in blocks if block.startswith("objective.clip ")]
    assert heads == [
        "objective.clip  (number > 0 and < 1; default 0.2; with ppo, decoupled_ppo, grpo, rloo)",
        "objective.clip  (number > 0 and < 1; default 0.05; with fpo)",
        "objective.clip  (number > 0 and < 1; default 0.05; with fpo_plus)",
    ]


@pytest.mark.parametrize("name", OBJECTIVES)
def test_the_described_defaults_are_the_ones_in_force(name: str) -> None:
    config = yaml.safe_load(dump(load(TrainConfig, None, [f"objective.name={name}"])))
    settings = [s for s in walk(TrainConfig) if ".N." not in s.name]  # entries of a list have no default in force
    described = {s.name: s.field for s in settings if not s.only or name in s.only}
    assert {s.removeprefix("objective.") for s in described if s.startswith("objective.")} == set(config["objective"])
    for setting, field in described.items():
        value = config
        for key in setting.split("."):
            value = value[key]
        default = name if setting == "objective.name" else field.get_default(call_default_factory=True)
        assert value == (list(default) if isinstance(default, tuple) else default), setting


def test_each_objective_has_one_variant_of_a_setting() -> None:
    for name in OBJECTIVES:
        settings = [s.name for s in walk(TrainConfig) if not s.only or name in s.only]
        assert len(settings) == len(set(settings))


def test_every_training_of_the_readme_is_possible() -> None:
    lines = (Path(__file__).parents[1] / "README.md").read_text().replace("\\\n", " ").splitlines()
    trainings = [shlex.split(line, comments=True)[2:] for line in lines if line.startswith("rl-finetune train ")]
    settings = [[word for word in words if "=" in word] for words in trainings if "--resume" not in words]
    assert len(settings) > 7
    names = {load(TrainConfig, "train", overrides).objective.name for overrides in settings}
    assert {"ppo", "grpo", "fpo", "recap", "decoupled_ppo"} <= names
