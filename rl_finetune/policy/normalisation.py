"""Quantile normalisation of actions, per embodiment and channel, and padding to the action tensor's H x K."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from rl_finetune.errors import UserError
from rl_finetune.types import BoolArray, FloatArray

NORMALISATION_FILE = "normalisation.json"
MIN_SPAN = 1e-2
"""A channel that hardly moves (radians, metres, gripper) is scaled by this, so that rounding noise is not amplified."""


@dataclass(frozen=True, slots=True)
class Quantiles:
    """1 % and 99 % quantiles of the c action channels of one embodiment, in its units."""

    q01: tuple[float, ...]
    q99: tuple[float, ...]

    @classmethod
    def fit(cls, actions: FloatArray) -> Quantiles:
        """From demonstrations [M, H, c]."""
        low, high = np.quantile(actions.reshape(-1, actions.shape[-1]), [0.01, 0.99], axis=0)
        spread = np.maximum((MIN_SPAN - (high - low)) / 2, 0)
        return cls(tuple((low - spread).tolist()), tuple((high + spread).tolist()))

    def normalise(self, actions: FloatArray, width: int) -> FloatArray:
        """[N, H, c] in units -> [N, H, width], clipped to [-1, 1], zero beyond the c channels."""
        low, high = np.asarray(self.q01), np.asarray(self.q99)
        scaled = np.clip(2 * (actions - low) / (high - low) - 1, -1, 1)
        return _pad(scaled, width)

    def denormalise(self, actions: FloatArray) -> FloatArray:
        """[N, H, K] normalised -> the same shape in units, zero beyond the c channels; not clipped."""
        low, high = np.asarray(self.q01), np.asarray(self.q99)
        return _pad((actions[..., : len(low)] + 1) / 2 * (high - low) + low, actions.shape[-1])


def channel_mask(num: int, horizon: int, channels: int, width: int) -> BoolArray:
    """[num, horizon, width] with the leading `channels` valid."""
    return np.broadcast_to(np.arange(width) < channels, (num, horizon, width)).copy()


def save(folder: Path, table: dict[str, Quantiles]) -> None:
    """Write `normalisation.json`: embodiment tag -> quantiles."""
    payload = {tag: {"q01": q.q01, "q99": q.q99} for tag, q in sorted(table.items())}
    (folder / NORMALISATION_FILE).write_text(json.dumps(payload, indent=2) + "\n")


def load(folder: Path) -> dict[str, Quantiles]:
    """Read `normalisation.json`.

    Raises:
        UserError: missing or damaged.
    """
    path = folder / NORMALISATION_FILE
    try:
        payload = json.loads(path.read_text())
        return {tag: Quantiles(tuple(q["q01"]), tuple(q["q99"])) for tag, q in payload.items()}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(
            "action normalisation cannot be read",
            got=f"{path}: {error}",
            expected="q01 and q99 for each embodiment",
            do="copy the file from the checkpoint's source",
        ) from error


def _pad(actions: FloatArray, width: int) -> FloatArray:
    out = np.zeros((*actions.shape[:-1], width), np.float32)
    out[..., : actions.shape[-1]] = actions
    return out
