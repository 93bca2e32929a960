"""Suites and randomisation: each changes what it says and nothing else, all of it follows from the key."""

from __future__ import annotations

import json
from colorsys import rgb_to_hsv
from dataclasses import replace
from pathlib import Path

import mujoco
import numpy as np
import pytest

import envs
from actors.evaluator import EpisodeResults
from envs import contract
from envs.expert import expert_chunk
from envs.mujoco import catalogue, suites
from envs.mujoco.build import _check_varies, build
from envs.mujoco.cpu import CpuEngine
from envs.mujoco.engine import Engine
from envs.mujoco.options import Randomised, Suite
from envs.mujoco.randomisation import KINDS, unit_noise
from envs.mujoco.rendering import project
from envs.mujoco.task import EpisodeKey, Float64, Now, Start, Task
from envs.mujoco.tasks.region import GROUND
from envs.mujoco.tasks.tabletop import COLOURS, RGBA, Tabletop
from envs.mujoco.variation import FALLBACK, Variation, named_colour
from envs.mujoco.varied import Varied, Wish
from envs.mujoco.wardrobe import Wardrobe
from rl_finetune.algorithm import evaluation
from rl_finetune.config import EvaluateConfig
from rl_finetune.errors import UserError
from rl_finetune.metrics.intervals import wilson
from rl_finetune.types import Observation, SeedKeys

KEY = EpisodeKey(5, 2, 1)
HELD_OUT: tuple[Suite, ...] = suites.AXES


def task(world: str) -> Task:
    entry = catalogue.WORLDS[world]
    return entry.task(entry.options())


def varied(world: str, suite: Suite = "none", *kinds: Randomised, strength: float = 1.0) -> Varied:
    return Varied(task(world), Wish(suite, kinds, strength))


def keys(count: int, *, group: int = 1) -> SeedKeys:
    return SeedKeys(0, np.arange(count, dtype=np.int64), np.zeros(count, np.int64), group)


def variation(start: Start) -> Variation:
    assert start.variation is not None
    return start.variation


def now(start: Start, readings: Float64, *, steps: int = 0) -> Now:
    rows = [each[None] for each in (readings, start.mocap, start.aim, start.facts, np.zeros(3))]
    return Now(*rows, np.array([steps]))


def reading(world: Task, start: Start) -> Float64:
    """What the sensors show at the beginning."""
    engine = CpuEngine(world, 1, 64)
    engine.place(np.array([0]), [start])
    found = engine.readings(np.array([0]))[0]
    engine.close()
    return found


@pytest.mark.parametrize("world", ["widowx_reach", "widowx_put_on", "aloha_insertion", "rover_navigate"])
def test_the_names_of_shades_stay_true(world: str) -> None:
    hues = {colour: rgb_to_hsv(*map(float, rgba.split()[:3]))[0] for colour, rgba in RGBA.items()}
    perturbed, seen = varied(world, "colour"), set()
    for scene in range(30):
        shades = variation(perturbed.begin(EpisodeKey(1, scene, 0))).colours
        assert set(shades) == set(perturbed.inner.coloured)
        for geom, shade in shades.items():
            hue, saturation, value = rgb_to_hsv(*shade)
            nearest = min(hues, key=lambda colour: abs((hues[colour] - hue + 0.5) % 1 - 0.5))
            assert nearest == named_colour(geom, COLOURS) and saturation > 0.3 and value > 0.25
            own = np.array(RGBA[nearest].split()[:3], float)
            assert np.abs(own - shade).max() > 0.1  # what training shows is not among them
            seen.add(round(sum(shade) - own.sum(), 3) > 0)
    assert seen == {True, False}  # light and dark


