"""`rl-finetune train`: evaluate, train, evaluate again, report.

preflight -> claim folder -> Ray -> [resume] -> evaluate before -> rounds (row, checkpoint) -> evaluate after -> report
"""

from __future__ import annotations

import platform
import time
from pathlib import Path
from typing import TYPE_CHECKING

import rl_finetune
from actors import cluster
from rl_finetune import checkpoint
from rl_finetune.algorithm import preflight
from rl_finetune.algorithm.evaluation import evaluation_of
from rl_finetune.algorithm.run_folder import (
    claimed,
    load_clips,
    load_evaluation,
    replace_folder,
    save_clips,
    write_json,
)
from rl_finetune.config import TrainConfig, dump, load
from rl_finetune.metrics.console import Dashboard
from rl_finetune.metrics.evaluation import Comparison, Evaluation
from rl_finetune.metrics.journal import Journal
from rl_finetune.metrics.report import write_report
from rl_finetune.metrics.report_data import ReportData
from rl_finetune.metrics.rows import IterationRow
from rl_finetune.metrics.wandb_sink import WandbSink

if TYPE_CHECKING:
    from rl_finetune.algorithm.algorithm import FlowRL

BEFORE, AFTER = "before", "after"


def train(config: TrainConfig) -> int:
    """Run the whole job; returns the exit code.

    Raises:
        UserError: the input cannot be used; nothing has been written then.
    """
    folder, config = Path(config.run.folder), preflight.with_chunks(config)
    preflight.check_alone(config.env, config.rollout.num_actors, config.rollout.gpus, by="rollout.")
    preflight.check_room(config)
    preflight.check(config.policy, config.env, config.objective.group_size)
    preflight.check_critic(config)
    preflight.check_source(config.rollout.source, config.objective)
    with claimed(folder, resume=config.run.resume):
        resumed = checkpoint.newest(folder) if config.run.resume else None
        if resumed is not None:
            checkpoint.check_learners(checkpoint.load_state(resumed), config.learner.num_learners)
            preflight.check_adapters(load(TrainConfig, folder / "config.yaml"), config)
            preflight.check_checkpoint(config, resumed)
        config = _measured(config)
        _Job(config, folder).run(resumed)
    return 0


def _measured(config: TrainConfig) -> TrainConfig:
    """The sampling law with measured numbers; they are part of the resolved config, so a resumed run keeps them."""
    from actors.calibration import measured, unmeasured

    if not unmeasured(config):
        return config
    config, found = measured(config)
    shown = ", ".join(
        f"k={k} a={a:.2g} p={p:.2f}" for k, (a, p) in enumerate(zip(found.levels, found.odds, strict=True))
    )
    print(f"measured exploration: executed std {found.executed_std:.4g}, {shown}", flush=True)
    return config


