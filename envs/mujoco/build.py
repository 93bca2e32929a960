"""From a task to an environment: the one place that chooses an engine."""

from __future__ import annotations

from envs.base import VectorEnv
from envs.mujoco import load_mujoco
from envs.mujoco.engine import Engine
from envs.mujoco.options import WorldOptions
from envs.mujoco.task import Task
from rl_finetune.optional import require


def build(task: Task, num_envs: int, options: WorldOptions) -> VectorEnv:
    """`num_envs` worlds of `task` on the engine that the options name.

    Raises:
        UserError: the engine is not installed, or cannot draw on this machine.
    """
    load_mujoco()
    from envs.mujoco.world import World

    return World(task, _engine(task, num_envs, options), num_envs)


def _engine(task: Task, num_envs: int, options: WorldOptions) -> Engine:
    if options.backend == "mujoco_warp":
        require("mujoco_warp", purpose="the backend 'mujoco_warp'", install="pip install 'rl-finetune[warp]'")
        from envs.mujoco.warp import WarpEngine

        return WarpEngine(task, num_envs, options.image_size)
    from envs.mujoco.cpu import CpuEngine

    return CpuEngine(task, num_envs, options.image_size)
