"""What the client asks of Isaac's process, as plain values; and the error that is the user's to mend."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Job:
    """One task to run. Fields as in `IsaacOptions` where they share a name."""

    task: str
    modules: list[str]
    overrides: list[str]
    device: str
    num_envs: int
    horizon: int
    channels: int
    held: list[int]
    """Channels that keep their last value after an episode ended inside a chunk."""
    rate: float
    views: dict[str, str]
    image_size: int
    states: dict[str, str]
    """`proprioception` and `privileged`, those that are asked for -> source."""
    widths: dict[str, int]
    """Channels that a state must have, where that is declared."""
    quaternions: list[int]
    success_term: str
    without_success_term: str
    time_limit: int
    seed: int


class Refused(Exception):
    """The job does not fit the task or the machine. Carries what a `UserError` carries."""

    def __init__(self, what: str, *, got: object, expected: object, do: str) -> None:
        self.told: dict[str, Any] = {"what": what, "got": str(got), "expected": str(expected), "do": do}
        super().__init__(f"{what}: got {got}; expected {expected}; {do}")
