"""An adapter acts on the policy that it was trained on, as it was trained to, or it is refused in one line."""

from __future__ import annotations

import json
import pickle
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from builders import episode_keys, observations, origin, tiny_policy, trajectory
from bundles import sealed
from safetensors.torch import load_file, save_file
from tolerance import assert_rounded_alike

import envs
from actors.player import Player
from learners.advantages import score
from learners.learner import Learner
from learners.update import run_update
from rl_finetune import checkpoint
from rl_finetune.cli import main
from rl_finetune.config import dump
from rl_finetune.config.schema import EvaluationSection, LoraSection, PolicySection, RolloutSection, TrainConfig
from rl_finetune.errors import UserError
from rl_finetune.policy import QwenVLAPolicy
from rl_finetune.policy import identity as identities
from rl_finetune.policy.adapter_files import PEFT_CONFIG, PEFT_WEIGHTS, origin_of
from rl_finetune.policy.adapters import add_adapters, equip, save_adapters
from rl_finetune.policy.identity import base_of
from rl_finetune.policy.loading import load_policy
from rl_finetune.promotion.registry.bundle import make_bundle, open_bundle
from rl_finetune.promotion.registry.contents import Acted, Provenance
from rl_finetune.types import Observation

BOTH = LoraSection(parts=["decoder", "backbone"], rank=2)
Q_A = "base_model.model.blocks.0.q_proj.lora_A.weight"


