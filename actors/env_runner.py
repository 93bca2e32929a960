"""The remote actor: one process with its share of the environments of each world and a copy of the policy.

A thin shell over `rollout.collect` and `Player`, in the shape that RLlib's fault-tolerant EnvRunner group wants.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import ray
from gymnasium import spaces
from ray.rllib.env.env_runner import EnvRunner

from actors import rollout
from actors.evaluator import EpisodeResults
from actors.film import Film
from actors.player import Player, Seat
from rl_finetune.config.schema import TrainConfig
from rl_finetune.errors import RunError, UserError, told
from rl_finetune.policy.adapters import equip, load_trained_state, set_version
from rl_finetune.policy.laws import law_for, law_of
from rl_finetune.spec import shared_state
from rl_finetune.types import IntArray, SeedKeys, Trajectory
from rl_finetune.weights import TrainedWeights

JOB_KEY = "job"
"""Key of the whole `TrainConfig` (as a mapping) in RLlib's env_config."""


class FlowEnvRunner(EnvRunner):
    """Collects trajectories, plays held-out episodes and films, always under one whole version of the weights."""

    def __init__(self, *, config: Any, **kwargs: Any) -> None:
        super().__init__(config=config, **kwargs)
        self.job = TrainConfig.model_validate(config.env_config[JOB_KEY])
        self.trouble: UserError | RunError | None = None
        try:
            self._build()
        except Exception as error:
            if ray.get_runtime_context().was_current_actor_reconstructed:
                raise
            self.trouble = told(error)  # of what a constructor raises, Ray hands on the text alone

    def _build(self) -> None:
        job, holders = self.job, max(self.num_workers, 1)
        worlds = [w.share(self.worker_index - 1, holders) for w in job.env.worlds(job.objective.group_size)]
        self.player = Player(job.policy, worlds, job.evaluation, gpus=job.rollout.gpus)
        adapted = equip(self.player.policy, job, shared_state([seat.env.spec for seat in self.player.seats]))
        self.player.policy = adapted.to(self.player.policy.device).eval()
        self.version = 0
        self.law = law_of(job)

    def started(self) -> UserError | RunError | None:
        """Why it could not, if it could not; nothing else may be asked then."""
        return self.trouble

    def sample(self, *, round_number: int = 0, **_: Any) -> list[Trajectory]:
        """One round in each world, from fresh episodes; their numbers leave room for those begun in earlier rounds."""
        return [self._collect(seat, round_number) for seat in self.player.seats]

    def _collect(self, seat: Seat, round_number: int) -> Trajectory:
        ids, chunks = seat.world.env_ids, seat.world.chunks or self.job.rollout.chunks or seat.env.spec.episode_chunks
        return rollout.collect(
            self.player.policy,
            seat.env,
            SeedKeys(self.job.run.seed, ids, np.full_like(ids, round_number * chunks), self.job.objective.group_size),
            chunks=chunks,
            body=seat.body,
            law=law_for(seat.body.tag, self.law, self.job.exploration),
            cache_contexts="backbone" not in self.job.lora.parts,
            policy_version=self.version,
            world=seat.world.label,
        )

    def play(self, world: int, episodes: IntArray) -> EpisodeResults | UserError | RunError:
        """Held-out episodes by number [M] of one world, under the present weights; or why that would fail again.

        Whatever else is raised ends this process, and Ray restarts it.
        """
        try:
            return self.player.play(world, episodes)
        except (UserError, RunError) as error:
            return error

    def film(self, world: int, episodes: IntArray) -> list[Film] | UserError | RunError:
        """The same held-out episodes, frame by frame; or why there are no pictures."""
        try:
            return self.player.film(world, episodes)
        except Exception as error:
            return told(error)

    def assert_healthy(self) -> None:
        """Raise unless construction went through."""
        assert self.player is not None

    def get_spaces(self) -> dict[str, tuple[spaces.Space, spaces.Space]]:
        """Placeholders: this project's records travel outside RLlib's spaces."""
        box = spaces.Box(-1.0, 1.0, (1,), np.float32)
        return {"__env__": (box, box), "default_policy": (box, box)}

    def get_state(self, *_: Any, **__: Any) -> dict[str, int]:
        """Version of the weights in use."""
        return {"version": self.version}

    def set_state(self, state: Any, **_: Any) -> None:
        """Take over published weights after their checksum has been verified; anything else is ignored."""
        weights = ray.get(state) if isinstance(state, ray.ObjectRef) else state
        if isinstance(weights, TrainedWeights):
            load_trained_state(self.player.policy, weights.verified().tensors)
            self.version = weights.version
            set_version(self.player.policy, self.job, self.version)

    def stop(self) -> None:
        """Close the renderers."""
        if self.trouble is None:
            self.player.close()
