"""Settings: what loads, and what each kind of bad input is told."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from rl_finetune.config import EvaluateConfig, Section, SFTConfig, TrainConfig, describe, dump, find, load
from rl_finetune.config.describe import walk
from rl_finetune.config.files import FOLDER, merge
from rl_finetune.errors import UserError

SHIPPED = sorted(FOLDER.glob("*.yaml"))
STAGE = "stages=[{name: a, train: decoder, steps: 1}]"


def kind_of(file: Path) -> type[Section]:
    """The job that a shipped file is for, by its name."""
    return {"evaluate": EvaluateConfig, "sft": SFTConfig}.get(file.stem.split("-")[0], TrainConfig)


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
        ("ppo.clp=1", ["unknown setting 'ppo.clp'", "got 1", "minibatch", "did you mean 'ppo.clip'?"]),
        ("clip=0.1", ["unknown setting 'clip'", "did you mean 'ppo.clip'?"]),
        ("optimiser.actor_lr=1", ["unknown setting 'optimiser'", "did you mean 'optimizer'?"]),
        ("zzz=1", ["unknown setting 'zzz'", "show-config --describe"]),
        ("ppo.clip=x", ["'ppo.clip' has a wrong value", "got 'x'", "number > 0 and < 1"]),
        ("ppo.clip=-5e-1", ["got -0.5", "number > 0 and < 1"]),
        ("ppo.clip=", ["got null", "number > 0 and < 1"]),
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
        ("ppo.minibatch=7", ["impossible combination at 'ppo.minibatch'", "got 7", "learner.num_learners = 2"]),
        ("rollout.sde_step=9", ["impossible combination at 'rollout.sde_step'", "rollout.denoising_steps"]),
        ("run.seed", ["override without", "got 'run.seed'", "key=value"]),
        ("=3", ["override without", "got '=3'"]),
        ("run..seed=3", ["override without", "got 'run..seed=3'"]),
        ("run.seed.x=3", ["run.seed is a single setting", "expected run.seed=value"]),
        ("ppo.clip=[", ["override 'ppo.clip' is not valid YAML"]),
    ],
)  # fmt: skip
def test_a_bad_override_is_told_what_got_expected_and_what_to_do(
    override: str, parts: list[str], tmp_path: Path
) -> None:
    file = tmp_path / "a.yaml"
    file.write_text("run: {seed: 0}\n")
    line = refused(override, file=file)
    assert all(part in line for part in parts), line


def test_more_than_one_problem_is_counted_and_unknown_names_come_first() -> None:
    line = refused("ppo.clip=9", "run.seeed=1", "env.num_envs=0")
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
    for name, field in walk(kind):
        assert field.description and field.description.rstrip().endswith("."), name
        assert f"\n{name}  (" in text


def test_the_described_defaults_are_the_ones_in_force() -> None:
    config = yaml.safe_load(dump(TrainConfig()))
    for name, field in walk(TrainConfig):
        value = config
        for key in name.split("."):
            value = value[key]
        default = field.get_default(call_default_factory=True)
        assert value == (list(default) if isinstance(default, tuple) else default), name
