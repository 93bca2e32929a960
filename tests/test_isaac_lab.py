"""The worker against each bad habit of Isaac Lab, on the double. FALL and REACH are 1.0 and 0.05 m there."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from envs.isaac.worker.job import Refused
from tests.isaac_double import HORIZON, LIMIT, Make, Rig, rig

__all__ = ["rig"]
BOTH = pytest.mark.parametrize("version", ["", "three"])
WORKFLOWS = pytest.mark.parametrize("habits", ["", "three", "direct,no_success", "three,direct,no_success"])
X, Y, Z = 0, 1, 2


def tools(arrays: dict[str, np.ndarray]) -> np.ndarray:
    return arrays["privileged"][:, :3]


@BOTH
def test_records_are_copies_of_buffers_that_isaac_goes_on_writing(rig: Make, version: str) -> None:
    r = rig(version)
    first = r.lab.begin(5)
    kept = {name: value.copy() for name, value in first.items()}
    played = r.step((0, 3, X, 0.1))
    now = {name: value.copy() for name, value in played.now.items()}
    r.step((0, 3, X, 0.1), (1, 0, X, 0.1))
    for name in kept:
        np.testing.assert_array_equal(first[name], kept[name])
        np.testing.assert_array_equal(played.now[name], now[name])


@BOTH
def test_rewards_of_each_step_are_kept(rig: Make, version: str) -> None:
    r = rig(version)
    played = r.step(*[(0, step, Z, -0.01) for step in range(HORIZON)])
    assert (np.diff(played.reward[0]) < -0.001).all(), "a reused reward buffer shows the last step everywhere"


@WORKFLOWS
def test_an_episode_that_ends_inside_a_chunk_waits_for_the_boundary(rig: Make, habits: str) -> None:
    r = rig(habits, without_success_term="extras")
    actions = np.full((3, HORIZON, 3), 0.0, np.float32)
    actions[1, 2:, Z] = -2.0  # falls at the third step; its further actions must not reach the next episode
    played = r.lab.chunk(actions)
    assert played.steps.tolist() == [8, 3, 8]
    assert played.terminated.tolist() == [False, True, False]
    assert not played.reward[1, 3:].any() and played.reward[1, :3].all()
    assert r.env.episode_length_buf.tolist() == [8, 0, 8], "the next episode begins at the boundary"
    assert (tools(played.now)[1] >= 0).all() and (tools(played.now)[1] <= 0.1).all(), "where new episodes begin"
    assert sorted(played.final) == [1]
    assert r.state["full_resets"] == 1, "the front door for all is used once"
    again = r.step()
    assert again.truncated.tolist() == [True, False, True]
    assert r.step().truncated.tolist() == [False, True, False], "its clock began at the boundary"


def test_what_waits_keeps_held_channels_only(rig: Make) -> None:
    r = rig("", channels=3, control="joint", actions="as_is")
    given = []
    step = r.env.step
    r.env.step = lambda action: given.append(action.numpy().copy()) or step(action)
    actions = np.full((3, HORIZON, 3), -0.3, np.float32)
    actions[0, 0, Z] = -2.0
    r.lab.chunk(actions)
    np.testing.assert_array_equal(np.stack(given)[1:, 0], np.broadcast_to(actions[0, 0], (HORIZON - 1, 3)))
    r = rig("")
    r.env.step = lambda action, step=r.env.step: given.append(action.numpy().copy()) or step(action)
    given.clear()
    r.lab.chunk(actions)
    assert not np.stack(given)[1:, 0].any(), "a displacement of zero stands still"


@BOTH
def test_last_observation_of_an_episode_that_the_task_cuts(rig: Make, version: str) -> None:
    """With `final_obs` it is the state after the cutting step; without, the one before it, never the next episode's."""
    r = rig(f"{version},early_cut")
    start = tools(r.lab.begin(1)).copy()
    played = r.step((0, 1, Y, 0.2), (0, 2, X, -3.0), (2, 5, X, -4.0))
    assert played.truncated.tolist() == [True, False, True] and played.steps.tolist() == [3, 8, 6]
    cut = np.array([-3.0 if version else 0.0, 0.2, 0.0])
    np.testing.assert_allclose(tools(played.final[0])[0], start[0] + cut, atol=1e-5)
    np.testing.assert_allclose(tools(played.final[2])[0], start[2] + [-4.0 if version else 0, 0, 0], atol=1e-5)
    np.testing.assert_allclose(played.final[0]["proprioception"], tools(played.final[0]), atol=1e-6)
    assert r.lab.keeps_last == bool(version)


