"""The loop, as an RLlib Algorithm.

    actors            collect ----Trajectory----> score --ScoredTrajectory--> learners update
       ^  (all runners play one round                (driver)                    | (all ranks, ZeRO)
       |   under one version; the driver                                         |
       |   waits for every living one)                                           v
       +---------------- publish <---TrainedWeights (adapter, heads)-------------+
                         (the driver waits until every living runner has it)

With `rollout.lag` the runners already play the next rounds while the learners learn, under weights that are that many
updates old; with `rollout.source` nobody plays and stored rounds are learned from.

A runner that dies costs its share of one round: the others' trajectories are used, Ray restarts it, and it gets the
present weights before it plays again. RLlib brings Tune, the fault-tolerant runner group and the training iteration.
"""

from __future__ import annotations

import shutil
import time
from collections import deque
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import ray
from ray.rllib.algorithms.algorithm import Algorithm
from ray.rllib.algorithms.algorithm_config import AlgorithmConfig

from actors import cluster
from actors.env_runner import JOB_KEY, FlowEnvRunner
from actors.evaluator import EpisodeResults, together
from actors.film import Film
from learners.advantages import credit
from rl_finetune.algorithm import filming
from rl_finetune.algorithm.learners import Learners
from rl_finetune.algorithm.summary import Clock, iteration_row
from rl_finetune.checkpoint import RunState, complete, load_state
from rl_finetune.config.schema import TrainConfig
from rl_finetune.errors import RunError, UserError
from rl_finetune.metrics.rows import IterationRow
from rl_finetune.store import load_round, rounds, save_round
from rl_finetune.types import ScoredTrajectory, Trajectory
from rl_finetune.weights import TrainedWeights

T = TypeVar("T")
RECENT = 512
"""Latest training episodes in the rolling success rate."""
ROLLOUTS = "rollouts"
"""Folder of stored rounds within a run folder."""
PATIENCE = 1.0
"""Seconds between looks at rounds that are being played."""
RESTART_PATIENCE = 300.0
"""Seconds to wait for a runner when none is left."""


class FlowRLConfig(AlgorithmConfig):
    """RLlib's side of a `TrainConfig`: how many runners, and that lost ones are restarted."""

    def __init__(self, algo_class: type[Algorithm] | None = None) -> None:
        super().__init__(algo_class=algo_class or FlowRL)
        self.env_runner_cls = FlowEnvRunner
        self.enable_rl_module_and_learner = False
        self._dont_auto_sync_env_runner_states = True

    @classmethod
    def from_job(cls, job: TrainConfig) -> FlowRLConfig:
        """For one run."""
        config = cls()
        config.environment(env_config={JOB_KEY: job.model_dump()}, disable_env_checking=True)
        config.env_runners(
            num_env_runners=job.rollout.num_actors,
            num_cpus_per_env_runner=0.5,
            num_gpus_per_env_runner=job.rollout.gpus,
            max_requests_in_flight_per_env_runner=job.rollout.lag + 2,
            create_local_env_runner=False,
            validate_env_runners_after_construction=False,  # `_check_started` does, and tells the cause
        )
        config.fault_tolerance(restart_failed_env_runners=True, env_runner_health_probe_timeout_s=1.0)
        config.framework("torch")
        return config

    def _validate_new_api_stack_settings(self) -> None:
        """RLlib insists that new-style runners come with its own learner; this project brings DeepSpeed ones."""


