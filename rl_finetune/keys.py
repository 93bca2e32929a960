"""Counter-based randomness: every draw is a pure function of what it is for.

Initial states and noise are keyed by (seed, stream, environment, episode, chunk), so they depend neither on the
composition of a batch nor on the number of actors (flow_rl: traps 2 and 5).
"""

from __future__ import annotations

from enum import IntEnum

import numpy as np


class Stream(IntEnum):
    """What a draw is for. Two streams never share numbers."""

    SCENE = 1
    NOISE = 2
    EXPERT = 3
    POINTS = 4
    ADVICE = 5
    CLONING = 6
    SUITE = 7
    RANDOMISATION = 8
    ACTION_NOISE = 9
    TRIALS = 10


def generator(seed: int, stream: Stream, env: int, episode: int, chunk: int = 0) -> np.random.Generator:
    """A fresh float64 generator for one (seed, stream, environment, episode, chunk), all non-negative."""
    sequence = np.random.SeedSequence(entropy=seed, spawn_key=(int(stream), env, episode, chunk))
    return np.random.Generator(np.random.Philox(sequence))
