"""Learners under real DeepSpeed, each in a process of its own, without Ray: what trains, what resumes, what adds up."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from builders import tiny_policy
from safetensors.numpy import load_file

HERE = Path(__file__).resolve().parent
PATIENCE = 300


def start(folder: Path, role: str, rank: int = 0, world: int = 1) -> subprocess.Popen[str]:
    """`learner_process.py` without a C++ compiler, so that nothing can be built on the way."""
    variables = {
        "PYTHONPATH": str(HERE.parent), "TORCH_EXTENSIONS_DIR": str(folder / "built"), "CXX": "/bin/false",
        "DS_ACCELERATOR": "cpu", "CUDA_VISIBLE_DEVICES": "",
    }  # fmt: skip
    return subprocess.Popen(
        [sys.executable, HERE / "learner_process.py", folder, role, str(rank), str(world)],
        env={**os.environ, **variables}, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def finish(*processes: subprocess.Popen[str]) -> None:
    """Wait; whatever is wrong in one of them ends all."""
    try:
        for process in processes:
            _, errors = process.communicate(timeout=PATIENCE)
            assert process.returncode == 0, errors
    finally:
        for process in processes:
            process.kill()
            process.wait()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """After one learner's two updates, the second again after resuming, and the first by two learners."""
    path = tmp_path_factory.mktemp("learner")
    tiny_policy().save_pretrained(path / "policy")
    finish(start(path, "straight"))
    finish(start(path, "resumed"), *(start(path, "once", rank, 2) for rank in range(2)))
    return path


def said(folder: Path, name: str) -> dict[str, Any]:
    return json.loads((folder / f"{name}.json").read_text())


def weights(folder: Path, name: str) -> dict[str, np.ndarray]:
    return load_file(folder / f"{name}.safetensors")


def same(one: dict[str, np.ndarray], other: dict[str, np.ndarray]) -> bool:
    assert one.keys() == other.keys()
    return all(one[name].tobytes() == other[name].tobytes() for name in one)


def test_an_update_changes_adapters_and_value_head_and_nothing_else(folder: Path) -> None:
    report = said(folder, "straight-0")
    assert report["changed"] == report["trains"]
    assert all("lora_" in name or name.startswith("value_head.") for name in report["trains"])
    assert len(report["trains"]) == 2 * 7 * 2 + 2  # two blocks, seven layers each, two matrices; the head's two
    assert weights(folder, "straight-0").keys() == set(report["trains"])


def test_a_learner_counts_versions_and_reports(folder: Path) -> None:
    report = said(folder, "straight-0")
    assert report["versions"] == [1, 2, 2]
    assert max(report["first ratio"]) < 1e-4
    assert report["rates"] == pytest.approx([1e-3, 0.5e-3])  # the cosine's beginning and middle
    assert 0 < report["diagnostics"]["grad_norm"] < 100 and report["diagnostics"]["kl"] > 0


def test_resuming_equals_never_having_stopped(folder: Path) -> None:
    assert same(weights(folder, "restored"), weights(folder, "first"))
    assert not same(weights(folder, "resumed-0-begins"), weights(folder, "first"))
    assert same(weights(folder, "second"), weights(folder, "straight-0"))
    assert said(folder, "resumed-0")["versions"] == [2, 3]


def test_learning_rate_zero_moves_nothing(folder: Path) -> None:
    assert same(weights(folder, "resumed-0"), weights(folder, "second"))


def test_two_learners_do_what_one_does(folder: Path) -> None:
    """Each has half of every minibatch; their averaged gradient is that of the whole."""
    first, second = weights(folder, "once-0"), weights(folder, "once-1")
    assert same(first, second)
    begin, alone = weights(folder, "straight-0-begins"), weights(folder, "first")
    assert same(weights(folder, "once-0-begins"), begin)

    def flat(tensors: dict[str, np.ndarray]) -> np.ndarray:
        return np.concatenate([tensors[name].ravel() for name in sorted(tensors)])

    moved, difference = flat(alone) - flat(begin), flat(first) - flat(alone)
    assert np.linalg.norm(moved) > 0.1
    assert np.linalg.norm(difference) < 0.02 * np.linalg.norm(moved)
    norms = [said(folder, name)["diagnostics"]["grad_norm"] for name in ("straight-0", "once-0")]
    assert norms[0] == pytest.approx(norms[1], rel=1e-2)


def test_no_operation_was_compiled(folder: Path) -> None:
    """DeepSpeed would build one for shared memory: 50 seconds, and it needs a compiler."""
    for name in ("straight-0", "resumed-0", "once-0", "once-1"):
        assert said(folder, name)["shared memory op"] is False
    assert not (folder / "built").exists() or not list((folder / "built").rglob("*.so"))


def test_shards_are_safetensors_with_both_moments(folder: Path) -> None:
    shard = load_file(folder / "checkpoint" / "optimizer-rank-0.safetensors")
    fields = {name.split(".", 2)[2] for name in shard}
    assert {name.split(".", 2)[1] for name in shard} == {"actor", "value"}
    assert fields == {"master", "exp_avg", "exp_avg_sq", "step"}
    trained = weights(folder, "first")
    value = np.concatenate([trained["value_head.weight"].ravel(), trained["value_head.bias"]])
    assert np.array_equal(shard["1.value.master"][: value.size], value)
    assert shard["0.actor.step"] == 2 * (64 // 16)  # epochs times minibatches
    assert not list((folder / "checkpoint").rglob("*.bin")) and not list((folder / "checkpoint").rglob("*.pt"))
