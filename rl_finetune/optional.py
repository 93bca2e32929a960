"""Import a heavy or optional package where it is needed, with an error that says how to get it."""

from __future__ import annotations

import importlib
from types import ModuleType

from rl_finetune.errors import UserError


def require(module: str, *, purpose: str, install: str) -> ModuleType:
    """Import `module`, or raise a `UserError` that says what it was wanted for and how to install it."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise UserError(
            f"{purpose} needs the package {module.split('.')[0]!r}",
            got=str(error),
            expected="an importable package",
            do=f"install it with: {install}",
        ) from error
