"""What is taken from Isaac's observations and cameras, and in which form it travels."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .api import Env, Tensor, array, is_tensor, tensor
from .job import Job, Refused

Tensors = dict[str, Tensor]
Arrays = dict[str, NDArray[Any]]
VIEW = "view:"


def told(value: Any) -> str:
    """Type of a value, and its numbers' type and shape where it has them."""
    found = tensor(value) if is_tensor(value) else value
    shape = getattr(found, "shape", None)
    return type(value).__name__ + ("" if shape is None else f" of {getattr(found, 'dtype', '?')} {tuple(shape)}")


def column(value: Any, what: str, num_envs: int) -> NDArray[Any]:
    """A copy of a number for each environment [N], of [N] or [N, 1].

    Raises:
        Refused: it is something else.
    """
    found = array(value) if is_tensor(value) else np.array(value)
    if found.shape not in ((num_envs,), (num_envs, 1)) or found.dtype.kind not in "biuf":
        expected = f"one number for each of {num_envs} environments"
        raise Refused(f"{what} cannot be read", got=told(value), expected=expected, do="correct the task")
    return found.reshape(num_envs)


def truths(value: Any, what: str, num_envs: int) -> NDArray[np.bool_]:
    """The same of truth values. Raises `Refused` also where one is neither 0 nor 1: NaN would be true."""
    found = column(value, what, num_envs)
    if not np.isin(found, (0, 1)).all():
        raise Refused(f"{what} cannot be read", got=found.tolist(), expected="truth values", do="correct the task")
    return found.astype(bool)


class Reader:
    """Reads every view and state of a job by name: `view:TAG`, `proprioception`, `privileged`."""

    def __init__(self, env: Env, job: Job, scalar_first: bool) -> None:
        """`scalar_first` as in `launch.scalar_first`."""
        self._env, self._job, self._scalar_first = env, job, scalar_first
        sources = {VIEW + tag: source for tag, source in job.views.items()} | job.states
        parts = {name: source.partition(":") for name, source in sources.items()}
        self._cameras = {name: rest for name, (kind, _, rest) in parts.items() if kind == "camera"}
        self._groups = {name: rest for name, (kind, _, rest) in parts.items() if kind == "obs"}

    def observed(self, obs: Mapping[str, Any]) -> Tensors:
        """Copies of what comes from observation groups: Isaac reuses the buffers."""
        return {name: self._batch(name, self._find(obs, path)) for name, path in self._groups.items()}

    def seen(self) -> Tensors:
        """Copies of what the cameras of the scene last saw."""
        outputs = {name: self._env.scene[camera].data.output for name, camera in self._cameras.items()}
        return {name: self._batch(name, output["rgb"]) for name, output in outputs.items()}

    def arrays(self, tensors: Tensors) -> Arrays:
        """The same as numpy: pictures [M, s, s, 3] uint8, states [M, n] float32.

        Raises:
            Refused: a picture or a state has another form than the options promise.
        """
        return {
            name: self._picture(name, array(value)) if name.startswith(VIEW) else self._state(name, array(value))
            for name, value in tensors.items()
        }

    def _batch(self, name: str, value: Any) -> Tensor:
        """A copy of a tensor with a row for each environment."""
        if not is_tensor(value) or tuple(tensor(value).shape[:1]) != (self._job.num_envs,):
            expected = f"a tensor with a row for each of {self._job.num_envs} environments"
            raise Refused(f"{name} cannot be read", got=told(value), expected=expected, do="correct the task")
        return tensor(value).clone()

    def _find(self, obs: Mapping[str, Any], path: str) -> Any:
        found: Any = obs
        for key in path.split("/"):
            if not isinstance(found, Mapping) or key not in found:
                there = sorted(found) if isinstance(found, Mapping) else "a single tensor (concatenate_terms=True)"
                raise Refused(f"no observation {path!r} at {key!r}", got=there, expected=key, do="set views or states")
            found = found[key]
        return found

    def _picture(self, name: str, picture: NDArray[Any]) -> NDArray[np.uint8]:
        size = self._job.image_size
        if picture.dtype != np.uint8:
            raise Refused(
                f"{name} is not a plain picture",
                got=str(picture.dtype),
                expected="uint8",
                do="set normalize=False in the task's observation term, or take it from camera:NAME",
            )
        if picture.ndim != 4 or picture.shape[1:3] != (size, size) or picture.shape[3] not in (3, 4):
            expected = f"(N, {size}, {size}, 3)"
            raise Refused(f"{name} has another size", got=picture.shape, expected=expected, do="set image_size")
        return picture[..., :3]

    def _state(self, name: str, state: NDArray[Any]) -> NDArray[np.float32]:
        state = state.reshape(len(state), -1).astype(np.float32)
        width = self._job.widths.get(name)
        if width is not None and state.shape[1] != width:
            raise Refused(f"{name} has another width", got=state.shape[1], expected=width, do=f"set {name}_names")
        if name == "privileged" and not self._scalar_first:
            for first in self._job.quaternions:
                state[:, first : first + 4] = np.roll(state[:, first : first + 4], 1, axis=1)
        return state
