"""Filmed episodes as film strips: all frames in one lossless picture, which the page moves past a window.

Unlike an animated picture a strip can be paused, runs in step with its neighbours, and stays sharp at any size.
"""

from __future__ import annotations

import base64
import io
from dataclasses import dataclass

import numpy as np

from rl_finetune.metrics.report_data import Clip
from rl_finetune.types import ImageArray

_LONGEST_SIDE = 16_000
"""WebP ends at 16,383 pixels."""


@dataclass(frozen=True, slots=True)
class Strip:
    """One episode, ready for the page."""

    uri: str
    """Data URI of the strip: frames from top to bottom."""
    frames: int
    """Number of frames in it."""
    width: int
    """Width of a frame in pixels."""
    height: int
    """Height of a frame in pixels."""
    seconds: float
    """Duration of one showing."""
    clip: Clip
    """What it shows."""


def film(clip: Clip, frames_per_second: float) -> Strip:
    """Lay the frames below one another. Frames are left out evenly where the strip would be too long.

    Raises:
        ValueError: the frames are not [F, h, w, 3] uint8 with F >= 1.
    """
    frames = clip.frames
    if frames.dtype != np.uint8 or frames.ndim != 4 or frames.shape[-1] != 3 or len(frames) == 0:
        raise ValueError(f"frames of a clip: got {frames.dtype} {frames.shape}; expected uint8 [F, h, w, 3], F >= 1")
    seconds = len(frames) / frames_per_second
    room = max(_LONGEST_SIDE // frames.shape[1], 1)
    if len(frames) > room:
        frames = frames[np.linspace(0, len(frames) - 1, room).round().astype(int)]
    count, height, width, _ = frames.shape
    return Strip(_data_uri(frames.reshape(count * height, width, 3)), count, width, height, seconds, clip)


def _data_uri(image: ImageArray) -> str:
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(image)).save(buffer, format="WEBP", lossless=True, method=4)
    return "data:image/webp;base64," + base64.b64encode(buffer.getvalue()).decode()
