"""What a client asks and what it is told, once the wire has been checked. numpy only."""

from __future__ import annotations

from dataclasses import dataclass

from rl_finetune.types import FloatArray, Observation


@dataclass(frozen=True, slots=True)
class ActRequest:
    """One client's observation, ready for the policy."""

    observation: Observation
    """Of one robot (N = 1); pictures have the policy's size."""
    seed: int
    """Of the client's noise; with `env`, `episode` and `chunk` it keys the initial noise."""
    env: int
    """Number of the session."""
    episode: int
    """Number of the episode within the session."""
    chunk: int
    """Number of the chunk within the episode."""

    @property
    def embodiment(self) -> str:
        """Robot tag; only requests of one tag, view set and picture size share a batch."""
        return self.observation.embodiment


@dataclass(frozen=True, slots=True)
class ActReply:
    """What the policy wants, before the safety envelope."""

    actions: FloatArray
    """[H, c] action units."""
    digest: str
    """Bundle that computed it, whole: a chunk never comes from two."""
    seconds: float
    """Seconds of inference, shared by the batch."""
    batch: int
    """Requests that were computed together."""
    hold: str = ""
    """Why the body is held whatever the actions are; empty where they count."""
