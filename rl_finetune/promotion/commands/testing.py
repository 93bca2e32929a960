"""Trials on the robot, seen from the operator's terminal."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import cast

from rl_finetune.config.promotion import PromoteConfig
from rl_finetune.config.serving import NetworkSection
from rl_finetune.durable import Json
from rl_finetune.errors import UserError
from rl_finetune.promotion.commands import CODES, TRIALS, VERDICT, shelf, short
from rl_finetune.promotion.records import PolicyName
from rl_finetune.promotion.registry.grounds import Grounds
from rl_finetune.promotion.registry.registry import Registry
from rl_finetune.promotion.trials import Book, Correction, Result, Trial, TrialsStatus
from rl_finetune.promotion.trials import begin as plan

DECISION = "decision.json"
PATIENCE = 600.0
"""Seconds that a server may take to load a bundle."""


def begin(config: PromoteConfig) -> int:
    """Plan the trials of the candidate in `config.folder`.

    Raises:
        UserError: it is not in canary, or there is nothing to play.
    """
    verdict = Path(config.folder) / VERDICT
    grounds = Grounds.load(verdict)
    registry = shelf.existing(config)
    _check_canary(registry, grounds.candidate)
    promoted = registry.promoted()
    incumbent = grounds.incumbent if promoted is None else promoted.called
    if not config.trials.tasks:
        raise UserError(
            "trials without tasks", got="trials.tasks=[]", expected="at least one",
            do="name them, for example 'trials.tasks=[{name: carrot, instruction: put the carrot on the plate}]'",
        )  # fmt: skip
    book = plan(_folder(config), grounds.candidate, incumbent, config.trials)
    status = book.status()
    print(f"{grounds.candidate.name} against {incumbent.name}: at most {status.planned} pairs of trials")
    print(f"commitment of the letters, to keep elsewhere: {status.commitment}")
    _tell(status)
    return 0


def following(config: PromoteConfig, server: str | None, by: str) -> int:
    """Print the trial to play now; let its policy act on a server.

    Raises:
        UserError: the candidate is not in canary any more, or the server does not let the policy act.
    """
    book = Book.open(_folder(config))
    trial = book.next()
    if trial is None:
        print(book.status())
        return 0
    _check_canary(shelf.existing(config), book.plan().candidate)
    if server is not None:
        _act(server, config, book.bundle_for(trial.number), by)
    print(_spoken(trial))
    return 0


def sheet(config: PromoteConfig, form: str) -> int:
    """Print all trials."""
    print(Book.open(_folder(config)).sheet(form), end="")
    return 0


def record(config: PromoteConfig, result: Result) -> int:
    """Write a result down, and say what comes next."""
    _tell(Book.open(_folder(config)).record(result))
    return 0


def correct(config: PromoteConfig, correction: Correction) -> int:
    """Overrule a result, and say what comes next."""
    _tell(Book.open(_folder(config)).correct(correction))
    return 0


def results(config: PromoteConfig) -> int:
    """Print every attempt."""
    for attempt in Book.open(_folder(config)).results():
        told = attempt.result
        once = "" if attempt.outcome == told.outcome else f" (recorded as {told.outcome})"
        seconds = "" if told.seconds is None else f", {told.seconds:g} s"
        note = f": {told.note}" if told.note else ""
        print(
            f"entry {attempt.entry}  trial {attempt.trial} {told.letter}  {attempt.outcome}{once} by {told.operator}"
            f"{seconds}{note}"
        )
    return 0


def status(config: PromoteConfig) -> int:
    """Print how far they are."""
    found = Book.open(_folder(config)).status()
    _tell(found)
    print(f"commitment {found.commitment}")
    print(f"ledger's head {found.head}")
    return 0


def decide(config: PromoteConfig, *, by: str, note: str, early: bool) -> int:
    """Open the letters, and note the decision in the registry; whoever was killed in between does the rest again.

    Raises:
        UserError: the evidence does not suffice, and it is not to be early.
    """
    book, file = Book.open(_folder(config)), _folder(config) / DECISION
    registry = shelf.existing(config)
    if book.decided() is None:
        book.decide(by, note, early=early)
    grounds = Grounds.load(file)
    if not any(entry.body.get("grounds") == grounds.digest for entry in registry.history(grounds.candidate.digest)):
        registry.record(file, by=by, note=note)
    shelf.mirrored(config, registry)
    _open(grounds)
    if grounds.outcome == "promote":
        digest = short(grounds.candidate.digest)
        print(f"next, from canary: rl-finetune promote advance {digest} promoted --grounds {file}")
    return CODES[grounds.outcome]


def _open(grounds: Grounds) -> None:
    """The decision in a few lines."""
    low, high = cast(list[float], grounds.detail["interval"])
    print(f"{grounds.outcome}: {grounds.reason}")
    sure = 100 - 200 * cast(float, grounds.detail["alpha"])
    points = cast(float, grounds.detail["points"])
    print(f"  difference {points:+.1f} points [{low:+.1f}, {high:+.1f}] ({sure:g} %, whenever trials are stopped)")
    for side, told in cast(dict[str, dict[str, Json]], grounds.detail["sides"]).items():
        name = getattr(grounds, side).name
        said = f"{told['successes']} successes, {told['aborts']} aborts, {told['interventions']} interventions"
        print(f"  {side} {name}: {said}")
    if grounds.detail["if_aborts_failed"] != grounds.outcome:
        print(f"  were every abort a failure: {grounds.detail['if_aborts_failed']}")


def _check_canary(registry: Registry, candidate: PolicyName) -> None:
    """Only a canary meets a robot."""
    standing = registry.status().standing(candidate.digest)
    if standing is None or standing.stage != "canary" or standing.rejected:
        got = "not in the registry" if standing is None else "rejected" if standing.rejected else standing.stage
        raise UserError(
            "the candidate may not meet a robot", got=got, expected="canary",
            do=f"bring it there first: rl-finetune promote advance {short(candidate.digest)} STAGE",
        )  # fmt: skip


def _act(server: str, config: PromoteConfig, policy: PolicyName, by: str) -> None:
    """Let a policy act on a server. Nothing that is printed says which, errors included."""
    from websockets.exceptions import WebSocketException
    from websockets.sync.client import connect

    variable = NetworkSection().admin_key_env
    key = os.environ.get(variable, "")
    headers = {"Authorization": f"Api-Key {key}"}
    order = json.dumps({"do": "swap", "bundle": policy.digest, "by": by})
    try:
        with connect(f"{server.rstrip('/')}/admin", additional_headers=headers) as socket:
            socket.send(order)
            reply = json.loads(socket.recv(timeout=PATIENCE))
    except (OSError, WebSocketException, ValueError) as error:
        raise UserError(
            "the server cannot be told who acts", got=f"{server}: {error}",
            expected=f"a policy server, and its operators' key in {variable}", do="start it with that variable set",
        ) from error  # fmt: skip
    if not reply.get("ok"):
        raise UserError(
            "the server does not let the trial's policy act", got=f"refused by {server}",
            expected=f"a server of the registry {config.registry} that holds both bundles, promoted and in canary",
            do="submit the missing bundle (rl-finetune promote submit); rl-finetune promote status says more",
        )  # fmt: skip


def _folder(config: PromoteConfig) -> Path:
    return Path(config.folder) / TRIALS


def _tell(status: TrialsStatus) -> None:
    print(status)
    if status.next is not None and status.next.pair.instruction:
        print(f"instruction: {status.next.pair.instruction}")


def _spoken(trial: Trial) -> str:
    pair, again = trial.pair, f", attempt {trial.attempt}" if trial.attempt > 1 else ""
    lines = [f"trial {trial.number}{again}, letter {trial.letter}: {pair.task}, {pair.condition}"]
    return "\n".join([*lines, f"instruction: {pair.instruction}"] if pair.instruction else lines)
