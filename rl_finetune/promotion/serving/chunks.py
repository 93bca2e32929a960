"""Overlap of chunks: a client asks before its chunk has ended, and the reply joins on where that chunk will end.

    sent      | 0 1 2 3 4 5 6 7 |            `ahead` = 3: the pictures were taken after step 4
    fresh               | 0 1 2 3 4 5 6 7 |  as the policy counts, from the pictures
    reply                     | 3 4 5 6 7 |  what is left of it when `sent` has been executed

Both chunks have an opinion on the step before the seam: `sent[-1]` and `fresh[ahead - 1]`. What they differ by is taken
back at the seam and let in again over some steps, so that the command does not jump. Pure; numpy only.
"""

from __future__ import annotations

import numpy as np

from rl_finetune.promotion.serving.frames import framed, since
from rl_finetune.promotion.serving.limiter import Float64
from rl_finetune.spec import EmbodimentSpec
from rl_finetune.types import FloatArray


def aligned(fresh: FloatArray, sent: FloatArray, ahead: int, body: EmbodimentSpec) -> FloatArray:
    """The reply [H - ahead, c] that follows on `sent`; displacements and waypoints count from the seam.

    Args:
        fresh: [H, c] the policy's chunk, counted from the frame of the pictures.
        sent: [L, c] the chunk that is being executed, counted from its own first frame.
        ahead: its steps that were still to come when the pictures were taken, at most L and less than H. Zero leaves
            `fresh` as it is: nothing overlaps.
        body: convention of both.

    Raises:
        ValueError: nothing would be left, or more is to come than was sent.
    """
    if not 0 <= ahead < len(fresh) or ahead > len(sent):
        raise ValueError(f"{ahead} steps ahead in chunks of {len(fresh)} and {len(sent)} steps")
    if ahead == 0:
        return fresh
    steps, old = fresh.astype(np.float64), sent.astype(np.float64)
    moving = framed(body)
    here = old[-1 - ahead] if ahead < len(old) else np.where(moving, 0.0, old[0])
    seam = since(old[-1:], here, body)[0]
    seen = since(steps[ahead - 1 :], seam, body)
    weight = fading(len(seen) - 1, ahead)[:, None]
    moved = np.concatenate(
        [since(step[None], error, body) for step, error in zip(seen[1:], weight * seen[0], strict=True)]
    )
    told = steps[ahead:] + weight * (old[-1] - steps[ahead - 1])
    # An opening that both chunks want open must not be asked to open twice.
    told = np.clip(told, np.minimum(steps[ahead:].min(0), old[-1]), np.maximum(steps[ahead:].max(0), old[-1]))
    return np.where(moving, moved, told).astype(np.float32)


def fading(steps: int, over: int) -> Float64:
    """[steps] share of the old chunk's opinion after the seam: falls evenly, and is gone after `over` steps."""
    return np.clip(1 - np.arange(1, steps + 1) / (over + 1), 0.0, 1.0)
