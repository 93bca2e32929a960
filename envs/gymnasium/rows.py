"""One environment's part of what a gymnasium vector environment returns."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np


def obs_row(batch: Any, row: int) -> Any:
    """The observation of one environment: dicts and tuples are taken apart, arrays copied."""
    if isinstance(batch, Mapping):
        return {key: obs_row(value, row) for key, value in batch.items()}
    if isinstance(batch, tuple):
        return tuple(obs_row(value, row) for value in batch)
    return batch[row].copy() if isinstance(batch[row], np.ndarray) else batch[row]


def info_row(infos: Mapping[str, Any], row: int, num_envs: int) -> dict[str, Any]:
    """The info of one environment: of `key` what the mask `_key` grants it; what is not one for each is everyone's."""
    mine: dict[str, Any] = {}
    for key, value in infos.items():
        mask = infos.get(f"_{key}")
        absent = isinstance(mask, np.ndarray) and mask.shape == (num_envs,) and not mask[row]
        if absent or (key.startswith("_") and key[1:] in infos):
            continue
        if isinstance(value, Mapping):
            mine[key] = info_row(value, row, num_envs)
        elif isinstance(value, np.ndarray | list | tuple) and len(value) == num_envs:
            mine[key] = value[row]
        else:
            mine[key] = value
    return mine
