"""JSON objects in files of their own."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from launch.json_lines import to_json
from launch.whole_file import write_text


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object in a file; empty where there is none, or none that can be read."""
    try:
        found = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def write_json(path: Path, record: Mapping[str, Any]) -> None:
    """Write a JSON object, in one piece: a reader sees the former file or this one."""
    write_text(path, to_json(record, indent=2) + "\n")
