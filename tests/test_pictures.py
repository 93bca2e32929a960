"""A picture is the same picture whoever shows it, in whatever numbers: simulators and the server read alike."""

from __future__ import annotations

from dataclasses import replace
from itertools import product
from typing import Any, ClassVar

import gymnasium
import numpy as np
import pytest
import torch
from builders import observations, tiny_policy
from gymnasium import spaces
from gymnasium.vector import AutoresetMode, SyncVectorEnv

import envs
from envs.gymnasium import GymnasiumOptions, spec
from envs.gymnasium.together import TogetherWorld
from envs.simple import Episode, SimpleWorld, Step
from rl_finetune.errors import NotFiniteError, UserError
from rl_finetune.pictures import fitted, picture
from rl_finetune.policy.config import WIDOWX
from rl_finetune.promotion.serving.reading import Body, Reader
from rl_finetune.spec import EnvSpec
from rl_finetune.types import ActionChunk, SeedKeys

BYTES = np.random.default_rng(0).integers(0, 256, (6, 5, 3), np.uint8)
BYTES[0, :2] = [[0] * 3, [255] * 3]
CAMERA = np.random.default_rng(1).integers(0, 256, (480, 640, 3), np.uint8)
FORMS: dict[str, tuple[Any, float | None]] = {
    "uint8": (BYTES, None),
    "channels first": (np.moveaxis(BYTES, -1, 0), None),
    "alpha": (np.concatenate([BYTES, BYTES[..., :1]], -1), None),
    "a batch of one": (BYTES[None], None),
    "whole numbers": (BYTES.astype(np.int64), None),
    "floats to 1": (BYTES / 255, None),
    "small floats to 1": ((BYTES / 255).astype(np.float32), None),
    "floats to 255": (BYTES.astype(np.float32), 255),
    "halves to 255": (BYTES.astype(np.float16), 255),
    "a tensor": (torch.tensor(BYTES), None),
    "a tensor of floats, channels first": (torch.tensor(BYTES / 255).permute(2, 0, 1), None),
    "lists": (BYTES.tolist(), None),
    "rounding beyond white": (BYTES / 255 * (1 + 1e-6) - 1e-7, None),
}


@pytest.mark.parametrize("form", FORMS)
def test_numbers_of_every_kind_are_the_same_picture(form: str) -> None:
    value, white = FORMS[form]
    found = picture(value, "picture", white=white)
    assert found.dtype == np.uint8 and np.array_equal(found, BYTES)


def test_grey_is_shown_in_three_channels() -> None:
    for grey in (BYTES[..., 0], BYTES[..., :1], BYTES[None, ..., 0]):
        np.testing.assert_array_equal(picture(grey, "picture"), np.repeat(BYTES[..., :1], 3, -1))


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (BYTES.astype(np.float32), "got float32 within 0..255; expected uint8, or numbers within 0..1;"),
        (BYTES / 127.5 - 1, r"got float64 within -1..1; expected uint8, or numbers within 0..1;"),
        (BYTES.astype(np.int32) * 2, "got int32 within 0..510; expected uint8, or numbers within 0..255;"),
        (BYTES.astype(np.int16) - 1, "got int16 within -1..254;"),
        (BYTES > 100, "got truth values"),
        (np.zeros(4, np.uint8), r"got shape \(4,\); expected \[height, width, channels\]"),
        (np.zeros((2, 6, 5, 3), np.uint8), r"got shape \(2, 6, 5, 3\)"),
        (np.zeros((6, 5, 2), np.uint8), r"got shape \(6, 5, 2\)"),
        (np.zeros((0, 5, 3), np.uint8), "got 0 x 5 pixels"),
        (None, "got nothing; expected numbers"),
        (["front.png"], "got list of 1"),
    ],
)  # fmt: skip
def test_what_could_be_read_in_two_ways_is_refused(value: Any, message: str) -> None:
    with pytest.raises(UserError, match=f"^the picture cannot be .*{message}"):
        picture(value, "the picture")


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_number_that_is_none_is_not_black(value: float) -> None:
    with pytest.raises(NotFiniteError, match="the picture is not finite"):
        picture(np.where(BYTES > 250, value, 0.5), "the picture")


