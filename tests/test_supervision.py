"""Worlds that raise, hang, die or turn to NaN are told by name and seed and replaced, and nobody else notices."""

from __future__ import annotations

import multiprocessing
import os
import signal
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import breaking_world
import numpy as np
import pytest
from breaking_world import CHANNELS, HORIZON, SPEC, TIME_LIMIT, Breaking, Fault

import envs
from envs import contract
from envs.guard import flaws
from envs.joining import join_outcomes
from envs.ledger import Ledger
from envs.process import ProcessEnv
from envs.supervision import MOST_IN_A_ROW, WorldError
from envs.worker import examine
from rl_finetune.errors import UserError
from rl_finetune.types import ActionChunk, ChunkOutcome, Failure, Observation, SeedKeys

SEED, FIRST, ENVS, CHUNKS = 7, 10, 5, 8
Kind = Literal["raise", "hang", "nan", "die"]
LINES = Path(breaking_world.__file__).read_text().splitlines()
RAISES = 1 + next(number for number, line in enumerate(LINES) if "raise ZeroDivisionError" in line)
CAUSE = {
    "raise": "BreakingWorld.step_chunk raised ZeroDivisionError: the dot fell off "
    f"(breaking_world.py:{RAISES} in fault)",
    "hang": "no answer within 2.5 s",
    "nan": "privileged state is not finite",
    "die": "its process died with exit code -9",
}


@dataclass(frozen=True)
class Unbuildable:
    """Raises instead of building."""

    error: Exception

    def __call__(self, num_envs: int) -> envs.VectorEnv:
        raise self.error


def keys(n: int = ENVS, *, group: int = 2) -> SeedKeys:
    return SeedKeys(SEED, np.arange(FIRST, FIRST + n), np.zeros(n, np.int64), group)


def chunk(number: int, n: int = ENVS, channels: int = CHANNELS, scale: float = 0.1) -> ActionChunk:
    """Padded, and different for each environment and each chunk."""
    rows = [np.random.default_rng((number, row)).normal(size=(HORIZON, channels + 1)) for row in range(n)]
    actions = (scale * np.stack(rows)).astype(np.float32)
    return ActionChunk(actions, np.ones(actions.shape, bool))


def supervised(
    *faults: Fault, n: int = ENVS, workers: int = 2, patience: float = 30.0, keyed: bool = True
) -> ProcessEnv:
    return ProcessEnv(SPEC, Breaking(faults, keyed), n, workers, patience=patience)


def play(env: envs.VectorEnv, n: int = ENVS, chunks: int = CHUNKS) -> tuple[Observation, list[ChunkOutcome]]:
    return env.reset(keys(n)), [env.step_chunk(chunk(number, n)) for number in range(chunks)]


def undisturbed(n: int = ENVS, chunks: int = CHUNKS) -> list[ChunkOutcome]:
    return play(Breaking()(n), n, chunks)[1]


def rows_of(out: ChunkOutcome, rows: Sequence[int]) -> dict[str, Any]:
    """What an outcome says of some rows, final observations included."""
    index = np.array(rows)
    places = np.flatnonzero(np.isin(out.final_index, index))
    return {
        **{
            name: getattr(out, name)[index]
            for name in ("reward", "steps_executed", "terminated", "truncated", "success")
        },
        "seen": out.observation.rows(index),
        "final": out.final_observation.rows(places) if out.final_observation is not None and places.size else None,
        "final_index": out.final_index[places],
        "terms": out.reward_terms["success"][index],
    }


def assert_same(one: Any, two: Any, what: str = "outcome") -> None:
    if isinstance(one, list):
        one, two = dict(enumerate(one)), dict(enumerate(two))
    assert list(contract._differences(one, two, what)) == []


def assert_others_unmoved(run: Sequence[ChunkOutcome], culprits: Sequence[int], n: int = ENVS) -> None:
    others = [row for row in range(n) if row not in culprits]
    for number, (mine, theirs) in enumerate(zip(run, undisturbed(n, len(run)), strict=True)):
        assert_same(rows_of(mine, others), rows_of(theirs, others), f"chunk {number}")


def breakdowns(run: Sequence[ChunkOutcome]) -> dict[int, tuple[Failure, ...]]:
    return {number: out.failures for number, out in enumerate(run) if out.failures}