@pytest.mark.parametrize("axis", HELD_OUT)
def test_an_axis_changes_what_it_says_and_nothing_else(axis: Suite) -> None:
    plain, perturbed = task("widowx_reach").begin(KEY), varied("widowx_reach", axis)
    start = perturbed.begin(KEY)
    found, own = variation(start), len(plain.facts)
    moved, reshaped = axis == "position", axis == "instance"
    assert np.array_equal(start.qpos, plain.qpos) == (not moved)
    assert np.array_equal(start.mocap[: len(plain.mocap)], plain.mocap) == (not moved)
    expected = perturbed.inner.reshaped(plain, found.shapes).facts if reshaped else plain.facts
    assert np.array_equal(start.facts[:own], expected) == (not moved)
    if moved:  # another scene, and so another draw of the words of training
        assert start.instruction in perturbed.spec.tasks
    else:
        assert (start.instruction == plain.instruction) == (axis != "paraphrase")
    assert len(start.mocap) - len(plain.mocap) == (3 if axis == "distractors" else 0)
    assert bool(found.colours) == (axis in ("colour", "background"))
    assert bool(found.shapes) == reshaped and (found.light is not None) == (axis == "lighting")
    assert (found.tint, found.sway, found.mass, found.friction, found.latency, found.noise) == (None, None, 1, 1, 0, 0)
    assert not start.facts[own:].any()


def test_all_is_each_axis_at_once() -> None:
    everything = variation(varied("widowx_reach", "all").begin(KEY))
    alone = {axis: variation(varied("widowx_reach", axis).begin(KEY)) for axis in HELD_OUT}
    assert everything.shapes == alone["instance"].shapes and everything.light == alone["lighting"].light
    assert everything.colours == {**alone["colour"].colours, **alone["background"].colours}


def test_positions_are_new_and_never_those_of_training() -> None:
    for world in ("widowx_reach", "widowx_put_on"):
        perturbed = varied(world, "position")
        assert isinstance(perturbed.inner, Tabletop)
        for scene in range(20):
            start = perturbed.begin(EpisodeKey(3, scene, 0))
            places = perturbed.inner.occupied(start)
            inside = ((places > GROUND[:, 0] + 1e-9) & (places < GROUND[:, 1] - 1e-9)).all(-1)
            assert not inside.any() and (np.abs(places - GROUND.mean(1)) < np.diff(GROUND)[:, 0] / 2 + 0.0121).all()
            assert 0.09 <= start.aim[2] <= 0.115


@pytest.mark.parametrize("world", catalogue.WORLDS)
def test_wordings_share_no_template_with_training(world: str) -> None:
    inner = task(world)
    trained = {_template(words) for words in inner.spec.tasks}
    assert inner.wordings != FALLBACK
    said, rng = set(), np.random.default_rng(0)
    for words in inner.spec.tasks * 5:
        other = suites.reworded(inner, words, rng)
        assert [w for w in _words(other) if w in COLOURS] == [w for w in _words(words) if w in COLOURS]
        said.add(_template(other))
    assert len(said) == len(inner.wordings) and not said & trained
    assert all(len(set(a.split()) & set(b.split()) - {"the", "C", "to"}) <= 2 for a in said for b in trained)


def _words(text: str) -> list[str]:
    return text.replace(",", " ").replace(":", " ").split()


def _template(text: str) -> str:
    return " ".join("C" if word in COLOURS else word for word in _words(text))


def test_what_a_world_does_not_have_is_refused() -> None:
    with pytest.raises(UserError, match="'aloha_insertion' cannot be perturbed by 'instance'"):
        varied("aloha_insertion", "instance")
    with pytest.raises(UserError, match="cannot be driven this late"):
        varied("widowx_trace", "none", "latency")
    for wrong in ({"perturb": "colours"}, {"randomise": ["weight"]}, {"strength": 3.0}):
        with pytest.raises(UserError):
            envs.spec("widowx_reach", **wrong)


def test_an_engine_that_cannot_vary_refuses_before_it_is_built() -> None:
    class Plain(Engine):
        pass

    _check_varies(Plain, "plain", Wish("position", ("latency", "action_noise")))
    for wish, missing in (
        (Wish("lighting"), "looks"),
        (Wish("instance"), "shapes"),
        (Wish("none", ("mass",)), "dynamics"),
    ):
        with pytest.raises(UserError, match=f"'plain' cannot vary {missing}"):
            _check_varies(Plain, "plain", wish)


