"""The command as a person runs it: in a process of its own."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from rl_finetune.cli import main

ROOT = Path(__file__).resolve().parent.parent
HEAVY = ("numpy", "torch", "ray", "pydantic", "yaml", "rich", "wandb", "transformers", "deepspeed")


def run(*words: str, cwd: Path = ROOT) -> subprocess.CompletedProcess[str]:
    """`rl-finetune WORDS` with the repository on the path."""
    return subprocess.run(
        [sys.executable, "-m", "rl_finetune", *words],
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def refused(*words: str, cwd: Path = ROOT) -> str:
    """The line that a command is refused with; nothing else is printed."""
    result = run(*words, cwd=cwd)
    assert result.returncode == 2, result.stderr
    assert result.stdout == ""
    assert "Traceback" not in result.stderr
    assert result.stderr.startswith("error: ") and result.stderr.count("\n") == 1, result.stderr
    return result.stderr


def test_help_answers_at_once() -> None:
    def seconds() -> float:
        start = time.perf_counter()
        assert "exit codes" in run("--help").stdout
        return time.perf_counter() - start

    # The fastest of three: what is measured is the program, not what else the machine does.
    assert min(seconds() for _ in range(3)) < 0.5


@pytest.mark.parametrize(
    "command",
    ["train", "evaluate", "sft", "show-config", "check-env", "promote", "promote judge", "promote record", "serve"],
)
def test_help_teaches(command: str) -> None:
    text = run(*command.split(), "--help").stdout
    assert "examples:" in text and "exit codes:" in text and f"rl-finetune {command}" in text


def test_help_imports_nothing_heavy() -> None:
    code = (
        "import sys; from rl_finetune.cli import main\n"
        "try: main(['train', '--help'])\nexcept SystemExit: pass\n"
        f"print([m for m in {HEAVY!r} if m in sys.modules], file=sys.stderr)"
    )
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert result.stderr.strip() == "[]"


def test_bad_input_is_one_line_and_exit_code_2(tmp_path: Path) -> None:
    assert "did you mean 'objective.clip'?" in refused("train", "objective.clp=0.1", cwd=tmp_path)
    assert "'train'" in refused("train", "--config", "trian", cwd=tmp_path)
    assert "no run to resume" in refused("train", "--resume", "nowhere", cwd=tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("words", "part"),
    [
        ([], "no command"),
        (["trian"], "invalid choice: 'trian'"),
        (["train", "--fast"], "unknown option '--fast'"),
        (["train", "--config"], "expected one argument"),
        (["show-config", "trian"], "unknown job"),
        (["show-config", "sft", "seeed=1"], "did you mean 'seed'?"),
        (["promote", "statsu"], "invalid choice: 'statsu'"),
        (["promote", "trials"], "ACTION"),
        (["promote", "record", "one", "A", "success"], "invalid int value: 'one'"),
        (["promote", "--fast"], "unknown option '--fast'"),
        (["serve", "here", "there"], "more than one bundle"),
        (["serve", "nowhere"], "no bundle there"),
    ],
)
def test_strange_words(words: list[str], part: str) -> None:
    assert part in refused(*words)


def test_show_config_prints_what_would_run(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["show-config", "run.seed=3", "--config", "smoke", "optimizer.actor_lr=5e-4"]) == 0
    tree = yaml.safe_load(capsys.readouterr().out)
    assert tree["run"]["seed"] == 3 and tree["run"]["iterations"] == 1
    assert tree["optimizer"]["actor_lr"] == 5e-4


def test_show_config_describes(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["show-config", "evaluate", "--describe"]) == 0
    text = capsys.readouterr().out
    assert "evaluation.episodes  (whole number >= 2; default 500)" in text
    assert "Held-out episodes" in text


def test_a_closed_pipe_is_no_error() -> None:
    command = f"'{sys.executable}' -m rl_finetune show-config --describe | head -1"
    result = subprocess.run(["bash", "-c", command], cwd=ROOT, capture_output=True, text=True, check=False)
    assert result.stdout.count("\n") == 1 and result.stderr == ""


def test_resume_takes_the_settings_of_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = _fake_job(monkeypatch)
    folder = tmp_path / "it's 7"
    folder.mkdir()
    (folder / "config.yaml").write_text("run: {seed: 5, folder: elsewhere}\n")
    assert main(["train", "--resume", str(folder), "run.iterations=9"]) == 0
    run_section = seen[0].run
    assert (run_section.seed, run_section.iterations, run_section.resume) == (5, 9, True)
    assert run_section.folder == str(folder)


def test_ctrl_c_is_one_line(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    _fake_job(monkeypatch, KeyboardInterrupt())
    assert main(["train"]) == 130
    assert capsys.readouterr().err == "interrupted\n"


def _fake_job(monkeypatch: pytest.MonkeyPatch, error: BaseException | None = None) -> list:
    """Put a stand-in in the place of the training job; returns the configs it will be called with."""
    import types

    seen: list = []

    def train(config: object) -> int:
        seen.append(config)
        if error is not None:
            raise error
        return 0

    module = types.ModuleType("rl_finetune.algorithm.job")
    module.train = train  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "rl_finetune.algorithm.job", module)
    return seen
