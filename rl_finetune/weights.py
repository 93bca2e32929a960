"""What travels from the learners to the actors: only what trains, with a version and a checksum."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from rl_finetune.types import FloatArray


class DamagedWeights(RuntimeError):
    """Weights that are not what was sent."""


@dataclass(frozen=True, slots=True)
class TrainedWeights:
    """One version of the adapters and heads."""

    version: int
    """Counts the learner's updates; 0 is the starting point."""
    tensors: Mapping[str, FloatArray]
    """Parameter name -> values."""
    checksum: str
    """SHA-256 over names, shapes and bytes, in the order of names."""

    @classmethod
    def of(cls, version: int, tensors: Mapping[str, FloatArray]) -> TrainedWeights:
        """Seal a set of tensors."""
        return cls(version, tensors, checksum(tensors))

    @property
    def nbytes(self) -> int:
        """Bytes of the tensors."""
        return sum(array.nbytes for array in self.tensors.values())

    def verified(self) -> TrainedWeights:
        """Itself, if the checksum holds.

        Raises:
            DamagedWeights: it does not.
        """
        found = checksum(self.tensors)
        if found != self.checksum:
            raise DamagedWeights(
                f"weights version {self.version}: got checksum {found[:12]}, expected {self.checksum[:12]}"
            )
        return self


def checksum(tensors: Mapping[str, FloatArray]) -> str:
    """SHA-256 as hexadecimal digits."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        array = np.ascontiguousarray(tensors[name])
        digest.update(f"{name}|{array.dtype}|{array.shape}|".encode())
        digest.update(array.tobytes())
    return digest.hexdigest()
