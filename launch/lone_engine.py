"""What an engine outside of a run needs: the variables of a run's processes, and a folder for what it leaves."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from launch.cluster.environment import set_variables
from launch.run.interrupts import Interrupts
from launch.run.scratch import temporary_files


@contextlib.contextmanager
def private_folder(interrupts: Interrupts) -> Iterator[Path]:
    """A folder in which this process, and the engine's that it starts, keep files and sockets until the block ends.

    A signal ends both processes at once and removes the folder.
    """
    set_variables()
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")  # its warnings would hide the command's own lines
    # vLLM leaves a semaphore to Python's tracker of them, which would say so after the command's last line.
    os.environ.setdefault("PYTHONWARNINGS", "ignore::UserWarning:multiprocessing.resource_tracker")
    with tempfile.TemporaryDirectory(prefix="azr-") as private, temporary_files(Path(private)):
        interrupts.last_acts.append(lambda why: shutil.rmtree(private, ignore_errors=True))
        yield Path(private)
