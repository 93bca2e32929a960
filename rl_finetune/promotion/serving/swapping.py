"""Another bundle, or the one before: because the registry's pointer moved, or because an operator says so.

Only one change happens at a time, in a thread beside the one that infers: nobody's request waits for weights to load.
"""

from __future__ import annotations

import asyncio
import json
import logging
import re
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rl_finetune.errors import UserError
from rl_finetune.promotion.serving.contract import Acting
from rl_finetune.promotion.serving.metrics import Metrics

LOG = logging.getLogger(__name__)
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")


@dataclass(frozen=True, slots=True)
class Followed:
    """A pointer that says which bundle should act."""

    pointer: Path
    """Small file that is replaced whole when another bundle is promoted or one is rolled back."""
    resolve: Callable[[], Path]
    """Folder of the bundle that it means, verified; blocks."""
    seen: bytes | None
    """What it said when the bundle was chosen that acts at first."""


class Swapper:
    """Changes what a stage acts with."""

    def __init__(self, stage: Acting, metrics: Metrics, bundles: Path | None, changed: Callable[[], None]) -> None:
        """Keep track of changes.

        Args:
            stage: acts.
            metrics: counts changes.
            bundles: folder whose sub-folders may be named in `swap`; None allows none.
            changed: called in the event loop after each change.
        """
        self._stage, self._metrics, self._bundles, self._changed = stage, metrics, bundles, changed
        self._one_at_a_time = asyncio.Lock()
        self._look_again = asyncio.Event()
        self._pointed: bytes | None = None

    @property
    def digest(self) -> str:
        """Of the bundle that acts."""
        return str(self._stage.metadata()["bundle"])

    async def swap(self, folder: Path) -> str:
        """Act with another bundle; its digest.

        Raises:
            UserError: it cannot be served; the present one goes on acting.
        """
        return await self._change("swap", lambda: self._stage.swap(folder))

    async def rollback(self) -> str:
        """Act with the bundle before; its digest.

        Raises:
            UserError: there was none.
        """
        return await self._change("rollback", self._stage.rollback)

    def look_again(self) -> None:
        """Look at the pointer now, and load what it means even if it has not changed (SIGHUP)."""
        self._pointed = None
        self._look_again.set()

    async def follow(self, followed: Followed, period: float) -> None:
        """Serve what the pointer means, for ever. A bundle that cannot be served is tried once for each change; where
        nothing is promoted any more, the present one goes on acting, and the log says so.

        Args:
            followed: the pointer.
            period: seconds between looks.
        """
        self._pointed, gone = followed.seen, False
        while True:
            with suppress(TimeoutError):
                async with asyncio.timeout(period):
                    await self._look_again.wait()
            self._look_again.clear()
            content = said_by(followed.pointer)
            if content is None and not gone:
                LOG.error("nothing is promoted any more; %s goes on: stop the server if it shall not", self.digest)
            gone = content is None
            if content in (None, self._pointed):
                continue
            self._pointed = content
            try:
                await self.swap(await asyncio.to_thread(followed.resolve))
            except UserError as error:
                LOG.error("the promoted bundle is not served: %s", error)
            except Exception:
                LOG.exception("the promoted bundle is not served")

    async def obey(self, order: str) -> str:
        """One order of an operator, `{"do": "swap", "bundle": NAME}` or `rollback` or `status`, and the reply to it.

        NAME is a folder beside the bundle that was served first: an operator chooses among bundles that lie there, and
        cannot name any other path.
        """
        try:
            digest = await self._done(_parsed(order))
        except UserError as error:
            return json.dumps({"ok": False, "error": str(error)})
        except Exception:
            LOG.exception("order failed")
            return json.dumps({"ok": False, "error": "internal error; the server's log has it"})
        return json.dumps({"ok": True, "bundle": digest})

    async def _done(self, order: dict[str, Any]) -> str:
        match order:
            case {"do": "swap", "bundle": str(name), **rest} if not rest and self._bundles is not None:
                if not _NAME.fullmatch(name) or not (self._bundles / name).is_dir():
                    raise _refused(f"bundle {name[:60]!a}", f"the name of a folder in {self._bundles}")
                return await self.swap(self._bundles / name)
            case {"do": "rollback", **rest} if not rest:
                return await self.rollback()
            case {"do": "status", **rest} if not rest:
                return self.digest
        raise _refused("another order", 'do: swap (with "bundle": NAME), rollback or status')

    async def _change(self, kind: str, change: Callable[[], None]) -> str:
        async with self._one_at_a_time:
            try:
                await asyncio.to_thread(change)
            except Exception:
                self._metrics.swaps["failed"] += 1
                raise
            self._metrics.swaps[kind] += 1
            self._changed()
            LOG.warning("%s: bundle %s acts", kind, self.digest)
            return self.digest


def said_by(pointer: Path) -> bytes | None:
    """What a pointer says; None where there is none."""
    try:
        return pointer.read_bytes()
    except OSError:  # nothing promoted yet, or a folder that is away for a moment
        return None


def _parsed(order: str) -> dict[str, Any]:
    try:
        found = json.loads(order)
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict):
        raise _refused("no JSON object", '{"do": ...}')
    return found


def _refused(got: str, expected: str) -> UserError:
    return UserError("order", got=got, expected=expected, do="correct it; nothing has changed")
