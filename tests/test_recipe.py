"""The README's recipe for an objective is followed to the letter, in a copy of the source."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from rl_finetune.config import TrainConfig, load
from rl_finetune.errors import UserError

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("rl_finetune", "learners", "actors", "envs", "configs")
SECTION = (ROOT / "README.md").read_text().split("## Bring an objective\n")[1].split("\n## ")[0]

TRAIN = """
import json, sys
import torch
from builders import blind_policy, random_contexts, trajectory
import rl_finetune
from learners.advantages import credit
from learners.update import recipe, run_update
from rl_finetune.config import TrainConfig, load

job, policy = load(TrainConfig, None, sys.argv[1:]), blind_policy()
data = credit([trajectory(policy, random_contexts(32))], job.objective)
adam = torch.optim.Adam(policy.parameters(), lr=3e-4)

def optimise(loss):
    adam.zero_grad()
    loss.backward()
    adam.step()

found = [run_update(policy, data, recipe(job), optimise=optimise, seed=0, version=0).diagnostics for _ in range(3)]
print(json.dumps({"code": rl_finetune.__file__, "found": found}))
"""
"""Three updates on one round, always in the same points."""


def steps() -> list[tuple[Path, str]]:
    """(file, block) of each step: a step's first file name in backticks, and the block that follows."""
    pattern = r"^\d\. .*?`([\w/]+\.py)`.*?```python\n(.*?)```"
    return [(Path(file), block) for file, block in re.findall(pattern, SECTION, re.DOTALL | re.MULTILINE)]


def insert(path: Path, text: str, *, before: str) -> None:
    """Put text in front of the first place where `before` stands."""
    whole = path.read_text()
    assert before in whole, f"{path.name} has no {before!r}"
    path.write_text(whole.replace(before, text + before, 1))


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the source in which the recipe has been followed."""
    copy = tmp_path_factory.mktemp("recipe")
    for name in PACKAGES:
        shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", copy)
    (copy / "checkpoints").symlink_to(ROOT / "checkpoints")
    (loss, code), (settings, section), (table, lines) = steps()
    (copy / loss).write_text(code)
    insert(copy / settings, f"{section}\n\n", before="AnyObjective = ")
    (joined,) = re.findall(r"`(\| \w+)`", SECTION)
    insert(copy / settings, f"    {joined}\n", before='    Field(discriminator="name")')
    unfinished = (copy / settings).read_text()
    (copy / settings).write_text(unfinished.replace(f",\n    {joined}\n", f"\n    {joined},\n"))
    imported, entry = lines.strip("\n").split("\n\n")
    insert(copy / table, f"{imported}\n", before="from learners.objectives.base import")
    insert(copy / table, f"{entry}\n", before="}\n")
    return copy


def python(tree: Path, *words: str) -> str:
    """Output of `python WORDS` in the copy."""
    path = os.pathsep.join([str(tree), str(ROOT / "tests")])
    done = subprocess.run(
        [sys.executable, *words], cwd=tree, env=os.environ | {"PYTHONPATH": path}, capture_output=True, text=True,
        timeout=600, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_recipe_names_three_files_and_one_of_them_is_new() -> None:
    files = [file for file, _ in steps()]
    assert len(files) == 3
    assert [(ROOT / file).exists() for file in files] == [False, True, True]


def test_without_the_recipe_the_objective_is_unknown() -> None:
    with pytest.raises(UserError, match="awr"):
        load(TrainConfig, None, ["objective.name=awr"])


def test_objective_is_a_setting_and_is_documented(tree: Path) -> None:
    shown = python(tree, "-m", "rl_finetune", "show-config", "objective.name=awr", "objective.temperature=0.5")
    assert "  name: awr\n" in shown and "  temperature: 0.5\n" in shown and "  max_weight: 20.0\n" in shown
    described = python(tree, "-m", "rl_finetune", "show-config", "--describe")
    assert "`awr`: Advantage-weighted regression: imitate what was done" in described
    assert re.search(r"objective\.temperature  \(number > 0; default 1\.0; with awr\)\n    Advantage that", described)


def test_objective_trains(tree: Path) -> None:
    said = json.loads(python(tree, "-c", TRAIN, "objective.name=awr", "objective.minibatch=16"))
    assert Path(said["code"]).is_relative_to(tree)
    losses = [found["policy_loss"] for found in said["found"]]
    assert losses[2] < losses[1] < losses[0]
    assert all(found["awr_weight"] > 1 for found in said["found"])


def test_result_is_in_the_projects_style(tree: Path) -> None:
    files = [str(file) for file, _ in steps()]
    python(tree, "-m", "ruff", "check", "--no-cache", *files)
    python(tree, "-m", "ruff", "format", "--check", "--no-cache", *files)
