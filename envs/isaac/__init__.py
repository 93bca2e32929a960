"""Isaac Lab 2.3 and 3.0 behind the contract, in a process and an interpreter of their own.

    IsaacEnv (client.py) --seed | actions--> socket --> worker/ --> Isaac Lab
                         <-- arrays --------

Nothing here imports Isaac Lab except `worker/`, which runs in Isaac's own Python and imports nothing of this project.
"""

from __future__ import annotations

from envs.base import VectorEnv
from envs.isaac.options import NAME, IsaacOptions, spec

__all__ = ["NAME", "IsaacOptions", "alone_on", "build", "spec"]


def build(num_envs: int, options: IsaacOptions) -> VectorEnv:
    """The environment, once Isaac has started; see `IsaacEnv`."""
    from envs.isaac.client import IsaacEnv

    return IsaacEnv(num_envs, options)


def alone_on(options: IsaacOptions) -> str | None:
    """The GPU that one Isaac process takes."""
    from envs.isaac.gpu import physical

    number = physical(options.device)
    return None if number is None else f"GPU {number}"
