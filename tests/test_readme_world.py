"""The README's world is taken from the README and run: checked, spread over processes, named on the command line."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

import envs
from envs import contract
from envs.expert import expert_chunk
from envs.simple import Episode, SimpleWorld, Step, entry
from rl_finetune.errors import UserError
from rl_finetune.types import ActionChunk, SeedKeys

ROOT = Path(__file__).resolve().parent.parent
SECTION = (ROOT / "README.md").read_text().split("## Bring a world\n")[1].split("\n## ")[0]
(CODE,) = re.findall(r"```python\n(.*?)```", SECTION, re.DOTALL)
(NAME,) = set(re.findall(r"\b\w+:WORLD\b", SECTION))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where a user's modules lie: the README's, and two that are wrong."""
    place = tmp_path_factory.mktemp("mine")
    (place / f"{NAME.split(':')[0]}.py").write_text(CODE)
    spoiled = CODE.replace("rng.permutation", "np.random.permutation")
    assert spoiled != CODE
    (place / "moody.py").write_text(spoiled)
    (place / "stumbling.py").write_text("import no_such_library\n")
    return place


@pytest.fixture(autouse=True)
def importable(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(folder))


def keys(count: int) -> SeedKeys:
    return SeedKeys(3, np.arange(count, dtype=np.int64), np.zeros(count, np.int64))


