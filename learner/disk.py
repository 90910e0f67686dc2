"""Files and folders on the disk: written for good, and never silently overlooked."""

from __future__ import annotations

import os
import re
from pathlib import Path


def sync(path: Path) -> None:
    """Write a file's content, or a folder's list of names, from the kernel's cache to the disk. Raises OSError."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def matches(folder: Path, pattern: str) -> list[Path]:
    """What `folder` has whose whole name matches a regular expression, in order of the names; nothing where there is no
    such folder.

    Raises OSError where the folder cannot be read. `Path.glob` is silent then, and "no checkpoint" would be wrong.
    """
    try:
        names = os.listdir(folder)
    except FileNotFoundError:
        return []
    return [folder / name for name in sorted(names) if re.fullmatch(pattern, name)]
