"""The stage: one bundle acts, perhaps another is watched, and others wait behind.

    swap's thread        verify -> load -> warm up -> fit? --+
                                                             | one reference
    inference's thread   batch, batch, batch, ---------------+- batch, batch

A batch reads the reference once, so it is wholly by one bundle; none waits for another to load.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from threading import Lock
from typing import Any

from rl_finetune.errors import UserError
from rl_finetune.promotion.serving.envelope import Envelope
from rl_finetune.promotion.serving.requests import ActReply, ActRequest
from rl_finetune.promotion.serving.shadow import Shadow
from rl_finetune.promotion.serving.swap import Loaded, Opener, StageSettings, alike, check_successor, infer, load

PROTOCOL = "openpi-websocket/1"
"""Wire that a client of this metadata speaks."""


def verified(folder: Path) -> Any:
    """The bundle in a folder, every byte verified."""
    from rl_finetune.promotion.registry.bundle import open_bundle

    return open_bundle(folder)


@dataclass(frozen=True, slots=True)
class _Left:
    """A bundle that acted before, and is not kept in memory."""

    folder: Path
    digest: str


class Stage:
    """Holds the policy that acts; every method may be called from any thread, `act` from one at a time."""

    def __init__(
        self, folder: Path, settings: StageSettings, *, opener: Opener = verified, shadow: Shadow | None = None
    ) -> None:
        """Load the first bundle.

        Args:
            folder: of the bundle.
            settings: how policies act.
            opener: verifies a folder; signatures are its business.
            shadow: watches a candidate; closed by whoever made it, if not before.

        Raises:
            UserError: the bundle cannot be served, or the shadow's could not take over from it.
        """
        self._settings, self._opener, self._shadow = settings, opener, shadow
        self._changing = Lock()
        self._acting = load(folder, settings, opener)
        if shadow is not None:
            check_successor(self._acting, shadow.candidate)
        self._previous: Loaded | _Left | None = None
        self._rules: dict[str, Mapping[str, Envelope]] = {self._acting.digest: self._acting.envelopes}

    def act(self, requests: Sequence[ActRequest]) -> list[ActReply]:
        """One reply for each request, all by the bundle that acts when the call begins.

        Requests of one embodiment, view set and picture size are computed together.

        Raises:
            UserError: an embodiment that the bundle does not know.
        """
        acting = self._acting
        replies: dict[int, ActReply] = {}
        for rows in alike(requests):
            since = time.perf_counter()
            chunks = infer(acting.policy, [requests[row] for row in rows], acting.temperature)
            seconds = time.perf_counter() - since
            for row, actions in zip(rows, chunks, strict=True):
                replies[row] = ActReply(actions, acting.digest, seconds, len(rows))
        told = [replies[row] for row in range(len(requests))]
        shadow = self._shadow
        if shadow is not None:
            shadow.offer(requests, told)
        return told

    def envelope(self, digest: str, tag: str) -> Envelope:
        """What a body may be told by a bundle that acts or has acted here."""
        return self._rules[digest][tag]

    def metadata(self) -> dict[str, Any]:
        """What a client is told on connecting: plain texts, numbers, lists and maps."""
        acting = self._acting
        said = {
            body.tag: {
                "views": list(body.views), "image_size": acting.image_size, "control": body.action.control,
                "rotation": body.action.rotation, "gripper": body.action.gripper, "channels": body.action.channels,
                "horizon": body.action.horizon, "rate": body.action.rate,
                "stale_after": acting.envelopes[body.tag].stale_after,
            }
            for body in acting.bodies
        }  # fmt: skip
        return {"protocol": PROTOCOL, "name": acting.name, "bundle": acting.digest, "embodiments": said}

    def swap(self, folder: Path) -> None:
        """Let another bundle act from the next batch on; the present one acts until it is ready.

        Raises:
            UserError: it is damaged, cannot act, or would mean something else to connected clients; nothing changes.
        """
        with self._changing:
            self._replace(load(folder, self._settings, self._opener))

    @property
    def previous(self) -> str | None:
        """Digest of the bundle that `rollback` brings back."""
        previous = self._previous
        return None if previous is None else previous.digest

    @property
    def shadowed(self) -> str | None:
        """Digest of the candidate that is watched."""
        shadow = self._shadow
        return None if shadow is None else shadow.candidate.digest

    def end_shadow(self) -> None:
        """Watch the candidate no more."""
        shadow, self._shadow = self._shadow, None
        if shadow is not None:
            shadow.close()

    def rollback(self) -> None:
        """Let the bundle act that acted before; after that, the present one is the one before.

        Raises:
            UserError: there was none, or it can no longer be loaded; nothing changes.
        """
        with self._changing:
            previous = self._previous
            if previous is None:
                raise UserError(
                    "nothing to roll back to", got="only one bundle since the start", expected="a swap before",
                    do="swap in the bundle that is wanted",
                )  # fmt: skip
            self._replace(self._again(previous) if isinstance(previous, _Left) else previous)

    def _again(self, left: _Left) -> Loaded:
        found = load(left.folder, self._settings, self._opener)
        if found.digest != left.digest:
            raise UserError(
                f"{left.folder} holds another bundle than acted before", got=found.digest[:12],
                expected=left.digest[:12], do="bring that bundle back, or swap in the one that is wanted",
            )  # fmt: skip
        return found

    def _replace(self, new: Loaded) -> None:
        check_successor(self._acting, new)
        old = self._acting
        self._rules[new.digest] = new.envelopes
        self._acting = new
        self._previous = old if self._settings.keep_previous else _Left(old.folder, old.digest)
