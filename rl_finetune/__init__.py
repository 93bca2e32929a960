"""Reinforcement-learning fine-tuning of Qwen-VLA policies in parallel simulation."""

from __future__ import annotations

import importlib.util
from pathlib import Path

__version__ = "0.1.0"

_ROOT = Path(__file__).resolve().parent.parent


def _guard_sibling_packages() -> None:
    """Packages named `envs` and `learners` exist on the package index and would shadow ours silently."""
    for name in ("actors", "envs", "learners"):
        found = importlib.util.find_spec(name)
        here = _ROOT / name / "__init__.py"
        if found is None or found.origin is None or Path(found.origin).resolve() != here:
            raise ImportError(
                f"package {name!r} resolves to {getattr(found, 'origin', None)}, expected {here}: "
                f"uninstall the other distribution or put {_ROOT} first on PYTHONPATH"
            )


_guard_sibling_packages()
