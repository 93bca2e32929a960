"""What a user's own simulator raises is one line that leads to their code, wherever it is raised."""

from __future__ import annotations

import argparse
import importlib
import pickle
import re
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import envs
import rl_finetune.cli as cli
from actors.player import Player
from actors.playing import _Distant
from envs.worker import Breakdown, _told
from rl_finetune.algorithm import preflight
from rl_finetune.config import TrainConfig, load
from rl_finetune.errors import (
    LINE,
    NotFiniteError,
    RunError,
    SimulatorError,
    UserError,
    cause,
    is_theirs,
    simulator,
    told,
    world_errors,
)
from rl_finetune.keys import generator
from rl_finetune.types import ActionChunk, SeedKeys

CODE = """
import gymnasium, numpy as np
from gymnasium import spaces
from envs.simple import Episode, Step, entry
from envs.base import VectorEnv
from rl_finetune.policy.config import WIDOWX
from rl_finetune.spec import EnvSpec

def helper(kind):
    if kind == "zero": 1 / 0
    if kind == "numpy": np.linalg.inv(np.zeros((2, 2)))
    if kind == "long": raise ValueError("one\\n  two " * 200)
    if kind == "silent": raise StopIteration
    if kind == "again":
        try: helper("zero")
        except ZeroDivisionError as error: raise TypeError("wrapped") from error

class Reach(Episode):
    fails = {}
    def __init__(self, options): helper(self.fails.get("__init__"))
    def begin(self, rng):
        helper(self.fails.get("begin")); return "reach"
    def step(self, action):
        helper(self.fails.get("step")); return Step()
    def picture(self, view):
        helper(self.fails.get("picture")); return np.eye(64)[..., None]

def spec(options):
    helper(Reach.fails.get("spec")); return EnvSpec("reach", WIDOWX, image_size=64, time_limit=16)

WORLD = entry(Reach, spec)

class Vector(VectorEnv):
    def __init__(self, n): self.spec, self.num_envs = spec(None), n
    def reset(self, keys): helper(Reach.fails.get("reset"))
    def step_chunk(self, chunk): helper(Reach.fails.get("step"))
    def close(self): helper(Reach.fails.get("close"))

from envs import Entry
from envs.simple import NoOptions
VECTOR = Entry(NoOptions, spec, lambda n, options: Vector(n))

class Env(gymnasium.Env):
    action_space, observation_space = spaces.Box(-1, 1, (2,)), spaces.Box(-1, 1, (2,))
    render_mode = "rgb_array"
    def __init__(self, render_mode=None): helper(Reach.fails.get("__init__"))
    def reset(self, *, seed=None, options=None):
        helper(Reach.fails.get("reset")); return np.zeros(2, np.float32), {}
    def step(self, action):
        helper("zero" if action[0] > 0.5 else None); return np.zeros(2, np.float32), 0.0, False, False, {}

def many(num_envs):
    return gymnasium.vector.SyncVectorEnv([Env] * num_envs, autoreset_mode=gymnasium.vector.AutoresetMode.SAME_STEP)

class Wrapped(gymnasium.vector.VectorWrapper): pass

def wrapped(num_envs): return Wrapped(many(num_envs))

gymnasium.register("Theirs-v0", entry_point=Env, max_episode_steps=8)
"""
LINES = CODE.splitlines()
ZERO, NUMPY = (next(n for n, line in enumerate(LINES, 1) if f'kind == "{kind}"' in line) for kind in ("zero", "numpy"))
DIVIDED = f"ZeroDivisionError: division by zero (their_world.py:{ZERO} in helper)"
KEYS = SeedKeys(3, np.arange(2), np.zeros(2, np.int64))
GYM: dict[str, Any] = dict(
    horizon=2, instruction="go", success="never", privileged=["obs"], time_limit=8,
)  # fmt: skip


@pytest.fixture(scope="module")
def theirs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """A module of theirs."""
    folder = tmp_path_factory.mktemp("theirs")
    (folder / "their_world.py").write_text(CODE)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(folder))
        patch.setenv("PYTHONPATH", str(folder))
        yield importlib.import_module("their_world")


