"""One environment's part of what a gymnasium vector environment returns, in whatever arrays it keeps it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from envs.gymnasium.options import NAME
from rl_finetune.errors import UserError, brief


class Row(Mapping[str, Any]):
    """One environment's part of a dict of batches, taken out when it is asked for.

    Of an info's `key` the mask `_key`, where there is one, says which environments have it. What nobody asks for may
    be anything.
    """

    def __init__(self, batch: Mapping[str, Any], row: int, num_envs: int, name: str) -> None:
        """`name` is what the batch is called in an error."""
        self._batch, self._row, self._num_envs, self._name = batch, row, num_envs, name

    def __getitem__(self, key: str) -> Any:
        if not self._has(key):
            raise KeyError(key)
        return row_of(self._batch[key], self._row, self._num_envs, f"{self._name}.{key}")

    def __iter__(self) -> Iterator[str]:
        return filter(self._has, self._batch)

    def __len__(self) -> int:
        return sum(1 for _ in self)

    def __contains__(self, key: object) -> bool:
        return self._has(key)

    def _has(self, key: object) -> bool:
        if key not in self._batch or (str(key).startswith("_") and str(key)[1:] in self._batch):
            return False
        mask: Any = self._batch.get(f"_{key}")
        return tuple(getattr(mask, "shape", ())) != (self._num_envs,) or bool(mask[self._row])


def row_of(batch: Any, row: int, num_envs: int, name: str) -> Any:
    """One environment's entry of a batch: a copy where it is an array; a text alone is everybody's.

    Raises:
        UserError: it is not one for each environment.
    """
    if isinstance(batch, Mapping):
        return Row(batch, row, num_envs, name)
    if isinstance(batch, str | bytes):
        return batch
    try:
        count = len(batch)
    except TypeError:  # a number, or an array without axes
        count = 0
    if count != num_envs:
        raise UserError(
            f"{NAME} environment's {name} is not one for each", got=brief(batch), expected=f"{num_envs} entries",
            do="return a batch, as vector environments do",
        )  # fmt: skip
    entry = batch[row]
    return entry.copy() if isinstance(entry, np.ndarray) else entry