def test_nothing_asked_for_is_the_plain_world() -> None:
    options = catalogue.WORLDS["widowx_reach"].options(randomise=())
    with build(task("widowx_reach"), 3, options) as env:
        env.reset(keys(3))
        assert type(env.task) is type(task("widowx_reach")) and env._starts[0].variation is None
        models = env._engine._wardrobe.models
        assert all(model is models[0] for model in models)
        assert len(env._engine._wardrobe._copies) == 0


@pytest.mark.parametrize("world", ["widowx_reach", "widowx_pick"])
@pytest.mark.parametrize("suite", ["colour", "background", "lighting", "distractors"])
def test_looks_change_pictures_and_no_physics(world: str, suite: Suite) -> None:
    runs = [_run(world, perturb=each) for each in ("none", suite)]
    for (seen, told), (other, same) in zip(*runs, strict=True):
        assert (seen != other).any((1, 2, 3)).all()
        assert np.array_equal(told, same)


def _run(world: str, **options: object) -> list[tuple[np.ndarray, np.ndarray]]:
    """Pictures and privileged state of three chunks of the expert."""
    with envs.make(world, 2, **options) as env:
        observation, found = env.reset(keys(2)), []
        for _ in range(3):
            assert observation.privileged is not None
            found.append((observation.images["ego"], observation.privileged))
            observation = env.step_chunk(expert_chunk(env, observation)).observation
    return found


@pytest.mark.parametrize("world", ["widowx_reach", "widowx_pick", "rover_navigate"])
def test_the_contract_holds_with_everything_varied(world: str) -> None:
    options = {"perturb": "all", "randomise": ("visual", "mass", "friction", "latency", "action_noise")}
    with envs.make(world, 2, **options) as env:
        assert contract.check(env, make=lambda n: envs.make(world, n, **options), chunks=2) == ()


def test_groups_share_their_perturbation_and_others_do_not() -> None:
    with envs.make("widowx_reach", 4, perturb="background", randomise=["visual"]) as env:
        seen: Observation = env.reset(keys(4, group=2))
        pictures = seen.images["ego"]
    assert np.array_equal(pictures[0], pictures[1]) and np.array_equal(pictures[2], pictures[3])
    assert np.abs(pictures[0].astype(int) - pictures[2]).mean() > 5


@pytest.mark.parametrize("kind", KINDS)
def test_kinds_draw_apart_and_from_the_key(kind: Randomised) -> None:
    alone, again = (variation(varied("widowx_pick", "none", kind).begin(KEY)) for _ in range(2))
    together = variation(varied("widowx_pick", "all", *KINDS).begin(KEY))
    names = {"visual": ("tint", "sway"), "mass": ("mass",), "friction": ("friction",), "latency": ("latency",)}
    assert alone == again
    for name in names.get(kind, ("noise",)):
        assert getattr(alone, name) == getattr(together, name)
    drawn = [variation(varied("widowx_pick", "none", kind).begin(EpisodeKey(0, s, 0))) for s in range(40)]
    if kind == "latency":
        assert {v.latency for v in drawn} == {0, 1, 2}
    if kind == "mass":
        assert 0.5 <= min(v.mass for v in drawn) < 0.7 and 1.5 < max(v.mass for v in drawn) <= 2.0