def begun(row: int, episode: int) -> tuple[int, int]:
    """The chunk with which an episode of the undisturbed run ends, and the number of its chunks."""
    ends = [number for number, out in enumerate(undisturbed()) if (out.terminated | out.truncated)[row]]
    before = ends[episode - 1] if episode else -1
    return ends[episode], ends[episode] - before


def test_undisturbed_episodes_are_of_different_age() -> None:
    """Else these tests would not show that a replay finds each one's beginning."""
    ages = {tuple((out.terminated | out.truncated).tolist()) for out in undisturbed()}
    assert len(ages) >= 4
    assert begun(3, 1)[1] >= 2


@pytest.mark.parametrize("kind", ["raise", "hang", "nan", "die"])
def test_broken_world_is_named_and_the_others_do_not_notice(kind: Kind) -> None:
    end, length = begun(3, 1)
    broken = end - length + 2
    with supervised(Fault(kind, FIRST + 3, 1, 1), patience=2.5) as env:
        _, run = play(env)
        assert any(str(out.failures[0]) in env.events() for out in run if out.failures)
    assert breakdowns(run) == {broken: (Failure(3, "breaking", SEED, FIRST + 3, 1, CAUSE[kind]),)}
    assert_others_unmoved(run, [3])
    assert_same([rows_of(out, [3]) for out in run[:broken]], [rows_of(out, [3]) for out in undisturbed()[:broken]])
    out = run[broken]
    assert out.truncated[3] and not out.terminated[3] and not out.success[3] and not out.reward[3].any()
    assert out.final_observation is not None and np.isfinite(out.reward_terms["success"]).all()
    last = out.final_observation.rows(np.flatnonzero(out.final_index == 3))
    assert_same(last, run[broken - 1].observation.rows(np.array([3])))
    alone = Breaking()(1)
    assert_same(out.observation.rows(np.array([3])), alone.reset(keys().rows(np.array([3])).at(np.array([2]))))
    for number in range(broken + 1, CHUNKS):
        actions = chunk(number)
        expected = alone.step_chunk(ActionChunk(actions.actions[3:4], actions.mask[3:4]))
        assert run[number].reward[3].tolist() == expected.reward[0].tolist()
        assert_same(run[number].observation.rows(np.array([3])), expected.observation)


@pytest.mark.parametrize("kind", ["hang", "die"])
def test_passing_fault_costs_nobody_anything(kind: Kind, tmp_path: Path) -> None:
    with supervised(Fault(kind, FIRST + 3, 1, 1, tmp_path / "happened"), patience=2.5) as env:
        _, run = play(env)
        told = env.events()
        assert env.events() == []
    assert breakdowns(run) == {}
    assert_others_unmoved(run, [])
    assert len(told) == 2 and CAUSE[kind] in told[0] and "environments [2, 3, 4] go on where they were" in told[1]


def test_several_break_in_one_chunk() -> None:
    faults = [Fault("raise", FIRST, 0, 0), Fault("nan", FIRST + 2, 0, 0), Fault("die", FIRST + 4, 0, 0)]
    with supervised(*faults) as env:
        _, run = play(env)
        split = len(env._supervisor._workers)
        again, _ = play(env, chunks=0)
        assert split > len(env._supervisor._workers) == 2
    assert [(each.row, each.env, each.cause) for each in run[0].failures] == [
        (0, FIRST, CAUSE["raise"]),
        (2, FIRST + 2, CAUSE["nan"]),
        (4, FIRST + 4, CAUSE["die"]),
    ]
    assert list(breakdowns(run)) == [0]
    assert_others_unmoved(run, [0, 2, 4])
    assert_same(again, Breaking()(ENVS).reset(keys()))


def test_only_environment_of_a_worker_breaks() -> None:
    with supervised(Fault("raise", FIRST + 1, 0, 0), n=2) as env:
        _, run = play(env, n=2, chunks=3)
    assert breakdowns(run) == {0: (Failure(1, "breaking", SEED, FIRST + 1, 0, CAUSE["raise"]),)}
    assert_others_unmoved(run, [1], n=2)


def test_everybody_breaks_at_once() -> None:
    with supervised(Fault("die", None, 0, 0), n=2, workers=1) as env:
        _, run = play(env, n=2, chunks=2)
    assert [failure.env for failure in run[0].failures] == [FIRST, FIRST + 1]
    assert run[0].reward_terms.keys() == {"reward"} and run[0].truncated.tolist() == [True, True]
    assert run[1].failures == ()