def test_what_is_not_square_keeps_its_proportions_in_the_middle_of_black() -> None:
    """480 rows of 640 become 168 of 224: 28 rows of black above and below."""
    found = fitted(np.full((480, 640, 3), 200, np.uint8), 224)
    assert found.shape == (224, 224, 3)
    assert (found[28:196] == 200).all() and not found[:28].any() and not found[196:].any()
    tall = fitted(np.full((6, 3, 3), 200, np.uint8), 4)
    np.testing.assert_array_equal(tall[..., 0], [[0, 200, 200, 0]] * 4)
    square = BYTES[:5]
    assert fitted(square, 5) is square


def test_scaling_averages_what_becomes_one_pixel() -> None:
    stripes = np.zeros((8, 8, 3), np.uint8)
    stripes[:, ::2] = 200
    inner = fitted(stripes, 4)[1:3, 1:3]
    assert np.abs(inner.astype(int) - 100).max() <= 13  # a sampler without antialiasing would show 0 or 200


class Showing(gymnasium.Env):
    """Shows what the test says."""

    shown: ClassVar[Any] = BYTES
    box: ClassVar[spaces.Box] = spaces.Box(0, 255, (6, 5, 3), np.uint8)
    metadata: ClassVar[dict[str, Any]] = {"render_modes": ["rgb_array"]}

    def __init__(self, render_mode: str | None = None) -> None:
        self.render_mode = render_mode
        self.action_space = spaces.Box(-1.0, 1.0, (2,), np.float32)
        self.observation_space = spaces.Dict({"camera": self.box})

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
        return {"camera": self.shown}, {}

    def step(self, action: np.ndarray) -> Any:
        sick = np.full(self.shown.shape, np.nan, np.float32)
        return {"camera": sick if action[1] < 0 else self.shown}, 0.0, False, False, {}

    def render(self) -> Any:
        return self.shown


if "Showing-v0" not in gymnasium.registry:
    gymnasium.register("Showing-v0", entry_point=Showing, max_episode_steps=8)

KEYS = SeedKeys(0, np.arange(2), np.zeros(2, np.int64))


def showing(kind: str, **options: Any) -> envs.VectorEnv:
    """Two of them, one by one or as a vector environment."""
    told: dict[str, Any] = dict(id="Showing-v0", views={"top": "obs.camera"}, horizon=2, image_size=6)
    told |= {"instruction": "look", "success": "never"} | options
    if kind == "single":
        return envs.make("gymnasium", 2, **told)

    def one() -> gymnasium.Env:
        return gymnasium.make("Showing-v0", render_mode="rgb_array", disable_env_checker=True)

    chosen = GymnasiumOptions(**told)
    return TogetherWorld(SyncVectorEnv([one] * 2, autoreset_mode=AutoresetMode.DISABLED), chosen, spec(chosen))


def seen(env: envs.VectorEnv) -> np.ndarray:
    """The first picture, without what pads it."""
    with env:
        first = env.reset(KEYS).images["top"]
        assert np.array_equal(first[0], first[1])
        assert not first[:, :, 5:].any(), "five columns of six"
        return np.asarray(first[0, :, :5])


@pytest.mark.parametrize("kind", ["single", "together"])
@pytest.mark.parametrize(
    ("high", "dtype", "options", "shown"),
    [
        (255, np.uint8, {}, BYTES),
        (255, np.float32, {}, BYTES.astype(np.float32)),
        (255, np.int32, {}, BYTES.astype(np.int32)),
        (1, np.float32, {}, (BYTES / 255).astype(np.float32)),
        (np.inf, np.float32, {}, (BYTES / 255).astype(np.float32)),
        (np.inf, np.float32, {"image_max": 255}, BYTES.astype(np.float32)),
        (10_000, np.int64, {}, BYTES.astype(np.int64)),
        (1000, np.uint16, {"image_max": 255}, BYTES.astype(np.uint16)),
    ],
)  # fmt: skip
def test_scale_comes_from_dtype_bounds_or_an_option(
    kind: str, high: float, dtype: Any, options: dict[str, Any], shown: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Showing, "box", spaces.Box(0, high, BYTES.shape, dtype))
    monkeypatch.setattr(Showing, "shown", shown)
    assert np.array_equal(seen(showing(kind, **options)), BYTES)


