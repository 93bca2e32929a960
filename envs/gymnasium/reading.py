"""From what a gymnasium environment returns to the records of this project, and back for actions."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from envs.actions import per_step
from envs.gymnasium.options import NAME, RENDER, SUCCESS_KEYS, GymnasiumOptions, is_source
from envs.tally import Sight
from rl_finetune import pictures
from rl_finetune.arrays import as_array, flag
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


def picture(source: str, obs: Any, info: Mapping[str, Any], frame: Any, size: int, white: float | None) -> ImageArray:
    """A square picture [size, size, 3] uint8 of a view, in memory of its own.

    Args:
        source: as in `GymnasiumOptions`.
        obs: observation.
        info: info.
        frame: what the environment drew.
        size: pixels.
        white: as `pictures.picture` takes it.

    Raises:
        UserError: it is no picture.
        NotFiniteError: a number in it is not finite.
    """
    raw, do = frame if source == RENDER else part(source, obs, info), "set image_max in env.options, or make it uint8"
    return np.array(pictures.fitted(pictures.picture(raw, f"{NAME} picture {source!r}", white=white, do=do), size))


def numbers(sources: tuple[str, ...], obs: Any) -> FloatArray | None:
    """Parts of an observation, flat and joined [P]; None where there are no sources.

    Raises:
        UserError: one is no numbers.
    """
    if not sources:
        return None
    parts = [as_array(part(source, obs, {}), f"{NAME} {source!r}").ravel() for source in sources]
    return np.concatenate(parts).astype(np.float32)


def sight(
    options: GymnasiumOptions, whites: Mapping[str, float], task: str, obs: Any, info: Mapping[str, Any], frame: Any
) -> Sight:
    """What one environment shows; raises `NotFiniteError` where a number is not finite."""
    images = {
        tag: picture(source, obs, info, frame, options.image_size, whites.get(source))
        for tag, source in options.views.items()
    }
    found = Sight(task, images, numbers(options.proprioception, obs), numbers(options.privileged, obs))
    found.check()
    return found


def reported(options: GymnasiumOptions, info: Mapping[str, Any], *, terminated: bool, over: bool) -> bool:
    """Whether a step reports success.

    Raises:
        UserError: an episode is over and its info says nothing of success, or what it says is no truth value.
        NotFiniteError: it is NaN.
    """
    if options.success in ("terminated", "never"):
        return options.success == "terminated" and terminated
    keys = SUCCESS_KEYS if options.success == "info" else (options.success.removeprefix("info."),)
    for key in keys:
        if key in info:
            return flag(info[key], f"{NAME} info[{key!r}]")
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