def test_episodes_that_cannot_begin_are_numbered_right() -> None:
    """The caller counts one episode further at each failure: noise and scene must stay in step."""
    faults = [Fault("raise", FIRST, 0, -1), Fault("raise", FIRST, 1, -1), Fault("raise", FIRST + 4, 1, -1)]
    with supervised(*faults) as env:
        first, run = play(env)
    end, _ = begun(4, 0)
    told = [(number, f.env, f.episode) for number, failures in breakdowns(run).items() for f in failures]
    assert sorted(told, key=lambda each: each[1]) == [
        (0, FIRST, 0), (1, FIRST, 1), (end, FIRST + 4, 0), (end + 1, FIRST + 4, 1)
    ]  # fmt: skip
    third = Breaking()(ENVS).reset(keys().at(np.full(ENVS, 2))).rows(np.array([0, 4]))
    assert_same(first.rows(np.array([0])), third.rows(np.array([0])))
    assert_same(run[1].observation.rows(np.array([0])), third.rows(np.array([0])))
    assert_same(run[end + 1].observation.rows(np.array([4])), third.rows(np.array([1])))
    assert_others_unmoved(run, [0, 4])


def test_failures_that_a_world_reports_itself_are_passed_on() -> None:
    with supervised(Fault("report", FIRST + 3, 0, 0)) as env:
        _, run = play(env, chunks=2)
        assert env.events() == []
    assert breakdowns(run) == {0: (Failure(3, "breaking", SEED, FIRST + 3, 0, "it said so"),)}
    assert_others_unmoved(run, [3])


GIVEN_UP = rf"breaking broke down \(seed 7, environment 11, episode {MOST_IN_A_ROW}\).*the world itself is at fault"


def test_world_that_can_never_begin_is_given_up() -> None:
    with supervised(Fault("raise", FIRST + 1, None, -1), n=2) as env:
        with pytest.raises(WorldError, match=GIVEN_UP):
            env.reset(keys(2))
        assert multiprocessing.active_children() == []


def test_world_that_always_reports_a_failure_is_given_up() -> None:
    with supervised(Fault("report", FIRST + 1, None, 0), n=2) as env:
        env.reset(keys(2))
        for number in range(MOST_IN_A_ROW):
            assert [each.episode for each in env.step_chunk(chunk(number, 2)).failures] == [number]
        with pytest.raises(WorldError, match=GIVEN_UP):
            env.step_chunk(chunk(MOST_IN_A_ROW, 2))


def test_world_that_cannot_be_played_again_gives_up_the_worker_s_episodes() -> None:
    with supervised(Fault("raise", FIRST + 3, 0, 0), keyed=False) as env:
        assert not env.keyed
        _, run = play(env, chunks=3)
    assert [(each.row, each.episode) for each in run[0].failures] == [(2, 0), (3, 0), (4, 0)]
    assert list(breakdowns(run)) == [0]
    assert_others_unmoved(run, [2, 3, 4])


def test_killed_worker_of_a_real_world_is_replaced_to_the_bit() -> None:
    actions = np.random.default_rng(5).normal(size=(7, 4, 8, 7)).astype(np.float32) * 0.05
    chunks = [ActionChunk(each, np.ones(each.shape, bool)) for each in actions]
    with envs.make("widowx_reach", 4) as here, envs.make("widowx_reach", 4, workers=2) as env:
        assert isinstance(env, ProcessEnv)
        assert_same(here.reset(keys(4)), env.reset(keys(4)))
        for number, each in enumerate(chunks):
            if number in (2, 5):
                os.kill(env._supervisor._workers[-1].process.pid or 0, signal.SIGKILL)
            assert_same(here.step_chunk(each), env.step_chunk(each), f"chunk {number}")
        assert sum("exit code -9" in event for event in env.events()) == 2


def test_nothing_is_left_running(tmp_path: Path) -> None:
    with supervised(Fault("hang", FIRST, 0, 0, tmp_path / "happened"), patience=2.5) as env:
        play(env, chunks=2)
        assert len(multiprocessing.active_children()) == len(env._supervisor._workers)
    assert multiprocessing.active_children() == []
    env.close()


def test_worlds_that_cannot_be_built_are_told_and_end_everything() -> None:
    with pytest.raises(WorldError, match=r"built in a worker process: Unbuildable\.__call__ raised TypeError: no"):
        ProcessEnv(SPEC, Unbuildable(TypeError("no")), 2, 2, patience=30.0)
    with pytest.raises(UserError, match="bad option"):
        ProcessEnv(SPEC, Unbuildable(UserError("bad option", got=1, expected=2, do="change it")), 2, 2, patience=30.0)
    assert multiprocessing.active_children() == []