@pytest.mark.parametrize("world", ["widowx_reach", "franka_pick", "aloha_reach", "gr1_reach", "rover_navigate"])
def test_late_targets_are_those_of_before_moved_by_whole_steps(world: str) -> None:
    late = varied(world, "none", "latency")
    channels, horizon = late.spec.embodiment.action.channels, late.spec.embodiment.action.horizon
    starts = {variation(s).latency: s for s in (late.begin(EpisodeKey(0, n, 0)) for n in range(20))}
    actions = np.random.default_rng(0).normal(0, 0.05, (1, horizon, channels))
    for steps in (0, 1, 2):
        start = starts[steps]
        here = now(start, reading(late, start))
        mine, plain = late.drive(here, actions), late.inner.drive(late._own(here), actions)
        width = plain.aim.shape[-1]
        held = late._own(here).aim if world != "rover_navigate" else here.readings[:, :3]
        np.testing.assert_allclose(mine.aim[:, :steps, :width], np.repeat(held[:, None], steps, 1), atol=1e-12)
        np.testing.assert_allclose(mine.aim[:, steps:, :width], plain.aim[:, : horizon - steps], atol=1e-9)
        first = steps * late.substeps
        np.testing.assert_allclose(
            mine.controls[:, first + 1 : -1], plain.controls[:, 1 : plain.controls.shape[1] - 1 - first], atol=1e-9
        )


def test_a_gripper_stays_closed_while_it_waits() -> None:
    late = varied("widowx_pick", "none", "latency")
    start = next(s for s in (late.begin(EpisodeKey(0, n, 0)) for n in range(20)) if variation(s).latency == 2)
    here, closing, opening = now(start, reading(late, start)), np.zeros((1, 8, 7)), np.zeros((1, 8, 7))
    closing[..., 6], opening[..., 6] = -1, 1
    first = late.drive(here, closing)
    every = late.substeps
    fingers = first.controls[0, :-1:every, 0]
    assert (fingers[:2] == fingers[:2].max()).all() and (fingers[2:] == fingers.min()).all()  # open at first
    second = late.drive(replace(here, aim=first.aim[:, -1]), opening).controls[0, :-1:every, 0]
    assert (second[:2] == fingers.min()).all() and (second[2:] == fingers.max()).all()


def test_action_noise_has_the_drawn_spread_and_follows_from_step_and_key() -> None:
    noisy = varied("aloha_reach", "none", "action_noise")
    start, plain = noisy.begin(KEY), task("aloha_reach")
    seen: list[np.ndarray] = []
    noisy.inner.drive = lambda own, actions: seen.append(actions) or plain.drive(own, actions)  # type: ignore
    readings, silence = reading(noisy, start), np.zeros((1, 16, 14))
    for steps in (0, 16, 32, 48, 64, 0):
        noisy.drive(now(start, readings, steps=steps), silence)
    got, spread = np.concatenate(seen[:5]), variation(start).noise * unit_noise(noisy.spec.embodiment.action)
    assert 0 < variation(start).noise <= 1 and spread.shape == (14,)
    assert np.array_equal(seen[0], seen[5]) and not np.array_equal(seen[0], seen[1])
    scaled = got / spread
    count = scaled.size  # 5 x 16 x 14: within four standard errors
    assert abs(scaled.mean()) < 4 / np.sqrt(count) and abs(scaled.std() - 1) < 4 / np.sqrt(2 * count)
    other = noisy.begin(EpisodeKey(5, 3, 1))
    assert not np.array_equal(other.facts[-14:], start.facts[-14:])


SLIDE = """
<mujoco><option timestep="0.002"/><worldbody>
  <geom name="table" type="plane" size="9 9 1" friction="0.01 0 0"/>
  <body name="red" pos="0 0 0.05"><freejoint/><geom name="red" type="box" size="0.05 0.05 0.05" mass="2"
    friction="0.2 0 0"/><site name="red"/></body>
  <body name="base" pos="0 0 3"><geom name="finger" type="sphere" size="0.01" friction="0.4 0 0"/></body>
</worldbody><actuator><motor site="red" gear="1 0 0 0 0 0"/></actuator></mujoco>"""


def _slid(change: Variation, *, speed: float = 0.0, force: float = 0.0, lifted: float = 0.0) -> float:
    """Speed in metres a second after a tenth of a second."""
    plain = mujoco.MjModel.from_xml_string(SLIDE)
    wardrobe = Wardrobe(SLIDE, plain, 1)
    wardrobe.dress(0, change)
    data = mujoco.MjData(plain)
    data.qpos[2] += lifted
    data.qvel[0], data.ctrl[0] = speed, force
    mujoco.mj_step(wardrobe.models[0], data, nstep=50)
    return float(data.qvel[0])


