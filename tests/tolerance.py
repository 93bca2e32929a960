"""How far apart two float32 results of one formula may lie.

A processor chooses in which order a sum of products is added up: by its instruction set, by the number of rows, by
where the weights lie in memory. So outputs of two modules of equal weights, or of one module for other company, are
alike to rounding only. Weights, copies, and one module's answers to one input in one process are compared bit for bit.
"""

from __future__ import annotations

from typing import Any

import numpy as np

EPS = float(np.finfo(np.float32).eps)
TINY_POLICY = 6 * 7 * 288 + 4 * (2 * 6 + 4) * 256
"""Additions on the longest way through the tiny policy: six layers of the backbone of seven sums each, then four Euler
steps through two blocks of six sums and four sums around them; no sum is longer than 288 and 256."""


def rounding(additions: int) -> float:
    """Error of so many additions relative to what is added, in float32: independent roundings grow as the root of their
    number (Higham and Mary 2019, "A new approach to probabilistic rounding error analysis"); four standard deviations.
    """
    return 4 * EPS * additions**0.5


def assert_rounded_alike(ours: Any, theirs: Any, *, additions: int = TINY_POLICY) -> None:
    """Tensors or arrays of one shape that differ by rounding at most, relative to the largest number."""
    ours, theirs = np.asarray(ours), np.asarray(theirs)
    assert ours.shape == theirs.shape
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=rounding(additions) * float(np.abs(theirs).max()))
