"""What was played already, on disk: an interrupted evaluation goes on, and the incumbent is played once.

    <key>.json   the key in full, and what came of the episodes
    <key>.npz    how the body moved, where that was watched; written first

A key names everything that decides the result, the code included: evidence never speaks of other code than ran.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np

import actors
import envs
import rl_finetune
from actors.evaluator import EpisodeResults
from actors.watching import MotionLog
from rl_finetune.durable import canonical, parsed, replace_file, sha256
from rl_finetune.errors import UserError
from rl_finetune.promotion.evidence.codec import record_from
from rl_finetune.promotion.records import Limits
from rl_finetune.types import Failure

ENVELOPE = ("envelope", "limiter", "frames", "workspace")
"""Modules that decide what a body is told."""


@dataclass(frozen=True, slots=True)
class Key:
    """Some episodes of one policy in one world."""

    policy: str
    """Digest of the weights."""
    world: str
    """Registered name."""
    options: Mapping[str, Any]
    """Of the world; the perturbation suite is among them."""
    episodes: int
    """0 to this number."""
    seed: int
    """Of the episodes."""
    temperature: float
    """Of the policy."""
    limits: Limits | None = None
    """What the envelope kept it to; None where none stood between."""

    @property
    def digest(self) -> str:
        """With the code's."""
        return sha256(canonical({**self.plain, "code": code_digest()}))

    @property
    def plain(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


@dataclass(frozen=True, slots=True)
class Episodes:
    """What came of them."""

    success: tuple[bool, ...]
    """False where the world broke down."""
    steps: tuple[int, ...]
    """Environment steps."""
    failures: tuple[Failure, ...] = ()
    """Who broke down and why; `row` is the episode."""

    @classmethod
    def of(cls, results: EpisodeResults) -> Episodes:
        """From an evaluation."""
        failed = [(row, failure) for row, failure in enumerate(results.failures) if failure is not None]
        return cls(
            tuple(map(bool, results.success)),
            tuple(map(int, results.steps)),
            tuple(Failure(row, f.world, f.seed, f.env, f.episode, f.cause) for row, f in failed),
        )

    @property
    def broken(self) -> frozenset[int]:
        """Episodes whose world broke down."""
        return frozenset(failure.row for failure in self.failures)


@dataclass(frozen=True, slots=True)
class Cache:
    """A folder of them."""

    folder: Path
    """Made when something is kept."""

    def load(self, key: Key, *, watched: bool) -> tuple[Episodes, MotionLog | None] | None:
        """What was kept under the key; nothing where it is missing, damaged, or was not watched and should be."""
        try:
            tree = parsed(self._path(key, "json").read_bytes())
            if not isinstance(tree, Mapping):
                return None
            episodes = record_from(Episodes, tree["episodes"], "episodes")
            if len(episodes.success) != key.episodes or canonical(tree["key"]) != canonical(key.plain):
                return None
            return episodes, self._motion(key) if watched else None
        except (OSError, ValueError, KeyError, UserError, BadZipFile, TypeError):
            return None

    def save(self, key: Key, episodes: Episodes, motion: MotionLog | None) -> None:
        """Keep, each file beside and then renamed."""
        self.folder.mkdir(parents=True, exist_ok=True)
        if motion is not None:
            path = self._path(key, "npz")
            beside = path.with_suffix(".part.npz")
            np.savez_compressed(beside, **motion.arrays())
            os.replace(beside, path)
        replace_file(self._path(key, "json"), canonical({"key": key.plain, "episodes": asdict(episodes)}))

    def _motion(self, key: Key) -> MotionLog:
        with np.load(self._path(key, "npz"), allow_pickle=False) as stored:
            return MotionLog.from_arrays({name: stored[name] for name in stored.files})

    def _path(self, key: Key, suffix: str) -> Path:
        return self.folder / f"{key.digest[:32]}.{suffix}"


@cache
def code_digest() -> str:
    """SHA-256 over the sources that decide what happens in an episode: worlds, players, policy, envelope."""
    roots = [Path(str(each.__file__)).parent for each in (envs, actors, rl_finetune)]
    files = [*roots[0].rglob("*.py"), *roots[1].rglob("*.py"), *(roots[2] / "policy").rglob("*.py")]
    files += [roots[2] / name for name in ("keys.py", "spec.py", "types.py", "promotion/evidence/guarding.py")]
    files += [roots[2] / "promotion" / "serving" / f"{name}.py" for name in ENVELOPE]
    digest = hashlib.sha256()
    for path in sorted(files):
        digest.update(str(path.relative_to(roots[0].parent)).encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()
