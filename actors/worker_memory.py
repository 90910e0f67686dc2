"""The shared memory through which the workers of one engine add up and gather activations on a CPU.

vLLM's workers remove its names when they end by themselves, which killed ones do not. Mapped memory needs no name, so
they are removed as soon as every worker has mapped it: what no process uses any more is then freed by the kernel.
"""

from __future__ import annotations

import os
from pathlib import Path

MARK = "-cpushm"
"""Part of every name."""


def remove_names(folder: Path = Path("/dev/shm")) -> None:
    """Remove the names of this engine's shared memory in `folder`. Every worker has to have mapped it, and may call
    this; a worker has, once it has loaded its model."""
    engine = os.environ.get("VLLM_DIST_IDENT")  # vLLM's worker sets it
    if not engine or not folder.is_dir():
        return
    for path in folder.iterdir():
        if engine in path.name and MARK in path.name:
            path.unlink(missing_ok=True)
