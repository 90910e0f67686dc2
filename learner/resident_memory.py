"""The resident memory of a process and of all that it has started: what grows where something leaks.

Reads Linux's /proc, and there its own descendants only: a look at all processes of a large machine would hold up the
loop that asks. Where /proc cannot be read there is no number; nothing fails for it.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable
from pathlib import Path

_MIB = 2**20
_PAGE = os.sysconf("SC_PAGE_SIZE")


def resident_mib() -> float | None:
    """Resident memory of this process and its descendants, in MiB. A page that several of them share counts for each.
    None where the kernel does not say."""
    own = os.getpid()
    if not os.path.exists(f"/proc/{own}/task/{own}/children"):  # a kernel without CONFIG_PROC_CHILDREN
        return None
    try:
        total = _resident_bytes(own)
    except OSError:
        return None
    left = _children(own)
    while left:
        process = left.pop()
        with contextlib.suppress(OSError):  # it has ended
            total += _resident_bytes(process)
        left += _children(process)
    return total / _MIB


def _resident_bytes(process: int) -> int:
    return int(Path(f"/proc/{process}/statm").read_text().split()[1]) * _PAGE


def _children(process: int) -> list[int]:
    """The processes that any thread of `process` has started and that live."""
    found: list[int] = []
    with contextlib.suppress(OSError):  # the process has ended
        for thread in os.listdir(f"/proc/{process}/task"):
            with contextlib.suppress(OSError):  # the thread has
                found += map(int, Path(f"/proc/{process}/task/{thread}/children").read_text().split())
    return found


class MemoryReading:
    """Reads the resident memory now and then."""

    def __init__(
        self,
        name: str,
        every_s: float = 30.0,
        read: Callable[[], float | None] = resident_mib,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`name`: of the metric."""
        self._name = name
        self._every_s = every_s
        self._read = read
        self._clock = clock
        self._due = float("-inf")
        self._mib: float | None = None

    def numbers(self) -> dict[str, float]:
        """The metric, of the newest reading, or a new one where that is `every_s` old; empty where there is none."""
        if (now := self._clock()) >= self._due:
            self._mib = self._read()
            self._due = now + self._every_s
        return {} if self._mib is None else {self._name: self._mib}
