"""The mujoco_warp engine on the CPU: what it must share with MuJoCo, and what it must not share between worlds.

A first run compiles its kernels, about a minute; warp keeps them in its cache folder.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pytest

pytest.importorskip("mujoco_warp", reason="mujoco_warp is not installed: pip install -e '.[warp]'")

import torch
import warp as wp
from crane import HORIZON, LIFTED, MODEL, Crane, lift

from envs import contract
from envs.mujoco.cpu import CpuEngine
from envs.mujoco.engine import Engine, Motion
from envs.mujoco.task import EpisodeKey, Float64, Now, Start
from envs.mujoco.warp import WarpEngine
from envs.mujoco.world import World
from rl_finetune.errors import UserError

N, SIZE = 3, 32
FREE = 1e-6
"""Metres that the engines may differ by while nothing touches."""
TOUCHING = 1e-3
"""Metres that they may differ by in contact, where points of contact come and go."""


@dataclass
class Play:
    """One engine, driven as `World` would, but with the controls that are given."""

    engine: Engine
    task: Crane
    starts: list[Start]
    now: Now

    @classmethod
    def begin(cls, engine: Engine, num_envs: int = N) -> Play:
        task, rows = Crane(), np.arange(num_envs)
        starts = [task.begin(EpisodeKey(0, env, 0)) for env in rows]
        engine.place(rows, starts)
        aim, mocap = np.stack([start.aim for start in starts]), np.stack([start.mocap for start in starts])
        none = np.zeros((num_envs, 0))
        return cls(engine, task, starts, Now(engine.readings(rows), mocap, aim, none, none, np.zeros(num_envs, int)))

    def chunk(self, actions: Float64, executed: int = HORIZON) -> Motion:
        """Advance, and keep the states after `executed` steps."""
        drive = self.task.drive(self.now, actions)
        motion = self.engine.advance(drive.controls)
        self.engine.keep(np.full(len(actions), executed))
        self.now.readings, self.now.aim = motion.readings[:, executed - 1], drive.aim[:, executed - 1]
        return motion

    def pictures(self) -> dict[str, np.ndarray]:
        return dict(self.engine.draw(np.arange(len(self.starts)), self.now.mocap))


@pytest.fixture(scope="module")
def warp() -> Iterator[WarpEngine]:
    engine = WarpEngine(Crane(), N, SIZE, device="cpu")
    yield engine
    engine.close()


@pytest.fixture
def cpu() -> Iterator[CpuEngine]:
    engine = CpuEngine(Crane(), N, SIZE)
    yield engine
    engine.close()


def reach(scale: float) -> Float64:
    """A chunk [N, H, 4] that swings the arm sideways above the table."""
    return np.broadcast_to(scale * np.array([0.05, 0.08, 0.03, 1 / scale]), (N, HORIZON, 4)).copy()


def test_both_engines_swing_the_arm_alike(warp, cpu):
    """Joints turn fast here, so the weld's velocity term counts; without it they part by 1e-4 m and more."""
    theirs, ours = Play.begin(cpu), Play.begin(warp)
    np.testing.assert_allclose(ours.now.readings, theirs.now.readings, atol=FREE)
    for scale in (1.0, -1.0, 0.5):
        expected, got = theirs.chunk(reach(scale)), ours.chunk(reach(scale))
        np.testing.assert_allclose(got.readings, expected.readings, atol=FREE)
        assert np.ptp(expected.readings[..., 1]) > 0.02  # it did swing


def test_both_engines_lift_the_box_alike(warp, cpu):
    theirs, ours = Play.begin(cpu), Play.begin(warp)
    for actions in lift(N):
        expected, got = theirs.chunk(actions), ours.chunk(actions)
        np.testing.assert_allclose(got.readings, expected.readings, atol=TOUCHING)
        assert not got.broken.any()
    assert (got.readings[:, -1, 10] > LIFTED).all()


def test_a_state_is_all_that_a_world_carries(warp):
    """Neither other chunks tried in between nor a neighbour that begins anew may change what a world does."""
    play = Play.begin(warp)
    play.chunk(reach(1.0), executed=2)  # in full swing
    controls = play.task.drive(play.now, lift(N)[0]).controls
    first = warp.advance(controls).readings.copy()
    warp.advance(play.task.drive(play.now, reach(-1.0)).controls)
    warp.place(np.array([1]), play.starts[1:2])
    again = warp.advance(controls).readings
    np.testing.assert_array_equal(again[[0, 2]], first[[0, 2]])
    assert not np.array_equal(again[1], first[1])


