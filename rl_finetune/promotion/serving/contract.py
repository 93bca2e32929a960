"""What the server needs of the policy's side, and no more: a stage that acts, and a session for each client."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from rl_finetune.promotion.serving.reading import Reading
from rl_finetune.promotion.serving.requests import ActReply, ActRequest
from rl_finetune.types import FloatArray


class Acting(Protocol):
    """Holds the bundle that acts. `act` is called in one thread; the others may be called from any other meanwhile."""

    def act(self, requests: Sequence[ActRequest]) -> list[ActReply]:
        """One reply for each request, all by one bundle. Blocks for the length of an inference."""

    def metadata(self) -> Mapping[str, Any]:
        """What a client is told on connecting; `reading.bodies` reads what messages must show out of it, and
        `bundle` is the digest of what acts."""

    def swap(self, folder: Path) -> None:
        """Let another bundle act from the next batch on. Blocks while it is loaded and verified.

        Raises:
            UserError: it cannot be served; nothing has changed.
        """

    @property
    def previous(self) -> str | None:
        """Digest of the bundle that acted before the last swap; None where there was none."""

    def rollback(self) -> None:
        """Let that bundle act.

        Raises:
            UserError: there was none.
        """

    @property
    def shadowed(self) -> str | None:
        """Digest of the candidate that is watched; None where there is none."""

    def end_shadow(self) -> None:
        """Watch it no more. May take some seconds."""


class Answered(Protocol):
    """What a client is told, after the safety envelope."""

    @property
    def actions(self) -> FloatArray:
        """[H, c] action units."""

    @property
    def interventions(self) -> Mapping[str, int]:
        """Kind of limit -> steps of the chunk that it changed."""

    @property
    def held(self) -> bool:
        """Whether the robot was told to stand still."""


class Conversation(Protocol):
    """One client's episodes: numbers chunks, remembers what was commanded, keeps to the limits."""

    def ask(self, message: Reading, now: float) -> ActRequest:
        """What the policy is asked; `now` is the server's monotonic clock, seconds."""

    def quick(self, reply: ActReply, now: float) -> Answered | None:
        """As `answer`, where that keeps nobody waiting; None, and nothing has changed, where it might."""

    def answer(self, reply: ActReply, now: float) -> Answered:
        """What the client may be told of the policy's reply. May take tens of milliseconds."""

    def hold(self, kind: str, digest: str, now: float) -> Answered:
        """What the client is told where there is no reply of the policy: to stand still.

        Args:
            kind: why, for the count of interventions.
            digest: of the bundle whose limits count.
            now: server's monotonic clock, seconds.

        Raises:
            UserError: what there is to hold is not known.
        """
