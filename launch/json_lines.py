"""Writes records as strict JSON, which every reader takes: no NaN and no Infinity, which JSON does not know."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any

NOT_FINITE = "not_finite"
"""The key of a record that lists the names of values that were NaN or infinite and are written as null."""


def to_json(record: Mapping[str, Any], **options: Any) -> str:
    """Return `record` as strict JSON. `options`: of `json.dumps`.

    Values that are not finite become null, and `not_finite` lists their names, dotted for what lies deeper:
    `{"grad_norm": null, "not_finite": ["grad_norm"]}`.
    """
    try:
        return json.dumps(record, allow_nan=False, **options)
    except ValueError:
        found: list[str] = []
        cleaned = {name: _cleaned(value, name, found) for name, value in record.items()}
        return json.dumps(cleaned | {NOT_FINITE: found}, allow_nan=False, **options)


def _cleaned(value: Any, name: str, found: list[str]) -> Any:
    """`value` with null for every float that is not finite; adds the names of these to `found`."""
    if isinstance(value, float) and not math.isfinite(value):
        found.append(name)
        return None
    if isinstance(value, Mapping):
        return {key: _cleaned(item, f"{name}.{key}", found) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_cleaned(item, f"{name}.{index}", found) for index, item in enumerate(value)]
    return value