@pytest.fixture
def fails(theirs: Any, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """What fails: method -> how."""
    monkeypatch.setattr(theirs.Reach, "fails", {})
    return theirs.Reach.fails  # type: ignore[no-any-return]


def still(env: envs.VectorEnv, first: float = 0.0) -> ActionChunk:
    """A chunk of zeros, but for the first channel of the first environment."""
    action = env.spec.embodiment.action
    actions = np.zeros((env.num_envs, action.horizon, action.channels), np.float32)
    actions[0, :, 0] = first
    return ActionChunk(actions, np.ones(actions.shape, bool))


OURS: dict[str, Callable[..., Any]] = {}
"""A function as if it stood in a file of ours."""
CALL = """
def call(around, f, *given):
    with around():
        return f(*given)
"""
exec(compile(CALL, str(Path(envs.__file__).with_name("x.py")), "exec"), OURS)


def raised(call: Callable[..., Any], *given: Any, around: Callable[[], Any] = nullcontext) -> Exception:
    """What a call by that function raises."""
    with pytest.raises(Exception) as caught:
        OURS["call"](around, call, *given)
    return caught.value


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        ("zero", f"helper raised {DIVIDED}"),
        ("numpy", f"helper raised LinAlgError: Singular matrix (their_world.py:{NUMPY} in helper)"),
        ("silent", f"helper raised StopIteration (their_world.py:{NUMPY + 2} in helper)"),
        ("again", f"helper raised TypeError: wrapped (their_world.py:{NUMPY + 5} in helper)"),
    ],
)
def test_a_cause_names_who_was_called_and_their_last_line(theirs: Any, kind: str, said: str) -> None:
    """Their last line, though it is a library that raised."""
    assert cause(raised(theirs.helper, kind)) == said


def test_a_cause_is_one_line_of_bearable_length(theirs: Any) -> None:
    line = cause(raised(theirs.helper, "long"))
    assert line.startswith("helper raised ValueError: one two one two ") and "\n" not in line and len(line) < LINE + 90
    assert line.endswith(f"... (their_world.py:{NUMPY + 1} in helper)")


def test_errors_of_ours_are_told_as_they_are() -> None:
    refused = UserError("no", got=1, expected=2, do="x")
    for error in (refused, RunError("stopped"), SimulatorError("broke"), NotFiniteError("it is nan")):
        assert cause(error) == str(error)
    fault = raised(generator, "no", 1, 2, 3)
    assert cause(fault).startswith("TypeError: ") and not is_theirs(fault), "nobody else's code was there"
    assert told(refused) is refused and str(told(ValueError("x"))) == "ValueError: x"


def test_what_calls_us_is_not_to_blame() -> None:
    """A user's script, or this test, that calls us wrongly stands before our code in the traceback."""
    with pytest.raises(TypeError) as caught:
        generator("no", 1, 2, 3)  # type: ignore[arg-type]
    assert not is_theirs(caught.value)


