"""A run's folder: who may write there, and what lies in it.

config.yaml  metrics.jsonl  checkpoints/  before.json  evaluation.json  clips/  adapter/  report.html  wandb/
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from actors.film import Film
from rl_finetune.errors import UserError
from rl_finetune.metrics.evaluation import Evaluation
from rl_finetune.metrics.report_data import Clip

LOCK = ".lock"


@contextmanager
def claimed(folder: Path, *, resume: bool) -> Iterator[None]:
    """Make the folder if it is missing and hold its lock; the lock goes with the process, however it ends.

    Raises:
        UserError: it cannot be written, another run holds it, or it holds a run that is not to be resumed.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = (folder / LOCK).open("a+")
    except OSError as error:
        raise UserError(
            "run folder cannot be written", got=f"{folder}: {error.strerror}", expected="a writable folder",
            do="set run.folder to another place",
        ) from error  # fmt: skip
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            lock.seek(0)
            raise UserError(
                "run folder is in use", got=f"{folder}, held by process {lock.read().strip() or 'unknown'}",
                expected="a folder that no other run writes to", do="wait for that run, or set run.folder",
            ) from error  # fmt: skip
        if (folder / "config.yaml").exists() and not resume:
            raise UserError(
                "run folder already holds a run", got=str(folder), expected="a new or empty folder",
                do=f"go on with `rl-finetune train --resume {folder}`, or set run.folder",
            )  # fmt: skip
        lock.truncate(0)
        lock.write(str(os.getpid()))
        lock.flush()
        yield


def write_json(path: Path, payload: object) -> None:
    """Beside, then renamed."""
    beside = path.with_name(path.name + ".part")
    beside.write_text(json.dumps(payload, indent=2) + "\n")
    beside.replace(path)


def replace_folder(source: Path, target: Path) -> None:
    """Copy a folder beside `target`, then put it in its place."""
    beside = target.with_name(target.name + ".part")
    shutil.rmtree(beside, ignore_errors=True)
    shutil.copytree(source, beside)
    shutil.rmtree(target, ignore_errors=True)
    beside.rename(target)


def load_evaluation(path: Path) -> Evaluation:
    """The evaluation of which `path` holds the `to_dict`."""
    return Evaluation.from_dict(json.loads(path.read_text()))


def save_clips(path: Path, films: list[Film]) -> None:
    """Frames and captions in one npz without pickles."""
    path.parent.mkdir(exist_ok=True)
    captions = json.dumps([[f.instruction, f.success, f.episode, f.world] for f in films])
    beside = path.with_suffix(".part.npz")
    arrays: dict[str, Any] = {f"clip{i}": f.frames for i, f in enumerate(films)}
    np.savez_compressed(beside, captions=np.array(captions), **arrays)
    beside.replace(path)


def load_clips(path: Path) -> tuple[Clip, ...]:
    """What `save_clips` wrote; nothing where there is no file."""
    if not path.exists():
        return ()
    with np.load(path, allow_pickle=False) as stored:
        captions = json.loads(str(stored["captions"]))
        return tuple(Clip(stored[f"clip{i}"], *caption) for i, caption in enumerate(captions))
