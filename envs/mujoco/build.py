"""From a task to an environment: the one place that chooses an engine."""

from __future__ import annotations

from envs.base import VectorEnv
from envs.mujoco import load_mujoco
from envs.mujoco.engine import Engine
from envs.mujoco.options import WorldOptions
from envs.mujoco.task import Task
from envs.mujoco.varied import Varied, Wish
from rl_finetune.errors import UserError
from rl_finetune.optional import require


def build(task: Task, num_envs: int, options: WorldOptions) -> VectorEnv:
    """`num_envs` worlds of `task` on the engine that the options name.

    Raises:
        UserError: the engine is not installed, cannot draw on this machine, or cannot vary what is to be varied.
    """
    wish = Wish(options.perturb, options.randomise, options.strength)
    if wish:
        task = Varied(task, wish)
    load_mujoco()
    from envs.mujoco.world import World

    return World(task, _engine(task, num_envs, options, wish), num_envs)


def _engine(task: Task, num_envs: int, options: WorldOptions, wish: Wish) -> Engine:
    if options.backend == "mujoco_warp":
        require("mujoco_warp", purpose="the backend 'mujoco_warp'", install="pip install 'rl-finetune[warp]'")
        from envs.mujoco.warp import WarpEngine

        _check_varies(WarpEngine, options.backend, wish)
        return WarpEngine(task, num_envs, options.image_size)
    from envs.mujoco.cpu import CpuEngine

    return CpuEngine(task, num_envs, options.image_size)


def _check_varies(engine: type[Engine], name: str, wish: Wish) -> None:
    """Raise a `UserError` unless the engine can vary all that is wished for."""
    missing = wish.needs - engine.varies
    if missing:
        raise UserError(
            f"the backend {name!r} cannot vary {' or '.join(sorted(missing))} of its worlds",
            got=f"perturb={wish.suite!r}, randomise={wish.kinds}",
            expected=f"what needs no more than {sorted(engine.varies) or 'other controls, starts and words'}",
            do="use the backend 'mujoco', or leave these out",
        )  # fmt: skip
