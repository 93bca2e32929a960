"""A bundle is what was made, to the byte, or it is refused before anything in it is parsed."""

from __future__ import annotations

import json
import math
import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from builders import QUANTILES, episode_keys, observations, origin, tiny_policy
from bundles import BODY, HIGH, LOW, paper_bundle, sealed

from rl_finetune.config.schema import LoraSection
from rl_finetune.durable import sha256
from rl_finetune.errors import UserError
from rl_finetune.policy.adapters import add_adapters, guide, save_adapters
from rl_finetune.promotion.records import Limits
from rl_finetune.promotion.registry import bundle as bundles
from rl_finetune.promotion.registry import signing
from rl_finetune.promotion.registry.bundle import Bundle, make_bundle, open_bundle
from rl_finetune.promotion.registry.contents import Acted, Contents, Provenance
from rl_finetune.promotion.registry.limits import check_limits, default_limits, gripper_channels
from rl_finetune.promotion.registry.manifest import MANIFEST, SIGNATURE, Manifest

HERE = Provenance.here({"run": {"seed": 3}}, (3, 4))


@pytest.fixture(autouse=True)
def no_power_cuts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "fsync", lambda handle: None)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A policy and an adapter that changes what it does."""
    folder = tmp_path_factory.mktemp("trained")
    tiny_policy().save_pretrained(folder / "policy")
    policy = add_adapters(tiny_policy(), LoraSection(parts=["decoder"]), seed=1)
    for name, parameter in policy.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.2)
    guide(policy, 0.5)
    save_adapters(policy, folder / "adapter", origin(folder / "policy"))
    (folder / "policy" / "README.md").write_text("prose")
    return folder / "policy", folder / "adapter"


@pytest.fixture
def keys(tmp_path: Path) -> tuple[Path, Path]:
    """A private and a public key."""
    return tmp_path / "key", signing.make_keys(tmp_path / "key")


def actions(bundle: Bundle) -> np.ndarray:
    policy = bundle.load()
    seen, zero = policy.look(observations(2)), np.zeros(2, np.int64)
    return policy.act(seen, episode_keys(2), zero, policy.body("widowx"), 1.0).actions


def test_merged_and_kept_adapters_act_alike_and_otherwise_than_the_plain_policy(
    trained: tuple[Path, Path], tmp_path: Path
) -> None:
    policy, adapter = trained
    evaluation = tmp_path / "evaluation.json"
    evaluation.write_text('{"success": 0.5}')
    made = {
        "plain": make_bundle(
            policy, tmp_path / "plain", name="plain", provenance=HERE, evaluations=[evaluation], acted=Acted(64, 0.6)
        ),
        "merged": make_bundle(policy, tmp_path / "merged", name="merged", provenance=HERE, adapter=adapter),
        "adapter": make_bundle(policy, tmp_path / "kept", name="kept", provenance=HERE, adapter=adapter, merge=False),
    }
    assert {weights: bundle.contents.weights for weights, bundle in made.items()} == {w: w for w in made}
    assert not list(tmp_path.rglob("README.md")) and not list(tmp_path.glob(".*"))
    acted = {weights: actions(bundle) for weights, bundle in made.items()}
    assert np.abs(acted["merged"] - acted["adapter"]).max() < 1e-4
    assert np.abs(acted["merged"] - acted["plain"]).max() > 1e-2
    assert made["merged"].load().guidance == made["adapter"].load().guidance == 0.5
    plain = made["plain"]
    assert plain.digest == sha256((plain.folder / MANIFEST).read_bytes()) and plain == open_bundle(plain.folder)
    assert plain.acted == Acted(64, 0.6) and made["merged"].acted == Acted()
    assert plain.provenance.config == {"run": {"seed": 3}} and plain.provenance.seeds == (3, 4)
    assert plain.provenance.evaluations == {"evaluations/evaluation.json": sha256(b'{"success": 0.5}')}
    (body,) = plain.embodiments
    assert body.prompt.startswith("The robot is widowx with single arm.") and "{task}" in body.prompt
    assert (body.low, body.high) == (QUANTILES["widowx"].q01, QUANTILES["widowx"].q99)


def test_words_of_the_prompt_must_be_those_it_was_made_for(trained: tuple[Path, Path], tmp_path: Path) -> None:
    made = make_bundle(trained[0], tmp_path / "b", name="b", provenance=HERE)
    (body,) = made.embodiments
    words = replace(made.contents, embodiments=(replace(body, prompt="You are a robot. {task}"),))
    (made.folder / "bundle.json").write_bytes(words.data)
    with pytest.raises(UserError, match=r"words the prompt otherwise .*use the code that made it: 0\.1\.0\+"):
        sealed(made.folder).load()


def test_a_file_that_is_written_to_while_it_loads_is_noticed(
    trained: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = make_bundle(trained[0], tmp_path / "b", name="b", provenance=HERE)
    path = made.folder / "policy" / "model.safetensors"
    swapped_after_verifying(monkeypatch, lambda: path.write_bytes(path.read_bytes()))
    with pytest.raises(UserError, match=r"model\.safetensors is not what was made: got something that was written to"):
        made.load()


def swapped_after_verifying(monkeypatch: pytest.MonkeyPatch, change: Callable[[], object]) -> None:
    """Let somebody change a bundle when its bytes have been verified."""
    whole = Manifest.verify

    def verify(self: Manifest, folder: Path) -> dict:
        stamps = whole(self, folder)
        change()
        return stamps

    monkeypatch.setattr(Manifest, "verify", verify)


def rename(folder: Path) -> None:
    """Change a file that has been verified."""
    record = folder / "bundle.json"
    record.write_bytes(record.read_bytes().replace(b'"paper"', b'"other"'))


def put_beside(folder: Path) -> None:
    """Whoever reads in between finds it, whoever looks afterwards does not."""
    extra = folder / "policy" / "backbone" / "tokenizer.json"
    extra.write_text("{}")
    extra.unlink()


@pytest.mark.parametrize(("change", "named"), [(rename, r"bundle\.json"), (put_beside, "backbone")])
def test_what_changes_while_a_bundle_is_opened_is_noticed(
    change: Callable[[Path], None], named: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = paper_bundle(tmp_path / "b")
    swapped_after_verifying(monkeypatch, lambda: change(made.folder))
    with pytest.raises(UserError, match=f"{named} is not .* got something that was"):
        open_bundle(made.folder)


def test_every_byte_counts_and_nothing_is_parsed_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = paper_bundle(tmp_path / "b")
    parsed: list[Path] = []
    read = Contents.read
    monkeypatch.setattr(bundles.Contents, "read", lambda folder: parsed.append(folder) or read(folder))
    for path in sorted(made.folder.rglob("*.*")):
        whole = path.read_bytes()
        for i in range(len(whole)):
            path.unlink()
            path.write_bytes(whole[:i] + bytes([whole[i] ^ 1]) + whole[i + 1 :])
            with pytest.raises(UserError, match="is not what was made"):
                open_bundle(made.folder)
        for other in (whole[:-1], whole + b"\n"):
            path.write_bytes(other)
            with pytest.raises(UserError, match="is not what was made"):
                open_bundle(made.folder)
        path.write_bytes(whole)
    assert parsed == []
    assert open_bundle(made.folder) == made
    with pytest.raises(UserError, match=f"got hash {made.digest[:12]}; expected hash 000000000000"):
        open_bundle(made.folder, digest="0" * 64)


def test_files_too_many_too_few_linked_or_of_a_kind_that_holds_code_are_refused(tmp_path: Path) -> None:
    made = paper_bundle(tmp_path / "b")

    def refused(message: str) -> None:
        with pytest.raises(UserError, match=message):
            open_bundle(made.folder)

    weights, extra = made.folder / "policy" / "model.safetensors", made.folder / "policy" / "more.json"
    extra.write_text("{}")
    refused(r"more\.json is not what was made: got a file that the manifest does not name")
    extra.unlink()
    (made.folder / "policy" / "empty").mkdir()
    refused("got an empty folder")
    (made.folder / "policy" / "empty").rmdir()
    os.mkfifo(made.folder / "policy" / "pipe.json")
    refused("neither file nor folder")
    (made.folder / "policy" / "pipe.json").unlink()
    weights.rename(tmp_path / "elsewhere")
    refused(r"model\.safetensors is not what was made: got nothing; expected 16 bytes")
    weights.symlink_to(tmp_path / "elsewhere")
    refused(r"got a link to '.*elsewhere'; expected a plain file")
    weights.unlink()
    shutil.move(tmp_path / "elsewhere", weights)
    (made.folder / MANIFEST).rename(tmp_path / "manifest")
    (made.folder / MANIFEST).symlink_to(tmp_path / "manifest")
    refused("expected a plain file")


@pytest.mark.parametrize("name", ["../evil.json", "/etc/evil.json", "policy/../../evil.json", "policy/.hidden.json",
                                  "policy//a.json", "policy/a\\b.json", "evil.json", "policy/a.bin", "policy/a.pt",
                                  "policy/a.pkl", "policy/modeling.py", "evaluations/a.safetensors"])  # fmt: skip
def test_paths_and_kinds_that_have_no_place_are_refused(tmp_path: Path, name: str) -> None:
    made = paper_bundle(tmp_path / "b")
    value = json.loads((made.folder / MANIFEST).read_text()) | {name: {"sha256": sha256(b""), "size": 0}}
    (made.folder / MANIFEST).write_text(json.dumps(value, indent=1, sort_keys=True) + "\n")
    with pytest.raises(UserError, match=r"a plain path inside the bundle|never pickles or code"):
        open_bundle(made.folder)


def test_a_bundle_that_was_sealed_again_must_still_agree_with_itself_and_call_no_code(tmp_path: Path) -> None:
    def changed(path: str, value: object) -> Path:
        folder = tmp_path / str(len(list(tmp_path.iterdir())))
        paper_bundle(folder)
        (folder / path).write_text(json.dumps(value))
        return folder

    record = json.loads((paper_bundle(tmp_path / "whole").folder / "bundle.json").read_text())
    config = {"embodiments": [record["embodiments"][0]["spec"]]}
    broken: list[tuple[str, object, str]] = [
        ("policy/normalisation.json", {"arm": {"q01": [-9, -1], "q99": HIGH}}, "normalisation"),
        ("policy/config.json", {"embodiments": []}, "got embodiments"),
        ("policy/config.json", config | {"auto_map": {"AutoConfig": "evil--a.B"}}, "got the setting auto_map"),
        ("policy/backbone/config.json", {"a": [{"quantization_config": {}}]}, "the setting quantization_config"),
        ("policy/x.index.json", {"weight_map": {"a": "../../secret.safetensors"}}, "weights in '../../secret"),
        ("bundle.json", record | {"schema": 2}, "schema is not 1"),
        ("bundle.json", record | {"limits": {}}, "not of the embodiments"),
        ("bundle.json", record | {"weights": "adapter"}, "got adapter True"),
        ("bundle.json", record | {"acted": {"image_size": 4096}}, "image_size 4096"),
        ("bundle.json", record | {"acted": {"image_size": True}}, "image_size True"),
        ("bundle.json", record | {"acted": {"temperature": -1}}, "temperature -1"),
        ("bundle.json", record | {"acted": {"temperature": "warm"}}, "temperature 'warm'"),
        ("bundle.json", record | {"acted": {"speed": 1}}, "TypeError"),
        ("bundle.json", {"schema": 1}, "KeyError"),
        ("bundle.json", record | {"signer": "ab"}, r"manifest\.sig is not what was made: got nothing"),
    ]  # fmt: skip
    unsaid = {name: value for name, value in record.items() if name != "acted"}
    assert sealed(changed("bundle.json", unsaid)).acted == Acted(), "a bundle from before anybody said"
    for path, value, message in broken:
        with pytest.raises(UserError, match=message):
            sealed(changed(path, value))
    deep = paper_bundle(tmp_path / "deep").folder
    (deep / "bundle.json").write_text("[" * 100_000)
    with pytest.raises(UserError, match="nested too deeply"):
        sealed(deep)


def test_nothing_is_left_of_a_bundle_that_could_not_be_made(trained: tuple[Path, Path], tmp_path: Path) -> None:
    policy, pickled = trained[0], tmp_path / "pickled"
    shutil.copytree(policy, pickled)
    (pickled / "backbone" / "pytorch_model.bin").write_bytes(b"")
    half = tmp_path / "half"
    shutil.copytree(policy, half, ignore=shutil.ignore_patterns("model.safetensors"))
    short = Limits(low=(0.0,), high=(1.0,))
    endless = Limits(velocity=(1e9,) * 7, acceleration=(1.0,) * 7)
    for message, arguments in {
        "never pickles or code": {"policy": pickled},
        "policy is not whole: .* without model.safetensors": {"policy": half},
        "policy not found": {"policy": tmp_path / "nowhere"},
        "adapter not found": {"adapter": tmp_path / "nowhere", "merge": False},
        "got 1 values; expected none, or one for each of 7": {"limits": {"widowx": short}},
        "limits of an embodiment .* got 'rover'": {"limits": {"rover": short}},
        "brakes that take minutes": {"limits": {"widowx": endless}},
        "evaluation file cannot be read": {"evaluations": [tmp_path / "nowhere.json"]},
        "key cannot be used": {"sign_with": tmp_path / "nowhere"},
    }.items():
        with pytest.raises(UserError, match=message):
            make_bundle(**({"policy": policy, "folder": tmp_path / "b", "name": "b", "provenance": HERE} | arguments))
        assert not (tmp_path / "b").exists() and not list(tmp_path.glob(".*"))
    (tmp_path / "b").mkdir()
    with pytest.raises(UserError, match="bundle exists"):
        make_bundle(policy, tmp_path / "b", name="b", provenance=HERE)


def test_signatures(trained: tuple[Path, Path], tmp_path: Path, keys: tuple[Path, Path]) -> None:
    private, public = keys
    other = signing.make_keys(tmp_path / "other")
    made = make_bundle(trained[0], tmp_path / "b", name="b", provenance=HERE, sign_with=private)
    opened = open_bundle(made.folder, trusted=[other, public], require_signature=True)
    assert opened.trusted and opened.signer == signing.public_name(private) and not made.trusted
    with pytest.raises(UserError, match=r"manifest\.sig is not .* got a signature by nobody who is trusted"):
        open_bundle(made.folder, trusted=[other])
    with pytest.raises(UserError, match=r"not signed by anybody who is trusted: .* no trusted keys"):
        open_bundle(made.folder, require_signature=True)
    with pytest.raises(UserError, match="no signature"):
        open_bundle(paper_bundle(tmp_path / "paper").folder, trusted=[public], require_signature=True)
    signature = (made.folder / SIGNATURE).read_bytes()
    for i in range(len(signature)):
        (made.folder / SIGNATURE).write_bytes(signature[:i] + bytes([signature[i] ^ 1]) + signature[i + 1 :])
        for trusted in ([], [public]):
            with pytest.raises(UserError, match=r"manifest\.sig is not what was made"):
                open_bundle(made.folder, trusted=trusted)
    (made.folder / SIGNATURE).unlink()
    with pytest.raises(UserError, match=r"manifest\.sig is not what was made: got nothing; expected signer"):
        open_bundle(made.folder)


def test_keys_are_for_their_owner(tmp_path: Path, keys: tuple[Path, Path]) -> None:
    private, public = keys
    assert private.stat().st_mode & 0o777 == 0o600
    signature = signing.sign(b"message", private)
    assert signing.verify(b"message", signature, [public]) == signing.public_name(private)
    assert signing.verify(b"massage", signature, [public]) is None
    private.chmod(0o640)
    with pytest.raises(UserError, match=r"private key can be read by others: .* mode 0640; expected mode 0600"):
        signing.sign(b"message", private)
    private.chmod(0o600)
    with pytest.raises(UserError, match="expected a public Ed25519 key"):
        signing.verify(b"message", signature, [private])
    with pytest.raises(UserError, match="key cannot be written"):
        signing.make_keys(private)


def test_default_limits_worked_by_hand() -> None:
    """Range 1 in one chunk of 4 steps at 2 Hz: 1.2 m with the margins in 2 s."""
    found = default_limits(BODY, LOW, HIGH)
    assert np.allclose(found.low, (-0.6, -1.0)) and np.allclose(found.high, (0.6, 1.0))
    assert np.allclose(found.velocity, (15 / 8 * 0.6, 2 / 0.5))
    assert np.allclose(found.acceleration, (15 / 8 * 1.2, 4 / 0.5**2))
    assert np.allclose(found.jerk, (15 / 8 * 0.6 * 8, 8 / 0.5**3))
    assert found.stale_after == 1.0 and found.workspace == ()
    onward = default_limits(BODY, (0.2, -1.0), (1.2, 1.0))  # nobody stood still, and yet it may: -0.12 to 1.32
    assert np.allclose((onward.low[0], onward.high[0]), (-0.12, 1.32)) and onward.velocity[0] == 15 / 8 * 1.44 / 2
    human = replace(BODY, arms="dual arms", waist=True, action=replace(BODY.action, channels=19))
    assert gripper_channels(human) == (10, 18)
    assert gripper_channels(replace(BODY, arms="")) == gripper_channels(
        replace(BODY, action=replace(BODY.action, gripper="none"))
    )


@pytest.mark.parametrize(
    ("limits", "message"),
    [
        (Limits(low=(0.0, 0.0), high=(1.0, 0.0)), "low < high"),
        (Limits(low=(0.0, 0.0)), "low < high, both or neither"),
        (Limits(velocity=(1.0, 0.0)), "numbers above 0"),
        (Limits(jerk=(1.0, math.inf)), "finite numbers"),
        (Limits(workspace=((0.0, 1.0),)), "of x, y and z"),
        (Limits(stale_after=0.0), "seconds above 0"),
    ],
)
def test_impossible_limits(limits: Limits, message: str) -> None:
    with pytest.raises(UserError, match=message):
        check_limits("arm", limits, 2)
