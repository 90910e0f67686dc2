"""Writes a file in one piece: a reader sees the former file or the new one, never a part."""

from __future__ import annotations

import os
import secrets
from pathlib import Path


def write_text(path: Path, text: str, mode: int = 0o644) -> None:
    """Write a file in one piece, with the rights `mode` from its beginning on."""
    fresh = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    descriptor = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
    with os.fdopen(descriptor, "w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    fresh.rename(path)
