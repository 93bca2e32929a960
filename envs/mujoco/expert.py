"""A scripted expert for the reach task: works from privileged state alone, so it needs no simulator.

    rise where it is too low -> travel to a point above the target -> descend onto it

Travel is high enough that the success zones of the other blocks are never touched.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from rl_finetune.keys import Stream, generator
from rl_finetune.spec import EnvSpec
from rl_finetune.types import ActionChunk, FloatArray, Observation, SeedKeys

Float64 = NDArray[np.float64]

SPEED = 0.045
"""Metres of one control step."""
LANDING = 0.004
"""Metres above the block's top at which the motion ends: there the fingertips touch it."""
HOVER = 0.07
"""Metres above that point at which the tool travels."""
COLUMN = 0.03
"""Metres beside the target within which descending is safe."""
CLOSE_AT = 0.10
"""Metres from the target at which the gripper begins to close."""


def expert_chunk(
    observation: Observation,
    spec: EnvSpec,
    *,
    keys: SeedKeys | None = None,
    chunk: int = 0,
    noise: float = 0.0,
    channels_padded: int | None = None,
) -> ActionChunk:
    """The expert's next chunk [N, H, K] for every environment.

    Args:
        observation: what the environments show now; only `privileged` is read.
        spec: the environment's spec (names of the privileged channels, horizon).
        keys: episodes of the N environments; needed when `noise` > 0.
        chunk: number of this chunk within the run, part of the noise's key.
        noise: standard deviation in metres of the point it aims at; above zero its speed varies too (70..100 %).
        channels_padded: K, at least the convention's channels (the default).

    Raises:
        ValueError: no privileged state, or noise without keys.
    """
    if observation.privileged is None or (noise > 0 and keys is None):
        raise ValueError("the expert needs observation.privileged, and keys when noise > 0")
    convention = spec.embodiment.action
    width = channels_padded or convention.channels
    tool, target = (_place(observation.privileged, spec, name) for name in ("tool", "target"))
    actions = np.zeros((len(observation), convention.horizon, width), np.float32)
    for env in range(len(observation)):
        goal, speed = target[env] + np.array([0.0, 0.0, LANDING]), SPEED
        if keys is not None and noise > 0:
            rng = generator(keys.seed, Stream.EXPERT, int(keys.env[env]), int(keys.episode[env]), chunk)
            goal = goal + noise * rng.standard_normal(3).clip(-2, 2)
            speed = SPEED * rng.uniform(0.7, 1.0)
        path = _path(tool[env], goal, speed, convention.horizon)
        actions[env, :, : convention.channels] = _actions(path, tool[env], target[env])
    mask = np.zeros(actions.shape, bool)
    mask[..., : convention.channels] = True
    return ActionChunk(actions, mask)


def _place(privileged: FloatArray, spec: EnvSpec, thing: str) -> Float64:
    columns = [spec.privileged.index(f"{thing}_{axis}") for axis in "xyz"]
    return privileged[:, columns].astype(np.float64)


def _path(tool: Float64, target: Float64, speed: float, steps: int) -> Float64:
    """Points [steps, 3] that lie `speed` metres apart along the way from tool to target; the last one repeats."""
    hover = target + np.array([0.0, 0.0, HOVER])
    corners = [tool, target]
    if np.hypot(*(tool - target)[:2]) > COLUMN:
        risen = np.array([tool[0], tool[1], max(tool[2], hover[2])])
        corners = [tool, risen, hover, target]
    legs = np.diff(corners, axis=0)
    reach = np.concatenate([[0.0], np.cumsum(np.sqrt((legs**2).sum(-1)))])
    along = np.minimum(speed * np.arange(1, steps + 1), reach[-1])
    return np.stack([np.interp(along, reach, np.array(corners)[:, axis]) for axis in range(3)], -1)


def _actions(path: Float64, tool: Float64, target: Float64) -> Float64:
    """Displacements from the tool's first pose, no rotation, gripper closing over the last `CLOSE_AT` metres."""
    distance = np.sqrt(((path - target) ** 2).sum(-1))
    gripper = np.clip(2 * distance / CLOSE_AT - 1, -1, 1)
    return np.concatenate([path - tool, np.zeros_like(path), gripper[:, None]], -1)