@BOTH
def test_an_old_final_obs_is_not_taken_for_a_new_one(rig: Make, version: str) -> None:
    r = rig(f"{version},early_cut")
    r.step((0, 0, X, -5.0))
    start = tools(r.lab.begin(2)).copy()
    played = r.step((1, 4, X, -2.0))
    expected = start[1] + [-2.0 if version else 0.0, 0, 0]
    np.testing.assert_allclose(tools(played.final[1])[0], expected, atol=1e-5)


@WORKFLOWS
def test_the_time_limit_is_ours_and_shows_its_last_picture(rig: Make, habits: str) -> None:
    r = rig(habits, without_success_term="never")
    assert r.env.limit == LIMIT + HORIZON + 1, "Isaac's own limit lies beyond a chunk"
    assert not r.step().over.any()
    numbers = r.env.number.tolist()
    played = r.step()
    assert played.truncated.all() and not played.terminated.any() and played.steps.tolist() == [8, 8, 8]
    for row in range(3):
        last, fresh = played.final[row]["view:ego"][0, 0, 0], played.now["view:ego"][row, 0, 0]
        assert (last[0], last[1]) == (LIMIT, numbers[row])
        assert (fresh[0], fresh[1]) == (0, numbers[row] + 1), "a picture of the new episode, not of the old one"


@WORKFLOWS
def test_drawing_happens_once_a_chunk_and_once_a_reset(rig: Make, habits: str) -> None:
    r = rig(habits, without_success_term="extras")
    before = r.state["renders"]
    seen = r.step().now["view:ego"]
    assert r.state["renders"] - before == 1
    assert seen[:, 0, 0, 0].tolist() == [8, 8, 8], "drawn after the last step of the chunk"
    before = r.state["renders"]
    r.step((0, 0, Z, -2.0))
    assert r.state["renders"] - before == 2, "one at the boundary, one for the restarted"


def test_cameras_take_our_size_and_are_read_whenever_looked_at(rig: Make) -> None:
    r = rig("", image_size=32)
    camera = r.env.cfg.scene.table_cam
    assert (camera.width, camera.height, camera.update_period) == (32, 32, 0.0)
    assert r.lab.begin(0)["view:ego"].shape == (3, 32, 32, 3)


@BOTH
def test_success_comes_from_the_term_of_that_name(rig: Make, version: str) -> None:
    r = rig(version)
    gap = (r.env.goal - r.env.position).numpy().copy()
    actions = np.zeros((3, HORIZON, 3), np.float32)
    actions[1, 4] = gap[1]
    actions[2, 0, Z] = -2.0
    played = r.lab.chunk(actions)
    assert played.success.tolist() == [False, True, False]
    assert played.terminated.tolist() == [False, True, True] and played.steps.tolist() == [8, 5, 1]


@pytest.mark.parametrize(("otherwise", "won"), [("terminated", [True, False]), ("never", [False, False])])
def test_without_such_a_term_success_is_what_was_configured(rig: Make, otherwise: str, won: list[bool]) -> None:
    played = rig("no_success", 2, without_success_term=otherwise).step((0, 1, Z, -2.0))
    assert played.success.tolist() == won and played.terminated.tolist() == [True, False]


def test_success_that_extras_tell_ends_the_episode(rig: Make) -> None:
    r = rig("no_success", 2, without_success_term="extras")
    actions = np.zeros((2, HORIZON, 3), np.float32)
    actions[0, 2] = (r.env.goal - r.env.position).numpy()[0]
    played = r.lab.chunk(actions)
    assert played.success.tolist() == [True, False] and played.steps.tolist() == [3, 8]
    assert r.env.episode_length_buf.tolist() == [0, 8]


@pytest.mark.parametrize("success", [[True, False, False], np.array([1, 0, 0]), torch.tensor([[1.0], [0.0], [0.0]])])
def test_success_may_be_told_in_any_kind_of_array(rig: Make, success: object) -> None:
    r = rig("no_success", 3, without_success_term="extras")
    spoil(r, extras={"success": success})
    assert r.step().success.tolist() == [True, False, False]


