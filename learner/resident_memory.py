"""The resident memory of a process and of all that it has started: what grows where something leaks."""

from __future__ import annotations

import time
from collections.abc import Callable

import psutil

MIB = 2**20


def resident_mib() -> float:
    """Resident memory of this process and its descendants, in MiB. A page that several of them share counts for
    each."""
    own = psutil.Process()
    total = 0
    for process in (own, *own.children(recursive=True)):
        try:
            total += process.memory_info().rss
        except psutil.Error:  # it has ended
            continue
    return total / MIB


class MemoryReading:
    """Reads the resident memory now and then: looking through all processes of a machine takes milliseconds."""

    def __init__(
        self,
        every_s: float = 30.0,
        read: Callable[[], float] = resident_mib,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._every_s = every_s
        self._read = read
        self._clock = clock
        self._due = float("-inf")
        self._mib = 0.0

    def mib(self) -> float:
        """The newest reading; a new one where the last is `every_s` old."""
        if (now := self._clock()) >= self._due:
            self._due = now + self._every_s
            self._mib = self._read()
        return self._mib
