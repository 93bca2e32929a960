"""What simulates and draws N worlds of one model. The states stay inside: on a GPU they never leave it.

place -> readings -> advance (a whole chunk) -> keep (the step at which each episode stood still) -> draw
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from envs.mujoco.task import Float64, Start
from envs.mujoco.variation import Property
from rl_finetune.types import BoolArray, ImageArray, IntArray


@dataclass(frozen=True, slots=True)
class Motion:
    """What a chunk did, had no episode ended in it."""

    readings: Float64
    """[N, H, R] sensors after each control step."""
    broken: BoolArray
    """[N] worlds that left the finite numbers, or that the engine could not step; their readings mean nothing."""


class Engine(ABC):
    """N worlds of one task's model, with its cameras."""

    varies: frozenset[Property] = frozenset()
    """What of `Start.variation` it applies."""

    @abstractmethod
    def place(self, rows: IntArray, starts: Sequence[Start]) -> None:
        """Set the worlds `rows` [n] to the beginnings of their episodes."""

    @abstractmethod
    def readings(self, rows: IntArray) -> Float64:
        """Sensors [n, R] of the present states."""

    @abstractmethod
    def advance(self, controls: Float64) -> Motion:
        """Simulate a chunk from the present states, which stay as they are until `keep`.

        Args:
            controls: [N, H * substeps + 1, nu + 7 B], see `Drive`.
        """

    @abstractmethod
    def keep(self, executed: IntArray) -> None:
        """Make the states after control step `executed` [N] (1..H) of the last chunk the present ones."""

    @abstractmethod
    def draw(self, rows: IntArray, mocap: Float64, step: int | None = None) -> Mapping[str, ImageArray]:
        """Pictures of the worlds `rows` [n]: view tag -> [n, h, w, 3].

        Args:
            rows: which worlds.
            mocap: [n, B, 7] mocap bodies as they shall be seen.
            step: of the last chunk, 0..H-1, for films, which need the first view alone; None draws the present states.
        """

    def states(self) -> Float64 | None:
        """Full physics states [N, H, S] after each control step of the last chunk; None where the engine keeps them to
        itself."""
        return None

    @abstractmethod
    def close(self) -> None:
        """Release what it holds. Calling it twice does no harm."""
