"""Rounds of experience on disk: to learn from offline, and for objectives that learn from more than the last round.

<folder>/000012.safetensors    every trajectory of round 12, arrays by `N.field`; what is no array stands in the header
"""

from __future__ import annotations

import json
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from rl_finetune.errors import UserError
from rl_finetune.types import Context, Failure, Observation, SeedKeys, Trajectory

SUFFIX = ".safetensors"
HEADER = "trajectories"


def save_round(folder: Path, number: int, trajectories: list[Trajectory]) -> Path:
    """Write one round, beside and renamed."""
    folder.mkdir(parents=True, exist_ok=True)
    arrays: dict[str, np.ndarray] = {}
    plain: list[dict[str, Any]] = []
    for i, trajectory in enumerate(trajectories):
        found, rest = _pack(trajectory)
        arrays |= {f"{i}.{name}": np.ascontiguousarray(array) for name, array in found.items()}
        plain.append(rest)
    path = folder / f"{number:06d}{SUFFIX}"
    beside = path.with_name(path.name + ".part")
    save_file(arrays, beside, metadata={HEADER: json.dumps(plain)})
    beside.replace(path)
    return path


def load_round(path: Path) -> list[Trajectory]:
    """Read what `save_round` wrote.

    Raises:
        UserError: missing, damaged, or of another version of this code.
    """
    try:
        with safe_open(path, "numpy") as file:
            plain = json.loads(file.metadata()[HEADER])
            arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        return [_unpack(_part(arrays, f"{i}."), rest) for i, rest in enumerate(plain)]
    except (OSError, SafetensorError, KeyError, TypeError, ValueError) as error:
        raise UserError(
            "stored round cannot be read", got=f"{path}: {error}", expected="a round written with rollout.store=true",
            do="remove the file, or collect again",
        ) from error  # fmt: skip


def rounds(folder: Path) -> list[Path]:
    """Stored rounds in their order.

    Raises:
        UserError: there are none.
    """
    found = sorted(folder.glob(f"[0-9]*{SUFFIX}"))
    if not found:
        raise UserError(
            "no stored rounds", got=str(folder), expected=f"a folder with files like 000000{SUFFIX}",
            do="collect some with rollout.store=true; they lie in the run folder's rollouts/",
        )  # fmt: skip
    return found


def _pack(t: Trajectory) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    arrays: dict[str, np.ndarray] = {"keys.env": t.keys.env, "keys.episode": t.keys.episode}
    plain: dict[str, Any] = {"keys": {"seed": t.keys.seed, "group": t.keys.group}}
    plain["failures"] = [asdict(failure) for failure in t.failures]
    contexts = {"inputs": t.inputs} if isinstance(t.inputs, Context) else {}
    if isinstance(t.inputs, Observation):
        plain["observation"] = {"instruction": t.inputs.instruction, "embodiment": t.inputs.embodiment}
        arrays |= {f"images.{tag}": image for tag, image in t.inputs.images.items()}
    if t.advised is not None:
        contexts |= {"advised.0": t.advised[0], "advised.1": t.advised[1]}
    for name, context in contexts.items():
        arrays |= {f"{name}.{f.name}": getattr(context, f.name) for f in fields(Context)}
    for f in fields(Trajectory):
        value = getattr(t, f.name)
        if isinstance(value, np.ndarray):
            arrays[f.name] = value
        elif isinstance(value, int | float | str):
            plain[f.name] = value
    return arrays, plain


def _unpack(arrays: dict[str, np.ndarray], plain: dict[str, Any]) -> Trajectory:
    def context(name: str) -> Context:
        return Context(**_part(arrays, f"{name}."))

    inputs: Context | Observation
    if "observation" in plain:
        seen = plain["observation"]
        inputs = Observation(_part(arrays, "images."), tuple(seen["instruction"]), seen["embodiment"])
    else:
        inputs = context("inputs")
    keys = SeedKeys(plain["keys"]["seed"], arrays["keys.env"], arrays["keys.episode"], plain["keys"]["group"])
    failures = tuple(Failure(**failure) for failure in plain["failures"])
    simple = {f.name: arrays.get(f.name, plain.get(f.name)) for f in fields(Trajectory)}
    advised = (context("advised.0"), context("advised.1")) if "advised.0.hidden" in arrays else None
    whole: dict[str, Any] = simple | {"inputs": inputs, "keys": keys, "advised": advised, "failures": failures}
    return Trajectory(**whole)


def _part(arrays: dict[str, np.ndarray], prefix: str) -> dict[str, np.ndarray]:
    return {name.removeprefix(prefix): array for name, array in arrays.items() if name.startswith(prefix)}
