"""Several players at once: held-out episodes spread over processes, or played in this one.

evaluate    each player plays its fixed part of every world's episodes, and the parts are put together
Company     rounds of one world go to whoever is free; answers come as they are ready, so that somebody can be told
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from types import TracebackType
from typing import Any, Self

import numpy as np

from actors.evaluator import EpisodeResults, Shuffle, together
from actors.guarding import Guards
from actors.player import Player
from actors.watching import MotionLog
from rl_finetune.config.schema import EvaluationSection, PolicySection
from rl_finetune.config.worlds import World
from rl_finetune.errors import RunError, SimulatorError, UserError, world_errors
from rl_finetune.types import IntArray


@dataclass(frozen=True, slots=True)
class Part:
    """Some episodes of one world, played."""

    number: int
    """Which part of what was asked for, from 0."""
    results: EpisodeResults
    """What came of them."""
    motion: MotionLog | None
    """How the body moved, where that was asked for."""


def evaluate(
    policy: PolicySection,
    worlds: Sequence[World],
    evaluation: EvaluationSection,
    *,
    players: int,
    gpus: float,
    shuffle: Shuffle,
    told: Callable[[str], str | None],
) -> dict[str, EpisodeResults]:
    """World's label -> the held-out episodes, played by as many remote players, each with a fixed part of them.

    Args:
        policy: who plays.
        worlds: with all environments of each.
        evaluation: episodes, seed, temperature.
        players: processes; Ray must be connected.
        gpus: GPUs of each.
        shuffle: see `run_episodes`.
        told: label -> robot tag that the prompt names; None is the true one.

    Raises:
        UserError: what a player refused; of those that start, as soon as the first one does.
        WorldError: a world of a player cannot be kept alive.
    """
    episodes = np.array_split(np.arange(evaluation.episodes), players)
    # No more environments than episodes: among copies of one, `shuffle` would hand it its own picture.
    held = [replace(w, env_ids=w.env_ids[: max(1, len(episodes[-1]))]) for w in shares(worlds, players)]
    remote = _remote(policy, held, evaluation, players, gpus)
    asked = {
        world.label: [
            player.play.remote(number, part, shuffle, told(world.label))
            for player, part in zip(remote, episodes, strict=True)
            if part.size
        ]
        for number, world in enumerate(worlds)
    }
    return {label: together([_got(part) for part in parts]) for label, parts in asked.items()}


class Company(ABC):
    """Players of one policy in the same worlds."""

    @abstractmethod
    def play(self, world: int, parts: Sequence[IntArray], *, watch: bool) -> Iterator[Part]:
        """Parts of the held-out episodes of the world of that number, in the order in which they are done.

        Raises:
            WorldError: the world cannot be kept alive.
        """

    @abstractmethod
    def close(self) -> None:
        """Let the players go."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class Alone(Company):
    """One player in this process."""

    def __init__(
        self,
        policy: PolicySection,
        worlds: Sequence[World],
        evaluation: EvaluationSection,
        *,
        gpus: float = 0,
        guards: Guards | None = None,
    ) -> None:
        """See `Player`."""
        self._player = Player(policy, worlds, evaluation, gpus=gpus, guards=guards)

    def play(self, world: int, parts: Sequence[IntArray], *, watch: bool) -> Iterator[Part]:
        """See `Company.play`."""
        for number, part in enumerate(parts):
            if watch:
                yield Part(number, *self._player.watch(world, part))
            else:
                yield Part(number, self._player.play(world, part), None)

    def close(self) -> None:
        """See `Company.close`."""
        self._player.close()


class Remote(Company):
    """Players in processes of their own, each with its share of the environments."""

    def __init__(
        self,
        policy: PolicySection,
        worlds: Sequence[World],
        evaluation: EvaluationSection,
        players: int,
        *,
        gpus: float = 0,
        guards: Guards | None = None,
    ) -> None:
        """Start them; Ray must be connected."""
        self._players = _remote(policy, shares(worlds, players), evaluation, players, gpus, guards)

    def play(self, world: int, parts: Sequence[IntArray], *, watch: bool) -> Iterator[Part]:
        """See `Company.play`."""
        import ray

        left, free, running = deque(enumerate(parts)), deque(self._players), dict[Any, tuple[int, Any]]()
        while left or running:
            while left and free:
                number, part = left.popleft()
                player = free.popleft()
                method = player.watch if watch else player.play
                running[method.remote(world, part)] = (number, player)
            (done, *_), _ = ray.wait(list(running))
            number, player = running.pop(done)
            free.append(player)
            answer = _got(done)
            yield Part(number, *answer) if watch else Part(number, answer, None)

    def close(self) -> None:
        """See `Company.close`."""
        import ray

        for player in self._players:
            ray.kill(player)


def shares(worlds: Sequence[World], players: int) -> list[World]:
    """What each of so many equal players holds of the worlds."""
    return [replace(w, env_ids=w.env_ids[: max(1, w.num_envs // players)]) for w in worlds]


def _remote(
    policy: PolicySection,
    worlds: Sequence[World],
    evaluation: EvaluationSection,
    players: int,
    gpus: float,
    guards: Guards | None = None,
) -> list[Any]:
    import ray

    remote = ray.remote(num_cpus=0.5, num_gpus=gpus)(_Distant)
    hired = [remote.remote(policy, worlds, evaluation, gpus=gpus, guards=guards) for _ in range(players)]
    starting = [player.start.remote() for player in hired]
    try:
        while starting:
            (done, *_), starting = ray.wait(starting)
            _got(done)
    except BaseException:
        for player in hired:
            ray.kill(player)
        raise
    return hired


class _Distant(Player):
    """A player that is built when it is told to start: of what a constructor raises, Ray hands on the text alone."""

    def __init__(self, *given: Any, **options: Any) -> None:
        self._given = given, options

    def start(self) -> None:
        """See `Player`."""
        given, options = self._given
        super().__init__(*given, **options)

    def play(self, *given: Any, **options: Any) -> EpisodeResults:
        """See `Player.play`; what a world raises says where, which its traceback no longer can over there."""
        with world_errors():
            return super().play(*given, **options)

    def watch(self, *given: Any, **options: Any) -> tuple[EpisodeResults, MotionLog]:
        """See `Player.watch`, and `play`."""
        with world_errors():
            return super().watch(*given, **options)


def _got(reference: Any) -> Any:
    """The answer of a player, or its own error without Ray's account of it."""
    import ray

    try:
        return ray.get(reference)
    except Exception as error:
        cause = getattr(error, "cause", None)
        if isinstance(cause, UserError | RunError | SimulatorError):
            raise cause from None
        raise
