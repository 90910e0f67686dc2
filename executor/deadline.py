"""When a child's time is up: by the wall clock, unless the machine has kept it from running.

On a busy machine a program can wait longer for a CPU than it may run. That must not become a verdict on it, so a child that
has not had its share of a CPU by the deadline gets the time that it lacks, within bounds.
"""

from __future__ import annotations

import contextlib
import time

STARVED_SHARE = 0.5
"""A child that has had less of the time than this is taken to have been kept waiting. (One that sleeps looks the same.)"""
MAX_STRETCH = 4
"""So many times the limit is the end, whatever the reason."""


class Deadline:
    """The time that a child has for its present input. A process that is not this one's child has no clock to read."""

    def __init__(self, child: int, limit_s: float) -> None:
        # The kernel's number for the CPU clock of another process: CPUCLOCK_SCHED in linux/posix-timers.h.
        self._clock = (~child << 3) | 2
        self._limit_s = limit_s
        self._started = time.monotonic()
        self._used_before = 0.0
        self._at = self._started + limit_s

    def restart(self, limit_s: float) -> None:
        """The next input begins."""
        self._limit_s = limit_s
        self._started = time.monotonic()
        self._used_before = self._used()
        self._at = self._started + limit_s

    def left_s(self) -> float:
        """Seconds to wait before the child's time is up; none or fewer when it is."""
        now = time.monotonic()
        if now >= self._at:
            used = self._used() - self._used_before
            if used < STARVED_SHARE * self._limit_s:
                self._at = min(now + self._limit_s - used, self._started + MAX_STRETCH * self._limit_s)
        return self._at - now

    def _used(self) -> float:
        with contextlib.suppress(OSError):  # it has ended
            return time.clock_gettime(self._clock)
        return 0.0