def moved(policy: QwenVLAPolicy) -> QwenVLAPolicy:
    """Adapters that change something."""
    rng = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for name, parameter in policy.named_parameters():
            if "lora_B" in name:
                parameter.copy_(0.1 * torch.randn(parameter.shape, generator=rng))
    return policy


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A policy on disk."""
    folder = tmp_path_factory.mktemp("base") / "policy"
    tiny_policy().save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def whole(base: Path) -> Path:
    """An adapter of decoder and backbone for it."""
    policy = moved(add_adapters(QwenVLAPolicy.from_pretrained(base), BOTH, seed=1))
    save_adapters(policy, base.parent / "adapter", origin(base))
    return base.parent / "adapter"


@pytest.fixture
def adapter(whole: Path, tmp_path: Path) -> Path:
    """A copy of it that a test may damage."""
    return Path(shutil.copytree(whole, tmp_path / "adapter"))


def section(base: Path, adapter: Path | None = None, **others: Any) -> PolicySection:
    return PolicySection(path=str(base), adapter=None if adapter is None else str(adapter), **others)


def actions(policy: QwenVLAPolicy) -> np.ndarray:
    keys, zero = episode_keys(2), np.zeros(2, np.int64)
    return policy.act(policy.look(observations(2)), keys, zero, policy.body("widowx"), 0.6).actions


# ---- which policy it belongs to


def test_an_adapter_fits_a_copy_of_its_policy_and_acts_there_as_it_did(base: Path, whole: Path, tmp_path: Path) -> None:
    wanted = actions(moved(add_adapters(QwenVLAPolicy.from_pretrained(base), BOTH, seed=1)).eval())
    copied = Path(shutil.copytree(base, tmp_path / "elsewhere"))
    again = Path(shutil.copytree(whole, tmp_path / "adapter"))
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        for asked in (
            section(base, whole),
            section(copied, again),
            section(base, whole, backbone=f"{copied}/backbone"),
        ):
            assert_rounded_alike(actions(load_policy(asked)), wanted)
    assert np.abs(actions(load_policy(section(base))) - wanted).max() > 1e-3


def scaled(path: Path, name: str) -> None:
    state = load_file(path)
    key = next(key for key in sorted(state, reverse=True) if key.endswith(name))
    state[key] = state[key] * 1.01
    save_file(state, path, metadata={"format": "pt"})


def replaced(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))


@pytest.mark.parametrize(
    ("change", "differs"),
    [
        (lambda f: scaled(f / "model.safetensors", "blocks.0.q_proj.weight"), "policy"),
        (lambda f: replaced(f / "normalisation.json", "-0.1", "-0.11"), "policy"),
        (lambda f: replaced(f / "config.json", '"rope_fraction": 0.25', '"rope_fraction": 0.5'), "policy"),
        (lambda f: scaled(f / "backbone" / "model.safetensors", "norm.weight"), "backbone"),
        (lambda f: replaced(f / "backbone" / "config.json", '"head_dim": 32', '"head_dim": 16'), "backbone"),
        (lambda f: replaced(f / "backbone" / "tokenizer.json", "<|ego_start|>", "<|ego_begin|>"), "backbone"),
        (lambda f: replaced(f / "config.json", '"max_context_tokens": 60', '"max_context_tokens": 90'), "nothing"),
        (lambda f: replaced(f / "config.json", '"num_steps": 4', '"num_steps": 5'), "nothing"),
    ],
    ids=["weights", "normalisation", "config", "backbone weights", "backbone config", "words", "room", "steps"],
)  # fmt: skip
def test_a_base_is_known_by_everything_that_an_adapter_depends_on(
    base: Path, whole: Path, tmp_path: Path, change: Callable[[Path], None], differs: str
) -> None:
    other = Path(shutil.copytree(base, tmp_path / "other"))
    change(other)
    mine, theirs = base_of(section(base)), base_of(section(other))
    found = [name for name in ("policy", "backbone") if getattr(mine, name) != getattr(theirs, name)]
    assert found == ([] if differs == "nothing" else [differs])
    if differs == "nothing":
        load_policy(section(other, whole), with_backbone=False)
        return
    with pytest.raises(UserError, match=rf"trained on another policy: got .*of {base}; expected .* of {other};"):
        load_policy(section(other, whole), with_backbone=False)


def test_another_backbone_is_another_base(base: Path, whole: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    tiny_policy(seed=1).save_pretrained(other)
    with pytest.raises(UserError, match=rf"got .*backbone .* of {base}; expected backbone .* with backbone {other}"):
        load_policy(section(base, whole, backbone=f"{other}/backbone"))
    swapped = moved(add_adapters(QwenVLAPolicy.from_pretrained(base, f"{other}/backbone"), BOTH, seed=1)).eval()
    save_adapters(swapped, tmp_path / "adapter", origin_of(section(base, backbone=f"{other}/backbone")))
    loaded = load_policy(section(base, tmp_path / "adapter", backbone=f"{other}/backbone"))
    assert_rounded_alike(actions(loaded), actions(swapped))
    with pytest.raises(UserError, match="trained on another policy"):
        load_policy(section(base, tmp_path / "adapter"))
    kept = make_bundle(
        base, tmp_path / "bundle", name="b", provenance=Provenance("x"), adapter=tmp_path / "adapter", merge=False,
        backbone=f"{other}/backbone",
    )  # fmt: skip
    assert_rounded_alike(actions(kept.load()), actions(swapped))


def test_large_tensors_are_told_apart_by_samples_and_shards_do_not_matter(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(identities, "WHOLE_BYTES", 1 << 12)
    monkeypatch.setattr(identities, "BLOCK_BYTES", 1 << 8)
    other = Path(shutil.copytree(base, tmp_path / "other"))
    path = other / "backbone" / "model.safetensors"
    state = load_file(path)
    half = len(state) // 2
    for number, names in enumerate((sorted(state)[:half], sorted(state)[half:])):
        save_file({name: state[name] for name in names}, path.with_name(f"model-{number}.safetensors"))
    path.unlink()
    assert base_of(section(other)).backbone == base_of(section(base)).backbone
    large = next(name for name in sorted(state) if state[name].shape[0] >= 512)
    for row, seen in ((0, True), (-1, True), (3, False)):  # the first and last block, and a row between two
        changed = state[large].clone()
        changed[row] += 1
        save_file(state | {large: changed}, path)
        for shard in path.parent.glob("model-*"):
            shard.unlink()
        assert (base_of(section(other)).backbone != base_of(section(base)).backbone) == seen


# ---- whatever is wrong with its files


def rewritten(change: Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]]) -> Callable[[Path], None]:
    def damage(adapter: Path) -> None:
        path = adapter / "decoder" / PEFT_WEIGHTS
        save_file({name: tensor.contiguous() for name, tensor in change(load_file(path)).items()}, path)

    return damage


def with_one(value: Callable[[torch.Tensor], torch.Tensor]) -> Callable[[Path], None]:
    return rewritten(lambda state: state | {Q_A: value(state[Q_A])})


def settings(file: str, **changes: Any) -> Callable[[Path], None]:
    def damage(adapter: Path) -> None:
        path = adapter / file
        path.write_text(json.dumps(json.loads(path.read_text()) | changes))

    return damage


def lora(**changes: Any) -> Callable[[Path], None]:
    return settings(f"decoder/{PEFT_CONFIG}", **changes)


def put(name: str, text: str) -> Callable[[Path], None]:
    return lambda adapter: (adapter / name).write_text(text) and None


class Hostile:
    """What runs where it is unpickled."""

    def __reduce__(self) -> tuple[Any, ...]:
        return exec, ("raise SystemExit('unpickled')",)


def pickled(adapter: Path) -> None:
    (adapter / "decoder" / PEFT_WEIGHTS).unlink()
    (adapter / "decoder" / "adapter_model.bin").write_bytes(pickle.dumps(Hostile()))


def value_head(**tensors: torch.Tensor) -> Callable[[Path], None]:
    return lambda adapter: save_file(tensors, adapter / "value_head.safetensors")


DAMAGES: dict[str, tuple[Callable[[Path], Any], str]] = {
    "prefix module.": (rewritten(lambda s: {f"module.{k}": t for k, t in s.items()}), "module.base_model.model."),
    "no prefix": (rewritten(lambda s: {k.removeprefix("base_model.model."): t for k, t in s.items()}), "blocks.0."),
    "missing tensor": (rewritten(lambda s: {k: t for k, t in s.items() if k != Q_A}), f"got .*: no {Q_A}"),
    "unexpected tensor": (rewritten(lambda s: s | {"extra": torch.zeros(1)}), "got .*extra of shape"),
    "other shape": (with_one(lambda t: t[:1]), r"of shape \[1, 128\]; expected shape \[2, 128\]"),
    "no numbers": (with_one(lambda t: t * torch.nan), f"{Q_A} .* that is not finite"),
    "infinite": (with_one(lambda t: t / 0), f"{Q_A} .* that is not finite"),
    "whole numbers": (with_one(lambda t: t.to(torch.int8)), "of torch.int8"),
    "nothing": (rewritten(lambda s: {}), "no base_model.model."),
    "truncated": (lambda a: truncate(a / "decoder" / PEFT_WEIGHTS), "expected safetensors"),
    "pickled": (pickled, "adapter_model.bin, which may hold code and is never read"),
    "fewer targets": (lora(target_modules=["q_proj"]), "down_proj.lora_A.weight of .* only names like .*q_proj"),
    "more targets": (lora(target_modules=[*BOTH.decoder_targets, "out_adaln"]), "no base_model.model.out_adaln.lora_A"),
    "unknown targets": (lora(target_modules=["query"]), "NoMatchingPeftModuleError: .*query"),
    "targets by pattern": (lora(target_modules="all-linear"), "target_modules 'all-linear'"),
    "DoRA": (lora(use_dora=True), "use_dora True; expected False, as for plain LoRA"),
    "rsLoRA": (lora(use_rslora=True), "use_rslora True"),
    "ranks by layer": (lora(rank_pattern={"q_proj": 1}), "rank_pattern"),
    "other method": (lora(peft_type="IA3"), "peft_type 'IA3'"),
    "trained bias": (lora(bias="all"), "bias 'all'"),
    "setting of the future": (lora(use_new=True), "use_new True"),
    "rank as text": (lora(r="16"), "r '16'; expected a positive whole number"),
    "other rank": (lora(r=4), r"of shape \[2, 256\]; expected shape \[4, 256\]"),
    "no scale": (lora(lora_alpha=float("nan")), "lora_alpha nan"),
    "no object": (put(f"decoder/{PEFT_CONFIG}", "[1]"), "list in place of an object"),
    "nested": (put(f"decoder/{PEFT_CONFIG}", "[" * 100_000), "expected a JSON object"),
    "no config": (lambda a: (a / "decoder" / PEFT_CONFIG).unlink(), "expected a JSON object"),
    "no decoder": (lambda a: shutil.rmtree(a / "decoder"), "no decoder/; expected the parts"),
    "no backbone": (lambda a: shutil.rmtree(a / "backbone"), "no backbone/; expected the parts"),
    "backbone's tensors": (lambda a: shutil.copy(a / "decoder" / PEFT_WEIGHTS, a / "backbone"), "blocks.0"),
    "no value head": (lambda a: (a / "value_head.safetensors").unlink(), "value_head.safetensors: .*"),
    "other value head": (value_head(weight=torch.zeros(1, 64), bias=torch.zeros(1)), r"\[1, 64\]; expected .*128"),
    "value head's name": (value_head(weight=torch.zeros(1, 128)), "no bias"),
    "sick value head": (value_head(weight=torch.zeros(1, 128), bias=torch.tensor([torch.inf])), "not finite"),
    "no record": (lambda a: (a / "adapter.json").unlink(), "no adapter.json; .*train the adapter again"),
    "foreign record": (settings("adapter.json", format="other"), '"format" is not'),
    "steps as text": (settings("adapter.json", denoising_steps="8"), "denoising_steps '8'"),
    "no steps": (settings("adapter.json", denoising_steps=0), "denoising_steps 0"),
    "endless guidance": (settings("adapter.json", guidance=float("inf")), "guidance inf"),
    "strange part": (settings("adapter.json", parts=["decoder", "backbone", "eyes"]), "parts .*eyes"),
    "lost start": (settings("adapter.json", started=True), "no start/"),
    "more in the record": (settings("adapter.json", more=1), "TypeError: .*more"),
}  # fmt: skip


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


@pytest.mark.parametrize("name", DAMAGES)
def test_an_adapter_that_is_not_as_it_was_saved_is_refused(name: str, base: Path, adapter: Path) -> None:
    damage, says = DAMAGES[name]
    damage(adapter)
    with pytest.raises(UserError, match=says) as caught:
        load_policy(section(base, adapter), with_backbone="backbone" in name)
    assert str(adapter) in str(caught.value) and "adapter does not fit this policy" in str(caught.value)


def without_numbers(adapter: Path) -> None:
    DAMAGES["no numbers"][0](adapter)


def run_that_stopped(base: Path, adapter: Path, home: Path) -> list[str]:
    """A run folder with a checkpoint that holds the adapter, and the words that go on."""
    job = TrainConfig(policy=section(base), lora=BOTH, run={"folder": str(home / "run")})  # type: ignore[arg-type]
    state = checkpoint.RunState(1, 1, 8, 0.1, 0, (), job.learner.num_learners)

    def write(folder: str) -> None:
        shutil.copytree(adapter, Path(folder) / "adapter")
        checkpoint.complete(Path(folder), state)

    (home / "run").mkdir()
    (home / "run" / "config.yaml").write_text(dump(job))
    checkpoint.save(home / "run", 1, write)
    return ["train", "--resume", str(home / "run")]


def served(base: Path, adapter: Path, home: Path) -> list[str]:
    """A bundle whose adapter was damaged before its manifest was written, and the words that serve it."""
    whole = Path(shutil.copytree(base.parent / "adapter", home / "whole"))
    bundle = make_bundle(
        base, home / "bundle", name="b", provenance=Provenance("x"), adapter=whole, merge=False, acted=Acted(64, 0.6)
    )
    without_numbers(bundle.folder / "adapter")
    sealed(bundle.folder)
    return ["serve", f"bundle={bundle.folder}", "serve.network.port=0"]


COMMANDS: dict[str, Callable[[Path, Path, Path], list[str]]] = {
    "train": lambda p, a, h: ["train", f"policy.path={p}", f"policy.adapter={a}", f"run.folder={h}/run"],
    "resume": run_that_stopped,
    "evaluate": lambda p, a, h: ["evaluate", f"policy.path={p}", f"policy.adapter={a}"],
    "judge": lambda p, a, h: ["promote", f"candidate.path={p}", f"candidate.adapter={a}", f"folder={h}/c"],
    "bundle": lambda p, a, h: ["promote", "bundle", f"candidate.path={p}", f"candidate.adapter={a}", f"folder={h}/c"],
    "bundle, kept": lambda p, a, h: [*COMMANDS["bundle"](p, a, h), "bundle.merge=false"],
    "serve": served,
}


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_refuses_it_in_one_line(
    name: str, base: Path, adapter: Path, tmp_path: Path, capfd: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    without_numbers(adapter)
    monkeypatch.chdir(tmp_path)
    words = COMMANDS[name](base, adapter, tmp_path)
    capfd.readouterr()
    code = main(words)
    output, error = capfd.readouterr()
    assert code == 2 and output == "", error
    assert error.startswith("error: adapter does not fit this policy: got ") and error.count("\n") == 1, error
    assert f"decoder/{PEFT_WEIGHTS}: {Q_A}" in error


# ---- an adapter that was trained on another adapter


def test_an_adapter_brings_the_one_that_it_was_trained_on(base: Path, whole: Path, tmp_path: Path) -> None:
    first = Path(shutil.copytree(whole, tmp_path / "first"))
    begun = origin_of(section(base, first))
    policy = load_policy(section(base, first), merge=True)
    policy = moved(add_adapters(policy, LoraSection(rank=4), seed=7)).eval()
    save_adapters(policy, tmp_path / "second", begun)
    wanted = actions(policy)
    shutil.rmtree(first)
    loaded = load_policy(section(base, tmp_path / "second"))
    assert_rounded_alike(actions(loaded), wanted)
    kept = make_bundle(
        base, tmp_path / "bundle", name="b", provenance=Provenance("x"), adapter=tmp_path / "second", merge=False
    )
    assert_rounded_alike(actions(kept.load()), wanted)


# ---- how it acts


class Calls:
    """Decoder passes of a policy."""

    def __init__(self, policy: QwenVLAPolicy) -> None:
        self.number = 0
        policy.decoder.register_forward_hook(self._count)

    def _count(self, *_: Any) -> None:
        self.number += 1


def test_what_was_trained_with_eight_steps_acts_with_eight(base: Path, tmp_path: Path) -> None:
    job = TrainConfig(policy=section(base), lora=LoraSection(rank=2), rollout=RolloutSection(denoising_steps=8))
    policy = equip(QwenVLAPolicy.from_pretrained(base), job, 0)
    calls = Calls(policy)
    actions(policy)
    assert calls.number == 8, "evaluations and films of the run itself"
    save_adapters(moved(policy), tmp_path / "adapter", origin(base))
    bundles = [
        make_bundle(
            base, tmp_path / f"bundle-{merge}", name="b", provenance=Provenance("x"), adapter=tmp_path / "adapter",
            merge=merge,
        )
        for merge in (True, False)
    ]  # fmt: skip
    player = Player(section(base, tmp_path / "adapter"), [], EvaluationSection())
    acting = [load_policy(section(base, tmp_path / "adapter")), *(b.load() for b in bundles), player.policy]
    for other in acting:
        calls = Calls(other)
        actions(other)
        assert calls.number == 8
    plain = load_policy(section(base))
    calls = Calls(plain)
    actions(plain)
    assert calls.number == plain.config.num_steps == 4


# ---- room in the prompt

LONG = "widowx_pick"


def longest(policy: QwenVLAPolicy) -> Observation:
    """Pictures with the longest task of a contact world, as often as a test wants rows."""
    seen, tasks = observations(8), envs.spec(LONG).tasks
    words = max(tasks, key=lambda task: len(policy.eyes.tokenizer(task)["input_ids"]))
    return Observation(seen.images, (words,) * 8, seen.embodiment)


def test_backbone_adapters_learn_from_prompts_that_are_longer_than_any_before(base: Path) -> None:
    job = TrainConfig.model_validate(
        {"policy": {"path": str(base)}, "env": {"name": LONG, "num_envs": 8}, "lora": BOTH.model_dump(),
         "rollout": {"num_actors": 1, "chunks": 1}, "objective": {"minibatch": 8, "epochs": 1},
         "learner": {"num_learners": 1}}
    )  # fmt: skip
    actor = equip(load_policy(job.policy, [envs.spec(LONG)]), job, 0).eval()
    seen = longest(actor)
    with pytest.raises(UserError, match="prompt is longer"):
        QwenVLAPolicy.from_pretrained(base).encode(seen)
    scored = score(trajectory(actor, seen), gamma=0.99, lam=0.95)
    learner = Learner(job.model_dump(), 0, 1, origin(base))

    def optimise(loss: torch.Tensor) -> None:
        loss.backward()

    report = run_update(learner.policy, [scored], learner.recipe, optimise=optimise, seed=0, version=0)
    assert report.first_ratio_error < 1e-4, "actor and learner pad prompts alike"
    moved = {name.split(".")[0] for name, p in learner.policy.named_parameters() if p.grad is not None and p.grad.any()}
    assert {"backbone", "decoder"} <= moved


def test_a_bundle_has_room_for_the_prompts_that_it_is_judged_with(base: Path, tmp_path: Path) -> None:
    words = [f"candidate.path={base}", "candidate.adapter=", f"env.name={LONG}", f"folder={tmp_path}/c"]
    assert main(["promote", "bundle", *words]) == 0
    bundle = open_bundle(tmp_path / "c" / "bundle")
    specs = [envs.spec(LONG)]
    assert bundle.acted.context_tokens == load_policy(section(base), specs).eyes.lengths == {"widowx": 69}
    wide, narrow = bundle.load(), make_bundle(base, tmp_path / "narrow", name="n", provenance=Provenance("x")).load()
    seen = longest(wide)
    assert wide.encode(seen).mask.shape == (8, 69)
    with pytest.raises(UserError, match="prompt is longer"):
        narrow.encode(seen)


def test_a_bundle_can_be_made_whose_bodies_are_not_those_of_the_settings(base: Path, tmp_path: Path) -> None:
    words = [f"candidate.path={base}", "candidate.adapter=", "env.name=rover_navigate", f"folder={tmp_path}/c"]
    assert main(["promote", "bundle", *words]) == 0
    assert open_bundle(tmp_path / "c" / "bundle").acted.context_tokens == {}