@pytest.mark.parametrize("kind", ["single", "together"])
def test_scale_that_cannot_be_told_is_refused(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Showing, "box", spaces.Box(-np.inf, np.inf, BYTES.shape, np.float32))
    monkeypatch.setattr(Showing, "shown", BYTES.astype(np.float32))
    message = r"gymnasium picture 'obs.camera' cannot be shown: got float32 within 0..255; expected .*image_max"
    with showing(kind) as env, pytest.raises(UserError, match=message):
        env.reset(KEYS)


@pytest.mark.parametrize("kind", ["single", "together"])
def test_a_picture_of_nan_is_a_breakdown_of_its_environment(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Showing, "box", spaces.Box(0, 1, BYTES.shape, np.float32))
    monkeypatch.setattr(Showing, "shown", (BYTES / 255).astype(np.float32))
    with showing(kind) as env:
        first = env.reset(KEYS)
        actions = np.zeros((2, 2, 2), np.float32)
        actions[1, 1, 1] = -1
        out = env.step_chunk(ActionChunk(actions, np.ones(actions.shape, bool)))
    (failure,) = out.failures
    assert failure.row == 1 and failure.cause == "gymnasium picture 'obs.camera' is not finite"
    assert np.array_equal(out.observation.images["top"], first.images["top"])


class Drawing(Episode):
    """Draws what the test says."""

    shown: Any = CAMERA

    def begin(self, rng: np.random.Generator) -> str:
        return "look"

    def step(self, action: np.ndarray) -> Step:
        return Step()

    def picture(self, view: str) -> Any:
        return self.shown


DRAWN = EnvSpec("drawing", replace(WIDOWX, views=("top",)), image_size=224, time_limit=8)


@pytest.mark.parametrize(
    "shown", [CAMERA, CAMERA / 255, torch.tensor(CAMERA).permute(2, 0, 1)], ids=["u8", "f8", "chw"]
)
def test_a_camera_shows_the_same_in_every_simulator_and_to_the_server(
    shown: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """To the bit, though it is four by three."""
    reader = Reader({"widowx": Body("widowx", ("top",), 224)})
    served = reader.read({"top": np.asarray(shown), "prompt": "look"}).images["top"]
    world = SimpleWorld(1, DRAWN, lambda: type("Drawing", (Drawing,), {"shown": shown})(None))
    mine = world.reset(KEYS.rows(slice(0, 1))).images["top"][0]
    assert np.array_equal(served, mine)
    array = np.asarray(shown)
    monkeypatch.setattr(Showing, "shown", array)
    monkeypatch.setattr(Showing, "box", spaces.Box(0, int(array.max()), array.shape, array.dtype.type))
    for source, kind in product(("obs.camera", "render"), ("single", "together")):
        with showing(kind, views={"top": source}, image_size=224) as env:
            assert np.array_equal(env.reset(KEYS).images["top"][1], served), (kind, source)
    assert mine[28:196].any(-1).mean() > 0.99 and not mine[:28].any() and not mine[196:].any()
    assert isinstance(mine, np.ndarray) and mine.flags.writeable, "memory of its own"


def test_films_show_what_the_policy_sees() -> None:
    world = SimpleWorld(1, DRAWN, lambda: Drawing(None))
    world.filming = True
    first = world.reset(KEYS.rows(slice(0, 1))).images["top"]
    still = np.zeros((1, 8, 7), np.float32)
    world.step_chunk(ActionChunk(still, np.ones(still.shape, bool)))
    (film,) = world.filmed
    assert film.shape == (8, 224, 224, 3) and all(np.array_equal(frame, first[0]) for frame in film)


@pytest.mark.parametrize("spoil", [lambda image: image / 255, lambda image: image[..., :1], lambda image: image > 9])
def test_a_policy_takes_bytes_and_nothing_that_would_look_like_black(spoil: Any) -> None:
    seen = observations(2)
    images = {"ego": spoil(seen.images["ego"])}
    with pytest.raises(UserError, match=r"camera pictures are no bytes: got \w+ of shape \(2, 64, 64, [13]\)"):
        tiny_policy().look(replace(seen, images=images))
