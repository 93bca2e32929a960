"""What may stand between a policy and the bodies that it moves while episodes are played. numpy only."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable

from rl_finetune.spec import EmbodimentSpec
from rl_finetune.types import ActionChunk, BoolArray, IntArray


class Guard(ABC):
    """Makes of what a policy asks for what N bodies are told. Chunks run open loop: it knows where each one ends."""

    changed: IntArray
    """[N, H] of the last chunk: why a step was changed, as bits that the guard defines; 0 where it was handed on."""

    @abstractmethod
    def begin(self, num: int) -> None:
        """`num` episodes begin, one an environment: nothing has been told yet."""

    @abstractmethod
    def __call__(self, chunk: ActionChunk, running: BoolArray) -> ActionChunk:
        """What the bodies are told in place of the next chunk [N, H, K].

        Args:
            chunk: as the policy wants it; not changed.
            running: [N] whose episode still counts; the others' steps are handed on.

        Raises:
            UserError: numbers that cannot be told to anybody.
        """


Guards = Callable[[EmbodimentSpec], Guard]
"""Makes the guard of a body; survives pickling, for players in other processes."""
