"""The resident memory of a process and of all that it has started: what grows where something leaks.

Reads Linux's /proc, and there its own descendants only: a look at all processes of a large machine would hold up the
loop that asks. Where /proc cannot be read there is no number; nothing fails for it.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path

_MIB = 2**20
_PAGE = os.sysconf("SC_PAGE_SIZE")


def resident_mib() -> float | None:
    """Resident memory of this process and its descendants, in MiB. A page that several of them share counts for each.
    None where the kernel does not say."""
    try:
        total = _resident_bytes(os.getpid())
        left = _children(os.getpid())
    except OSError:
        return None
    while left:
        try:
            process = left.pop()
            total += _resident_bytes(process)
            left += _children(process)
        except OSError:  # it has ended
            continue
    return total / _MIB


def _resident_bytes(process: int) -> int:
    return int(Path(f"/proc/{process}/statm").read_text().split()[1]) * _PAGE


def _children(process: int) -> list[int]:
    """The processes that any thread of `process` has started and that live. Raises OSError."""
    threads = os.listdir(f"/proc/{process}/task")
    texts = (Path(f"/proc/{process}/task/{thread}/children").read_text() for thread in threads)
    return [int(child) for text in texts for child in text.split()]


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
