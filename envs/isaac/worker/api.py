"""The part of Isaac Lab that the worker uses, and no more: mypy refuses any other name of it.

`ORIGIN` says where each class lives, so that `scripts/check_isaac_names.py` can look every name up in a wheel.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol, TypeGuard

import numpy as np
from numpy.typing import NDArray


class Tensor(Protocol):
    """What is used of a torch tensor; torch itself is not imported."""

    shape: tuple[int, ...]

    def clone(self) -> Tensor: ...
    def cpu(self) -> Tensor: ...
    def float(self) -> Tensor: ...
    def numpy(self) -> NDArray[Any]: ...
    def new_tensor(self, data: NDArray[Any]) -> Tensor: ...
    def __getitem__(self, rows: Any) -> Tensor: ...


class ProxyArray(Protocol):
    """Isaac Lab 3.0 hands out these in place of tensors."""

    @property
    def torch(self) -> Tensor: ...


class SimCfg(Protocol):
    """Settings of the physics."""

    dt: float
    render_interval: int


class SceneCfg(Protocol):
    """Settings of the scene; its cameras are among its attributes."""

    num_envs: int


class CameraCfg(Protocol):
    """Settings of a camera."""

    width: int
    height: int
    data_types: list[str]
    update_period: float


class EnvCfg(Protocol):
    """Settings of an environment, of either workflow."""

    seed: int | None
    decimation: int
    episode_length_s: float
    num_rerenders_on_reset: int
    sim: SimCfg
    scene: SceneCfg


class KeepsLast(Protocol):
    """Settings that can ask for the observation before a reset."""

    compute_final_obs: bool


class CameraData(Protocol):
    """Pictures of a camera by kind; kinds that were asked for."""

    output: Mapping[str, Tensor | ProxyArray]


class Camera(Protocol):
    """A camera of the scene."""

    @property
    def data(self) -> CameraData: ...


class Scene(Protocol):
    """The scene: its entities by name."""

    def __getitem__(self, key: str) -> Camera: ...
    def write_data_to_sim(self) -> None: ...


class Simulation(Protocol):
    """The physics and the renderer."""

    def forward(self) -> None: ...
    def render(self) -> None: ...


class Terminations(Protocol):
    """Why episodes end."""

    @property
    def active_terms(self) -> list[str]: ...
    def get_term(self, name: str) -> Tensor: ...


class Env(Protocol):
    """An environment of either workflow."""

    cfg: EnvCfg
    scene: Scene
    sim: Simulation
    episode_length_buf: Tensor
    num_envs: int
    step_dt: float
    single_action_space: Any

    def step(self, action: Tensor) -> tuple[Mapping[str, Any], Tensor, Tensor, Tensor, dict[str, Any]]: ...
    def close(self) -> None: ...
    def seed(self, seed: int) -> int: ...
    def _reset_idx(self, env_ids: Tensor) -> None: ...


class Managed(Protocol):
    """The manager-based workflow: some environments can be reset through the front door."""

    termination_manager: Terminations

    def reset(self, *, env_ids: Tensor | None) -> tuple[Mapping[str, Any], dict[str, Any]]: ...


class Direct(Protocol):
    """The direct workflow resets all or none."""

    def reset(self) -> tuple[Mapping[str, Any], dict[str, Any]]: ...
    def _get_observations(self) -> Mapping[str, Any]: ...


class ComputesObservations(Protocol):
    """The direct workflow of 3.0, where noise is added by another method."""

    def _compute_observations(self) -> Mapping[str, Any]: ...


class PausesDrawing(Protocol):
    """An environment whose drawing can be switched."""

    render_enabled: bool


MANAGED = ("isaaclab.envs.manager_based_rl_env", "ManagerBasedRLEnv")
DIRECT = ("isaaclab.envs.direct_rl_env", "DirectRLEnv")
MANAGED_CFG = ("isaaclab.envs.manager_based_rl_env_cfg", "ManagerBasedRLEnvCfg")
DIRECT_CFG = ("isaaclab.envs.direct_rl_env_cfg", "DirectRLEnvCfg")
ORIGIN: dict[type, tuple[tuple[str, str], ...]] = {
    SimCfg: (("isaaclab.sim.simulation_cfg", "SimulationCfg"),),
    SceneCfg: (("isaaclab.scene.interactive_scene_cfg", "InteractiveSceneCfg"),),
    CameraCfg: (("isaaclab.sensors.camera.camera_cfg", "CameraCfg"),),
    EnvCfg: (MANAGED_CFG, DIRECT_CFG),
    CameraData: (("isaaclab.sensors.camera.camera_data", "CameraData"),),
    Camera: (("isaaclab.sensors.camera.camera", "Camera"),),
    Scene: (("isaaclab.scene.interactive_scene", "InteractiveScene"),),
    Simulation: (("isaaclab.sim.simulation_context", "SimulationContext"),),
    Terminations: (("isaaclab.managers.termination_manager", "TerminationManager"),),
    Env: (MANAGED, DIRECT),
    Managed: (MANAGED,),
    Direct: (DIRECT,),
}
"""Protocol -> modules and classes that must have each of its members, in every supported version."""
SINCE_3: dict[type, tuple[tuple[str, str], ...]] = {
    KeepsLast: (MANAGED_CFG, DIRECT_CFG),
    ProxyArray: (("isaaclab.utils.warp.proxy_array", "ProxyArray"),),
    PausesDrawing: (MANAGED, DIRECT),
    ComputesObservations: (DIRECT,),
}
"""The same for what is used only where it is found."""


def is_managed(env: Any) -> TypeGuard[Managed]:
    """Whether the environment has a termination manager."""
    return hasattr(env, "termination_manager")


def keeps_last(cfg: Any) -> TypeGuard[KeepsLast]:
    """Whether the observation before a reset can be asked for."""
    return hasattr(cfg, "compute_final_obs")


def pauses_drawing(env: Any) -> TypeGuard[PausesDrawing]:
    """Whether drawing can be switched off for a step."""
    return hasattr(env, "render_enabled")


def computes_observations(env: Any) -> TypeGuard[ComputesObservations]:
    """Whether observations are computed, noise and all, by one method."""
    return hasattr(env, "_compute_observations")


def is_camera(cfg: Any) -> TypeGuard[CameraCfg]:
    """Whether these are settings of a camera."""
    return all(hasattr(cfg, name) for name in ("width", "height", "data_types", "update_period"))


def tensor(value: Tensor | ProxyArray) -> Tensor:
    """The tensor itself, or the one inside a `ProxyArray`."""
    return value if hasattr(value, "new_tensor") else value.torch  # type: ignore[return-value]


def is_tensor(value: Any) -> bool:
    """Whether `tensor` takes it."""
    return hasattr(value, "new_tensor") or hasattr(value, "torch")


def array(value: Tensor | ProxyArray) -> NDArray[Any]:
    """A copy of the numbers as numpy: Isaac goes on writing into its buffers."""
    return np.array(tensor(value).cpu().numpy())
