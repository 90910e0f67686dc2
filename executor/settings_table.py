"""The base class of every settings table. It lives in the lowest package, which all others may import."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict


class SettingsTable(BaseModel):
    """One table of the configuration: immutable, no unknown keys, defaults checked, finite numbers only."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, validate_default=True, allow_inf_nan=False, use_attribute_docstrings=True
    )
