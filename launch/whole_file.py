"""Writes a file in one piece: a reader sees the former file or the new one, never a part.

And says before long work whether its file can be written.
"""

from __future__ import annotations

import os
import secrets
from pathlib import Path

from executor.user_error import UserError


def write_text(path: Path, text: str, mode: int = 0o644) -> None:
    """Write a file in one piece, with the rights `mode` from its beginning on."""
    fresh = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    descriptor = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
    try:
        with os.fdopen(descriptor, "w") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        fresh.rename(path)
    except BaseException:
        fresh.unlink(missing_ok=True)
        raise


def check_new(path: Path) -> None:
    """Raises UserError where there is such a file already, or no folder that it could be made in."""
    if path.exists() or path.is_symlink():
        raise UserError(f"{path} exists already: give another name, or remove it")
    check_place(path)


def check_place(path: Path) -> None:
    """Raises UserError where `path` is a folder, or in no folder that a file can be made in."""
    if path.is_dir():
        raise UserError(f"{path} cannot be written: it is a folder")
    if not os.access(path.absolute().parent, os.W_OK | os.X_OK):
        raise UserError(f"{path} cannot be written: {path.absolute().parent} is no folder that can be written to")