def test_mass_and_friction_act_in_the_model_that_steps() -> None:
    # in free fall: F t / m with 4 N, 0.1 s and 2 kg
    assert _slid(Variation(), force=4.0, lifted=1.0) == pytest.approx(0.2, rel=1e-6)
    assert _slid(Variation(mass=2.0), force=4.0, lifted=1.0) == pytest.approx(0.1, rel=1e-6)
    # on the table: v - mu g t, whatever the mass
    assert _slid(Variation(), speed=1.0) == pytest.approx(1 - 0.2 * 9.81 * 0.1, rel=0.01)
    assert _slid(Variation(friction=1.5), speed=1.0) == pytest.approx(1 - 0.3 * 9.81 * 0.1, rel=0.01)
    assert _slid(Variation(mass=2.0, friction=0.5), speed=1.0) == pytest.approx(1 - 0.1 * 9.81 * 0.1, rel=0.01)


def test_dressing_again_leaves_nothing_of_what_was_worn_before() -> None:
    plain = mujoco.MjModel.from_xml_string(task("widowx_pick").mjcf())
    wardrobe = Wardrobe(task("widowx_pick").mjcf(), plain, 2)
    for scene in range(3):
        wardrobe.dress(0, variation(varied("widowx_pick", "all", *KINDS).begin(EpisodeKey(0, scene, 0))))
    wardrobe.dress(0, Variation())
    worn = wardrobe.models[0]
    assert worn is not plain and wardrobe.models[1] is plain
    for name in dir(plain):
        field = getattr(plain, name)
        if isinstance(field, np.ndarray):
            np.testing.assert_allclose(getattr(worn, name), field, rtol=1e-12, atol=1e-15, err_msg=name)


def test_shapes_stand_on_the_table_and_are_touched_as_what_they_are() -> None:
    world = varied("widowx_reach", "instance")
    start = world.begin(KEY)
    wardrobe = Wardrobe(world.mjcf(), mujoco.MjModel.from_xml_string(world.mjcf()), 1)
    wardrobe.dress(0, start.variation)
    model = wardrobe.models[0]
    data = mujoco.MjData(model)
    data.qpos[:] = start.qpos
    data.mocap_pos[:], data.mocap_quat[:] = start.mocap[:, :3], start.mocap[:, 3:]
    mujoco.mj_kinematics(model, data)
    for number, (colour, shape) in enumerate(variation(start).shapes.items()):
        geom, top = model.geom(colour), start.facts[3 * number + 2]
        assert mujoco.mjtGeom(int(geom.type[0])).name == f"mjGEOM_{shape.kind.upper()}"
        if top > 0:
            height = data.geom_xpos[geom.id, 2]
            assert height - shape.half[2] == pytest.approx(0) and height + shape.half[2] == pytest.approx(top)
            above, down = data.geom_xpos[geom.id] + [0, 0, shape.half[2] + 0.02], np.array([0, 0, -1.0])
            ray = mujoco.mj_ray(model, data, above, down, None, 1, -1, np.zeros(1, np.int32))
            assert ray == pytest.approx(0.02, abs=1e-6)  # where MuJoCo itself meets the shape


def test_labels_follow_a_camera_that_was_moved() -> None:
    world = varied("widowx_reach", "none", "visual")
    start = world.begin(KEY)
    points = np.array([[[0.15, -0.1, 0.05], [0.3, 0.12, 0.0], [0.25, 0.0, 0.2]]])
    wardrobe = Wardrobe(world.mjcf(), mujoco.MjModel.from_xml_string(world.mjcf()), 1)
    wardrobe.dress(0, start.variation)
    seen = world.seen_at(now(start, np.zeros(8)), points)
    np.testing.assert_allclose(seen[0], project(wardrobe.models[0], "ego", points[0]), atol=1e-6)
    unmoved = world.inner.seen_at(world._own(now(start, np.zeros(8))), points)
    assert np.abs(seen - unmoved).max() > 0.002