def test_ledger_keeps_the_chunks_of_running_episodes_and_no_more() -> None:
    ledger = Ledger(keys(3))
    ended = np.array([[0, 0, 0], [1, 0, 0], [0, 0, 0], [0, 1, 1], [0, 0, 0]], bool)
    kept = []
    for number, ends in enumerate(ended):
        ledger.add(chunk(number, 3))
        ledger.settle(ends, np.zeros(3, bool))
        kept.append(len(ledger))
    assert kept == [1, 2, 3, 2, 3]  # from chunk 3 on only environment 0's second episode reaches back, to chunk 2
    assert [rows.tolist() for rows in ledger.cohorts(np.arange(3))] == [[0], [1, 2]]
    reset, *chunks = ledger.script(np.array([1, 2]))
    assert isinstance(reset[1], SeedKeys)
    assert (reset[1].env.tolist(), reset[1].episode.tolist(), reset[1].group) == ([11, 12], [1, 1], 2)
    assert_same([each for _, each in chunks], [ActionChunk(chunk(4, 3).actions[1:], chunk(4, 3).mask[1:])])
    ledger.abandon(np.array([2]))
    assert [rows.tolist() for rows in ledger.cohorts(np.arange(3))] == [[0], [1], [2]]
    assert len(ledger.script(np.array([2]))) == 1 and ledger.keys.episode.tolist() == [1, 1, 2]


def test_ledger_of_a_long_run_is_bounded_by_the_time_limit() -> None:
    env, ledger, kept = Breaking()(ENVS), Ledger(keys()), []
    env.reset(keys())
    for number in range(40):
        ledger.add(chunk(number))
        out = env.step_chunk(chunk(number))
        ledger.settle(out.terminated | out.truncated, np.zeros(ENVS, bool))
        kept.append(len(ledger))
    assert max(kept) <= TIME_LIMIT // HORIZON


def test_parts_are_put_at_their_places() -> None:
    whole = Breaking((Fault("report", FIRST + 4, 0, 0),))(ENVS)
    whole.reset(keys())
    out = whole.step_chunk(chunk(0, scale=1.0))
    assert out.final_index.size >= 3
    rows = [np.array([4, 1]), np.array([0]), np.array([3, 2])]
    assert_same(join_outcomes([part(out, each) for each in rows], rows), out)


def part(out: ChunkOutcome, rows: np.ndarray) -> ChunkOutcome:
    """Some rows of an outcome as an outcome of their own."""
    places = [np.flatnonzero(out.final_index == row) for row in rows]
    order = np.concatenate(places)
    final = out.final_observation
    return replace(
        out,
        **{
            name: getattr(out, name)[rows]
            for name in ("reward", "steps_executed", "terminated", "truncated", "success")
        },
        observation=out.observation.rows(rows),
        final_index=np.flatnonzero([len(place) for place in places]),
        final_observation=final.rows(order) if final is not None and order.size else None,
        reward_terms={name: term[rows] for name, term in out.reward_terms.items()},
        failures=tuple(replace(f, row=rows.tolist().index(f.row)) for f in out.failures if f.row in rows),
    )


def test_guard_names_the_row_and_what_is_not_finite() -> None:
    out = undisturbed(chunks=3)[-1]
    assert out.final_observation is not None and out.final_observation.privileged is not None
    assert flaws(out) == {} and flaws(replace(out, measures={"spl": np.full(ENVS, np.nan, np.float32)})) == {}
    reward = out.reward.copy()
    reward[1, 2] = np.inf
    last = out.final_observation.privileged.copy()
    last[-1, 0] = np.nan
    final = replace(out.final_observation, privileged=last)
    found = flaws(replace(out, reward=reward, final_observation=final))
    assert found == {1: "reward", int(out.final_index[-1]): "final privileged state"}
    felt = np.zeros((ENVS, 1), np.float32)
    felt[2] = -np.inf
    assert flaws(replace(out.observation, proprioception=felt)) == {2: "proprioception"}


def test_replay_that_ends_an_episode_too_soon_is_not_taken_for_the_first_run() -> None:
    out = undisturbed(chunks=3)[-1]
    assert examine(out, replayed=False) is None
    broken = examine(out, replayed=True)
    assert broken is not None and broken.blamed == tuple(out.final_index.tolist()) and "when replayed" in broken.cause
