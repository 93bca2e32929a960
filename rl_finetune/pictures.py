"""Pictures of simulators and of robots' clients: one reader and one way to the policy's size for both.

Pictures keep their proportions. The policy's are square; those of the shipped worlds are drawn so, and whatever is
not square is scaled to fit and padded with black, as openpi's clients do before they send it. Stretched pictures
would show a robot that is broader than the one that was trained on.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from rl_finetune.arrays import as_array
from rl_finetune.errors import NotFiniteError, UserError
from rl_finetune.types import ImageArray

CHANNELS = (1, 3, 4)
"""Grey, RGB, RGB with an alpha that is dropped."""
LARGEST = 2**16


def picture(
    value: object,
    what: str,
    *,
    white: float | None = None,
    channels: tuple[int, ...] = CHANNELS,
    sides: tuple[int, int] = (1, LARGEST),
    do: str = "give uint8, or floats within 0..1",
) -> ImageArray:
    """[h, w, 3] uint8 RGB, perhaps sharing memory with `value`.

    Args:
        value: [h, w, C], [C, h, w] or [h, w] in numbers of any kind; leading axes of length 1 are dropped. The
            channels are the first axis where the last has no length of `channels`.
        what: what it is called in an error.
        white: the number that stands for full brightness where the numbers are not uint8, of which it is 255. None
            takes 255 for whole numbers and 1 for floats.
        channels: what C may be; [h, w] is one channel.
        sides: least and greatest length of a side in pixels.
        do: what an error advises where the numbers are not within 0..white.

    Raises:
        UserError: another type or shape, or numbers that are not within 0..white.
        NotFiniteError: a number is NaN or infinite.
    """
    image = _channels_last(as_array(value, what), what, channels)
    if min(image.shape[:2]) < sides[0] or max(image.shape[:2]) > sides[1]:
        got = f"{image.shape[0]} x {image.shape[1]} pixels"
        raise _refused(what, got, f"sides of {sides[0]} to {sides[1]} pixels", "send it in another size")
    if image.dtype != np.uint8:
        image = _to_bytes(image, what, white, do)
    return np.ascontiguousarray(np.broadcast_to(image[..., :3], (*image.shape[:2], 3)))


def fitted(image: ImageArray, side: int) -> ImageArray:
    """[side, side, 3]: scaled to fit (bilinear, with antialiasing), in the middle of black; itself where it has that
    size.

    Args:
        image: [h, w, 3] uint8.
        side: pixels.
    """
    height, width = image.shape[:2]
    if height == width == side:
        return image
    scale = side / max(height, width)
    size = max(round(width * scale), 1), max(round(height * scale), 1)
    small = Image.fromarray(image).resize(size, Image.Resampling.BILINEAR)
    canvas = Image.new("RGB", (side, side))
    canvas.paste(small, ((side - size[0]) // 2, (side - size[1]) // 2))
    return np.asarray(canvas)


def _channels_last(image: NDArray[np.generic], what: str, channels: tuple[int, ...]) -> NDArray[np.generic]:
    shape = image.shape
    while image.ndim > 3 and image.shape[0] == 1:
        image = image[0]
    if image.ndim == 2:
        image = image[..., None]
    if image.ndim == 3 and image.shape[2] not in channels and image.shape[0] in channels:
        image = np.moveaxis(image, 0, -1)
    if image.ndim != 3 or image.shape[2] not in channels:
        count = " or ".join(map(str, channels))
        expected = f"[height, width, channels] or [channels, height, width] with {count} channels"
        raise _refused(what, f"shape {shape}", expected, "check that it is a picture")
    return image


def _to_bytes(image: NDArray[np.generic], what: str, white: float | None, do: str) -> ImageArray:
    if image.dtype.kind == "b":
        raise _refused(what, "truth values", f"uint8, or numbers within 0..{white or 1:g}", do)
    white = white or (1 if image.dtype.kind == "f" else 255)
    numbers = image.astype(np.float32)
    if not np.isfinite(numbers).all():
        raise NotFiniteError(f"{what} is not finite")
    found = np.rint(numbers * np.float32(255 / white))
    if found.min() < 0 or found.max() > 255:
        got = f"{image.dtype} within {numbers.min():.3g}..{numbers.max():.3g}"
        raise _refused(what, got, f"uint8, or numbers within 0..{white:g}", do)
    return found.astype(np.uint8)


def _refused(what: str, got: str, expected: str, do: str) -> UserError:
    return UserError(f"{what} cannot be shown", got=got, expected=expected, do=do)
