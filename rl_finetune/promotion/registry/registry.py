"""A folder that knows which bundle drives the robots, how it got there, and which one did before.

ledger.jsonl, ledger.head.json    the truth: every step, by whom and why
bundles/<digest>/                 what was submitted
grounds/<digest>.json             verdicts and decisions that steps rest on
incoming/, .lock                  what is being written; who may write

A step is one entry of the ledger: it has happened when the entry counts. Files are put into `incoming` before, and
brought to their places after; whoever takes the lock next does so in place of a process that was killed. Readers take
no lock and write nothing: they see what the ledger tells, and find files in either place.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from rl_finetune.durable import PATIENCE, Json, Step, held, nothing
from rl_finetune.errors import UserError
from rl_finetune.promotion.registry.bundle import Bundle, open_bundle
from rl_finetune.promotion.registry.filling import copy_bundle
from rl_finetune.promotion.registry.grounds import Grounds
from rl_finetune.promotion.registry.keeping import check_kept, check_only, names_in, place, settle
from rl_finetune.promotion.registry.ledger import Entry, Ledger, now
from rl_finetune.promotion.registry.rules import check_grounds, check_needs, check_order, find, objection
from rl_finetune.promotion.registry.stages import Impossible, Stage, Standing, State, told


@dataclass(frozen=True, slots=True)
class Status:
    """What the ledger says now."""

    promoted: str | None
    """Digest of the bundle that acts."""
    before: str | None
    """Digest of the bundle that a rollback brings back."""
    bundles: tuple[Standing, ...]
    """All of them, in the order of their submission."""

    def standing(self, digest: str) -> Standing | None:
        """Where one of them stands; None where it was never submitted."""
        return next((standing for standing in self.bundles if standing.digest == digest), None)


@dataclass(frozen=True, slots=True)
class Audit:
    """What was verified, byte for byte."""

    entries: int
    bundles: int
    files: int
    """Of all bundles, manifests included."""
    grounds: int


@dataclass(frozen=True, slots=True)
class Registry:
    """One folder; safe under several processes and threads. Every call sees what is on the disk."""

    folder: Path
    """Made if it is missing."""
    trusted: Sequence[Path] = ()
    """Public keys, as for `open_bundle`."""
    require_signature: bool = False
    """Refuse bundles that none of them signed."""
    patience: float = PATIENCE
    """Seconds to wait for another process."""
    clock: Callable[[], str] = field(default=now)
    """Tells the time of an entry."""
    step: Step = field(default=nothing)
    """Called before each change of the disk."""

    @property
    def ledger(self) -> Ledger:
        """The truth."""
        return Ledger(self.folder / "ledger.jsonl", self.clock, self.step)

    def bundle_folder(self, digest: str) -> Path:
        """Where a bundle lies."""
        return place(self.folder, "bundles", digest)

    def submit(self, bundle: Path, *, by: str, note: str = "") -> Bundle:
        """Copy a bundle into the registry, as a candidate.

        Raises:
            UserError: it does not verify, or was submitted before.
        """
        given = self._open(bundle)
        with self._locked() as state:
            if given.digest in state.bundles:
                standing = state.bundles[given.digest]
                raise UserError(
                    "bundle was submitted before", got=f"{given.digest[:12]} ({standing.stage})",
                    expected="a new bundle", do="make another one; a bundle goes through the stages once",
                )  # fmt: skip
            incoming = self.folder / "incoming" / given.digest
            self.step("copy the bundle")
            copy_bundle(given.folder, incoming)
            self._open(incoming, given.digest)
            self._happened("submit", {"bundle": given.digest, "name": given.name, "by": by, "note": note})
        return self._open(self.bundle_folder(given.digest), given.digest)

    def record(self, grounds: Path, *, by: str, note: str = "") -> Grounds:
        """Note a verdict or decision, whatever its outcome; the bundle stays where it is.

        Raises:
            UserError: it is about no bundle of this registry.
        """
        found = Grounds.load(grounds)
        with self._locked() as state:
            find(state, found.candidate.digest)
            self._judged(state, found, by, note)
        return found

    def advance(
        self, digest: str, stage: Stage, *, by: str, note: str = "", grounds: Path | None = None, waiver: str = ""
    ) -> Standing:
        """Bring a bundle to the next stage. Whoever was promoted is retired by the same step.

        Args:
            digest: of the bundle; its first digits will do.
            stage: the next one.
            by: who does it.
            note: what there is to say.
            grounds: verdict that `simulation-passed` needs, or decision that `promoted` needs. If it says `hold` or
                `reject`, that is recorded, and the step refused.
            waiver: why `promoted` may do without a decision; recorded.

        Raises:
            UserError: unknown bundle, another stage is next, or what the step needs is not there.
        """
        found = None if grounds is None else Grounds.load(grounds)
        with self._locked() as state:
            standing = find(state, digest)
            check_order(standing, stage)
            if found is not None:
                check_grounds(state, standing, stage, found)
            if found is not None and found.outcome != "promote":
                self._judged(state, found, by, note)
                raise UserError(
                    f"bundle stays {standing.stage}; the {found.kind} is recorded", got=f"{found.outcome}: "
                    + found.reason, expected="promote", do="gather more evidence, or make a better bundle",
                )  # fmt: skip
            check_needs(stage, found, waiver)
            self._open(self.bundle_folder(standing.digest), standing.digest)
            body = {"bundle": standing.digest, "stage": stage, "by": by, "note": note, "waiver": waiver}
            self._happened("advance", {**body, **self._kept(state, found)})
            return self._read().bundles[standing.digest]

    def rollback(self, *, by: str, note: str = "") -> Bundle:
        """Promote again whoever was promoted before, once every byte of it has been verified; retire who acts now.

        Raises:
            UserError: nobody was, its bundle is damaged, or it was rejected since; who acts now goes on.
        """
        with self._locked() as state:
            if state.before is None:
                raise UserError(
                    "nothing to roll back to", got=f"{len(state.line)} promoted bundles", expected="one before",
                    do="retire the present one if nothing shall act",
                )  # fmt: skip
            if state.bundles[state.before].rejected:
                raise UserError(
                    f"bundle {state.before[:12]} cannot act again", got="a rejection on record",
                    expected="no evidence that it is worse or unsafe", do="retire it: the way back then leads further",
                )  # fmt: skip
            bundle = self._open(self.bundle_folder(state.before), state.before)
            self._happened("rollback", {"bundle": state.before, "from": state.promoted, "by": by, "note": note})
        return bundle

    def retire(self, digest: str, *, by: str, note: str = "") -> Standing:
        """Take a bundle out of service for good: no rollback leads to it any more.

        Raises:
            UserError: unknown bundle.
        """
        with self._locked() as state:
            standing = find(state, digest)
            self._happened("retire", {"bundle": standing.digest, "by": by, "note": note})
            return self._read().bundles[standing.digest]

    def serve(self, digest: str, *, named: str | None, by: str, note: str = "") -> Standing:
        """Note that a server lets a bundle act because an operator says so; no stage changes.

        Args:
            digest: of the bundle.
            named: the bundle that the server was started with by name; None where it follows what is promoted.
            by: who does it.
            note: what there is to say.

        Raises:
            UserError: the bundle may not act there; nothing is noted.
        """
        with self._locked() as state:
            standing = find(state, digest)
            why = objection(standing, digest=digest, promoted=state.promoted, named=named)
            if why:
                raise UserError(
                    f"bundle {digest[:12]} may not act", got=why, expected="one that is promoted, or in canary",
                    do="choose another one, or bring it there first",
                )  # fmt: skip
            self._happened("serve", {"bundle": digest, "by": by, "note": note})
            return standing

    def promoted(self) -> Bundle | None:
        """The bundle that acts, verified; None where nothing is promoted.

        Raises:
            UserError: it is damaged.
        """
        digest = self._read().promoted
        return None if digest is None else self._open(self.bundle_folder(digest), digest)

    def status(self) -> Status:
        """Where all bundles stand."""
        state = self._read()
        return Status(state.promoted, state.before, tuple(state.bundles.values()))

    def history(self, digest: str | None = None) -> tuple[Entry, ...]:
        """Entries about one bundle (its first digits will do), or all."""
        entries = self.ledger.entries()
        state = self._told(entries)
        if digest is None:
            return entries
        wanted = find(state, digest).digest
        return tuple(e for e in entries if wanted in (e.body.get("bundle"), e.body.get("from")))

    def verify(self) -> Audit:
        """Verify every byte of ledger, bundles and grounds, and that each step could follow from those before.

        Raises:
            UserError: something is not what was written; names the file.
        """
        # Before the ledger is read: somebody may bring in another bundle meanwhile.
        found = {kind: names_in(self.folder / kind) for kind in ("bundles", "grounds")}
        entries, files = self.ledger.entries(), 0
        state = self._told(entries)
        check_only(self.folder, "bundles", found["bundles"], set(state.bundles))
        for digest in state.bundles:
            files += len(self._open(self.bundle_folder(digest), digest).manifest.files) + 1
        check_only(self.folder, "grounds", found["grounds"], {f"{digest}.json" for digest in state.grounds})
        for digest, bundle in state.grounds.items():
            check_kept(self.folder, digest, bundle)
        return Audit(len(entries), len(state.bundles), files, len(state.grounds))

    @contextmanager
    def _locked(self) -> Iterator[State]:
        """Hold the lock, with everything repaired that a killed process left; the state at the beginning."""
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            with held(self.folder / ".lock", os.O_RDWR | os.O_CREAT, fcntl.LOCK_EX, self.patience):
                self.ledger.repair()
                state = self._read()
                settle(self.folder, state, self.step)
                yield state
        except OSError as error:
            raise UserError(
                "registry cannot be used", got=f"{error.filename or self.folder}: {error.strerror}",
                expected="a folder to write to", do="check its permissions and free space",
            ) from error  # fmt: skip

    def _read(self) -> State:
        """What the ledger tells now."""
        return self._told(self.ledger.entries())

    def _told(self, entries: Sequence[Entry]) -> State:
        try:
            state = told(entries)
        except Impossible as error:
            raise UserError(
                f"{self.ledger.path} tells what cannot have happened", got=str(error), expected="steps in their order",
                do="restore the registry from a copy; find out who changed it",
            ) from error  # fmt: skip
        if not state.bundles and names_in(self.folder / "bundles"):
            raise UserError(
                "registry has bundles but no ledger", got=str(self.folder), expected="ledger.jsonl that tells of them",
                do="restore ledger.jsonl and ledger.head.json from a copy; find out who removed them",
            )  # fmt: skip
        return state

    def _happened(self, kind: str, body: Mapping[str, Json]) -> None:
        if not str(body["by"]).strip():
            raise UserError("nobody is named who does it", got="by=''", expected="a name", do="say who you are")
        self.ledger.append(kind, body)
        settle(self.folder, self._read(), self.step)

    def _judged(self, state: State, found: Grounds, by: str, note: str) -> None:
        body = {"bundle": found.candidate.digest, "by": by, "note": note}
        self._happened("judged", {**body, **self._kept(state, found)})

    def _kept(self, state: State, found: Grounds | None) -> dict[str, Json]:
        """Put grounds aside for `settle`; what the ledger says of them."""
        if found is None:
            return {"grounds": ""}
        if found.digest not in state.grounds:
            self.step("put grounds aside")
            found.save(self.folder / "incoming" / f"{found.digest}.json")
        return {"grounds": found.digest, "kind": found.kind, "outcome": found.outcome, "reason": found.reason,
                "incumbent": found.incumbent.digest}  # fmt: skip

    def _open(self, folder: Path, digest: str | None = None) -> Bundle:
        return open_bundle(
            folder, trusted=self.trusted, require_signature=self.require_signature, digest=digest
        )  # fmt: skip
