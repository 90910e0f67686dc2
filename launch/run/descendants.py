"""The processes that descend from this one, and their end."""

from __future__ import annotations

import contextlib

import psutil


def descendants() -> list[psutil.Process]:
    """All processes that descend from this one, but for Python's resource trackers.

    A tracker ends by itself once nobody needs it, and then removes the shared semaphores that are left.
    """
    found = []
    for process in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.Error, OSError):
            if not any("resource_tracker" in part for part in process.cmdline()):
                found.append(process)
    return found


def lives(process: psutil.Process) -> bool:
    """Whether the process still runs; one that nobody has reaped does not."""
    with contextlib.suppress(psutil.Error):
        return bool(process.is_running() and process.status() != psutil.STATUS_ZOMBIE)
    return False


def end_all(processes: list[psutil.Process], patience_s: float = 0.0, killed_s: float = 5.0) -> None:
    """Send SIGKILL to those that do not end by themselves within `patience_s`; wait up to `killed_s` for their end."""
    _, left = psutil.wait_procs([process for process in processes if lives(process)], timeout=patience_s)
    for process in left:
        with contextlib.suppress(psutil.Error, OSError):
            process.kill()
    psutil.wait_procs(left, timeout=killed_s)
