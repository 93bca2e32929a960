"""Which GPU Isaac gets: whether it can draw, and that no other Isaac process of ours is on it."""

from __future__ import annotations

import fcntl
import os
import re
import subprocess
import tempfile
from pathlib import Path
from typing import TextIO

from envs.isaac.options import NAME, IsaacOptions
from rl_finetune.errors import UserError

NO_RAY_TRACING = re.compile(r"\b(P100|V100S?|A100|A800|A30|H100|H800|H200|H20|GH200|B100|B200|GB200|B300|GB300)\b")
"""Data-centre GPUs without ray-tracing cores, by the names that the driver gives."""
DRAWS_WITHOUT = "newton_renderer"
"""Isaac Lab 3.0's renderer that needs no ray-tracing cores."""


def physical(device: str) -> str | None:
    """Number or id by which the driver knows the CUDA device `cuda:N`; None for the CPU."""
    if not device.startswith("cuda"):
        return None
    index = int(device.partition(":")[2] or 0)
    visible = [v for v in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if v]
    return visible[index] if index < len(visible) else str(index)


def gpu_name(device: str) -> str | None:
    """Name of the GPU, or None where the driver's tool cannot tell."""
    number = physical(device)
    if number is None:
        return None
    command = ["nvidia-smi", f"--id={number}", "--query-gpu=name", "--format=csv,noheader"]
    try:
        told = subprocess.run(command, capture_output=True, text=True, timeout=30, check=True).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None
    return told.splitlines()[0] if told else None


def check_can_draw(options: IsaacOptions) -> None:
    """Raise a `UserError` where the GPU has no ray-tracing cores and Isaac's renderer needs them."""
    if any(DRAWS_WITHOUT in override for override in options.overrides):
        return
    name = gpu_name(options.device)
    if name is not None and NO_RAY_TRACING.search(name):
        raise UserError(
            f"Isaac Sim cannot draw camera pictures on {name!r}: it has no ray-tracing cores",
            got=f"{NAME} with views {tuple(options.views)} on {options.device}",
            expected="a GPU with ray-tracing cores (RTX, L4, L40, A10, A40)",
            do=f"choose another GPU, another environment (mujoco_warp draws on this one), or with Isaac Lab 3.0 "
            f"overrides=[presets={DRAWS_WITHOUT}]",
        )


def claim(device: str) -> TextIO | None:
    """Hold the GPU for one Isaac process until the returned file is closed; None for the CPU.

    Raises:
        UserError: an Isaac process of this user or another is on it.
    """
    number = physical(device)
    if number is None:
        return None
    path = Path(tempfile.gettempdir()) / f"rl-finetune-isaac-gpu-{re.sub('[^0-9A-Za-z-]', '_', number)}.lock"
    file = path.open("a+")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        file.close()
        raise UserError(
            f"another Isaac process holds GPU {number}",
            got=f"device={device}, lock {path}",
            expected="one Isaac process a GPU",
            do="use more environments in one process (rollout.num_actors=1, workers=0), or another device",
        ) from None
    return file
