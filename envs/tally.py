"""What a backend gathers while a chunk runs, row by row, and the records that it becomes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from rl_finetune.errors import NotFiniteError
from rl_finetune.types import (
    ChunkOutcome,
    Failure,
    FloatArray,
    Grounding,
    ImageArray,
    Observation,
    concatenate_grounding,
)


@dataclass(frozen=True, slots=True)
class Sight:
    """What one environment shows at a boundary: a row of an `Observation`."""

    instruction: str
    """Task in words."""
    images: Mapping[str, ImageArray] = field(default_factory=dict)
    """View tag -> [h, w, 3]."""
    proprioception: FloatArray | None = None
    """[P] or None."""
    privileged: FloatArray | None = None
    """[S] or None."""
    grounding: Grounding | None = None
    """Labels of this one environment."""

    def check(self) -> None:
        """Raise a `NotFiniteError` where a number is not finite."""
        for name in ("proprioception", "privileged"):
            numbers = getattr(self, name)
            if numbers is not None and not np.isfinite(numbers).all():
                raise NotFiniteError(f"{name} channel {int(np.argmin(np.isfinite(numbers)))} is not finite")
        if self.grounding is not None and not np.isfinite(self.grounding.points).all():
            raise NotFiniteError("a place of a thing is not finite")


def gather(sights: Sequence[Sight], embodiment: str) -> Observation:
    """Stack what environments of one embodiment show."""

    def stacked(name: str) -> FloatArray | None:
        rows = [getattr(sight, name) for sight in sights]
        return None if rows[0] is None else np.stack(rows).astype(np.float32)

    return Observation(
        images={tag: np.stack([sight.images[tag] for sight in sights]) for tag in sights[0].images},
        instruction=tuple(sight.instruction for sight in sights),
        embodiment=embodiment,
        proprioception=stacked("proprioception"),
        privileged=stacked("privileged"),
        grounding=concatenate_grounding([sight.grounding for sight in sights if sight.grounding is not None]),
    )


class Tally:
    """The outcome of one chunk of N environments, while it is made. A row runs until it ends or fails."""

    def __init__(self, num_envs: int, horizon: int) -> None:
        self.reward = np.zeros((num_envs, horizon), np.float32)
        self.executed = np.zeros(num_envs, np.int64)
        self.terminated, self.truncated, self.success = (np.zeros(num_envs, bool) for _ in range(3))
        self.running = np.ones(num_envs, bool)
        self.last: dict[int, Sight] = {}
        """What the rows that ended showed at last."""
        self._failures: list[Failure] = []

    def step(self, row: int, reward: float) -> None:
        """Count an executed step and its reward.

        Raises:
            NotFiniteError: the reward is not finite.
        """
        self.executed[row] += 1
        self.add(row, reward)

    def add(self, row: int, reward: float) -> None:
        """Add a reward to the step that was counted last. Raises like `step`."""
        if not np.isfinite(reward):
            raise NotFiniteError(f"the reward is {reward}")
        self.reward[row, self.executed[row] - 1] += reward

    def end(self, row: int, *, terminated: bool, success: bool = False) -> None:
        """The episode is over: by the task itself, or else by the time limit."""
        self.terminated[row], self.truncated[row], self.success[row] = terminated, not terminated, success
        self.running[row] = False

    def fail(self, failure: Failure, shown: Sight) -> None:
        """The row broke down. What it had shown when the chunk began stands for its last observation."""
        row = failure.row
        self.executed[row] = max(self.executed[row], 1)
        self.reward[row] = 0
        self.end(row, terminated=False)
        self.last[row] = shown
        self._failures.append(failure)

    def outcome(self, now: Sequence[Sight], embodiment: str) -> ChunkOutcome:
        """The record, once every row that ended has begun its next episode and `now` [N] is what all show."""
        over = np.flatnonzero(self.terminated | self.truncated)
        return ChunkOutcome(
            reward=self.reward,
            steps_executed=self.executed,
            terminated=self.terminated,
            truncated=self.truncated,
            success=self.success,
            observation=gather(now, embodiment),
            final_index=over,
            final_observation=gather([self.last[int(row)] for row in over], embodiment) if len(over) else None,
            reward_terms={"reward": self.reward.copy()},
            failures=tuple(sorted(self._failures, key=lambda failure: failure.row)),
        )
