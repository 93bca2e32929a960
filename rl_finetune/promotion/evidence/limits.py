"""What the known bodies may be told, from their models: joint ranges, published or driven speeds, workspaces.

Speeds v are those of the body's controller or joints (`envs/mujoco/bodies`). Control steps are long, and a command may
change within one: a step from rest to full speed is an acceleration of v * rate, one from full speed ahead to full
speed back is 2 v * rate. The limit lies between (`BRISK`), that of jerk at one such change followed by its opposite. A
gripper is told to open or close at once; nothing but its range limits it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from envs.mujoco.bodies import rover
from envs.mujoco.bodies.aloha import Aloha
from envs.mujoco.bodies.base import Body
from envs.mujoco.bodies.franka import FrankaEE, FrankaJoint
from envs.mujoco.bodies.jointed import JointedBody
from envs.mujoco.bodies.upper_body import UpperBody
from envs.mujoco.bodies.weld import WeldedArm
from envs.mujoco.bodies.widowx import WidowX
from rl_finetune.errors import UserError
from rl_finetune.promotion.records import Limits
from rl_finetune.spec import ActionConvention

Float64 = NDArray[np.float64]
GRIPPER = 1.25
"""Beyond +-1 a gripper is open or closed all the same; policies are not clipped and overshoot a little."""
OVERSHOOT = 0.01
"""Metres that a tool may be beyond where its target may stand: it hangs on it softly."""
STALE = 0.5
"""Seconds, or one chunk where that is shorter."""
BRISK = 1.5
"""Full speeds by which a command may change in one control step: experts needed up to 1.23 (in 100 episodes of
`widowx_moving`, where a chunk turns back after a block)."""
PICTURE = (0.0, 1.0)
"""Points lie in the picture."""
HASTE = {"gr1": 1.5}
"""Robot tag -> how much faster than driven joints may be commanded, where the model drives them at a third of their
published speeds or less; the others are driven at what is published."""


def limits_for(tag: str) -> Limits:
    """What the body of that robot tag may be told.

    The workspace is in the frame in which the body's base stands still: the table's, which is the base's for `widowx`.

    Raises:
        UserError: no such body is modelled here.
    """
    if tag not in KNOWN:
        raise UserError(
            "nothing is known of this body's limits", got=repr(tag), expected=f"one of {sorted(KNOWN)}",
            do="write them down in the promotion config's `limits`",
        )  # fmt: skip
    return KNOWN[tag]()


def _welded(arm: WeldedArm) -> Limits:
    """Displacements within the box of the tool's target, as fast as it follows."""
    action, own = arm.embodiment.action, arm.limits
    reach = np.concatenate([own.box[:, 1] - own.box[:, 0], np.full(3, 2 * own.tilt), [GRIPPER]])
    pace = np.repeat([own.travel, own.turn], 3) * action.rate
    return _limits(action, np.stack([-reach, reach]), pace, arm.grippers, _workspace(arm))


def _jointed(body: JointedBody) -> Limits:
    """Joint ranges and speeds."""
    chains = [body.waist] if body.waist is not None else []
    ranges, speeds = [chain.limits for chain in chains], [chain.speeds for chain in chains]
    for arm in body.arms:
        ranges += [arm.chain.limits, np.array([[-GRIPPER, GRIPPER]])]
        speeds.append(arm.chain.speeds)
    haste = HASTE.get(body.embodiment.tag, 1.0)
    span = np.concatenate(ranges).T
    return _limits(body.embodiment.action, span, np.concatenate(speeds) * haste, body.grippers, _workspace(body))


def _rover() -> Limits:
    """As far as the base gets in a chunk."""
    action = rover.EMBODIMENT.action
    pace = np.array([rover.FASTEST, rover.FASTEST, rover.FASTEST_TURN])
    reach = pace * action.horizon / action.rate
    return _limits(action, np.stack([-reach, reach]), pace, (), ())


def _limits(
    action: ActionConvention, span: Float64, pace: Float64, grippers: Sequence[int],
    workspace: tuple[tuple[float, float], ...],
) -> Limits:  # fmt: skip
    """Limits [c] from ranges [2, c] and the speeds of all channels but the grippers."""
    steady = np.ones(action.channels, bool)
    steady[list(grippers)] = False
    velocity = np.full(action.channels, 2 * GRIPPER * action.rate)
    velocity[steady] = pace
    acceleration = velocity * action.rate * np.where(steady, BRISK, 2)
    jerk = 2 * acceleration * action.rate
    return Limits(
        low=_plain(span[0]), high=_plain(span[1]), velocity=_plain(velocity), acceleration=_plain(acceleration),
        jerk=_plain(jerk), workspace=workspace, stale_after=min(STALE, action.horizon / action.rate),
    )  # fmt: skip


def _workspace(body: Body) -> tuple[tuple[float, float], ...]:
    """What the boxes of all hands cover, and a little more."""
    low, high = body.boxes[..., 0].min(0) - OVERSHOOT, body.boxes[..., 1].max(0) + OVERSHOOT
    return tuple(zip(_plain(low), _plain(high), strict=True))


def _plain(values: Float64) -> tuple[float, ...]:
    """Rounded to a millionth: 1.2 is to be read as 1.2."""
    return tuple(round(float(value), 6) for value in values)


KNOWN: dict[str, Callable[[], Limits]] = {
    "widowx": lambda: _welded(WidowX()),
    "franka_ee": lambda: _welded(FrankaEE()),
    "franka_joint": lambda: _jointed(FrankaJoint()),
    "aloha": lambda: _jointed(Aloha()),
    "gr1": lambda: _jointed(UpperBody()),
    "rover": _rover,
    "tracer": lambda: Limits(low=PICTURE[:1] * 2, high=PICTURE[1:] * 2),
}
"""Robot tag -> limits."""
