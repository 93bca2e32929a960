"""From a decoded message to a typed reading: the one place where a client's dict is looked into. numpy and PIL only.

Keys that are taken (anything else is ignored, since robot clients also send what this policy does not look at; texts
and numbers may also come as arrays of one):

    <view>, observation/<view>, images: {<view>: ...}   a picture for every view that the embodiment names
    observation/image                                   the same, where it names only one
    prompt                                              the instruction in words
    embodiment                                          robot tag; may be left out where the bundle has only one
    time                                                seconds on any clock of the client that only runs forward
    reset                                               true where this observation begins an episode
    episode, seed                                       whole numbers that key the noise
    ahead                                               steps of the last reply that are still to be executed when the
                                                        pictures are taken; the next reply begins after them
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from rl_finetune import pictures
from rl_finetune.errors import NotFiniteError, UserError
from rl_finetune.instructions import instruction
from rl_finetune.promotion.serving.wire import Keys
from rl_finetune.types import ImageArray, Observation

TAKEN = ("prompt", "embodiment", "time", "reset", "episode", "seed", "ahead")
"""Keys that are no pictures."""
LEAST_SIDE = 8
"""Pixels: below that it is no picture."""
WIDEST = 8
"""Bytes of the widest number that a picture may come in (float64)."""
REST_BYTES = 1 << 20
"""Room in a message for what is no picture."""
LARGEST = 2**63 - 1
"""What a seed or the number of an episode may be."""
SHOWN = 60
"""Characters of what was got that an error repeats."""


class RequestError(Exception):
    """One thing in a message that cannot be used; the connection goes on. `str` is the line that the client is sent."""

    def __init__(self, what: str, *, got: object, expected: object) -> None:
        self.what, self.got, self.expected = what, got, expected
        super().__init__(f"{what}: got {got}; expected {expected}")


@dataclass(frozen=True, slots=True)
class Body:
    """What a message of one embodiment must show."""

    tag: str
    """Robot tag."""
    views: tuple[str, ...]
    """Cameras, in the policy's order."""
    image_size: int
    """Side of the policy's square pictures, pixels."""


@dataclass(frozen=True, slots=True)
class Reading:
    """What one robot saw and was told, checked; pictures have the policy's size."""

    images: Mapping[str, ImageArray]
    """View -> [h, w, 3] uint8 RGB, perhaps read-only."""
    prompt: str
    """Task in words."""
    embodiment: str
    """Robot tag."""
    time: float | None = None
    """Seconds on the client's clock when the pictures were taken; None where it does not say."""
    reset: bool = False
    """Whether an episode begins with it."""
    episode: int | None = None
    """Number of the episode, where the client counts them."""
    seed: int | None = None
    """Seed of the noise, where the client wants its own."""
    ahead: int = 0
    """Steps of the last reply that the client has yet to execute."""

    def observation(self) -> Observation:
        """Of one robot, N = 1."""
        images = {view: image[None] for view, image in self.images.items()}
        return Observation(images=images, instruction=(self.prompt,), embodiment=self.embodiment)


@dataclass(frozen=True, slots=True)
class Reader:
    """Reads messages for the bodies of one bundle."""

    bodies: Mapping[str, Body]
    """Robot tag -> what it shows."""
    prompt_chars: int = 500
    """Longest instruction."""
    largest_side: int = 1280
    """Pixels of the longer side of a picture."""

    @property
    def keys(self) -> Keys:
        """What is read of a message."""
        views = sorted({view for body in self.bodies.values() for view in body.views})
        named = [key for view in views for key in (view, f"observation/{view}")]
        return {**dict.fromkeys((*named, "observation/image", *TAKEN)), "images": dict.fromkeys(views)}

    @property
    def message_bytes(self) -> int:
        """Longest message that can be right: every picture of a body as large and in as wide numbers as may be."""
        pictures_ = max(len(body.views) for body in self.bodies.values())
        return pictures_ * 3 * WIDEST * self.largest_side**2 + REST_BYTES

    def read(self, message: object) -> Reading:
        """Check a message.

        Raises:
            RequestError: the first thing that is wrong with it.
        """
        if not isinstance(message, dict):
            raise RequestError("message", got=type(message).__name__, expected="a dict of observations")
        body = self._body(_plain(message.get("embodiment")))
        return Reading(
            images={view: self._image(message, view, body) for view in body.views},
            prompt=self._prompt(message.get("prompt")),
            embodiment=body.tag,
            time=_seconds(message.get("time")),
            reset=_flag("reset", message.get("reset")),
            episode=_number("episode", message.get("episode")),
            seed=_number("seed", message.get("seed")),
            ahead=_number("ahead", message.get("ahead")) or 0,
        )

    def _body(self, tag: object) -> Body:
        known = ", ".join(sorted(self.bodies))
        if tag is None and len(self.bodies) == 1:
            return next(iter(self.bodies.values()))
        if not isinstance(tag, str) or tag not in self.bodies:
            raise RequestError("'embodiment'", got=_brief(tag), expected=f"one of {known}")
        return self.bodies[tag]

    def _image(self, message: Mapping[object, object], view: str, body: Body) -> ImageArray:
        keys = [view, f"observation/{view}"] + (["observation/image"] if len(body.views) == 1 else [])
        nested = message.get("images")
        found = [(key, message[key]) for key in keys if key in message]
        if isinstance(nested, dict) and view in nested:
            found.append((f"images/{view}", nested[view]))
        if not found:
            ways = " or ".join(map(repr, keys))
            raise RequestError(f"picture of view {view!r}", got=f"none among {_names(message)}", expected=f"key {ways}")
        if len(found) > 1:
            twice = " and ".join(repr(key) for key, _ in found)
            raise RequestError(f"picture of view {view!r}", got=f"two, {twice}", expected="one of them")
        key, value = found[0]
        return pictures.fitted(picture(key, value, self.largest_side), body.image_size)

    def _prompt(self, value: object) -> str:
        try:
            text = instruction(value)
        except UserError as error:
            raise RequestError("'prompt'", got=error.got, expected=error.expected) from error
        if len(text) > self.prompt_chars:
            raise RequestError("'prompt'", got=f"{len(text)} characters", expected=f"at most {self.prompt_chars}")
        return text


