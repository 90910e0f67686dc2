"""Everything that an agent starts is a descendant of it until it ends, and is reaped and ended by it.

A process whose parent has ended becomes a child of the nearest *subreaper* above it. Without one it becomes a child of
the host's first process, where SLURM finds it only by control groups: engines then keep their GPUs after the job.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import time

import psutil

_PR_SET_CHILD_SUBREAPER = 36
_LIBC = ctypes.CDLL(None, use_errno=True)


def become_subreaper() -> None:
    """Make this process the parent of all its orphaned descendants. Raises OSError."""
    if _LIBC.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0):
        raise OSError(ctypes.get_errno(), "this process cannot become a subreaper")


def reap(own: set[int]) -> None:
    """Reap the orphans that have ended. `own`: ids of the processes that somebody else waits for."""
    with contextlib.suppress(ChildProcessError):
        while (ended := os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)) is not None:
            if ended.si_pid in own:
                return  # it is seen again and again until it is reaped where it is waited for
            os.waitpid(ended.si_pid, os.WNOHANG)


def end_descendants(patience_s: float = 10.0) -> list[str]:
    """Send SIGKILL to all descendants until none is left; returns what could not be ended within `patience_s`."""
    deadline = time.monotonic() + patience_s
    while left := _living():
        if time.monotonic() > deadline:
            return [f"{process.pid} ({_name(process)})" for process in left]
        for process in left:
            with contextlib.suppress(psutil.Error):
                process.kill()
        psutil.wait_procs(left, timeout=0.2)
        reap(set())
    return []


def _living() -> list[psutil.Process]:
    found = []
    for process in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.Error):
            if process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
    return found


def _name(process: psutil.Process) -> str:
    with contextlib.suppress(psutil.Error):
        return str(process.name())
    return "?"