@pytest.mark.parametrize("name", ["their_world:WORLD", "their_world:VECTOR"])
@pytest.mark.parametrize("workers", [0, 2])
def test_a_world_that_cannot_be_made_is_the_users_to_mend(
    fails: dict[str, str], name: str, workers: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    fails["spec"] = "zero"
    who = "Vector.__init__" if "VECTOR" in name and not workers else "spec"
    with pytest.raises(UserError, match=f"'{name}' cannot be .*: got {who} raised {re.escape(DIVIDED)};"):
        envs.make(name, 2, workers=workers)
    if workers == 0 and name.endswith("WORLD"):
        fails |= {"spec": "", "__init__": "numpy"}
        with pytest.raises(UserError, match=r"cannot be made: got Reach.__init__ raised LinAlgError: Singular matrix"):
            envs.make(name, 2)


@pytest.mark.parametrize("method", ["step", "picture"])
def test_a_step_that_raises_is_a_failure_that_says_where(fails: dict[str, str], method: str) -> None:
    with envs.make("their_world:WORLD", 2) as env:
        env.reset(KEYS)
        actions = still(env)
        episodes = env._episodes  # type: ignore[attr-defined]
        episodes[1].fails = {method: "zero"}
        (failure,) = env.step_chunk(actions).failures
        assert (failure.row, failure.cause) == (1, f"Reach.{method} raised {DIVIDED}")
        fails["begin"] = "zero"
        episodes[0].fails = {"step": "zero"}
        with pytest.raises(SimulatorError) as caught:
            env.step_chunk(actions)
        begun = f"reach broke down (seed 3, environment 0, episode 1): Reach.begin raised {DIVIDED}"
        assert str(caught.value) == f"an episode cannot begin: {begun}"
        fails["__init__"] = "zero"
        episodes[0].fails = {"step": "zero"}
        with pytest.raises(SimulatorError, match=f"^{re.escape(f'Reach.__init__ raised {DIVIDED}')}$"):
            env.step_chunk(actions)


def test_worker_processes_tell_it_too(theirs: Any) -> None:
    assert _told(raised(theirs.helper, "zero")) == Breakdown(f"helper raised {DIVIDED}")


@pytest.mark.parametrize("kind", ["id", "wrapped", "async"])
def test_gymnasium_environments_that_raise_are_named(fails: dict[str, str], kind: str) -> None:
    """One by one a failure of its row; a vector environment as a whole, and without a traceback from its processes."""
    options = {"factory": "their_world:wrapped"} if kind == "wrapped" else {"id": "their_world:Theirs-v0"}
    options |= {"vectorization": "async"} if kind == "async" else {}
    with envs.make("gymnasium", 2, **GYM, **options) as env:
        env.reset(KEYS)
        actions = still(env, first=1.0)
        if kind == "id":
            (failure,) = env.step_chunk(actions).failures
            assert (failure.row, failure.cause) == (0, f"Env.step raised {DIVIDED}")
        else:
            with pytest.raises(SimulatorError, match=f"^{re.escape(f'Env.step raised {DIVIDED}')}$"):
                env.step_chunk(actions)
    fails["reset"] = "zero"
    if kind != "async":
        with envs.make("gymnasium", 2, **GYM, **options) as env, pytest.raises(SimulatorError) as caught:
            env.reset(KEYS)
        assert str(caught.value).endswith(f"Env.reset raised {DIVIDED}")


@pytest.mark.parametrize("options", [{"id": "their_world:Theirs-v0"}, {"factory": "their_world:wrapped"}])
def test_gymnasium_environments_that_cannot_be_made_are_named(fails: dict[str, str], options: dict[str, str]) -> None:
    fails["__init__"] = "zero"
    known, who = next(iter(options.values())), "Env.__init__" if "id" in options else "wrapped"
    message = f"gymnasium environment '{known}' cannot be made: got {who} raised {re.escape(DIVIDED)}"
    with pytest.raises(UserError, match=message):
        envs.make("gymnasium", 1, **GYM, **options, kwargs={})


def checked(name: str, capsys: pytest.CaptureFixture[str]) -> tuple[int, str]:
    """Exit code of `check-env`, and its only line."""
    code = cli.main(["check-env", name])
    said = capsys.readouterr().err
    assert said.startswith("error: ") and said.count("\n") == 1
    return code, said


@pytest.mark.parametrize(
    ("name", "method"),
    [("WORLD", "__init__"), ("WORLD", "begin"), ("WORLD", "picture"), ("WORLD", "step"), ("VECTOR", "reset"),
     ("VECTOR", "close")],
)  # fmt: skip
def test_check_env_leads_to_the_line(
    fails: dict[str, str], name: str, method: str, capsys: pytest.CaptureFixture[str]
) -> None:
    fails[method] = "zero"
    code, said = checked(f"their_world:{name}", capsys)
    who = "Reach" if name == "WORLD" else "Vector"
    assert code == 2 and f"{who}.{method} raised {DIVIDED}" in said


def test_check_env_says_what_is_wrong_with_an_answer_of_the_wrong_kind(
    fails: dict[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    code, said = checked("their_world:VECTOR", capsys)  # its reset returns None
    assert code == 2 and "'their_world:VECTOR' breaks down: got AttributeError: 'NoneType'" in said


def test_a_job_whose_world_cannot_begin_is_refused_before_it_starts(fails: dict[str, str]) -> None:
    fails["begin"] = "zero"
    config = load(TrainConfig, "train", ["env.name=their_world:WORLD"])
    with pytest.raises(UserError, match=f"breaks down: got .*Reach.begin raised {re.escape(DIVIDED)}"):
        preflight.check(config.policy, config.env)


def test_a_command_ends_in_one_line_only_where_it_is_not_our_fault(
    theirs: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def run(call: Callable[[], Any]) -> int:
        monkeypatch.setattr(cli, "parse", lambda _: argparse.Namespace(command=lambda _: call()))
        return cli.main([])

    assert run(lambda: theirs.helper("zero")) == 1
    assert capsys.readouterr().err.endswith(f"raised {DIVIDED}\n")
    monkeypatch.setattr(cli, "is_theirs", lambda _: False)
    with pytest.raises(ZeroDivisionError):
        run(lambda: theirs.helper("zero"))


def test_a_remote_players_world_tells_its_line(theirs: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    for method in ("play", "watch"):
        monkeypatch.setattr(Player, method, lambda *_: theirs.helper("zero"))
        with pytest.raises(SimulatorError) as caught:
            getattr(_Distant(), method)(0, np.arange(2))
        assert str(pickle.loads(pickle.dumps(caught.value))).endswith(f"raised {DIVIDED}")


def test_our_own_faults_fly_as_they_are(theirs: Any) -> None:
    assert isinstance(raised(theirs.helper, "zero", around=world_errors), SimulatorError)
    assert isinstance(raised(generator, "no", 1, 2, 3, around=world_errors), TypeError)
    for error in (UserError("a", got=1, expected=2, do="b"), RunError("x"), NotFiniteError("nan"), SimulatorError("y")):
        with pytest.raises(type(error)) as caught, simulator():
            raise error
        assert caught.value is error
