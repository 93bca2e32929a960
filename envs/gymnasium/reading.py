"""From what a gymnasium environment returns to the records of this project, and back for actions."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from PIL import Image

from envs.actions import per_step
from envs.gymnasium.options import NAME, RENDER, SUCCESS_KEYS, GymnasiumOptions, is_source
from envs.tally import Sight
from rl_finetune.errors import UserError
from rl_finetune.instructions import instruction
from rl_finetune.types import FloatArray, ImageArray


def episode_seed(rng: np.random.Generator) -> int:
    """What an environment is reset with: the first draw of the episode's own generator, so a function of its key."""
    return int(rng.integers(2**31))


def part(source: str, obs: Any, info: Mapping[str, Any]) -> Any:
    """The value that a source names.

    Raises:
        UserError: there is none; names the keys that there are.
    """
    value: Any = {"obs": obs, "info": info}
    for key in source.split("."):
        if not isinstance(value, Mapping) or key not in value:
            known = sorted(map(str, value)) if isinstance(value, Mapping) else type(value).__name__
            raise UserError(
                f"{NAME} environment has no {source!r}", got=f"no {key!r}", expected=f"one of {known}",
                do="correct the source in env.options",
            )  # fmt: skip
        value = value[key]
    return value


def told(options: GymnasiumOptions, obs: Any, info: Mapping[str, Any]) -> str:
    """The task of an episode, from its first observation and info.

    Raises:
        UserError: it is no task in words.
    """
    source = options.instruction
    return instruction(part(source, obs, info) if is_source(source) else source, f"{NAME} {source!r}")


def picture(source: str, obs: Any, info: Mapping[str, Any], frame: Any, size: int) -> ImageArray:
    """A square picture [size, size, 3] uint8 of a view; `frame` is what the environment drew."""
    return square(frame if source == RENDER else part(source, obs, info), size)


def square(raw: Any, size: int) -> ImageArray:
    """A picture [h, w], [h, w, 1], [h, w, 3], [h, w, 4] or [3, h, w], uint8 or 0..1, as [size, size, 3] uint8 of its
    own.

    Raises:
        UserError: it has another shape.
    """
    image = np.asarray(raw)
    if image.ndim == 3 and image.shape[0] in (1, 3) and image.shape[2] not in (1, 3, 4):
        image = np.moveaxis(image, 0, -1)
    if image.ndim == 2:
        image = image[..., None]
    if image.ndim != 3 or image.shape[2] not in (1, 3, 4):
        raise UserError(
            f"{NAME} environment shows no picture", got=f"an array of shape {image.shape}",
            expected="[h, w, 3] or like it", do="correct views in env.options",
        )  # fmt: skip
    if image.dtype != np.uint8:
        image = np.clip(np.rint(image.astype(np.float64) * 255), 0, 255).astype(np.uint8)
    image = np.ascontiguousarray(np.broadcast_to(image[..., :3], (*image.shape[:2], 3)))
    if image.shape[:2] == (size, size):
        return image.copy()
    return np.asarray(Image.fromarray(image).resize((size, size), Image.Resampling.BILINEAR)).copy()


def numbers(sources: tuple[str, ...], obs: Any) -> FloatArray | None:
    """Parts of an observation, flat and joined [P]; None where there are no sources."""
    if not sources:
        return None
    return np.concatenate([np.asarray(part(source, obs, {}), np.float32).ravel() for source in sources])


def sight(options: GymnasiumOptions, task: str, obs: Any, info: Mapping[str, Any], frame: Any) -> Sight:
    """What one environment shows; raises `FloatingPointError` where a number is not finite."""
    size = options.image_size
    images = {tag: picture(source, obs, info, frame, size) for tag, source in options.views.items()}
    found = Sight(task, images, numbers(options.proprioception, obs), numbers(options.privileged, obs))
    found.check()
    return found


def reported(options: GymnasiumOptions, info: Mapping[str, Any], *, terminated: bool, over: bool) -> bool:
    """Whether a step reports success.

    Raises:
        UserError: an episode is over and its info says nothing of success.
    """
    if options.success in ("terminated", "never"):
        return options.success == "terminated" and terminated
    keys = SUCCESS_KEYS if options.success == "info" else (options.success.removeprefix("info."),)
    for key in keys:
        if key in info:
            return bool(np.asarray(info[key]).any())
    if over:
        raise UserError(
            f"{NAME} environment says nothing of success", got=f"an info with {sorted(map(str, info))}",
            expected=f"{' or '.join(keys)} at the end of an episode", do="set success in env.options",
        )  # fmt: skip
    return False


def to_world(options: GymnasiumOptions, actions: FloatArray, low: FloatArray, high: FloatArray) -> FloatArray:
    """Actions [N, H, c] in the environment's own units, within its bounds [c]."""
    scale = np.asarray(options.action_scale or (1.0,), np.float32)
    if options.actions == "per_step":
        actions = per_step(actions, options.arm_width, options.gripper != "none", 1.0)
    return np.clip(actions / scale, low, high).astype(np.float32)