def command(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """`rl-finetune WORDS` as a person has it who set PYTHONPATH."""
    path = os.pathsep.join([str(folder), str(ROOT)])
    return subprocess.run(
        [sys.executable, "-m", "rl_finetune", *words], cwd=folder, env={**os.environ, "PYTHONPATH": path},
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip


def test_example_has_50_lines_and_keeps_the_whole_contract() -> None:
    assert len([line for line in CODE.splitlines() if line.strip()]) <= 50
    with envs.make(NAME, 3) as env:
        assert contract.check(env, make=lambda n: envs.make(NAME, n)) == ()


def test_what_it_does_by_hand() -> None:
    """From the middle the blue corner is 0.53 away: five steps of 0.1 bring the dot within 0.12 of it."""
    with envs.make(NAME, 2) as env:
        env.reset(keys(2))
        assert isinstance(env, SimpleWorld)
        for episode in env._episodes:
            corners = {"red": (0.875, 0.875), "blue": (0.125, 0.125), "green": (0.875, 0.125), "yellow": (0.125, 0.875)}
            vars(episode).update(dot=np.array([0.5, 0.5]), corners=corners, asked="blue")
        actions = np.stack([np.full((4, 2), -1.0), np.zeros((4, 2))]).astype(np.float32)
        chunk = ActionChunk(actions, np.ones(actions.shape, bool))
        first, second = env.step_chunk(chunk), env.step_chunk(chunk)
        assert not first.success.any() and first.steps_executed.tolist() == [4, 4]
        assert second.success.tolist() == second.terminated.tolist() == [True, False]
        assert second.steps_executed.tolist() == [1, 4]
        np.testing.assert_array_equal(second.reward, [[1, 0, 0, 0], [0, 0, 0, 0]])
        assert second.final_observation is not None
        white = (second.final_observation.images["ego"][0] == 255).all(-1)
        np.testing.assert_allclose(np.argwhere(white).mean(0), 32 * (0.5 - 0.5 / 2**0.5), atol=1)


def test_what_its_expert_and_its_labels_say() -> None:
    promised = envs.spec(NAME)
    assert promised.expert and promised.things == ("red", "green", "blue", "yellow", "dot")
    with envs.make(NAME, 20) as env:
        seen = env.reset(keys(20))
        assert seen.grounding is not None and seen.grounding.present.all()
        for picture, points, target, words in zip(
            seen.images["ego"], seen.grounding.points, seen.grounding.target, seen.instruction, strict=True
        ):
            assert promised.things[target] in words
            at = (32 * points[:, ::-1]).astype(int)
            red, green, blue, yellow, dot = (picture[tuple(place)].tolist() for place in at)
            assert red[0] > 200 > red[1] and green[1] == 200 and blue[2] == 240 and yellow[:2] == [240, 220]
            assert dot == [255] * 3
        done = np.zeros(20, bool)
        for _ in range(3):
            outcome = env.step_chunk(expert_chunk(env, seen))
            seen, done = outcome.observation, done | outcome.success
        assert done.all()


def test_an_expert_is_disturbed_in_its_own_units() -> None:
    """One shift for all steps of a chunk, of the standard deviation asked for and at most twice that."""
    with envs.make(NAME, 400) as env:
        seen = env.reset(keys(400))
        calm, shaken = expert_chunk(env, seen), expert_chunk(env, seen, keys=keys(400), noise=0.05)
    shift = shaken.actions - calm.actions
    np.testing.assert_allclose(shift, shift[:, :1].repeat(4, 1), atol=1e-6)
    assert np.abs(shift).max() <= 0.1 + 1e-6
    assert 0.04 < shift[:, 0].std() < 0.05  # clipped at two deviations: 0.96 of what was asked


def test_worker_processes_find_it_and_play_the_same() -> None:
    chunk = ActionChunk(np.full((3, 4, 2), 0.05, np.float32), np.ones((3, 4, 2), bool))
    with envs.make(NAME, 3) as here, envs.make(NAME, 3, workers=2) as spread:
        here.reset(keys(3)), spread.reset(keys(3))
        ours, theirs = here.step_chunk(chunk), spread.step_chunk(chunk)
    assert list(contract._differences(ours, theirs, "outcome")) == []


def test_command_says_whether_a_world_keeps_the_contract(folder: Path) -> None:
    good, bad = command(folder, "check-env", NAME), command(folder, "check-env", "moody:WORLD")
    assert (good.returncode, good.stdout) == (0, f"{NAME} keeps the contract\n")
    assert bad.returncode == 2 and bad.stdout == "" and bad.stderr.count("\n") == 1
    assert "error: environment 'moody:WORLD' breaks the contract: got the same keys and actions gave" in bad.stderr


def test_command_names_what_was_not_asked(folder: Path) -> None:
    words = ["factory=gym_worlds:alone", "kwargs.mode=NEXT_STEP", "time_limit=6", "horizon=4", "instruction=info.task"]
    path = folder / "gym_worlds.py"
    path.write_text((ROOT / "tests" / "gym_worlds.py").read_text())
    said = command(folder, "check-env", "gymnasium", *words, "privileged=[obs.state]")
    assert said.returncode == 0, said.stderr
    assert "not asked of it: environments of one group begin alike" in said.stdout


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("no_such_package.world:WORLD", "no module 'no_such_package'.*PYTHONPATH"),
        (f"{NAME}X", "did you mean 'WORLD'"),
        (NAME.replace("WORLD", "BODY"), "is no environment: got EmbodimentSpec; expected an envs.Entry"),
        ("corners:", "expected 'package.module:attribute'"),
    ],
)
def test_names_that_lead_nowhere(name: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        envs.spec(name)


def test_error_inside_a_users_module_is_not_taken_for_a_missing_one() -> None:
    message = r"got stumbling.py raised ModuleNotFoundError: No module named 'no_such_library' \(stumbling.py:1\);"
    with pytest.raises(UserError, match=message):
        envs.spec("stumbling:WORLD")


@dataclass(frozen=True, slots=True)
class Fragility:
    """Settings of a world that breaks."""

    steps: int = 2


class Fragile(Episode):
    """Raises after so many steps, and cannot begin again once `dead`."""

    dead = False

    def __init__(self, options: Fragility) -> None:
        self.left = options.steps

    def begin(self, rng: np.random.Generator) -> str:
        if self.dead:
            raise OSError("no bench to stand on")
        return "hold on"

    def step(self, action: np.ndarray) -> Step:
        if self.left == 0:
            raise ValueError("snapped")
        self.left -= int(action[0])
        return Step(reward=1.0)


def test_options_reach_the_world_and_failures_the_outcome(monkeypatch: pytest.MonkeyPatch) -> None:
    promised = envs.spec(NAME)
    body = promised.embodiment
    blind = type(promised)("fragile", type(body)(body.tag, "", (), body.action), image_size=64, time_limit=20)
    monkeypatch.setitem(envs.REGISTRY, "fragile", entry(Fragile, lambda options: blind, Fragility))
    actions = np.zeros((2, 4, 2), np.float32)
    actions[1] = 1
    chunk = ActionChunk(actions, np.ones(actions.shape, bool))
    with envs.make("fragile", 2, steps=3) as env:
        env.reset(keys(2))
        out = env.step_chunk(chunk)
        (failure,) = map(str, out.failures)
        said = "fragile broke down (seed 3, environment 1, episode 0): Fragile.step raised ValueError: snapped"
        assert failure.startswith(f"{said} (test_readme_world.py:") and failure.endswith(" in step)")
        assert out.reward.tolist() == [[1] * 4, [0] * 4] and out.truncated.tolist() == [False, True]
        assert out.failed.tolist() == [False, True] and out.steps_executed.tolist() == [4, 3]
        monkeypatch.setattr(Fragile, "dead", True)
        with pytest.raises(RuntimeError, match=r"cannot begin: fragile .*environment 1, episode 2.*no bench"):
            env.step_chunk(chunk)
