"""The contract of a vectorised environment; `envs.contract.check` tests it on any implementation."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Self

import numpy as np
from numpy.typing import NDArray

from rl_finetune.errors import UserError
from rl_finetune.spec import EnvSpec
from rl_finetune.types import ActionChunk, BoolArray, ChunkOutcome, FloatArray, ImageArray, Observation, SeedKeys


@dataclass(frozen=True, slots=True)
class Disturbance:
    """What an expert is made to do wrong, so that demonstrations show how to recover. An expert of which nobody knows
    what it aims at takes `shift`, the others the rest."""

    offset: NDArray[np.float64]
    """[N, 3] metres by which the point that it aims at is moved."""
    pace: NDArray[np.float64]
    """[N] share of its speed, up to 1."""
    shift: NDArray[np.float64]
    """[N, c] what is added to all actions of the chunk, in their units."""


@dataclass(frozen=True, slots=True)
class BodyMotion:
    """How one body moved in the executed steps F of a chunk, as far as its simulator can tell."""

    held: FloatArray
    """[c] action that would have left the controller's targets where they stood at the chunk's first frame; NaN in
    channels of which nobody knows."""
    tools: FloatArray | None
    """[F, hands, 3] metres, in the frame that the body's base stands still in; None where there are none."""
    beyond: BoolArray | None
    """[F] whether a joint was beyond its range, fingers aside; None where nobody looked."""
    touching: BoolArray | None
    """[F] whether the body touched itself; None where nobody looked."""


class VectorEnv(ABC):
    """N environments of one embodiment side by side, driven a chunk at a time."""

    spec: EnvSpec
    num_envs: int
    keyed: bool = True
    """Whether an episode follows from its key and its actions alone. False where a simulator restarts by itself and
    cannot be told how: then keys only number the episodes."""
    filming: bool = False
    """Whether to keep a picture of every executed step of the next chunks, for environments that can."""
    filmed: Sequence[ImageArray] = ()
    """After a filmed chunk: for each environment [F, h, w, 3] of its first view, one per executed step."""
    watching: bool = False
    """Whether to watch the body in the next chunks, for environments that can; it changes nothing of what they do."""
    watched: Sequence[BodyMotion] = ()
    """After a watched chunk: how the body of each environment moved. What a broken world tells means nothing."""

    @abstractmethod
    def reset(self, keys: SeedKeys) -> Observation:
        """Begin the episodes that `keys` name, one per environment, and return their first observations [N]. Initial
        states are keyed by (seed, scene, episode): environments of one group begin alike.

        Raises:
            UserError: `keys` does not name `num_envs` episodes.
        """

    @abstractmethod
    def step_chunk(self, chunk: ActionChunk) -> ChunkOutcome:
        """Execute a chunk [N, H, K] open-loop; only the leading c channels are used.

        An environment stops early where its episode ends and begins the next one (episode number + 1) at once.
        Pictures are taken at the boundary only.

        Raises:
            UserError: wrong shape, or a value among the used channels is not finite.
            RuntimeError: called before `reset`.
        """

    @abstractmethod
    def close(self) -> None:
        """Release renderer and processes. Calling it twice does no harm."""

    def expert(self, seen: Observation, disturbed: Disturbance | None = None) -> NDArray[np.float64]:
        """A scripted expert's chunk [N, H, c] in the convention's units; a world that has one says so in its spec.

        Args:
            seen: what the environments show now.
            disturbed: what it shall do wrong.

        Raises:
            UserError: this environment has none.
        """
        raise no_expert(self.spec)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def no_expert(spec: EnvSpec) -> UserError:
    """What to say where demonstrations are asked of a world that has nobody to give them."""
    return UserError(
        f"{spec.name!r} has no scripted expert", got="a call for demonstrations",
        expected="a world with one (`Episode.expert`, or `VectorEnv.expert` and `EnvSpec.expert`)",
        do="write one, or train from another environment",
    )  # fmt: skip


def check_keys(keys: SeedKeys, num_envs: int) -> None:
    """Raise a `UserError` unless `keys` names one episode for each environment."""
    if len(keys.env) != num_envs or len(keys.episode) != num_envs:
        raise UserError(
            "wrong number of seed keys",
            got=f"{len(keys.env)} env and {len(keys.episode)} episode numbers",
            expected=f"{num_envs}, one for each environment",
            do="pass keys for exactly the environments that were made",
        )


def used_actions(chunk: ActionChunk, spec: EnvSpec, num_envs: int) -> FloatArray:
    """The channels [N, H, c] that the body uses, checked for shape and finiteness.

    Raises:
        UserError: wrong shape, or a value that is not finite; names the first offender.
    """
    convention, shape = spec.embodiment.action, chunk.actions.shape
    if len(shape) != 3 or shape[:2] != (num_envs, convention.horizon) or shape[2] < convention.channels:
        raise UserError(
            f"action chunk has the wrong shape for {spec.name!r}",
            got=shape,
            expected=f"({num_envs}, {convention.horizon}, K >= {convention.channels})",
            do="pad channels at the end and keep the horizon of the environment's spec",
        )
    actions = chunk.actions[..., : convention.channels]
    if not np.isfinite(actions).all():
        env, step, channel = np.argwhere(~np.isfinite(actions))[0]
        raise UserError(
            f"action of environment {env}, step {step}, channel {channel} is not finite",
            got=actions[env, step, channel],
            expected="a finite number",
            do="look for NaN in the policy's weights or in its normalisation statistics",
        )
    return actions