def test_kept_states_are_those_after_the_executed_step(warp):
    """Two steps and then the rest do what the whole chunk does, world by world."""
    play = Play.begin(warp)
    controls = play.task.drive(play.now, reach(1.0)).controls
    whole = warp.advance(controls).readings.copy()
    warp.keep(np.array([2, HORIZON, 1]))
    np.testing.assert_array_equal(warp.readings(np.arange(N)), whole[np.arange(N), [1, HORIZON - 1, 0]])
    every = play.task.substeps
    rest = np.concatenate([controls[:, 2 * every :], np.repeat(controls[:, -1:], 2 * every, 1)], 1)
    # A chunk begins without the solver's guess of the last one: equal to rounding, not to the bit.
    np.testing.assert_allclose(warp.advance(rest).readings[0, :2], whole[0, 2:], atol=FREE)


def test_a_world_that_breaks_is_named_and_leaves_no_trace(warp):
    play = Play.begin(warp)
    sound = warp.advance(play.task.drive(play.now, lift(N)[0]).controls).readings.copy()
    controls = play.task.drive(play.now, lift(N)[0]).controls
    controls[1, 25, 2] = np.nan
    motion = warp.advance(controls)
    np.testing.assert_array_equal(motion.broken, [False, True, False])
    np.testing.assert_array_equal(motion.readings[[0, 2]], sound[[0, 2]])
    warp.keep(np.full(N, HORIZON))
    whole = Play.begin(warp)  # every world placed again, the broken one too
    again = warp.advance(whole.task.drive(whole.now, lift(N)[0]).controls)
    assert not again.broken.any()
    np.testing.assert_array_equal(again.readings, sound)


def test_pictures_are_near_those_of_the_cpu_renderer(warp, cpu):
    theirs, ours = Play.begin(cpu), Play.begin(warp)
    for view, expected in theirs.pictures().items():
        got = ours.pictures()[view]
        assert got.shape == expected.shape == (N, SIZE, SIZE, 3) and got.dtype == np.uint8
        apart = np.abs(got.astype(int) - expected)
        same = apart.max(-1) <= 2
        assert same.mean() > 0.96, view  # the rest are silhouettes: OpenGL's curved surfaces are polygons
        assert np.median(apart) <= 1


def test_pictures_of_some_worlds_are_those_worlds_in_that_order(warp):
    """More rows than are drawn at once, out of order and repeated."""
    play = Play.begin(warp)
    whole = play.pictures()["ego"]
    rows = np.array([2, 0, 1])
    np.testing.assert_array_equal(warp.draw(rows, play.now.mocap[rows])["ego"], whole[rows])
    assert not np.array_equal(whole[0], whole[1])
    warp._painter._at_once, kept = 2, warp._painter._at_once
    np.testing.assert_array_equal(warp.draw(rows, play.now.mocap[rows])["ego"], whole[rows])
    warp._painter._at_once = kept


def test_films_show_the_steps_of_the_last_chunk(warp):
    play = Play.begin(warp)
    before = play.pictures()["ego"]
    warp.advance(play.task.drive(play.now, reach(1.0)).controls)
    np.testing.assert_array_equal(play.pictures()["ego"], before)  # not kept: the present has not moved
    film = warp.draw(np.arange(N), play.now.mocap, step=HORIZON - 1)["ego"]
    warp.keep(np.full(N, HORIZON))
    np.testing.assert_array_equal(film, play.pictures()["ego"])
    assert not np.array_equal(film, before)


def test_torch_sees_pictures_without_a_copy(warp):
    play = Play.begin(warp)
    pictures = warp.draw_on_device(np.arange(N), play.now.mocap)["ego"]
    seen = torch.from_dlpack(pictures)
    assert seen.dtype == torch.uint8 and tuple(seen.shape) == (N, SIZE, SIZE, 3)
    assert seen.data_ptr() == pictures.ptr


def test_too_many_contacts_are_an_error_not_a_wrong_answer(monkeypatch):
    monkeypatch.setattr("envs.mujoco.warp.LEAST_ROOM", 2)
    engine = WarpEngine(Crane(), 2, SIZE, device="cpu", contacts=1)
    with pytest.raises(UserError, match=r"touch in more places than there is room for.*at most 2 contacts"):
        Play.begin(engine, 2).chunk(lift(2)[0])


def test_what_cannot_be_simulated_is_refused(monkeypatch):
    monkeypatch.setattr(Crane, "mjcf", lambda self: MODEL.replace("<option ", '<option solver="PGS" '))
    with pytest.raises(UserError, match="mujoco_warp cannot simulate 'crane'"):
        WarpEngine(Crane(), 1, SIZE, device="cpu")


def test_an_unknown_device_is_refused():
    with pytest.raises(UserError, match=r"no such device: got 'cuda:99'.*'cpu'"):
        WarpEngine(Crane(), 1, SIZE, device="cuda:99")


def test_a_world_on_it_keeps_the_contract(warp):
    contract.check(World(Crane(), warp, N), make=lambda n: World(Crane(), WarpEngine(Crane(), n, SIZE), n))


wp.config.log_level = wp.LOG_WARNING
