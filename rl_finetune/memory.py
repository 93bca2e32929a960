"""How much memory is left on this machine, and who asks for more. Standard library only."""

from __future__ import annotations

import os
import re
from pathlib import Path

from rl_finetune.errors import UserError

MEMINFO = Path("/proc/meminfo")
CGROUP = Path("/sys/fs/cgroup/memory.max")


def available() -> int | None:
    """Bytes that processes may still take: what the kernel says, and no more than the limit of a container; None where
    neither can be read."""
    free = re.search(r"MemAvailable:\s+(\d+) kB", _text(MEMINFO))
    limit = re.fullmatch(r"(\d+)", _text(CGROUP).strip())
    found = [unit * int(match[1]) for unit, match in ((1024, free), (1, limit)) if match is not None]
    return min(found, default=None)


def check_memory(needed: int, what: str, do: str) -> None:
    """Refuse what cannot fit.

    Args:
        needed: bytes, at least.
        what: takes them, in the words of the settings.
        do: what would take less.

    Raises:
        UserError: there is less.
    """
    left = available()
    if left is not None and needed > left:
        raise UserError(
            "not enough memory", got=f"at least {needed / 1e9:.1f} GB for {what}",
            expected=f"at most the {left / 1e9:.1f} GB that this machine has left", do=do,
        )  # fmt: skip


def check_environments(needed: int, num_envs: int) -> None:
    """`check_memory` of all environments of a job. On a cluster it is not asked: they are spread over its machines."""
    if not os.environ.get("RAY_ADDRESS"):
        check_memory(needed, f"env.num_envs={num_envs}", "lower env.num_envs, or make pictures smaller")


def _text(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""
