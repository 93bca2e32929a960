"""Who acts, and whether it may: because the registry's ledger says so, or because an operator does.

    ledger changes --> who acts is promoted, or a canary by order       acts
                       another was promoted: that one is loaded beside  acts until the other one is ready
                       anything else: retired, rejected, nobody is      every robot is held, until somebody may act
                       promoted, another that cannot be loaded, a
                       ledger that cannot be read

Only one change happens at a time, in a thread beside the one that infers: nobody's request waits for weights to load.
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from rl_finetune.errors import UserError
from rl_finetune.promotion.registry.registry import Status
from rl_finetune.promotion.serving.contract import Acting
from rl_finetune.promotion.serving.metrics import Metrics
from rl_finetune.promotion.serving.registry_watch import RegistryWatch

LOG = logging.getLogger(__name__)
NAME_CHARS = 100
"""Longest name of an operator."""


class Swapper:
    """Changes what a stage acts with, and says whether it may act."""

    def __init__(
        self, stage: Acting, metrics: Metrics, watch: RegistryWatch | None, changed: Callable[[], None]
    ) -> None:
        """Keep track of changes.

        Args:
            stage: acts.
            metrics: counts changes.
            watch: who may act; None lets the stage act, and takes no orders.
            changed: called in the event loop after each change.
        """
        self._stage, self._metrics, self._watch, self._changed = stage, metrics, watch, changed
        self.held = ""
        """Why every robot is held; empty where they are not."""
        self._one_at_a_time = asyncio.Lock()
        self._look_again = asyncio.Event()
        self._seen: Status | None = None
        self._failed: Status | None = None
        self._failure = ""
        self._followed: tuple[str, int] | None = None
        self._loading: asyncio.Task[None] | None = None

    @property
    def digest(self) -> str:
        """Of the bundle that acts."""
        return str(self._stage.metadata()["bundle"])

    async def swap(self, folder: Path) -> str:
        """Let another bundle act, whatever the registry says of it; its digest.

        Raises:
            UserError: it cannot be served; the present one goes on acting.
        """
        async with self._one_at_a_time:
            return await self._change("swap", lambda: self._stage.swap(folder))

    async def rollback(self) -> str:
        """Let the bundle before act, likewise; its digest.

        Raises:
            UserError: there was none.
        """
        async with self._one_at_a_time:
            return await self._change("rollback", self._stage.rollback)

    def look_again(self) -> None:
        """Look at the registry now, and try again what could not be loaded (SIGHUP)."""
        self._seen = self._failed = None
        self._look_again.set()

    async def follow(self, watch: RegistryWatch, period: float) -> None:
        """Do what the registry says, for ever. A bundle that cannot be served is tried once for each change of the
        ledger.

        Args:
            watch: the registry.
            period: seconds between looks.
        """
        while True:
            try:
                await self._look(watch)
            except Exception:
                LOG.exception("who may act is not known")
                self._hold("internal error; the server's log has it")
            with suppress(TimeoutError):
                async with asyncio.timeout(period):
                    await self._look_again.wait()
            self._look_again.clear()

    async def obey(self, order: str) -> str:
        """One order of an operator, `{"do": "swap", "bundle": DIGEST}` or `rollback` (to whoever acted here before) or
        `status`, and the reply to it. `"by"` may name the operator.

        An order is an entry of the registry's ledger, which says whether the bundle may act; no other is taken.
        """
        try:
            digest = await self._done(_parsed(order))
        except UserError as error:
            return json.dumps({"ok": False, "error": str(error)})
        except Exception:
            LOG.exception("order failed")
            return json.dumps({"ok": False, "error": "internal error; the server's log has it"})
        return json.dumps({"ok": True, "bundle": digest, "held": self.held})

    async def _look(self, watch: RegistryWatch) -> None:
        """Bring who acts in line with the registry."""
        try:
            status = await asyncio.to_thread(watch.status)
        except UserError as error:
            self._seen = None
            return self._hold(str(error))
        if status is self._seen:
            return
        self._seen = status
        wanted, against = watch.wanted(status), watch.objection(status, self.digest)
        known = None if wanted is None else status.standing(wanted)
        step = None if known is None else (known.digest, known.entry)
        if wanted in (None, self.digest):
            self._followed = step
        elif self._loading is None and (step != self._followed or (against and status is not self._failed)):
            self._followed = step
            self._loading = asyncio.create_task(self._load(watch, str(wanted), status))
        going_on = wanted is not None and self._loading is not None and _superseded(status, self.digest)
        if against and not going_on:
            self._hold(f"{against}; {self._failure}" if status is self._failed else against)
        else:
            self._release()
        await self._end_shadow(watch, status)

    async def _load(self, watch: RegistryWatch, digest: str, status: Status) -> None:
        """Let the promoted bundle act; whether it may is looked at again afterwards."""
        try:
            await self.swap(watch.folder(digest))
        except Exception as error:
            self._failed, self._failure = status, f"the promoted bundle is not served: {error}"
            LOG.error(self._failure, exc_info=not isinstance(error, UserError))
        finally:
            self._loading = self._seen = None
            self._look_again.set()

    async def _end_shadow(self, watch: RegistryWatch, status: Status) -> None:
        """A candidate that was retired or rejected is not watched any more."""
        digest = self._stage.shadowed
        against = None if digest is None else status.standing(digest)
        if against is not None and (against.rejected or against.stage == "retired"):
            LOG.warning("shadow %s is retired or rejected, and is not watched any more", digest)
            await asyncio.to_thread(self._stage.end_shadow)

    async def _done(self, order: dict[str, Any]) -> str:
        by = order.pop("by", "an operator of the server")
        if not isinstance(by, str) or not 0 < len(by) <= NAME_CHARS or not by.isprintable():
            raise _refused("another 'by'", f"a name of at most {NAME_CHARS} characters")
        match order:
            case {"do": "swap", "bundle": str(digest), **rest} if not rest:
                return await self._ordered("swap", digest, by)
            case {"do": "rollback", **rest} if not rest:
                return await self._ordered("rollback", self._stage.previous, by)
            case {"do": "status", **rest} if not rest:
                return self.digest
        raise _refused("another order", 'do: swap (with "bundle": DIGEST), rollback or status')

    async def _ordered(self, kind: str, digest: str | None, by: str) -> str:
        """Write an order down, and do it. One that fails after all is followed by an entry that says so."""
        watch = self._watch
        if watch is None:
            raise _refused(kind, "a server of a registry, whose ledger keeps who acts")
        async with self._one_at_a_time:
            before = self.digest
            if digest is not None:
                await asyncio.to_thread(watch.note, digest, by)
            try:
                if kind == "rollback":
                    await self._change(kind, self._stage.rollback)
                else:
                    await self._change(kind, lambda: self._stage.swap(watch.folder(str(digest))))
            except Exception:
                if digest is not None:
                    with suppress(UserError):
                        await asyncio.to_thread(watch.note, before, by, f"{digest[:12]} cannot act")
                raise
        self._seen = None
        await self._look(watch)
        return self.digest

    async def _change(self, kind: str, change: Callable[[], None]) -> str:
        try:
            await asyncio.to_thread(change)
        except Exception:
            self._metrics.swaps["failed"] += 1
            raise
        self._metrics.swaps[kind] += 1
        self._changed()
        LOG.warning("%s: bundle %s acts", kind, self.digest)
        return self.digest

    def _hold(self, why: str) -> None:
        if why != self.held:
            LOG.error("every robot is held: bundle %s may not act: %s", self.digest, why)
        self.held, self._metrics.acting = why, 0

    def _release(self) -> None:
        if self.held:
            LOG.warning("bundle %s acts", self.digest)
        self.held, self._metrics.acting = "", 1


def _superseded(status: Status, digest: str) -> bool:
    """Whether a bundle is retired for no other reason than that another was promoted."""
    standing = status.standing(digest)
    return standing is not None and standing.step == "advance" and not standing.rejected


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
