"""Where a bundle stands, as the ledger tells: a fold over its entries that refuses what could not have happened."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from itertools import pairwise
from types import MappingProxyType
from typing import Literal, get_args

from rl_finetune.promotion.registry.ledger import Entry

Stage = Literal["candidate", "simulation-passed", "shadow", "canary", "promoted", "retired"]
STAGES: tuple[Stage, ...] = get_args(Stage)
NEXT: Mapping[Stage, Stage] = MappingProxyType(dict(pairwise(STAGES[:5])))
"""The one stage that comes after; any stage may be left for `retired`, and only a rollback leaves that."""
NEEDS = MappingProxyType({"simulation-passed": "verdict", "promoted": "decision"})
"""Stage -> grounds without which nobody gets there; those of `promoted` can be waived."""


class Impossible(ValueError):
    """An entry that does not follow from those before it."""


@dataclass(frozen=True, slots=True)
class Standing:
    """One bundle."""

    digest: str
    name: str
    """For a person."""
    stage: Stage
    since: str
    """UTC, ISO 8601."""
    by: str
    """Who brought it there."""
    entry: int
    """Index in the ledger that tells so."""
    step: str
    """Kind of that entry: `submit`, `advance` (also where it was retired because another was promoted), `rollback` or
    `retire`."""
    rejected: bool = False
    """Whether grounds were recorded that it is worse or unsafe."""


@dataclass(frozen=True, slots=True)
class State:
    """All bundles, and who acts."""

    bundles: Mapping[str, Standing] = field(default_factory=dict)
    """By digest, in the order of their submission."""
    line: tuple[str, ...] = ()
    """Digests that were promoted and neither rolled back nor withdrawn, oldest first: where a rollback leads."""
    grounds: Mapping[str, str] = field(default_factory=dict)
    """Digest of each file of grounds -> digest of the bundle it speaks of."""

    @property
    def promoted(self) -> str | None:
        """Digest of the bundle that acts."""
        last = self.line[-1] if self.line else None
        return last if last is not None and self.bundles[last].stage == "promoted" else None

    @property
    def before(self) -> str | None:
        """Digest of the bundle that a rollback brings back."""
        line = self.line[:-1] if self.promoted else self.line
        return line[-1] if line else None

    def newest(self, stage: Stage) -> Standing | None:
        """Whoever got to that stage last and is still there."""
        there = [standing for standing in self.bundles.values() if standing.stage == stage]
        return max(there, key=lambda standing: standing.entry, default=None)


def told(entries: Iterable[Entry]) -> State:
    """What the entries add up to.

    Raises:
        Impossible: one of them does not follow from those before.
    """
    state = State()
    for entry in entries:
        try:
            state = after(state, entry)
        except (KeyError, TypeError) as error:
            raise Impossible(f"entry {entry.index}, {entry.kind}: {error!r}") from error
    return state


def after(state: State, entry: Entry) -> State:
    """The state after one more entry.

    Raises:
        Impossible: it cannot follow.
        KeyError: it lacks something.
    """
    digest = str(entry.body["bundle"])
    if entry.kind == "submit":
        if digest in state.bundles:
            raise Impossible(f"entry {entry.index}: bundle {digest[:12]} was submitted before")
        name, by = str(entry.body["name"]), str(entry.body["by"])
        new = Standing(digest, name, "candidate", entry.time, by, entry.index, entry.kind)
        return replace(state, bundles={**state.bundles, digest: new})
    if digest not in state.bundles:
        raise Impossible(f"entry {entry.index}: bundle {digest[:12]} was never submitted")
    state = _with_grounds(state, entry, digest)
    match entry.kind:
        case "advance":
            return _advanced(state, entry, digest)
        case "rollback":
            return _rolled_back(state, entry, digest)
        case "retire":
            rest = tuple(other for other in state.line if other != digest)
            return replace(_moved(state, entry, digest, "retired"), line=rest)
        case "serve":
            standing = state.bundles[digest]
            if standing.rejected or standing.stage == "retired":
                raise Impossible(f"entry {entry.index}: {digest[:12]} acted, {standing.stage} or rejected")
            return state
        case "judged":
            return state
    raise Impossible(f"entry {entry.index}: nothing of ours is called {entry.kind!r}")


def _advanced(state: State, entry: Entry, digest: str) -> State:
    stage, standing = str(entry.body["stage"]), state.bundles[digest]
    if stage != NEXT.get(standing.stage) or standing.rejected:
        raise Impossible(f"entry {entry.index}: {digest[:12]} went from {standing.stage} to {stage}")
    judged = bool(entry.body["grounds"])
    if judged and (entry.body["kind"], entry.body["outcome"]) != (NEEDS.get(stage), "promote"):
        raise Impossible(f"entry {entry.index}: {digest[:12]} became {stage} on a {entry.body['outcome']}")
    if stage in NEEDS and not judged and not (stage == "promoted" and entry.body["waiver"]):
        raise Impossible(f"entry {entry.index}: {digest[:12]} became {stage} without a {NEEDS[stage]}")
    if stage != "promoted":
        return _moved(state, entry, digest, NEXT[standing.stage])
    if state.promoted:
        state = _moved(state, entry, state.promoted, "retired")
    return replace(_moved(state, entry, digest, "promoted"), line=(*state.line, digest))


def _rolled_back(state: State, entry: Entry, digest: str) -> State:
    if digest != state.before:
        raise Impossible(f"entry {entry.index}: rolled back to {digest[:12]}, not to {str(state.before)[:12]}")
    if state.bundles[digest].rejected:
        raise Impossible(f"entry {entry.index}: rolled back to {digest[:12]}, which is rejected")
    line = state.line
    if state.promoted:
        state, line = _moved(state, entry, state.promoted, "retired"), line[:-1]
    return replace(_moved(state, entry, digest, "promoted"), line=line)


def _moved(state: State, entry: Entry, digest: str, stage: Stage) -> State:
    standing = replace(
        state.bundles[digest], stage=stage, since=entry.time, by=str(entry.body["by"]), entry=entry.index,
        step=entry.kind,
    )  # fmt: skip
    return replace(state, bundles={**state.bundles, digest: standing})


def _with_grounds(state: State, entry: Entry, digest: str) -> State:
    """Grounds are noted, and a rejection stays with the bundle."""
    grounds = entry.body.get("grounds")
    if not grounds:
        return state
    bundles = dict(state.bundles)
    if entry.body["outcome"] == "reject":
        bundles[digest] = replace(bundles[digest], rejected=True)
    return replace(state, bundles=bundles, grounds={**state.grounds, str(grounds): digest})