def bodies(metadata: Mapping[str, object]) -> dict[str, Body]:
    """What the server's metadata says of each embodiment: `{"embodiments": {tag: {"views", "image_size", ...}}}`.

    Raises:
        ValueError: it does not say it so.
    """
    found = metadata.get("embodiments")
    if not isinstance(found, Mapping) or not found:
        raise ValueError(f"metadata['embodiments']: got {_brief(found)}; expected tag -> description")
    return {tag: Body(tag, tuple(said["views"]), int(said["image_size"])) for tag, said in found.items()}


def picture(key: str, value: object, largest_side: int) -> ImageArray:
    """[h, w, 3] uint8 as simulators' pictures are read (`pictures.picture`), of three channels.

    Raises:
        RequestError: no array, another shape, sides out of bounds, or numbers that are no picture's.
    """
    what = f"picture {key!r}"
    if not isinstance(value, np.ndarray):
        raise RequestError(what, got=_brief(value), expected="an array")
    try:
        return pictures.picture(value, what, channels=(3,), sides=(LEAST_SIDE, largest_side))
    except UserError as error:
        raise RequestError(what, got=error.got, expected=error.expected) from error
    except NotFiniteError as error:
        raise RequestError(what, got="NaN or infinity", expected="finite numbers") from error


def _plain(value: object) -> object:
    """The only entry of an array of one; anything else as it is."""
    return value.reshape(())[()] if isinstance(value, np.ndarray) and value.size == 1 else value


def _seconds(value: object) -> float | None:
    value = _plain(value)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float | np.integer | np.floating):
        raise RequestError("'time'", got=_brief(value), expected="seconds as a number")
    seconds = float(value)
    if not np.isfinite(seconds) or seconds < 0:
        raise RequestError("'time'", got=seconds, expected="finite seconds >= 0")
    return seconds


def _flag(key: str, value: object) -> bool:
    value = _plain(value)
    if value is None:
        return False
    if not isinstance(value, bool | np.bool_):
        raise RequestError(f"{key!r}", got=_brief(value), expected="true or false")
    return bool(value)


def _number(key: str, value: object) -> int | None:
    value = _plain(value)
    if value is None:
        return None
    number = int(value) if isinstance(value, int | np.integer) and not isinstance(value, bool) else -1
    if not 0 <= number <= LARGEST:
        raise RequestError(f"{key!r}", got=_brief(value), expected="a whole number from 0 to 2^63 - 1")
    return number


def _names(message: Mapping[object, object]) -> str:
    return _cut(", ".join(_brief(key) for key in list(message)[:8])) or "no keys"


def _brief(value: object) -> str:
    """What was got, in a few characters that are safe in a log."""
    if isinstance(value, np.ndarray):
        return f"an array of {value.dtype} {value.shape}"
    if value is None:
        return "nothing"
    if isinstance(value, str | bytes):
        return _cut(ascii(value[:SHOWN]))
    return ascii(value) if isinstance(value, int | float | np.generic) else type(value).__name__


def _cut(text: str) -> str:
    return text if len(text) <= SHOWN else text[: SHOWN - 3] + "..."
