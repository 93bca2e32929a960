"""Whole runs with real Ray and DeepSpeed: end to end, killed and resumed, with an actor lost; and what is refused."""

from __future__ import annotations

import fcntl
import json
import math
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from builders import tiny_policy
from jobs import Job, numbers, rows, run
from safetensors.numpy import load_file

from rl_finetune.cli import main
from rl_finetune.policy.normalisation import Quantiles

ITERATIONS, EPISODES = 5, 24
WORDS = (
    "train", "--config", "smoke", f"run.iterations={ITERATIONS}", "run.checkpoint_every=2", "run.wandb=offline",
    "env.num_envs=16", "env.options.tolerance=0.044", "rollout.chunks=4", "objective.minibatch=32",
    "objective.epochs=2",
    f"evaluation.episodes={EPISODES}", "evaluation.temperature=1.0",
)  # fmt: skip


@pytest.fixture(scope="session", autouse=True)
def nothing_left_behind() -> Iterator[None]:
    """Whatever fails, no process outlives the tests."""
    yield
    for job in Job.started:
        job.kill()


@pytest.fixture(scope="session")
def policy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Untrained, but its actions lead downwards, so that it touches the right block in a quarter of the episodes."""
    built = tiny_policy()
    down = Quantiles((-0.2, -0.2, -0.2, -0.2, -0.2, -0.2, -1.0), (0.2, 0.2, 0.02, 0.2, 0.2, 0.2, 1.0))
    built.quantiles = {"widowx": down}
    folder = tmp_path_factory.mktemp("policy") / "tiny"
    built.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def straight(policy: Path, tmp_path_factory: pytest.TempPathFactory) -> Job:
    """A run from beginning to end."""
    folder = tmp_path_factory.mktemp("straight") / "run"
    job = Job(folder, *WORDS, f"policy.path={policy}", f"run.folder={folder}")
    assert job.wait() == 0, job.log()
    return job


@pytest.fixture(scope="session")
def resumed(policy: Path, tmp_path_factory: pytest.TempPathFactory) -> Job:
    """The same run, killed after the third iteration and resumed from the checkpoint of the second."""
    folder = tmp_path_factory.mktemp("resumed") / "run"
    killed = Job(folder, *WORDS, f"policy.path={policy}", f"run.folder={folder}", log="killed")
    killed.wait_until(lambda found: len(found) >= 3)
    killed.kill()
    assert not (folder / "evaluation.json").exists()
    job = Job(folder, "train", "--resume", str(folder))
    assert job.wait() == 0, job.log()
    return job


@pytest.fixture(scope="session")
def bereaved(policy: Path, tmp_path_factory: pytest.TempPathFactory) -> Job:
    """A run of many small rounds, one of whose runners is killed after the second."""
    folder = tmp_path_factory.mktemp("bereaved") / "run"
    words = ("train", "--config", "smoke", "run.iterations=60", "run.checkpoint_every=100", "env.num_envs=4")
    small = (
        "rollout.chunks=1", "objective.minibatch=4", "evaluation.episodes=2", "evaluation.clips=0",
        "learner.num_learners=1",
    )  # fmt: skip
    job = Job(folder, *words, *small, f"policy.path={policy}", f"run.folder={folder}")
    job.wait_until(lambda found: len(found) >= 2)
    job.kill_one("ray::FlowEnvRun")
    assert job.wait() == 0, job.log()
    return job


def test_a_run_ends_with_what_was_gained(straight: Job) -> None:
    last = straight.output.read_text().splitlines()[-1]
    gain = r"gain [+-]\d+\.\d points \[[+-]\d+\.\d, [+-]\d+\.\d\] on 24 held-out episodes"
    assert re.search(rf"success \d+\.\d% -> \d+\.\d%, {gain}", last), last
    assert f"adapter in {straight.folder}/adapter" in last and f"report in {straight.folder}/report.html" in last
    assert straight.errors.read_text() == ""


def test_a_run_leaves_what_it_promises(straight: Job) -> None:
    folder = straight.folder
    for name in ("config.yaml", "report.html", "clips/before.npz", "clips/after.npz", "adapter/value_head.safetensors"):
        assert (folder / name).stat().st_size > 0, name
    assert list(folder.glob("wandb/offline-run-*/*.wandb"))
    checkpoints = sorted(path.name for path in (folder / "checkpoints").iterdir())
    assert checkpoints == ["000002", "000004", "000005"]
    for name in checkpoints:
        manifest = json.loads((folder / "checkpoints" / name / "manifest.json").read_text())
        assert {"state.json", "optimizer-rank-0.safetensors", "optimizer-rank-1.safetensors"} <= set(manifest)


def test_the_evaluation_file_adds_up(straight: Job) -> None:
    found = _evaluation(straight)
    before, after = found["successes_before"], found["successes_after"]
    assert found["episodes"] == EPISODES == len(before) == len(after)
    assert found["gain"]["points"] == pytest.approx(100 * (sum(after) - sum(before)) / EPISODES)
    assert 0 < sum(before) < EPISODES, "the test policy should succeed now and then, or equality proves little"
    low, high = found["gain"]["interval"]
    assert low <= found["gain"]["points"] <= high


def test_rows_are_complete_and_the_ratio_starts_at_one(straight: Job) -> None:
    found = rows(straight.folder)
    assert [row["iteration"] for row in found] == [row["policy_version"] for row in found] == [1, 2, 3, 4, 5]
    for row in found:
        assert all(math.isfinite(value) for value in row.values() if isinstance(value, int | float))
        assert {name for name, value in row.items() if value is None} <= {"explained_variance", "mean_return"}
        assert row["first_ratio_error"] < 1e-4
        assert row["actors_healthy"] == 2 and row["actors_lost"] == 0
    assert any(row["policy_loss"] != 0 for row in found), "nothing was learned from: equality would prove little"


def test_the_adapter_has_moved(straight: Job) -> None:
    first, last = (straight.folder / "checkpoints" / name / "adapter" for name in ("000002", "000005"))
    assert _tensor_bytes(first) != _tensor_bytes(last)
    assert _tensor_bytes(last) == _tensor_bytes(straight.folder / "adapter")


def test_evaluate_plays_what_the_run_played(straight: Job, policy: Path, tmp_path: Path) -> None:
    """Merged adapters in another process: the same episodes end the same way, but for rounding at the very edge."""
    words = ("policy.adapter=" + str(straight.folder / "adapter"), f"evaluation.episodes={EPISODES}", "env.num_envs=16")
    same = ("env.options.tolerance=0.044", "evaluation.temperature=1.0", "num_actors=1", "output=found.json")
    done = run("evaluate", f"policy.path={policy}", *words, *same, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert re.match(r"success \d+\.\d% \[\d+\.\d%, \d+\.\d%\] on 24 held-out episodes of widowx_reach", done.stdout)
    found = json.loads((tmp_path / "found.json").read_text())["successes"]
    assert sum(a != b for a, b in zip(found, _evaluation(straight)["successes_after"], strict=True)) <= 1


def test_a_killed_run_resumes_as_if_it_had_never_stopped(straight: Job, resumed: Job) -> None:
    assert "going on from" in resumed.output.read_text()
    assert _evaluation(resumed) == _evaluation(straight)
    for one, other in zip(rows(straight.folder), rows(resumed.folder), strict=True):
        assert numbers(one) == numbers(other)
    assert _tensor_bytes(resumed.folder / "adapter") == _tensor_bytes(straight.folder / "adapter")


def test_the_round_goes_on_without_the_runner_that_was_lost(bereaved: Job) -> None:
    found = rows(bereaved.folder)
    assert [row["iteration"] for row in found] == list(range(1, 61))
    lost = next(row for row in found if row["actors_lost"])
    assert lost["actors_lost"] == 1 and lost["actors_healthy"] == 1
    assert any(
        re.fullmatch(r"actor \d+ was lost; the round goes on with the others", event) for event in lost["events"]
    )


def test_the_runner_comes_back_with_the_present_weights(bereaved: Job) -> None:
    found = rows(bereaved.folder)
    events = [(row, event) for row in found for event in row["events"] if "is back" in event]
    assert len(events) == 1
    row, event = events[0]
    version = re.fullmatch(r"actor \d+ is back with weights version (\d+)", event)
    assert version is not None and int(version[1]) == row["policy_version"] - 1
    assert all(later["actors_healthy"] == 2 for later in found[row["iteration"] - 1 :])
    assert all(r["first_ratio_error"] < 1e-4 for r in found), "a runner with old weights would show here"


def test_the_loss_of_a_runner_is_shown(bereaved: Job) -> None:
    text = bereaved.output.read_text()
    assert re.search(r"\* \d+: actor \d+ was lost", text) and re.search(r"\* \d+: actor \d+ is back", text)


@dataclass(frozen=True)
class Bad:
    """A command that must be refused, in a folder of its own."""

    words: list[str]
    says: str
    """Part of the one line it is refused with."""
    variables: dict[str, str] = field(default_factory=dict)
    held: Path | None = None
    """File to hold the lock of meanwhile."""


def _copied(policy: Path, home: Path) -> Path:
    return Path(shutil.copytree(policy, home / "policy"))


def _truncated(name: str) -> Callable[[Path, Path, Path], Bad]:
    def case(home: Path, policy: Path, _: Path) -> Bad:
        file = _copied(policy, home) / name
        file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
        return Bad([f"policy.path={home}/policy"], str(file))

    return case


def _edited(old: str, new: str, says: str) -> Callable[[Path, Path, Path], Bad]:
    def case(home: Path, policy: Path, _: Path) -> Bad:
        config = _copied(policy, home) / "config.json"
        text = config.read_text()
        assert old in text
        config.write_text(text.replace(old, new))
        return Bad([f"policy.path={home}/policy"], says)

    return case


def _folder_below_a_file(home: Path, _: Path, __: Path) -> Bad:
    (home / "file").write_text("not a folder")
    return Bad([f"run.folder={home}/file/run"], "run folder cannot be written: got")


def _folder_in_use(home: Path, _: Path, __: Path) -> Bad:
    (home / "run").mkdir()
    return Bad([], "run folder is in use", held=home / "run" / ".lock")


def _folder_with_a_run(home: Path, _: Path, straight: Path) -> Bad:
    (home / "run").mkdir()
    shutil.copy(straight / "config.yaml", home / "run")
    return Bad([], "run folder already holds a run")


def _damaged_checkpoint(home: Path, _: Path, straight: Path) -> Bad:
    folder = Path(shutil.copytree(straight, home / "run"))
    file = folder / "checkpoints" / "000005" / "optimizer-rank-1.safetensors"
    file.write_bytes(file.read_bytes()[:-1])
    return Bad(["--resume", str(folder), "run.iterations=9"], f"checkpoint file {file} is damaged")


def _resumed_with(setting: str, says: str) -> Callable[[Path, Path, Path], Bad]:
    def case(home: Path, _: Path, straight: Path) -> Bad:
        folder = Path(shutil.copytree(straight, home / "run"))
        return Bad(["--resume", str(folder), setting], says)

    return case


def _truncated_adapter(home: Path, _: Path, straight: Path) -> Bad:
    folder = Path(shutil.copytree(straight / "adapter", home / "adapter"))
    file = folder / "decoder" / "adapter_model.safetensors"
    file.write_bytes(file.read_bytes()[:1000])
    return Bad([f"policy.adapter={folder}"], "adapter does not fit this policy")


def _missing_library(home: Path, _: Path, __: Path) -> Bad:
    (home / "lib").mkdir()
    for name in ("libEGL.so", "libEGL.so.1"):  # found first, and no library
        (home / "lib" / name).touch()
    return Bad([], "cannot draw offscreen", {"LD_LIBRARY_PATH": str(home / "lib"), "MUJOCO_GL": "egl"})


def _no_display(_: Path, __: Path, ___: Path) -> Bad:
    return Bad([], "cannot draw offscreen", {"__EGL_VENDOR_LIBRARY_FILENAMES": "/dev/null", "MUJOCO_GL": "egl"})


def _words(*words: str, says: str) -> Callable[[Path, Path, Path], Bad]:
    return lambda *_: Bad(list(words), says)


CASES: dict[str, Callable[[Path, Path, Path], Bad]] = {
    "unknown key": _words("objective.clp=0.1", says="did you mean 'objective.clip'?"),
    "wrong type": _words("run.iterations=many", says="run.iterations"),
    "impossible combination": _words("objective.minibatch=1024", says="at most env.num_envs * rollout.chunks = 16"),
    "missing policy": _words("policy.path=nowhere", says="policy not found: got 'nowhere'"),
    "unreachable hub id": _words("policy.path=nobody/nothing", says="policy not found: got 'nobody/nothing'"),
    "missing adapter": _words("policy.adapter=nowhere", says="adapter not found: got nowhere"),
    "truncated adapter": _truncated_adapter,
    "truncated weights": _truncated("model.safetensors"),
    "truncated backbone": _truncated("backbone/model.safetensors"),
    "another shape": _edited('"mlp": 256', '"mlp": 320', "policy weights do not fit config.json"),
    "strange embodiment": _edited('"tag": "widowx"', '"tag": "aloha"', "an embodiment that the policy was not trained"),
    "other convention": _edited('"rate": 5.0', '"rate": 50.0', "disagree on 'rate'"),
    "unwritable folder": _folder_below_a_file,
    "folder in use": _folder_in_use,
    "folder with a run": _folder_with_a_run,
    "damaged checkpoint": _damaged_checkpoint,
    "resumed with fewer learners": _resumed_with("learner.num_learners=1", "another number of learners"),
    "resumed with other adapters": _resumed_with("lora.rank=8", "cannot be resumed with other adapters"),
    "missing library": _missing_library,
    "no display": _no_display,
}


@pytest.mark.parametrize("name", CASES)
def test_bad_input_is_one_line_and_changes_nothing(
    name: str, policy: Path, straight: Job, tmp_path: Path, capfd: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    bad = CASES[name](tmp_path, policy, straight.folder)
    words = ["train", *bad.words]
    if "--resume" not in words:
        words = ["train", "--config", "smoke", f"policy.path={policy}", f"run.folder={tmp_path}/run", *bad.words]
    monkeypatch.chdir(tmp_path)
    with _locked(bad.held):
        before = _contents(tmp_path)
        code, output, error = _said(words, bad.variables, capfd)
        assert _contents(tmp_path) == before
    assert code == 2, error
    assert error.startswith("error: ") and error.count("\n") == 1, error
    assert bad.says in error and "; expected " in error, error
    assert output == ""


def _said(words: list[str], variables: dict[str, str], capfd: Any) -> tuple[int, str, str]:
    """Exit code, output and errors of `rl-finetune WORDS`: in this process, but for what one reads at its start."""
    if variables:
        done = run(*words, cwd=Path.cwd(), **variables)
        return done.returncode, done.stdout, done.stderr
    capfd.readouterr()
    code = main(words)
    return code, *capfd.readouterr()


def test_wandb_without_a_key_leaves_a_folder_that_can_be_used(policy: Path, tmp_path: Path) -> None:
    words = ("train", "--config", "smoke", f"policy.path={policy}", "run.folder=run", "run.wandb=online")
    done = run(*words, cwd=tmp_path, HOME=str(tmp_path), WANDB_API_KEY="")
    assert done.returncode == 2 and done.stderr.startswith("error: wandb could not start"), done.stderr
    assert done.stderr.count("\n") == 1 and not (tmp_path / "run" / "config.yaml").exists()


def _evaluation(job: Job) -> dict:
    return json.loads((job.folder / "evaluation.json").read_text())


def _tensor_bytes(adapter: Path) -> dict[str, bytes]:
    """Name -> bytes of every tensor of an adapter."""
    found = {}
    for file in sorted(adapter.rglob("*.safetensors")):
        found |= {f"{file.name}:{name}": array.tobytes() for name, array in load_file(file).items()}
    return found


def _contents(home: Path) -> dict[Path, bytes]:
    """Every file but locks, which carry the number of who asked last; folders count as empty files."""
    found = {path.relative_to(home): path for path in home.rglob("*") if path.name != ".lock"}
    return {name: path.read_bytes() if path.is_file() else b"" for name, path in found.items()}


@contextmanager
def _locked(file: Path | None) -> Iterator[None]:
    if file is None:
        yield
        return
    with file.open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        yield