class _Job:
    """One run, in the order in which a person sees it."""

    def __init__(self, config: TrainConfig, folder: Path) -> None:
        self.config, self.folder = config, folder
        self.journal = Journal(folder)
        self.began = time.monotonic()
        self.sink = WandbSink(
            config.run.wandb, config.run.project, folder, config.model_dump(), folder.name,
            resume_id=WandbSink.saved_id(folder) if config.run.resume else None,
        )  # fmt: skip

    def run(self, resumed: Path | None) -> None:
        """Everything."""
        run = self.config.run
        with Dashboard(
            f"{self.config.env.title}, seed {run.seed} -> {self.folder}", run.iterations, run.max_minutes
        ) as board:
            for note in preflight.short_rounds(self.config):
                board.note(note)
            board.note("starting actors and learners")
            algorithm = self._algorithm()
            # Not before: wandb or an actor may refuse, and a folder with a config counts as a run.
            (self.folder / "config.yaml").write_text(dump(self.config))
            try:
                self._train(algorithm, board, resumed)
                after = self._evaluate(algorithm, board, AFTER)
                for event in algorithm.take_events():  # no row follows that could hold them
                    board.note(event)
                compared = self._finish(algorithm, after)
            finally:
                algorithm.stop()
                self.sink.finish()
                self.journal.close()
        print(self._last_line(compared), flush=True)

    def _algorithm(self) -> FlowRL:
        cluster.connect(self.config.rollout.num_actors + self.config.learner.num_learners)
        from rl_finetune.algorithm.algorithm import FlowRLConfig

        algorithm: FlowRL = FlowRLConfig.from_job(self.config).build_algo()
        return algorithm

    def _train(self, algorithm: FlowRL, board: Dashboard, resumed: Path | None) -> None:
        run = self.config.run
        if resumed is not None:
            algorithm.load_checkpoint(str(resumed))
            self.journal.truncate_after(algorithm.state.iteration)
            board.note(f"going on from {resumed}")
        if not (self.folder / f"{BEFORE}.json").exists():
            self._evaluate(algorithm, board, BEFORE)
        while algorithm.state.iteration < run.iterations and not _late(algorithm.state.minutes, run.max_minutes):
            algorithm.train()
            row = algorithm.row
            assert row is not None
            self.journal.append(row.to_dict())
            self.sink.log(row.to_dict(), step=row.iteration)
            board.update(row)
            if row.iteration % run.checkpoint_every == 0 or row.iteration == run.iterations:
                checkpoint.save(self.folder, algorithm.state.iteration, algorithm.save_checkpoint)

    def _evaluate(self, algorithm: FlowRL, board: Dashboard, name: str) -> Evaluation:
        settings, labels = self.config.evaluation, self.config.env.labels
        each = f" of each of {len(labels)} worlds" if len(labels) > 1 else ""
        board.note(f"evaluating {name} training: {settings.episodes} held-out episodes{each}")
        found, failures = evaluation_of(algorithm.play(settings.episodes), settings.seed, algorithm.state.version)
        for failure in failures:
            board.note(str(failure))
        save_clips(self.folder / "clips" / f"{name}.npz", algorithm.film(settings.clips))
        write_json(self.folder / f"{name}.json", found.to_dict())
        for line in found.lines():
            board.note(f"{name} training: {line}")
        several = {f"evaluation/{name}/{label}": r.success for label, r in found.worlds.items() if len(labels) > 1}
        self.sink.log({f"evaluation/{name}": found.overall.success, **several}, step=algorithm.state.iteration)
        return found

    def _finish(self, algorithm: FlowRL, after: Evaluation) -> Comparison:
        staged = checkpoint.save(self.folder, algorithm.state.iteration, algorithm.save_checkpoint)
        adapter = self.folder / "adapter"
        replace_folder(staged / "adapter", adapter)
        compared = Comparison(load_evaluation(self.folder / f"{BEFORE}.json"), after)
        write_json(self.folder / "evaluation.json", compared.to_dict())
        rows = tuple(IterationRow.from_dict(record) for record in self.journal.read())
        write_report(self.folder / "report.html", ReportData(
            title=f"{self.config.env.title}, seed {self.config.run.seed}", compared=compared,
            rows=rows, minutes=algorithm.state.minutes, checkpoint=str(adapter), config=dump(self.config),
            clips_before=load_clips(self.folder / "clips" / f"{BEFORE}.npz"),
            clips_after=load_clips(self.folder / "clips" / f"{AFTER}.npz"),
            provenance={
                "code": rl_finetune.__version__, "seed": str(self.config.run.seed),
                "evaluation seed": str(self.config.evaluation.seed),
                "command": "rl-finetune train", "machine": f"{platform.machine()}, Python {platform.python_version()}",
            },
        ))  # fmt: skip
        return compared

    def _last_line(self, compared: Comparison) -> str:
        minutes = (time.monotonic() - self.began) / 60
        return (
            f"{compared.line()}, {minutes:.1f} min; adapter in {self.folder / 'adapter'}, "
            f"report in {self.folder / 'report.html'}"
        )


def _late(minutes: float, limit: float | None) -> bool:
    return limit is not None and minutes >= limit
