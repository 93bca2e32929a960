"""What a policy commands and how its body moves, written down while episodes are played. numpy only."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np

from actors.guarding import Guard
from envs import VectorEnv
from rl_finetune.types import ActionChunk, BoolArray, ChunkOutcome, FloatArray, IntArray, Observation, SeedKeys


@dataclass(frozen=True, slots=True)
class MotionLog:
    """T executed control steps of E episodes, episode after episode."""

    episode: IntArray
    """[T] which of the E episodes, ascending."""
    fresh: BoolArray
    """[T] whether it is the first step of a chunk."""
    actions: FloatArray
    """[T, c] as commanded, action units; what the body was told, where something guards it."""
    held: FloatArray
    """[E, c] action that would have left the body as it stood when the episode began; NaN where nobody knows."""
    tools: FloatArray | None
    """[T, hands, 3] metres, in the frame that the base stands still in; None where the world does not tell."""
    beyond: BoolArray | None
    """[T] whether a joint was beyond its range."""
    touching: BoolArray | None
    """[T] whether the body touched itself."""
    changed: IntArray | None = None
    """[T] why the guard changed the step (see `Guard.changed`); None where nothing guards."""

    def first(self, episodes: int) -> MotionLog:
        """The first episodes."""
        kept = self.episode < episodes
        parts = {name: values[kept] for name, values in self._steps().items()}
        return replace(self, held=self.held[:episodes], **parts)

    def arrays(self) -> dict[str, Any]:
        """Name -> array, without what is not known."""
        return {each.name: value for each in fields(self) if (value := getattr(self, each.name)) is not None}

    @classmethod
    def from_arrays(cls, arrays: dict[str, Any]) -> MotionLog:
        """What `arrays` gave."""
        unknown: dict[str, Any] = dict.fromkeys(("tools", "beyond", "touching", "changed"))
        return cls(**unknown | arrays)

    def _steps(self) -> dict[str, Any]:
        return {name: values for name, values in self.arrays().items() if name != "held"}


def joined(logs: Sequence[MotionLog]) -> MotionLog:
    """Episodes of one world, log after log; what one of them does not know is not known of any."""
    offsets = np.cumsum([0, *(len(log.held) for log in logs[:-1])])
    arrays = [log.arrays() | {"episode": log.episode + offset} for log, offset in zip(logs, offsets, strict=True)]
    common = [name for name in arrays[0] if all(name in each for each in arrays)]
    return MotionLog.from_arrays({name: np.concatenate([each[name] for each in arrays]) for name in common})


class Watch(VectorEnv):
    """Passes everything on to an environment, and keeps how each body moved in the first episode after a reset.

    Chunks in which a world broke down are left out. Whoever made the environment closes it.
    """

    def __init__(self, env: VectorEnv, guard: Guard | None = None) -> None:
        """Begin to watch.

        Args:
            env: the environment.
            guard: whoever has passed the chunks that come here; asked what it changed.
        """
        self._env, env.watching, self._guard = env, True, guard
        self.spec, self.num_envs, self.keyed = env.spec, env.num_envs, env.keyed

    def reset(self, keys: SeedKeys) -> Observation:
        """See `VectorEnv.reset`."""
        self._running = np.ones(self.num_envs, bool)
        self._kept: list[list[MotionLog]] = [[] for _ in range(self.num_envs)]
        return self._env.reset(keys)

    def step_chunk(self, chunk: ActionChunk) -> ChunkOutcome:
        """See `VectorEnv.step_chunk`."""
        outcome = self._env.step_chunk(chunk)
        for row in np.flatnonzero(self._running & ~outcome.failed).tolist():
            self._kept[row].append(self._step(row, chunk.actions[row], int(outcome.steps_executed[row])))
        self._running &= ~(outcome.terminated | outcome.truncated | outcome.failed)
        return outcome

    def log(self) -> MotionLog:
        """Everything since the last reset, one episode an environment; one that broke at once has no steps."""
        episodes = [joined_chunks(parts) if parts else self._nothing() for parts in self._kept]
        return joined(episodes)

    def close(self) -> None:
        """Look away."""
        self._env.watching, self._env.watched = False, ()

    def _step(self, row: int, actions: FloatArray, steps: int) -> MotionLog:
        channels = self.spec.embodiment.action.channels
        seen = self._env.watched[row] if self._env.watched else None
        held = np.full((1, channels), np.nan, np.float32) if seen is None else seen.held[None]
        own = np.array(actions[:steps, :channels])  # the caller may reuse its arrays
        fresh = np.arange(steps) == 0
        body = (None, None, None) if seen is None else (seen.tools, seen.beyond, seen.touching)
        changed = None if self._guard is None else self._guard.changed[row, :steps].copy()
        return MotionLog(np.zeros(steps, np.int64), fresh, own, held, *body, changed)

    def _nothing(self) -> MotionLog:
        """An episode without steps: it knows as little as it takes away from the others."""
        known = next((part for parts in self._kept for part in parts), None)
        if known is None:
            channels = self.spec.embodiment.action.channels
            empty, held = np.zeros((0, channels), np.float32), np.full((1, channels), np.nan, np.float32)
            none = np.zeros(0, np.int64)
            changed = None if self._guard is None else none
            return MotionLog(none, np.zeros(0, bool), empty, held, None, None, None, changed)
        emptied = {name: values[:0] for name, values in known.arrays().items() if name != "held"}
        return replace(known, held=np.full_like(known.held, np.nan), **emptied)


def joined_chunks(parts: Sequence[MotionLog]) -> MotionLog:
    """Chunks of one episode; it began as the first of them did."""
    whole = joined(parts)
    return replace(whole, episode=np.zeros_like(whole.episode), held=parts[0].held)
