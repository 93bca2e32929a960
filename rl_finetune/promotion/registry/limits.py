"""What a body may be told where nobody has said: as far and as fast as it was demonstrated, and a little more."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import cast

from rl_finetune.durable import Json
from rl_finetune.errors import UserError
from rl_finetune.promotion.records import Limits
from rl_finetune.promotion.serving.frames import framed
from rl_finetune.spec import EmbodimentSpec

MARGIN = 0.1
"""Share of the demonstrated range by which actions may leave it on either side."""
PEAK = 15 / 8
"""Peak velocity of a minimum-jerk motion over distance and duration 1 (Flash and Hogan 1985)."""
WAIST_CHANNELS = 3
"""Of a body that has a waist; they come before the arms."""
PERIODS = 2
"""Control periods that an observation may be old, where that is more than the record's default."""


def default_limits(body: EmbodimentSpec, low: Sequence[float], high: Sequence[float]) -> Limits:
    """Limits from what was demonstrated.

    Actions may be `MARGIN` beyond the quantiles, and displacements may always be none. A channel may cross that whole
    range within one chunk, as smoothly as people reach: that is its velocity. It may start or stop at that speed within
    one control step, which sets acceleration, and stop in the step after it started, which sets jerk; it may not
    reverse at full speed. A gripper's
    command may jump from one end to the other and back in every step. Where the tool may go, actions do not tell: no
    workspace.

    Args:
        body: the embodiment.
        low: [c] 1 % quantiles of its actions, action units.
        high: [c] 99 % quantiles.
    """
    rate, duration = body.action.rate, body.action.horizon / body.action.rate
    grippers, moving = gripper_channels(body), framed(body)
    rows = []
    for channel, (least, most) in enumerate(zip(low, high, strict=True)):
        if moving[channel]:
            least, most = min(least, 0.0), max(most, 0.0)
        reach = MARGIN * (most - least)
        if channel in grippers:
            rows.append((-1.0, 1.0, 2 * rate, 4 * rate**2, 8 * rate**3))
            continue
        way = most - least + 2 * reach
        speed = PEAK * way / duration
        rows.append((least - reach, most + reach, speed, speed * rate, 2 * speed * rate**2))
    lows, highs, velocity, acceleration, jerk = (tuple(column) for column in zip(*rows, strict=True))
    stale_after = max(Limits().stale_after, PERIODS / rate)
    return Limits(lows, highs, velocity, acceleration, jerk, stale_after=stale_after)


def gripper_channels(body: EmbodimentSpec) -> tuple[int, ...]:
    """Channels in which the body's grippers are commanded, +1 open and -1 closed: the last of each arm."""
    if body.action.gripper == "none" or not body.arms:
        return ()
    arms = 2 if body.arms.startswith("dual") else 1
    each = (body.action.channels - WAIST_CHANNELS * body.waist) // arms
    return tuple(sorted(body.action.channels - 1 - arm * each for arm in range(arms)))


def check_limits(tag: str, limits: Limits, channels: int) -> Limits:
    """Itself, if it can limit that many channels.

    Raises:
        UserError: lengths, signs or order are wrong, or a number is not finite.
    """
    for name in ("low", "high", "velocity", "acceleration", "jerk"):
        values: tuple[float, ...] = getattr(limits, name)
        if values and len(values) != channels:
            raise _impossible(f"{tag}.{name}", f"{len(values)} values", f"none, or one for each of {channels} channels")
        if not all(math.isfinite(value) for value in values):
            raise _impossible(f"{tag}.{name}", list(values), "finite numbers; leave a limit out to limit nothing")
        if name not in ("low", "high") and not all(value > 0 for value in values):
            raise _impossible(f"{tag}.{name}", list(values), "numbers above 0")
    bounds = [*zip(limits.low, limits.high, strict=False), *limits.workspace]
    if bool(limits.low) != bool(limits.high) or not all(low < high for low, high in bounds):
        raise _impossible(f"{tag}.low, .high, .workspace", bounds, "low < high, both or neither")
    if len(limits.workspace) not in (0, 3) or not all(math.isfinite(end) for pair in limits.workspace for end in pair):
        raise _impossible(f"{tag}.workspace", limits.workspace, "nothing, or (low, high) of x, y and z in metres")
    if not 0 < limits.stale_after < math.inf:
        raise _impossible(f"{tag}.stale_after", limits.stale_after, "seconds above 0")
    return limits


def limits_from(value: Mapping[str, Json]) -> Limits:
    """From JSON.

    Raises:
        TypeError, ValueError: no limits.
    """
    fields: dict[str, object] = {}
    for name, given in value.items():
        if name == "stale_after":
            fields[name] = float(cast(float, given))
        elif name == "workspace":
            pairs = cast(Sequence[Sequence[float]], given)
            fields[name] = tuple((float(low), float(high)) for low, high in pairs)
        else:
            fields[name] = tuple(float(number) for number in cast(Sequence[float], given))
    return Limits(**fields)  # type: ignore[arg-type]


def _impossible(field: str, got: object, expected: str) -> UserError:
    return UserError(f"impossible limits {field}", got=got, expected=expected, do="correct them for that body")
