"""The group of DeepSpeed learners, seen from the driver."""

from __future__ import annotations

import tempfile
from pathlib import Path

import ray

from learners.endpoint import Rendezvous
from learners.learner import Learner
from rl_finetune.config.schema import TrainConfig
from rl_finetune.types import ScoredTrajectory, UpdateReport
from rl_finetune.weights import TrainedWeights


class Learners:
    """Every call goes to all ranks at once: collective operations inside would wait for a missing one forever."""

    def __init__(self, job: TrainConfig) -> None:
        actor = ray.remote(num_cpus=0.5, num_gpus=job.learner.gpus)(Learner)
        world = job.learner.num_learners
        self._actors = [actor.remote(job.model_dump(), rank, world) for rank in range(world)]
        self._folder = tempfile.TemporaryDirectory(prefix="learners-")
        rendezvous = self._meeting_point()
        ray.get([a.join.remote(rendezvous) for a in self._actors])

    def update(self, scored: list[ScoredTrajectory], progress: float) -> UpdateReport:
        """One update on all ranks; the report is rank 0's."""
        reference = ray.put(scored)
        return ray.get([a.update.remote(reference, progress) for a in self._actors])[0]

    def weights(self) -> TrainedWeights:
        """Present weights; after a ZeRO step they are the same on every rank."""
        return ray.get(self._actors[0].weights.remote())

    def save(self, folder: Path) -> None:
        """Each rank its optimizer shard, rank 0 the adapters too."""
        ray.get([a.save.remote(str(folder.resolve())) for a in self._actors])

    def restore(self, folder: Path, version: int) -> None:
        """Take over what `save` wrote."""
        ray.get([a.restore.remote(str(folder.resolve()), version) for a in self._actors])

    def shutdown(self) -> None:
        """End the processes."""
        for actor in self._actors:
            ray.kill(actor)
        self._actors = []
        self._folder.cleanup()

    def _meeting_point(self) -> Rendezvous:
        """A file and the loopback device on one machine; a TCP port of rank 0's machine in a cluster."""
        if len([node for node in ray.nodes() if node["Alive"]]) == 1:
            return Rendezvous(f"file://{self._folder.name}/rendezvous", interface="lo")
        return ray.get(self._actors[0].offer.remote())
