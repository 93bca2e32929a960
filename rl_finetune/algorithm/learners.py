"""The group of DeepSpeed learners, seen from the driver."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean

import ray

from learners.endpoint import Rendezvous
from learners.learner import Learner
from rl_finetune.config.schema import TrainConfig
from rl_finetune.policy.adapter_files import origin_of
from rl_finetune.types import ScoredTrajectory, UpdateReport
from rl_finetune.weights import TrainedWeights


class Learners:
    """Every call goes to all ranks at once: collective operations inside would wait for a missing one forever."""

    def __init__(self, job: TrainConfig) -> None:
        actor = ray.remote(num_cpus=0.5, num_gpus=job.learner.gpus)(Learner)
        world, origin = job.learner.num_learners, ray.put(origin_of(job.policy))
        self._actors = [actor.remote(job.model_dump(), rank, world, origin) for rank in range(world)]
        self._folder = tempfile.TemporaryDirectory(prefix="learners-")
        rendezvous = self._meeting_point()
        ray.get([a.join.remote(rendezvous) for a in self._actors])

    def update(self, scored: list[ScoredTrajectory], progress: float) -> UpdateReport:
        """One update on all ranks."""
        reference = ray.put(scored)
        return combined(ray.get([a.update.remote(reference, progress) for a in self._actors]))

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


def combined(reports: Sequence[UpdateReport]) -> UpdateReport:
    """What all ranks did in one update: of diagnostics the means over the ranks that have them, of ratio errors the
    largest. Each rank sees its share of every minibatch alone."""
    names = dict.fromkeys(name for report in reports for name in report.diagnostics)
    found = {name: [r.diagnostics[name] for r in reports if name in r.diagnostics] for name in names}
    over_ranks = {name: max if name.startswith("ratio_error") else fmean for name in names}
    return UpdateReport(
        reports[0].policy_version,
        {name: over_ranks[name](values) for name, values in found.items()},
        max(report.first_ratio_error for report in reports),
        max(report.seconds for report in reports),
    )
