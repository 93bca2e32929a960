"""A round's row of numbers, worked by hand: of which episodes it speaks, world by world."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from builders import blind_policy, random_contexts, trajectory

from rl_finetune.algorithm.summary import Clock, iteration_row
from rl_finetune.checkpoint import RunState
from rl_finetune.types import Failure, Trajectory, UpdateReport

REPORT = UpdateReport(4, dict.fromkeys(("explained_variance", "grad_norm", "policy_loss", "actor_lr"), 0.0), 0.0, 1.0)


def played(world: str, ends: list[str], **changes: object) -> Trajectory:
    """A quarter of reward for each step of 8; a letter a chunk: success, cut by the time limit, broken, goes on."""
    letters = np.array([list(each) for each in ends]).T
    chunks, n = letters.shape
    made = trajectory(blind_policy(), random_contexts(chunks * n), chunks=chunks, whole=True)
    return replace(
        made, world=world, reward=np.full(made.reward.shape, 0.25, np.float32), success=letters == "S",
        terminated=letters == "S", truncated=(letters == "C") | (letters == "B"), failed=letters == "B",
        failures=tuple(Failure(0, world, 0, 0, 0, "torn") for _ in range(int((letters == "B").sum()))), **changes,
    )  # fmt: skip


def test_returns_and_rates_speak_of_the_episodes_that_began_the_round() -> None:
    reach = played("reach", ["-S-", "C--"], executed_std=0.02)
    drive = played("drive", ["--B", "S-S"], executed_std=0.1, embodiment="rover")
    state, row = iteration_row(
        RunState(3, 0, 100, 0.0, 0, (), 1), [reach, drive], REPORT, Clock({"collect": 1.0, "update": 3.0}),
        publish_bytes=1, recent=8, healthy=2, events=(),
    )  # fmt: skip
    assert {name: (w.episodes, w.failures, w.transitions, w.steps) for name, w in row.worlds.items()} == {
        "reach": (2, 0, 6, 48), "drive": (2, 1, 6, 48),
    }  # fmt: skip
    assert row.worlds["reach"].mean_return == (4 + 2) / 2  # two chunks, one chunk
    assert row.worlds["drive"].mean_return == 2  # one chunk; the other environment's first episode broke
    assert (row.worlds["reach"].success, row.worlds["drive"].success) == (0.5, 1.0)
    assert row.success == 0.75 and row.mean_return == pytest.approx(8 / 3) and (row.episodes, row.failures) == (4, 1)
    assert row.worlds["drive"].executed_std == 0.1 and np.isnan(row.executed_std)
    assert row.steps_per_second == 96 / 4 and state.env_steps == 196
    assert state.recent_by_world == {"reach": (True, False), "drive": (True,)}


def test_a_round_in_which_every_world_broke_has_no_return() -> None:
    clock, made = Clock({"collect": 1.0, "update": 1.0}), played("reach", ["-B", "B-"])
    _, row = iteration_row(
        RunState(0, 0, 0, 0.0, 0, (), 1), [made], REPORT, clock, publish_bytes=1, recent=8, healthy=2, events=()
    )
    assert np.isnan(row.mean_return) and row.episodes == 0 and row.worlds == {}


def test_an_update_without_a_decision_that_counts_is_an_event() -> None:
    for used, events in ((2.0, 0), (0.0, 1)):
        report = replace(REPORT, diagnostics={**REPORT.diagnostics, "decisions_used": used})
        _, row = iteration_row(
            RunState(0, 0, 0, 0.0, 0, (), 1), [played("reach", ["--", "--"])], report,
            Clock({"collect": 1.0, "update": 1.0}), publish_bytes=1, recent=8, healthy=2, events=(),
        )  # fmt: skip
        assert row.to_dict()["terms/decisions_used"] == used and len(row.events) == events
        assert all("the returns of every group are all equal" in event for event in row.events)
