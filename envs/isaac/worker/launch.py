"""Start Isaac and make the task. The only file that imports Isaac Lab, and not before Isaac's application runs."""

from __future__ import annotations

import importlib
import inspect
from contextlib import ExitStack
from typing import Any

from .api import CameraCfg, Env, EnvCfg, array, is_camera, is_managed, keeps_last, tensor
from .job import Job, Refused


def start(job: Job, running: ExitStack) -> Env:
    """Launch Isaac, settle the task's settings and make it.

    Isaac Lab 3.0 reads from the settings what must be launched (`launch_simulation`); 2.3 must be launched
    (`AppLauncher`) before the settings can be imported.

    Args:
        job: the task.
        running: closes the environment, then Isaac.

    Raises:
        Refused: the task does not exist, or does not fit what the options say.
    """
    try:
        from isaaclab.app import launch_simulation
    except ImportError:
        _launch_app(job, running)
        cfg = _settings(job)
    else:
        cfg = _settings(job)
        running.enter_context(launch_simulation(cfg, launcher_args={"device": job.device, "enable_cameras": True}))
    settle(cfg, job)
    import gymnasium

    env: Env = gymnasium.make(job.task, cfg=cfg).unwrapped  # type: ignore[assignment]
    running.callback(env.close)
    _check(env, job)
    return env


def _launch_app(job: Job, running: ExitStack) -> None:
    from isaaclab.app import AppLauncher

    app = AppLauncher(headless=True, enable_cameras=True, device=job.device).app
    running.callback(app.close)


def _settings(job: Job) -> EnvCfg:
    import gymnasium
    import isaaclab_tasks  # noqa: F401  registers Isaac Lab's own tasks
    from isaaclab_tasks.utils import parse_env_cfg

    for module in job.modules:
        importlib.import_module(module)
    if job.task not in gymnasium.registry:
        raise Refused(
            "Isaac Lab has no such task",
            got=repr(job.task),
            expected=f"one of the {sum(i.startswith('Isaac') for i in gymnasium.registry)} registered `Isaac...` ids",
            do="ids end in -v0 in 2.3 and mostly do not in 3.0; name modules that register tasks in `modules`",
        )
    cfg: EnvCfg
    if not job.overrides:
        cfg = parse_env_cfg(job.task, device=job.device, num_envs=job.num_envs)
        return cfg
    if "overrides" not in inspect.signature(parse_env_cfg).parameters:
        raise Refused(
            "this Isaac Lab knows no presets",
            got=f"overrides={job.overrides}",
            expected="none before Isaac Lab 3.0",
            do="leave overrides out",
        )
    cfg = parse_env_cfg(job.task, device=job.device, num_envs=job.num_envs, overrides=job.overrides)
    return cfg


def settle(cfg: EnvCfg, job: Job) -> None:
    """Write into the task's settings what the contract needs.

    The worker ends episodes at the time limit itself, where it can still see the last observation; Isaac's own limit
    is put a chunk beyond. Cameras read whenever they are looked at: any other period would go stale where an episode
    that ended inside a chunk restarted the camera's clock. What is drawn when is the `Shutter`'s business.
    """
    cfg.seed = job.seed
    cfg.episode_length_s = (job.time_limit + job.horizon + 0.5) * cfg.sim.dt * cfg.decimation
    if keeps_last(cfg):
        cfg.compute_final_obs = True
    found = cameras(cfg)
    for camera in found.values():
        camera.width = camera.height = job.image_size
        camera.update_period = 0.0
    for source in job.views.values():
        kind, _, name = source.partition(":")
        if kind == "camera" and name not in found:
            raise Refused(
                f"task {job.task} has no such camera", got=name, expected=f"one of {sorted(found)}", do="set views"
            )


def cameras(cfg: EnvCfg) -> dict[str, CameraCfg]:
    """Settings of all cameras, by name: of the scene, and where the direct workflow keeps them."""
    return {name: part for owner in (cfg, cfg.scene) for name, part in vars(owner).items() if is_camera(part)}


def _check(env: Env, job: Job) -> None:
    """Compare what the options promise with the task that was made."""
    width, rate = env.single_action_space.shape[0], 1 / env.step_dt
    if width != job.channels:
        raise Refused("the task's actions have another width", got=width, expected=job.channels, do="set channels")
    if abs(rate - job.rate) > 1e-3 * rate:
        raise Refused("the task runs at another rate", got=f"{rate:g} Hz", expected=f"{job.rate:g} Hz", do="set rate")
    if not has_success_term(env, job) and job.without_success_term == "refuse":
        terms = env.termination_manager.active_terms if is_managed(env) else "no termination terms"
        raise Refused(
            f"task {job.task} has no termination term that means success",
            got=terms,
            expected=f"a term named {job.success_term!r}",
            do="name it in success_term, or set without_success_term to terminated, extras or never",
        )


def has_success_term(env: Env, job: Job) -> bool:
    """Whether the task has a termination term of the name that means success."""
    return is_managed(env) and job.success_term in env.termination_manager.active_terms


def scalar_first(env: Env) -> bool:
    """Whether Isaac's quaternions are w, x, y, z (2.x) rather than x, y, z, w (3.0): asked of the identity."""
    from isaaclab.utils.math import quat_from_euler_xyz

    zero: Any = tensor(env.episode_length_buf).float()[:1]
    angle = zero.new_tensor(0 * array(zero))
    return bool(array(quat_from_euler_xyz(angle, angle, angle))[0, 0] == 1)