class FlowRL(Algorithm):
    """Collect, score, update, publish, judge."""

    @classmethod
    def get_default_config(cls) -> AlgorithmConfig:
        """For Tune."""
        return FlowRLConfig()

    def setup(self, config: AlgorithmConfig) -> None:
        """Build runners (RLlib) and learners (ours) and give everyone version 0."""
        with cluster.stderr_closed():  # Ray's core warns of what RLlib does to make runners restartable
            super().setup(config)
        self.job = TrainConfig.model_validate(self.config.env_config[JOB_KEY])
        _check_started(self.env_runner_group)
        self.state = RunState(0, 0, 0, 0.0, 0, (), self.job.learner.num_learners)
        self.row: IterationRow | None = None
        self.learners = Learners(self.job)
        self.recent: deque[list[ScoredTrajectory]] = deque(maxlen=self.job.objective.replay)
        self.requested = self.films = 0
        self._publish()

    def training_step(self) -> None:
        """One round in every world."""
        clock = Clock()
        trajectories = self._collect()
        clock.lap("collect")
        self.recent.append(credit(trajectories, self.job.objective))
        scored = [part for round_ in self.recent for part in round_]
        report = self.learners.update(scored, progress=self.state.iteration / self.job.run.iterations)
        weights = self._publish()
        clock.lap("update")
        self._judge(trajectories, report, weights, clock)

    def _collect(self) -> list[Trajectory]:
        number, rollout = self.state.iteration, self.job.rollout
        if rollout.source is not None:
            stored = rounds(Path(rollout.source))
            return load_round(stored[number % len(stored)])
        found = self._ahead(number, rollout.lag) if rollout.lag else self._now(number)
        if rollout.store or self.job.objective.replay > 1:
            save_round(Path(self.job.run.folder) / ROLLOUTS, number, found)
        return found

    def _ahead(self, number: int, lag: int) -> list[Trajectory]:
        """Ask for the rounds up to `number + lag`, wait for `number`."""
        group = self.env_runner_group
        self.requested = max(self.requested, number)
        for later in range(self.requested, min(number + lag, self.job.run.iterations - 1) + 1):
            group.foreach_env_runner_async("sample", kwargs={"round_number": later}, tag=f"round-{later}")
        self.requested = max(self.requested, number + lag + 1)
        waiting = len(group.healthy_env_runner_ids())
        found: list[list[Trajectory]] = []
        deadline = time.monotonic() + RESTART_PATIENCE
        while len(found) < waiting and time.monotonic() < deadline:
            ready = group.fetch_ready_async_reqs(tags=f"round-{number}", timeout_seconds=PATIENCE)
            found += [made for _, made in ready if isinstance(made, list)]
            waiting = min(waiting, len(group.healthy_env_runner_ids()))
        return [made for one in found for made in one] or self._now(number)

    def _now(self, number: int) -> list[Trajectory]:
        deadline = time.monotonic() + RESTART_PATIENCE
        while True:
            found = self._on_runners("sample", {"round_number": number})
            if found:
                return [made for one in found for made in one]
            if time.monotonic() > deadline:
                raise RunError(f"no EnvRunner came back within {RESTART_PATIENCE:.0f} s; see Ray's logs for the cause")
            time.sleep(1)
            self.restore_env_runners(self.env_runner_group)

    def _publish(self) -> TrainedWeights:
        weights = self.learners.weights()
        self._on_runners("set_state", {"state": ray.put(weights)})
        return weights

    def _judge(self, trajectories: list[Trajectory], report: Any, weights: TrainedWeights, clock: Clock) -> None:
        self.state, self.row = iteration_row(
            self.state, trajectories, report, clock, publish_bytes=weights.nbytes, recent=RECENT,
            healthy=self.env_runner_group.num_healthy_remote_env_runners(), events=self.take_events(),
        )  # fmt: skip
        self.metrics.log_dict({k: v for k, v in self.row.to_dict().items() if isinstance(v, int | float)}, window=1)

    def restore_env_runners(self, env_runner_group: Any) -> list[int]:
        """Probe lost runners; those that Ray has restarted get the present weights and are counted."""
        restored = env_runner_group.probe_unhealthy_env_runners() or []
        if restored:
            weights = self.learners.weights()
            env_runner_group.foreach_env_runner(
                "set_state", kwargs={"state": ray.put(weights)}, remote_worker_ids=restored, local_env_runner=False
            )
            self._event(f"actor {', '.join(map(str, restored))} is back with weights version {weights.version}")
        return restored

    def play(self, episodes: int) -> dict[str, EpisodeResults]:
        """Held-out episodes 0..episodes-1 of each world, by its label, spread over the living runners."""
        return {label: together(parts) for label, parts in self._shared("play", np.arange(episodes)).items()}

    def film(self, episodes: int) -> list[Film]:
        """Clips of held-out episodes 0..episodes-1 of each world; those that cannot be had in time are an event."""
        self.films += 1
        shares = self._shares(np.arange(episodes)) if episodes else []
        found, troubles = filming.film(
            self.env_runner_group, shares, name=f"film-{self.films}", restart=self._restart,
            patience=max(filming.PATIENCE, self.job.env.patience),
        )  # fmt: skip
        for trouble in troubles:
            self._event(trouble)
        return found

    def _restart(self, runner: int) -> None:
        """End a runner that hangs; Ray starts another in its place."""
        ray.kill(self.env_runner_group._worker_manager.actors()[runner], no_restart=False)

    def _shares(self, episodes: np.ndarray) -> list[dict[str, Any]]:
        """Arguments of a runner's `play` and `film`: one world after the other, each in as many parts as there are
        runners."""
        parts = [s for s in np.array_split(episodes, max(self.env_runner_group.num_remote_env_runners(), 1)) if s.size]
        return [{"world": world, "episodes": part} for world in range(len(self.job.env.labels)) for part in parts]

    def _shared(self, method: str, episodes: np.ndarray) -> dict[str, list[Any]]:
        """Call `method` for each world, on each living runner with its share; shares of runners that die go to the
        others. Returns the answers by the world's label; raises what a runner answers that it cannot do."""
        labels, done = self.job.env.labels, dict[int, Any]()
        shares = self._shares(episodes)
        deadline = time.monotonic() + RESTART_PATIENCE
        while len(done) < len(shares):
            alive = self.env_runner_group.healthy_env_runner_ids()
            todo = [i for i in range(len(shares)) if i not in done][: len(alive)]
            for i, runner in zip(todo, alive, strict=False):
                self.env_runner_group.foreach_env_runner_async(
                    method, kwargs=shares[i], remote_worker_ids=[runner], tag=f"share-{i}"
                )
            for i in todo:
                for _, result in self.env_runner_group.fetch_ready_async_reqs(tags=f"share-{i}", timeout_seconds=None):
                    if isinstance(result, UserError | RunError):
                        raise result
                    done[i], deadline = result, time.monotonic() + RESTART_PATIENCE
            if time.monotonic() > deadline:
                raise RunError("no EnvRunner could finish the evaluation; see Ray's logs for the cause")
            self.restore_env_runners(self.env_runner_group)
        n = len(shares) // len(labels)
        return {label: [done[i] for i in range(w * n, (w + 1) * n)] for w, label in enumerate(labels)}

    def _on_runners(self, method: str, kwargs: Mapping[str, Any]) -> list[Any]:
        before = set(self.env_runner_group.healthy_env_runner_ids())
        results = self.env_runner_group.foreach_env_runner(method, kwargs=dict(kwargs), local_env_runner=False)
        lost = sorted(before - set(self.env_runner_group.healthy_env_runner_ids()))
        if lost:
            self.state = self.state.losing(len(lost))
            self._event(f"actor {', '.join(map(str, lost))} was lost; the round goes on with the others")
        return results

    def save_checkpoint(self, checkpoint_dir: str) -> None:
        """Weights, optimizer shards and counters into an existing folder (`rl_finetune.checkpoint` makes it atomic)."""
        self.learners.save(Path(checkpoint_dir))
        complete(Path(checkpoint_dir), self.state)

    def load_checkpoint(self, checkpoint_dir: str) -> None:
        """Go on from what `save_checkpoint` wrote."""
        self.state = load_state(Path(checkpoint_dir))
        self.learners.restore(Path(checkpoint_dir), self.state.version)
        self._remember()
        self._publish()

    def _remember(self) -> None:
        """Take up the stored rounds that the next update also learns from."""
        first = max(0, self.state.iteration - self.job.objective.replay + 1)
        for number in range(first, self.state.iteration):
            path = Path(self.job.run.folder) / ROLLOUTS / f"{number:06d}.safetensors"
            if self.job.rollout.source is not None:
                stored = rounds(Path(self.job.rollout.source))
                path = stored[number % len(stored)]
            self.recent.append(credit(load_round(path), self.job.objective))

    def cleanup(self) -> None:
        """End learners and runners."""
        if hasattr(self, "learners"):
            self.learners.shutdown()
        super().cleanup()
        shutil.rmtree(self.logdir, ignore_errors=True)

    def _event(self, text: str) -> None:
        self._events = [*getattr(self, "_events", []), text]

    def take_events(self) -> tuple[str, ...]:
        """What happened since the last call, oldest first; an iteration's row takes what came before it."""
        events, self._events = tuple(getattr(self, "_events", [])), []
        return events


def _check_started(runners: Any) -> None:
    """Raise what a new runner of the group met with at its start.

    Raises:
        UserError: the runner's own.
        RunError: what else kept it from starting.
    """
    answers = runners.foreach_env_runner("started", local_env_runner=False)
    if trouble := next((answer for answer in answers if answer is not None), None):
        raise trouble
    if not answers:
        raise RunError("no actor started: the system ended their processes (memory?); see Ray's logs")
