"""What will be played: pairs of trials in randomised order, and the secret of who is who in each.

The two trials of a pair begin in the same initial condition, A first. Which letter is the candidate is drawn anew for
every pair, so that what operators learn of A in one pair tells them nothing of the next. The order of tasks and
conditions comes from `trials.seed` and is no secret. The letters come from the operating system's entropy: a generator
with a key in a config file could be run again by anybody who can read the file.
"""

from __future__ import annotations

import hashlib
import os
import secrets
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

from pydantic import TypeAdapter, ValidationError

from rl_finetune.config.trials import TrialsSection
from rl_finetune.durable import canonical, sync_folder
from rl_finetune.errors import UserError
from rl_finetune.keys import Stream, generator
from rl_finetune.promotion.records import PolicyName
from rl_finetune.promotion.trials.sequential import Design

Letter = Literal["A", "B"]
LETTERS: tuple[Letter, ...] = get_args(Letter)


@dataclass(frozen=True, slots=True)
class Pair:
    """Two trials from the same initial condition."""

    number: int
    """From 1."""
    task: str
    """Its name."""
    instruction: str
    """What the policy is told."""
    condition: str
    """Initial condition."""


@dataclass(frozen=True, slots=True)
class Trial:
    """One trial, as an operator sees it."""

    number: int
    """From 1; those of pair p are 2 p - 1 (A) and 2 p (B)."""
    pair: Pair
    """What is played."""
    letter: Letter
    """Who plays it."""
    attempt: int = 1
    """Above 1 where earlier attempts were aborted."""


@dataclass(frozen=True, slots=True)
class Plan:
    """Everything that is settled before the first trial, and may be read by everybody."""

    candidate: PolicyName
    """Who wants to be promoted."""
    incumbent: PolicyName
    """Who acts now."""
    pairs: tuple[Pair, ...]
    """In the order in which they are played."""
    design: Design
    """The test."""
    interventions: Literal["failure", "abort"]
    """What an intervention counts as."""
    attempts: int
    """Times that a trial is tried."""
    commitment: str
    """Of the letters; see `Letters.commitment`."""

    def trial(self, number: int, attempt: int = 1) -> Trial:
        """The trial of that number, 1 to 2 * pairs."""
        return Trial(number, self.pairs[(number - 1) // 2], LETTERS[(number - 1) % 2], attempt)

    @property
    def trials(self) -> range:
        """Numbers of all trials."""
        return range(1, 2 * len(self.pairs) + 1)


@dataclass(frozen=True, slots=True)
class Letters:
    """The secret."""

    salt: str
    """256 random bits, hexadecimal."""
    candidates: str
    """[pairs] the candidate's letter in each."""

    @property
    def commitment(self) -> str:
        """SHA-256 of the salt's bytes and the letters in ASCII: it binds to them and tells nothing of them."""
        return hashlib.sha256(bytes.fromhex(self.salt) + self.candidates.encode()).hexdigest()

    def plays(self, trial: Trial) -> Literal["candidate", "incumbent"]:
        """Who is behind the letter."""
        return "candidate" if self.candidates[trial.pair.number - 1] == trial.letter else "incumbent"


_LETTERS: TypeAdapter[Letters] = TypeAdapter(Letters)


def arrange(settings: TrialsSection, count: int) -> tuple[Pair, ...]:
    """`count` pairs in blocks that hold every task once, in random order; a task's conditions take turns, too.

    Raises:
        UserError: there is no task.
    """
    if not settings.tasks:
        raise UserError("trials without tasks", got="trials.tasks=[]", expected="at least one", do="name the tasks")
    turns = [_conditions(settings, index) for index in range(len(settings.tasks))]
    pairs: list[Pair] = []
    while len(pairs) < count:
        block = len(pairs) // len(settings.tasks)
        for index in generator(settings.seed, Stream.TRIALS, 0, block).permutation(len(settings.tasks)):
            task = settings.tasks[index]
            pairs.append(Pair(len(pairs) + 1, task.name, task.instruction, next(turns[index])))
    return tuple(pairs[:count])


def draw(pairs: tuple[Pair, ...]) -> Letters:
    """New letters. In each task the candidate is A in half of every block of 4 or 6 pairs: who begins is balanced, and
    the length of a block is as secret as its content."""
    chance = secrets.SystemRandom()
    dealt: dict[str, list[Letter]] = {pair.task: [] for pair in pairs}
    candidates = []
    for pair in pairs:
        stack = dealt[pair.task]
        if not stack:
            stack += LETTERS * chance.choice((2, 3))
            chance.shuffle(stack)
        candidates.append(stack.pop())
    return Letters(secrets.token_hex(32), "".join(candidates))


def seal(letters: Letters, file: Path) -> None:
    """Write the secret where only the owner of this process can read it, whole or not at all."""
    beside = file.with_name(f".{file.name}.part")
    beside.unlink(missing_ok=True)
    with os.fdopen(os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as stream:
        stream.write(canonical({"salt": letters.salt, "candidates": letters.candidates}) + b"\n")
        stream.flush()
        os.fsync(stream.fileno())
    beside.replace(file)
    sync_folder(file.parent)


def unseal(file: Path, plan: Plan) -> Letters:
    """The secret.

    Raises:
        UserError: it cannot be read, or is not what the plan committed to.
    """
    try:
        letters = _LETTERS.validate_json(file.read_bytes())
        found = letters.commitment
    except (OSError, ValidationError, ValueError) as error:
        found = f"{type(error).__name__} at {file}"
    if found != plan.commitment:
        raise UserError(
            "the sealed letters are not those that were drawn", got=found, expected=f"commitment {plan.commitment}",
            do="restore the file from a copy; without it these trials cannot be read",
        )  # fmt: skip
    return letters


def _conditions(settings: TrialsSection, task: int) -> Iterator[str]:
    turn, conditions = 0, settings.tasks[task].conditions
    while True:
        for index in generator(settings.seed, Stream.TRIALS, 1 + task, turn).permutation(len(conditions)):
            yield conditions[index]
        turn += 1
