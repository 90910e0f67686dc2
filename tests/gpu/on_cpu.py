"""A function called in a process that sees no GPU: the CPU's part of a comparison."""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

Work = Callable[[Path], dict[str, Any]]


class OnCpu:
    """A running call of `work(folder)` on the CPU. `work` is a function of a module, and returns what torch saves."""

    def __init__(self, work: Work, folder: Path) -> None:
        self._found = folder / f"{work.__name__}.pt"
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.gpu.on_cpu", work.__module__, work.__name__, str(folder), str(self._found)],
            env=os.environ | {"CUDA_VISIBLE_DEVICES": ""},
        )

    def result(self) -> dict[str, Any]:
        """Wait for the call to end and return what it returned."""
        assert self._process.wait() == 0, "the CPU's process failed; its error is above"
        found: dict[str, Any] = torch.load(self._found)
        return found


def main() -> None:
    """The process: call the function that the command line names."""
    module, name, folder, found = sys.argv[1:]
    assert not torch.cuda.is_available()
    torch.save(getattr(importlib.import_module(module), name)(Path(folder)), found)


if __name__ == "__main__":
    main()