@pytest.mark.parametrize("world", ["widowx_put_on", "aloha_transfer", "rover_navigate"])
def test_distractors_keep_clear(world: str) -> None:
    perturbed = varied(world, "distractors")
    strewn = 0
    for scene in range(15):
        start, places = (
            perturbed.inner.begin(EpisodeKey(0, scene, 0)),
            perturbed.begin(EpisodeKey(0, scene, 0)).mocap[-3:, :2],
        )
        places = places[np.abs(places).max(-1) < 5]
        strewn += len(places)
        if isinstance(perturbed.inner, Tabletop):
            others, least = perturbed.inner.occupied(start), perturbed.inner.litter_apart
        else:
            boxes = start.mocap[1:5]
            others, least = np.concatenate([boxes[boxes[:, 2] > 0, :2], start.qpos[None, :2]]), 0.6
        apart = np.linalg.norm(places[:, None] - others, axis=-1)
        assert apart.min() >= least - 1e-9
    assert strewn >= 30


@pytest.mark.parametrize("world", ["widowx_reach", "widowx_stack", "rover_navigate"])
def test_the_expert_solves_everything_at_once(world: str) -> None:
    with envs.make(world, 10, perturb="all", randomise=("mass", "friction")) as env:
        observation, done, open_ = env.reset(keys(10)), np.zeros(10, bool), np.ones(10, bool)
        while open_.any():
            out = env.step_chunk(expert_chunk(env, observation))
            done |= out.success & open_
            open_ &= ~(out.terminated | out.truncated)
            observation = out.observation
    assert done.sum() >= 9


def test_evaluate_plays_every_suite_and_writes_it_down(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    asked: list[str] = []

    def play(config: EvaluateConfig) -> dict[str, EpisodeResults]:
        asked.append(config.env.worlds()[0].options.get("perturb", "none"))
        done = np.arange(20) < 20 - 4 * len(asked)
        return {"widowx_reach": EpisodeResults(done, done.astype(np.float32), np.full(20, 8), (None,) * 20, {})}

    monkeypatch.setattr(evaluation, "_play", play)
    monkeypatch.setattr(evaluation.cluster, "connect", lambda actors: None)
    config = EvaluateConfig(suites=["colour", "background"], output=str(tmp_path / "found.json"))
    assert evaluation.evaluate(config) == 0
    assert asked == ["none", "colour", "background"]
    plain, colour, background = capsys.readouterr().out.splitlines()
    assert plain.startswith("success 80.0%") and colour.startswith("colour: success 60.0% [")
    assert background.startswith("background: success 40.0% [")
    written = json.loads((tmp_path / "found.json").read_text())
    assert written["success"] == 0.8
    assert {name: suite["success"] for name, suite in written["suites"].items()} == {"colour": 0.6, "background": 0.4}
    assert written["suites"]["colour"]["worlds"]["widowx_reach"]["interval"] == list(wilson(12, 20))
    with pytest.raises(UserError, match="option 'perturb': got 'colours'"):
        evaluation.evaluate(EvaluateConfig(suites=["background", "colours"]))
    assert len(asked) == 3  # refused before anything was played


def test_a_varied_body_tells_as_much_of_how_it_stands_as_a_plain_one() -> None:
    held = []
    for options in ({}, {"perturb": "background", "randomise": ["latency"]}):
        with envs.make("franka_reach", 2, control="joint", **options) as env:
            env.watching = True
            chunk = expert_chunk(env, env.reset(keys(2)))
            env.step_chunk(chunk)
            held.append(np.stack([motion.held for motion in env.watched]))
    assert np.isfinite(held[0]).all()
    np.testing.assert_array_equal(held[0], held[1])
