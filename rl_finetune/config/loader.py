"""From files and overrides to a checked, immutable config, and back to text."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import ValidationError

from rl_finetune.config import files
from rl_finetune.config.messages import explain
from rl_finetune.config.section import Section

Config = TypeVar("Config", bound=Section)


def load(kind: type[Config], file: str | Path | None = None, overrides: Sequence[str] = ()) -> Config:
    """The settings of `kind` from a file (a path, the stem of a file in `configs/`, or None for the defaults).

    Raises:
        UserError: the first thing that is wrong, in one line that names field, value, what is allowed and what to do.
    """
    return validated(kind, files.apply({} if file is None else files.read(files.find(file)), overrides))


def validated(kind: type[Config], tree: dict[str, Any]) -> Config:
    """The settings of `kind` from a mapping.

    Raises:
        UserError: as `load`.
    """
    try:
        return kind.model_validate(tree)
    except ValidationError as error:
        raise explain(error, kind, tree) from None


def dump(config: Section) -> str:
    """The config as YAML that `load` reads back to an equal config."""
    plain = config.model_dump(mode="json")
    text: str = yaml.safe_dump(plain, sort_keys=False, allow_unicode=True, width=120)
    return text
