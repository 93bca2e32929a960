"""The one place that knows Weights & Biases. Offline it needs no key and no network; disabled it is never imported."""

from __future__ import annotations

import os
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from rl_finetune.errors import UserError
from rl_finetune.optional import require

Mode = Literal["offline", "online", "disabled"]


class WandbSink:
    """One wandb run whose id lies in the run folder, so that a resumed run continues it."""

    def __init__(
        self,
        mode: Mode,
        project: str,
        folder: Path,
        config: Mapping[str, Any],
        name: str,
        resume_id: str | None = None,
    ) -> None:
        """Start (or, with `resume_id`, continue) the run; its files go to `folder`/wandb.

        Raises:
            UserError: wandb is not installed, or online and not reachable or without a key.
        """
        self._run: Any = None
        self._mode = mode
        self.id = resume_id or uuid.uuid4().hex[:8]
        if mode == "disabled":
            return
        os.environ.setdefault("WANDB_SILENT", "true")
        wandb = require("wandb", purpose=f"run.wandb={mode}", install="pip install wandb")
        quiet = wandb.Settings(silent=True, console="off", x_disable_stats=True, disable_git=True)
        resume = "allow" if resume_id and mode == "online" else None
        try:
            self._run = wandb.init(
                project=project,
                name=name,
                id=self.id,
                dir=str(folder),
                mode=mode,
                config=dict(config),
                resume=resume,
                settings=quiet,
            )
        except wandb.Error as error:
            raise UserError(
                "wandb could not start",
                got=str(error),
                expected="a key (`wandb login`) and a network, or offline mode",
                do="set run.wandb=offline",
            ) from error
        (folder / "wandb_id").write_text(self.id + "\n")

    @staticmethod
    def saved_id(folder: Path) -> str | None:
        """The id of the run in this folder, to resume it; None where there is none."""
        file = folder / "wandb_id"
        return (file.read_text().strip() or None) if file.is_file() else None

    def log(self, record: Mapping[str, Any], step: int) -> None:
        """Log the numbers of one iteration; texts and lists stay in metrics.jsonl."""
        if self._run is not None:
            self._run.log({name: value for name, value in record.items() if isinstance(value, int | float)}, step=step)

    def log_folder(
        self, folder: Path, *, name: str, kind: str, aliases: Sequence[str], metadata: Mapping[str, Any]
    ) -> None:
        """Log a folder as a version of the artifact `name`, with these aliases, which leave other versions.

        Online this waits until it has arrived, and takes other aliases away from it. A folder that wandb has already is
        not sent again.

        Raises:
            UserError: online, and it did not arrive.
        """
        if self._run is None:
            return
        wandb = require("wandb", purpose="an artifact", install="pip install wandb")
        artifact = wandb.Artifact(name, type=kind, metadata=dict(metadata))
        artifact.add_dir(str(folder), policy="immutable")  # no second copy of the weights on this disk
        logged = self._run.log_artifact(artifact, aliases=list(aliases))
        if self._mode != "online":
            return
        try:
            logged.wait()
            logged.aliases = [*aliases, *(alias for alias in logged.aliases if alias == "latest")]
            logged.save()
        except (wandb.Error, ValueError) as error:
            raise UserError(
                "wandb did not take an artifact", got=f"{name}: {error}", expected="a network and room",
                do="do it again later: nothing but the copy at wandb is missing",
            ) from error  # fmt: skip

    def finish(self) -> None:
        """Close the run; harmless when repeated."""
        if self._run is not None:
            self._run.finish()
            self._run = None
