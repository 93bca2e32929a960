"""Who may act, as the registry's ledger tells: read again whenever the ledger changes on the disk.

The ledger is the truth, and reading it takes no lock: a registry that is mounted read-only will do. Only an operator's
order is written down, and is refused where it cannot be.
"""

from __future__ import annotations

from pathlib import Path

from rl_finetune.promotion.registry.registry import Registry, Status
from rl_finetune.promotion.registry.rules import objection

Stamp = tuple[int, int, int] | None


class RegistryWatch:
    """A server's view of the registry."""

    def __init__(self, registry: Registry, named: str | None = None) -> None:
        """Watch a registry; it may come into being later.

        Args:
            registry: where bundles stand.
            named: digest of the bundle that the server was started with by name; None where it follows what is
                promoted.
        """
        self._registry, self._named = registry, named
        self._stamps: tuple[Stamp, ...] = ()
        self._status: Status | None = None

    def status(self) -> Status:
        """Where bundles stand now; the same object as long as the ledger has not changed. Blocks.

        Raises:
            UserError: it cannot be read, or is not what was written.
        """
        ledger = self._registry.ledger
        stamps = _stamp(ledger.path), _stamp(ledger.anchor)
        if self._status is None or None in stamps or stamps != self._stamps:
            found = self._registry.status()
            if found != self._status:
                self._status = found
            self._stamps = stamps
        return self._status

    def wanted(self, status: Status) -> str | None:
        """Digest of the bundle that a server should change to; None where that is not the registry's to say."""
        return status.promoted if self._named is None else None

    def objection(self, status: Status, digest: str) -> str:
        """Why a bundle may not act here; empty where it may."""
        return objection(status.standing(digest), digest=digest, promoted=status.promoted, named=self._named)

    def folder(self, digest: str) -> Path:
        """Where a bundle of the registry lies."""
        return self._registry.bundle_folder(digest)

    def note(self, digest: str, by: str, note: str = "") -> None:
        """Write down that a bundle is let act. Blocks.

        Raises:
            UserError: it may not, or the registry cannot be written to.
        """
        self._registry.serve(digest, named=self._named, by=by, note=note)


def _stamp(path: Path) -> Stamp:
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_ino, status.st_size, status.st_mtime_ns