@pytest.mark.parametrize(
    ("told", "message"),
    [
        ({"extras": {"success": 0.25}}, r"extras\['success'\] cannot be read: got float; expected one number for each"),
        ({"extras": {"success": torch.tensor(True)}}, r"extras\['success'\] .* got Tensor of torch.bool \(\);"),
        ({"extras": {"success": torch.full((3,), torch.nan)}}, r"extras\['success'\] .* expected truth values"),
        ({"reward": torch.zeros(3, 2)}, r"reward cannot be read: got Tensor of torch.float32 \(3, 2\);"),
        ({"reward": [None] * 3}, "reward cannot be read: got list"),
        ({"terminated": torch.zeros(1, dtype=torch.bool)}, r"terminated cannot be read: .*\(1,\)"),
        ({"truncated": None}, "truncated cannot be read: got NoneType"),
        ({"obs": {"policy": torch.zeros(1, 10), "parts": {"position": torch.zeros(3, 3)}}}, r"privileged .*\(1, 10\);"),
        ({"obs": {"policy": [[0.0] * 10] * 3}}, "privileged cannot be read: got list; expected a tensor"),
    ],
)  # fmt: skip
def test_what_is_not_one_number_for_each_environment_is_refused(rig: Make, told: dict, message: str) -> None:
    r = rig("no_success", 3, without_success_term="extras", proprioception=None)
    spoil(r, **told)
    with pytest.raises(Refused, match=message):
        r.step()


def spoil(r: Rig, **told: object) -> None:
    """Let the double return something else."""
    names, step = ("obs", "reward", "terminated", "truncated", "extras"), r.env.step
    r.env.step = lambda action: tuple((dict(zip(names, step(action), strict=True)) | told)[name] for name in names)


@BOTH
def test_quaternions_arrive_scalar_first(rig: Make, version: str) -> None:
    r = rig(version)
    assert r.lab.begin(0)["privileged"][0, 6:].tolist() == [1, 0, 0, 0]
    assert r.step().now["privileged"][2, 6:].tolist() == [1, 0, 0, 0]


def test_one_seed_begins_all_and_the_first_reset_alone_is_a_full_one(rig: Make) -> None:
    r = rig("")
    one, two, other = (tools(r.lab.begin(seed)).copy() for seed in (4, 4, 5))
    np.testing.assert_array_equal(one, two)
    assert not np.array_equal(one, other)
    assert r.state["full_resets"] == 1 and r.state["seeds"] == [0, 4, 4, 5] and r.env.cfg.seed == 0


@BOTH
def test_a_world_that_leaves_the_finite_numbers_is_told_and_begun_again(rig: Make, version: str) -> None:
    r = rig(f"{version},nan")
    played = r.step((1, 3, Y, -2.0))
    assert played.broken.tolist() == [False, True, False] and played.truncated.tolist() == [False, True, False]
    assert played.steps.tolist() == [8, 4, 8] and not played.reward[1].any()
    assert np.isfinite(played.reward).all() and all(np.isfinite(a).all() for a in played.final[1].values())
    assert r.env.episode_length_buf.tolist() == [8, 0, 8]


@pytest.mark.parametrize(
    ("habits", "changed", "message"),
    [
        ("", {"task": "Isaac-Nothing-v0"}, "no such task"),
        ("", {"channels": 6}, "another width: got 3; expected 6"),
        ("", {"rate": 20.0}, "another rate: got 10 Hz; expected 20 Hz"),
        ("", {"views": {"ego": "camera:wrist_cam"}}, r"no such camera: got wrist_cam; expected one of \['table_cam'\]"),
        ("", {"views": {"ego": "obs:policy"}}, "not a plain picture: got float32; expected uint8"),
        ("", {"proprioception": "obs:parts/speed"}, r"no observation 'parts/speed' at 'speed': got \['goal', 'posi"),
        ("", {"proprioception": "obs:policy/joint"}, "a single tensor"),
        ("", {"privileged_names": ("a", "b", "c", "d"), "quaternions": ()}, "privileged has another width: got 10"),
        ("", {"overrides": ["physics=newton_mjwarp"]}, "knows no presets"),
        ("no_success", {}, r"no termination term that means success: got \['time_out', 'fallen'\]"),
        ("direct", {}, "no termination term that means success"),
    ],
)
def test_tasks_that_do_not_fit_are_refused_in_plain_words(rig: Make, habits: str, changed: dict, message: str) -> None:
    with pytest.raises(Refused, match=message):
        rig(habits, **changed)


def test_presets_reach_isaac_lab_3(rig: Make) -> None:
    assert rig("three", overrides=["physics=newton_mjwarp"]).env.num_envs == 3


@BOTH
def test_the_environment_is_closed_before_the_application(rig: Make, version: str) -> None:
    r = rig(version)
    r.running.close()
    assert r.state["closed"] == ["env", "app"]
