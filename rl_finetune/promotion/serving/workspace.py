"""Where the tools of a commanded joint position are, for the bodies whose kinematics are known here. numpy only."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import numpy as np

from envs.mujoco.bodies.aloha import Aloha
from envs.mujoco.bodies.franka import FrankaJoint
from envs.mujoco.bodies.jointed import JointedBody
from envs.mujoco.bodies.upper_body import UpperBody
from rl_finetune.promotion.serving.limiter import Float64
from rl_finetune.spec import EmbodimentSpec

Tools = Callable[[Float64], Float64]
"""Commanded channels [M, c] -> tool positions [M, hands, 3], metres in the frame of the body's description."""
KNOWN: tuple[type[JointedBody], ...] = (Aloha, FrankaJoint, UpperBody)


def tools_of(body: EmbodimentSpec) -> Tools | None:
    """Forward kinematics of a body that is told its joints; None where they are not known.

    A body that is told displacements cannot be placed: the server is not told where its tool stands.
    """
    for known in KNOWN:
        if known.embodiment == body:
            return partial(_tools, known)
    return None


def _tools(body: type[JointedBody], commands: Float64) -> Float64:
    """Channels go: waist, then for each arm its joints and its gripper."""
    first, base = 0, None
    if body.waist is not None:
        first = len(body.waist.joints)
        base = body.waist.forward(commands[:, :first])
    found = []
    for arm in body.arms:
        count = len(arm.chain.joints)
        found.append(arm.chain.forward(commands[:, first : first + count], base)[:, :3, 3])
        first += count + 1
    return np.stack(found, 1)
