"""The base class of every settings table, and what is wrong with a file of one. They live in the lowest package, which
all others may import."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, ValidationError


class SettingsTable(BaseModel):
    """One table of the configuration: immutable, no unknown keys, defaults checked, finite numbers only."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, validate_default=True, allow_inf_nan=False, use_attribute_docstrings=True
    )


def first_error(error: ValidationError) -> tuple[str, str]:
    """The place in a file of the first thing that is wrong, such as `cells.0.rate`, and what is wrong there."""
    first = error.errors()[0]
    return ".".join(map(str, first["loc"])) or "the file", first["msg"]
