"""What travels is what was sent; what stays is whole or refused."""

from __future__ import annotations

import hashlib
import json
import pickle
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rl_finetune.checkpoint import (
    FOLDER,
    KEEP,
    MANIFEST,
    STATE,
    RunState,
    check_learners,
    complete,
    load_state,
    newest,
    save,
)
from rl_finetune.errors import UserError
from rl_finetune.weights import DamagedWeights, TrainedWeights, checksum

STATE_10 = RunState(
    iteration=10, version=10, env_steps=4096, minutes=1.5, actors_lost=1, recent=(True, False), num_learners=2
)


def tensors() -> dict[str, np.ndarray]:
    return {"b": np.arange(6, dtype=np.float32).reshape(2, 3), "a": np.zeros(4, np.float32)}


def test_weights_verify_and_know_their_size() -> None:
    weights = TrainedWeights.of(3, tensors())
    assert weights.verified() is weights and weights.nbytes == 40
    again = pickle.loads(pickle.dumps(weights))
    assert again.verified().version == 3


def test_one_flipped_bit_is_noticed() -> None:
    for name, array in tensors().items():
        for byte in range(array.nbytes):
            sent = TrainedWeights.of(3, tensors())
            sent.tensors[name].view(np.uint8).reshape(-1)[byte] ^= 1
            with pytest.raises(DamagedWeights, match=r"weights version 3: got checksum .*, expected"):
                sent.verified()


def test_checksum_covers_names_shapes_and_types_but_not_order() -> None:
    plain = checksum(tensors())
    assert checksum(dict(reversed(tensors().items()))) == plain
    assert checksum({**tensors(), "b": tensors()["b"].T}) != plain
    assert checksum({"c" if n == "b" else n: a for n, a in tensors().items()}) != plain
    assert checksum({**tensors(), "b": tensors()["b"].reshape(3, 2)}) != plain
    assert checksum({**tensors(), "a": np.zeros(2, np.float64)}) != plain
    transposed = tensors()["b"].T
    assert checksum({"b": transposed}) == checksum({"b": np.ascontiguousarray(transposed)})


def fill(folder: str) -> None:
    """What learners write."""
    (Path(folder) / "adapter").mkdir()
    (Path(folder) / "adapter" / "weights.bin").write_bytes(bytes(range(64)))
    (Path(folder) / "optimizer-rank-0.safetensors").write_bytes(b"moments")


def write(run: Path, **changes: Any) -> Path:
    """A whole checkpoint of `STATE_10` with `changes`."""
    state = replace(STATE_10, **changes)

    def everything(folder: str) -> None:
        fill(folder)
        complete(Path(folder), state)

    return save(run, state.iteration, everything)


def test_a_checkpoint_comes_back(tmp_path: Path) -> None:
    folder = write(tmp_path)
    assert folder == tmp_path / FOLDER / "000010" == newest(tmp_path)
    assert load_state(folder) == STATE_10
    manifest = json.loads((folder / MANIFEST).read_text())
    assert sorted(manifest) == ["adapter/weights.bin", "optimizer-rank-0.safetensors", STATE]


def test_a_writer_that_fails_leaves_the_old_checkpoint(tmp_path: Path) -> None:
    write(tmp_path)

    def half(folder: str) -> None:
        fill(folder)
        raise RuntimeError("learner died")

    for iteration in (10, 20):  # the same one again, and the next one
        with pytest.raises(RuntimeError, match="learner died"):
            save(tmp_path, iteration, half)
        assert newest(tmp_path).name == "000010"
        assert load_state(newest(tmp_path)) == STATE_10
    assert write(tmp_path, iteration=20) == newest(tmp_path)
    assert not list((tmp_path / FOLDER).glob(".000020*"))


def test_the_folder_has_its_name_only_when_it_is_whole(tmp_path: Path) -> None:
    def look(folder: str) -> None:
        assert Path(folder).parent == tmp_path / FOLDER and Path(folder).name.startswith(".")
        with pytest.raises(UserError, match="nothing to resume"):
            newest(tmp_path)
        complete(Path(folder), STATE_10)

    assert load_state(save(tmp_path, 10, look)) == STATE_10


def test_the_newest_few_are_kept(tmp_path: Path) -> None:
    for iteration in (5, 90, 100, 1000, 1010):
        write(tmp_path, iteration=iteration)
    kept = sorted(path.name for path in (tmp_path / FOLDER).iterdir())
    assert KEEP == 3 and kept == ["000100", "001000", "001010"]
    assert newest(tmp_path).name == "001010"


def test_a_checkpoint_written_twice_is_the_second(tmp_path: Path) -> None:
    write(tmp_path)
    write(tmp_path, env_steps=1)
    assert load_state(newest(tmp_path)).env_steps == 1


@pytest.mark.parametrize("name", ["adapter/weights.bin", "optimizer-rank-0.safetensors", STATE])
@pytest.mark.parametrize("damage", ["truncated", "flipped", "missing"])
def test_damage_is_refused_and_the_file_is_named(tmp_path: Path, name: str, damage: str) -> None:
    folder = write(tmp_path)
    path, content = folder / name, bytearray((folder / name).read_bytes())
    if damage == "missing":
        path.unlink()
    else:
        content[0] ^= 1
        path.write_bytes(content[: len(content) // 2] if damage == "truncated" else bytes(content))
    with pytest.raises(UserError) as caught:
        load_state(folder)
    assert f"remove {folder} to go on from the checkpoint before it" in str(caught.value)
    assert name in str(caught.value) or name == STATE


def test_a_manifest_that_is_missing_or_cut_is_refused(tmp_path: Path) -> None:
    folder = write(tmp_path)
    text = (folder / MANIFEST).read_text()
    (folder / MANIFEST).write_text(text[: len(text) // 2])
    with pytest.raises(UserError, match="checkpoint cannot be read"):
        load_state(folder)
    (folder / MANIFEST).unlink()
    with pytest.raises(UserError, match="checkpoint cannot be read"):
        load_state(folder)


@pytest.mark.parametrize("change", [{"colour": "red"}, {"recent": None}], ids=["unknown", "foreign"])
def test_counters_of_another_version_are_refused(tmp_path: Path, change: dict[str, Any]) -> None:
    """With a manifest that is right: nothing is damaged."""
    folder = write(tmp_path)
    (folder / STATE).write_text(json.dumps({**asdict(STATE_10), **change}))
    manifest = json.loads((folder / MANIFEST).read_text())
    manifest[STATE] = hashlib.sha256((folder / STATE).read_bytes()).hexdigest()
    (folder / MANIFEST).write_text(json.dumps(manifest))
    with pytest.raises(UserError, match="of another version of this code"):
        load_state(folder)


def test_shards_fit_the_number_of_learners_that_wrote_them() -> None:
    check_learners(STATE_10, 2)
    with pytest.raises(UserError, match=r"got learner\.num_learners=3; expected 2; resume with"):
        check_learners(STATE_10, 3)


def test_losing_actors_is_counted() -> None:
    assert STATE_10.losing(2).actors_lost == 3 and STATE_10.actors_lost == 1
