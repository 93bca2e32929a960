"""Plays held-out episodes: a policy, its share of the environments of each world, and nothing of Ray."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

import envs
from actors.evaluator import EpisodeResults, Shuffle, run_episodes, together
from actors.film import Film, film_episodes
from actors.guarding import Guard, Guards
from actors.watching import MotionLog, Watch, joined
from envs import VectorEnv
from rl_finetune.config.schema import EvaluationSection, PolicySection
from rl_finetune.config.worlds import World
from rl_finetune.errors import UserError
from rl_finetune.policy.loading import load_policy
from rl_finetune.spec import EmbodimentSpec
from rl_finetune.types import IntArray, SeedKeys

SWAP_TOKENS = 96
"""Room in the prompt for another robot's sentence, beside advice."""


@dataclass(frozen=True, slots=True)
class Seat:
    """A place in one world."""

    world: World
    """Which, and the environments of it that this process holds."""
    env: VectorEnv
    """Them."""
    body: EmbodimentSpec
    """The policy's entry for their embodiment."""
    guard: Guard | None = None
    """What stands between."""


class Player:
    """Success and clips of one policy in each of its worlds."""

    def __init__(
        self,
        policy: PolicySection,
        worlds: Sequence[World],
        evaluation: EvaluationSection,
        *,
        gpus: float = 0,
        guards: Guards | None = None,
    ) -> None:
        """Load the policy (a starting adapter is folded in) and build the environments of `worlds` in this process.

        With `gpus` > 0, as granted by Ray, the policy runs on the GPU. With `guards` every body has one.

        Raises:
            UserError: policy, adapter or environment cannot be used, or they do not fit each other.
        """
        torch.set_num_threads(1)
        self.settings = evaluation
        built = [_made(world) for world in worlds]
        self.policy = load_policy(policy, [env.spec for env in built], merge=True).to(device_for(gpus))
        bodies = [self.policy.body(env.spec.embodiment.tag) for env in built]
        guarded = [None if guards is None else guards(body) for body in bodies]
        self.seats = tuple(map(Seat, worlds, built, bodies, guarded))

    def play(
        self, world: int, episodes: IntArray, shuffle: Shuffle = "none", prompt_as: str | None = None
    ) -> EpisodeResults:
        """Held-out episodes by number [M] of the world of that number, in rounds of this player's environments.

        What pads the last round is dropped.
        """
        env, guard, warmth = self.seats[world].env, self.seats[world].guard, self.settings.temperature
        if prompt_as is not None:
            self.policy.make_room(SWAP_TOKENS)
        parts = [
            run_episodes(self.policy, env, keys, temperature=warmth, shuffle=shuffle, prompt_as=prompt_as, guard=guard)
            for keys in self._rounds(env, episodes)
        ]
        return together(parts).first(len(episodes))

    def watch(self, world: int, episodes: IntArray) -> tuple[EpisodeResults, MotionLog]:
        """The same episodes as they are, and how the body moved in them."""
        parts, logs, guard = [], [], self.seats[world].guard
        with Watch(self.seats[world].env, guard) as env:
            for keys in self._rounds(env, episodes):
                parts.append(run_episodes(self.policy, env, keys, temperature=self.settings.temperature, guard=guard))
                logs.append(env.log())
        return together(parts).first(len(episodes)), joined(logs).first(len(episodes))

    def film(self, world: int, episodes: IntArray) -> list[Film]:
        """The same held-out episodes, frame by frame."""
        played, env = self.seats[world].world, self.seats[world].env
        if not env.keyed:  # nor may it be had twice: a GPU holds one Isaac
            films = [film for keys in self._rounds(env, episodes) for film in self._filmed(world, env, keys)]
        else:
            with envs.make(played.name, len(episodes), **played.options) as own:
                films = self._filmed(world, own, self._keys(episodes))
        return [replace(film, world=played.label) for film in films[: len(episodes)]]

    def _filmed(self, world: int, env: VectorEnv, keys: SeedKeys) -> list[Film]:
        return film_episodes(
            self.policy, env, keys, temperature=self.settings.temperature, guard=self.seats[world].guard
        )

    def close(self) -> None:
        """Release the renderers."""
        for seat in self.seats:
            seat.env.close()

    def _rounds(self, env: VectorEnv, episodes: IntArray) -> list[SeedKeys]:
        """Keys of as many episodes as there are environments, again and again; the last round is padded."""
        padded = np.resize(episodes, -(-len(episodes) // env.num_envs) * env.num_envs)
        return [self._keys(ids) for ids in padded.reshape(-1, env.num_envs)]

    def _keys(self, episodes: IntArray) -> SeedKeys:
        return SeedKeys(self.settings.seed, episodes, np.zeros_like(episodes))


def _made(world: World) -> VectorEnv:
    workers = min(world.workers, world.num_envs)
    return envs.make(world.name, world.num_envs, workers=workers, patience=world.patience, **world.options)


def device_for(gpus: float) -> torch.device:
    """The first GPU that Ray shows this process, if it was granted any; else the CPU.

    Raises:
        UserError: one was granted, but torch cannot use it.
    """
    if gpus <= 0:
        return torch.device("cpu")
    if not torch.cuda.is_available():
        raise UserError(
            "a GPU was asked for", got=f"torch {torch.__version__} without CUDA", expected="a CUDA build and a GPU",
            do="install torch's CUDA build, or set gpus to 0",
        )  # fmt: skip
    return torch.device("cuda")
