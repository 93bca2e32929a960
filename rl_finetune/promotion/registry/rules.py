"""What a step needs, said to people before the ledger is asked to take it."""

from __future__ import annotations

from rl_finetune.errors import UserError
from rl_finetune.promotion.registry.grounds import Grounds
from rl_finetune.promotion.registry.stages import NEEDS, NEXT, Stage, Standing, State


def find(state: State, digest: str) -> Standing:
    """The bundle of which these are the first digits.

    Raises:
        UserError: there is none, or several.
    """
    found = [standing for known, standing in state.bundles.items() if digest and known.startswith(digest)]
    if len(found) == 1:
        return found[0]
    known = ", ".join(f"{standing.digest[:12]} ({standing.name})" for standing in state.bundles.values())
    raise UserError(
        "several bundles begin so" if found else "no such bundle in the registry", got=repr(digest),
        expected=f"one of {known or 'none yet'}", do="submit it first, or give more digits of its digest",
    )  # fmt: skip


def check_order(standing: Standing, stage: Stage) -> None:
    """Stages come one after the other, and not after a rejection.

    Raises:
        UserError: another one is next.
    """
    following = NEXT.get(standing.stage)
    if following != stage:
        raise UserError(
            f"bundle {standing.digest[:12]} cannot become {stage}", got=f"{standing.stage} now",
            expected=f"{following or 'nothing'} next", do="go through the stages one by one; a retired one stays so",
        )  # fmt: skip
    if standing.rejected:
        raise UserError(
            f"bundle {standing.digest[:12]} cannot become {stage}", got="a rejection on record",
            expected="no evidence that it is worse or unsafe", do="retire it and submit a better one",
        )  # fmt: skip


def objection(standing: Standing | None, *, digest: str, promoted: str | None, named: str | None) -> str:
    """Why a bundle may not drive robots; empty where it may: whoever is promoted, and a canary that an operator lets
    act in its place. Nobody who was retired or rejected.

    Args:
        standing: of the bundle; None where it was never submitted.
        digest: of the bundle.
        promoted: digest of the bundle that is promoted.
        named: the bundle that a server was started with by name, which needs no stage; None where it follows what is
            promoted.
    """
    if standing is not None and standing.rejected:
        return "a rejection on record"
    if standing is not None and standing.stage == "retired":
        return f"retired since {standing.since} by {standing.by}"
    if digest == named:
        return ""
    if named is None and promoted is None:
        return "nothing that is promoted"
    if standing is None:
        return "a bundle that the registry does not know"
    return "" if standing.stage in ("canary", "promoted") else f"a bundle that is {standing.stage}"


def check_grounds(state: State, standing: Standing, stage: Stage, found: Grounds) -> None:
    """Grounds must be of the kind that the step needs, about this very bundle, against whoever is promoted now.

    Raises:
        UserError: they are not.
    """
    if found.kind != NEEDS.get(stage):
        raise UserError(
            f"{stage} does not rest on a {found.kind}", got=found.kind, expected=NEEDS.get(stage, "nothing"),
            do="name the other file, or record this one without a step",
        )  # fmt: skip
    if found.candidate.digest != standing.digest:
        raise UserError(
            f"{found.kind} is about another bundle", got=found.candidate.digest[:12], expected=standing.digest[:12],
            do="evaluate this bundle; evidence is good for one digest only",
        )  # fmt: skip
    if state.promoted not in (None, found.incumbent.digest):
        raise UserError(
            f"{found.kind} compares with a bundle that is not promoted", got=found.incumbent.digest[:12],
            expected=str(state.promoted)[:12], do="compare with the bundle that is promoted now",
        )  # fmt: skip


def check_needs(stage: Stage, found: Grounds | None, waiver: str) -> None:
    """Nobody passes without grounds; a waiver of the trials must give a reason.

    Raises:
        UserError: something is missing, or waived that cannot be.
    """
    if waiver and stage != "promoted":
        raise UserError(
            f"{stage} cannot be waived", got=f"waiver={waiver!r}",
            expected="a verdict, or nothing where none is needed", do="leave the waiver out",
        )  # fmt: skip
    if stage in NEEDS and found is None and not waiver.strip():
        other = ", or a waiver with a reason" if stage == "promoted" else ""
        raise UserError(
            f"nobody becomes {stage} without a {NEEDS[stage]}", got="none", expected=f"its file{other}",
            do="gather evidence first",
        )  # fmt: skip
