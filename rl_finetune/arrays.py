"""Numbers as other people's simulators hand them over: numpy, tensors of any library, lists, plain Python.

No library but numpy is imported: a tensor is told by what it can do. What is not numbers is refused by its name and
type, never turned into an array of objects, of which every one would be true.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from rl_finetune.errors import NotFiniteError, UserError, brief

NUMBERS = "biuf"
"""numpy kinds: truth values, whole numbers, floats."""


def as_array(value: object, what: str) -> NDArray[Any]:
    """The numbers of `value` as a numpy array, in this process's memory; shares it where it can.

    Args:
        value: an array or tensor (of torch, jax, warp ...), a number, or nested lists of them.
        what: what it is called in an error.

    Raises:
        UserError: it is no array of truth values, whole numbers or floats.
    """
    try:
        found = _on_host(value)
    except Exception as error:  # whatever a library says of its own values
        raise _refused(what, value, "an array of numbers, or what numpy can make one of") from error
    if found.dtype.kind not in NUMBERS:
        raise _refused(what, value, "numbers")
    return found


def number(value: object, what: str) -> float:
    """A single number, which may be NaN: of an array or list it is the only entry. Raises like `as_array`."""
    if isinstance(value, float | int):
        return float(value)
    found = as_array(value, what)
    if found.size != 1:
        raise _refused(what, value, "one number")
    return float(found.reshape(-1)[0])


def flag(value: object, what: str) -> bool:
    """A truth value: true, false, 0 or 1, or the only entry of an array of them.

    Raises:
        UserError: it is something else.
        NotFiniteError: it is NaN, which Python takes for true.
    """
    if isinstance(value, bool):
        return value
    found = number(value, what)
    if not np.isfinite(found):
        raise NotFiniteError(f"{what} is {found}")
    if found not in (0, 1):
        raise _refused(what, value, "true or false")
    return bool(found)


def per_env(value: object, what: str, num_envs: int) -> NDArray[Any]:
    """[N] numbers, one for each environment; [N, 1] is taken for it. Raises like `as_array`."""
    found = as_array(value, what)
    if found.shape not in ((num_envs,), (num_envs, 1)):
        raise _refused(what, value, f"one for each of {num_envs} environments")
    return found.reshape(num_envs)


def flags(value: object, what: str, num_envs: int) -> NDArray[np.bool_]:
    """[N] truth values, one for each environment. Raises like `per_env`, also where one is neither 0 nor 1."""
    found = per_env(value, what, num_envs)
    if not np.isin(found, (0, 1)).all():
        raise _refused(what, value, "true or false for each environment")
    return found.astype(bool)


def _on_host(value: Any) -> NDArray[Any]:
    if isinstance(value, list | tuple) and not all(isinstance(entry, bool | int | float) for entry in value):
        return np.stack([_on_host(entry) for entry in value])
    if hasattr(value, "detach"):  # torch: without its graph, and from whatever device
        value = value.detach().cpu()
        return np.asarray(value.float() if "bfloat16" in str(value.dtype) else value)  # which numpy does not have
    if hasattr(value, "__dlpack__") and not hasattr(value, "__array__"):
        return np.from_dlpack(value)
    return np.asarray(value)


def _refused(what: str, value: object, expected: str) -> UserError:
    return UserError(f"{what} cannot be read", got=brief(value), expected=expected, do="convert it in the environment")
