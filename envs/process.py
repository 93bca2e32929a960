"""The same contract, spread over worker processes that each own a simulator and a renderer.

    ProcessEnv --SeedKeys | ActionChunk--> worker 0 (envs 0..a) --Observation | ChunkOutcome--> joined in order
               --...---------------------> worker 1 (envs a..N)

All workers are sent their part before any answer is awaited. Pipes run between this process and its own children. A
worker that breaks down is replaced, and its environments go on where they were (`envs/supervision.py`).
"""

from __future__ import annotations

from itertools import pairwise

import numpy as np

from envs.base import VectorEnv, check_keys, used_actions
from envs.joining import abandoned, join_observations, join_outcomes
from envs.supervision import Supervisor
from envs.worker import Build
from rl_finetune.spec import EnvSpec
from rl_finetune.types import ActionChunk, ChunkOutcome, IntArray, Observation, SeedKeys


class ProcessEnv(VectorEnv):
    """N environments split over worker processes in contiguous, nearly equal parts."""

    def __init__(self, spec: EnvSpec, build: Build, num_envs: int, workers: int, *, patience: float) -> None:
        """Start the workers and wait until each has built its part.

        Args:
            spec: what the environments promise.
            build: number of environments -> one worker's part; must pickle.
            num_envs: N.
            workers: processes, 1..N.
            patience: seconds within which a worker must answer to a reset or a chunk; then it is taken for hung.

        Raises:
            UserError: what a worker raised while it built its part.
            WorldError: a worker could not build its part.
        """
        self.spec, self.num_envs = spec, num_envs
        bounds = np.linspace(0, num_envs, workers + 1).astype(int)
        self._supervisor = Supervisor(spec.name, build, [np.arange(*ends) for ends in pairwise(bounds)], patience)
        self.keyed = self._supervisor.keyed
        self._seen: Observation

    def reset(self, keys: SeedKeys) -> Observation:
        """See `VectorEnv.reset`. A world that breaks here begins its next episode; its first outcome says so."""
        check_keys(keys, self.num_envs)
        answers = self._supervisor.reset(keys)
        self._seen = join_observations(
            [seen for _, seen in answers if isinstance(seen, Observation)], [rows for rows, _ in answers]
        )
        return self._seen

    def step_chunk(self, chunk: ActionChunk) -> ChunkOutcome:
        """See `VectorEnv.step_chunk`. A row among `failures` has the observation before the chunk as its final one.

        Raises:
            WorldError: a world breaks in one episode after another, or cannot be built again.
        """
        actions = used_actions(chunk, self.spec, self.num_envs)
        own = ActionChunk(
            actions.copy(), chunk.mask[..., : actions.shape[-1]].copy()
        )  # the caller may reuse its arrays
        answers = self._supervisor.step(own)
        paid = np.zeros(self.num_envs, bool)
        outcomes = []
        for rows, answer in answers:
            if not isinstance(answer, ChunkOutcome):
                paid[rows] = True
                answer = self._abandoned(rows, answer)
            outcomes.append(answer)
        outcome = join_outcomes(outcomes, [rows for rows, _ in answers])
        self._supervisor.settle(outcome, paid)
        self._seen = outcome.observation
        return outcome

    def events(self) -> list[str]:
        """What became of workers since the last call, in words, oldest first; the same is logged as warnings."""
        return self._supervisor.drain()

    def close(self) -> None:
        """See `VectorEnv.close`."""
        self._supervisor.close()

    def _abandoned(self, rows: IntArray, fresh: Observation | None) -> ChunkOutcome:
        """The outcome of environments that broke; `fresh` is None where they had their new observations before."""
        last = self._seen.rows(rows)
        failures = [self._supervisor.pay(row) for row in rows.tolist()]
        return abandoned(failures, last, last if fresh is None else fresh, self.spec.embodiment.action.horizon)
