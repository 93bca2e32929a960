"""Base of every group of settings."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict


class Section(BaseModel):
    """Base of all sections: immutable, strict about names and types, documented by the strings under fields."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, strict=True, use_attribute_docstrings=True, allow_inf_nan=False
    )


class Impossible(ValueError):
    """A combination of settings that cannot work."""


def require(holds: bool, field: str, got: object, expected: str) -> None:
    """Refuse a combination of settings.

    Raises:
        Impossible: it does not hold.
    """
    if not holds:
        raise Impossible(f"{field}: got {got}; expected {expected}")
