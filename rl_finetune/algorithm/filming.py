"""Clips where they can be had: a film that fails or hangs costs its pictures and some time, never the run."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

from actors.film import Film

PATIENCE = 600.0
"""Seconds that a runner may take over its share of one world's clips, its worlds' start included."""
DYING = 30.0
"""Seconds that a runner's end may take."""


class Runners(Protocol):
    """What of RLlib's group of runners is needed."""

    def healthy_env_runner_ids(self) -> list[int]:
        """Numbers of the living."""

    def foreach_env_runner_async(
        self, func: str, tag: str | None = None, *, kwargs: Any = None, remote_worker_ids: Any = None
    ) -> int:
        """Ask some of them for something."""

    def fetch_ready_async_reqs(self, *, tags: Any = None, timeout_seconds: float | None = 0.0) -> list[tuple[int, Any]]:
        """Number of the runner, its answer; nothing of those that died."""


def film(
    runners: Runners,
    shares: Sequence[Mapping[str, Any]],
    *,
    name: str,
    restart: Callable[[int], None],
    patience: float = PATIENCE,
) -> tuple[list[Film], list[str]]:
    """The clips of all shares, in order, and in words what became of those that are missing. Nothing is tried twice.

    Args:
        runners: who films, as many shares at a time as are alive.
        shares: arguments of their `film`.
        name: begins the tags of the questions; never used before, or a late answer would be taken for another's.
        restart: ends a runner that hangs, by its number; its successor need not be there yet.
        patience: seconds for a share.
    """
    films, troubles, left = list[Film](), list[str](), deque(enumerate(shares))
    while left and (alive := runners.healthy_env_runner_ids()):
        wave = [(runner, *left.popleft()) for runner in alive[: len(left)]]
        for runner, number, share in wave:
            runners.foreach_env_runner_async(
                "film", kwargs=dict(share), remote_worker_ids=[runner], tag=f"{name}-{number}"
            )
        deadline = time.monotonic() + patience
        for runner, number, _ in wave:
            answer = _answer(runners, runner, f"{name}-{number}", deadline, restart)
            if isinstance(answer, list):
                films += answer
            else:
                troubles.append(f"clips are missing: actor {runner}: {answer}")
    if left:
        troubles.append(f"clips are missing: no actor is left for {len(left)} of {len(shares)} shares")
    return films, troubles


def _answer(runners: Runners, runner: int, tag: str, deadline: float, restart: Callable[[int], None]) -> object:
    """The films, or why there are none."""
    began = time.monotonic()
    found = runners.fetch_ready_async_reqs(tags=tag, timeout_seconds=max(0.0, deadline - began))
    if found:
        return found[0][1]
    if runner not in runners.healthy_env_runner_ids():
        return "its process died"
    restart(runner)
    runners.fetch_ready_async_reqs(tags=tag, timeout_seconds=DYING)  # so that the group knows it for dead
    return "no answer in time, so it is restarted"
