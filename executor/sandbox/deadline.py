"""When a child's time is up: when it has used the limit on a CPU. How busy the machine is makes no difference.

Two more rules end a child that uses no CPU, or next to none. A child that stands still (it sleeps, or waits for a
reader) ends after IDLE_S seconds, or the limit if that is longer. And MAX_STRETCH times the limit, by the wall clock,
is the end of every child. The policy gives a program no way to sleep, so neither rule is for honest programs.
"""

from __future__ import annotations

import contextlib
import time

IDLE_S = 4.0
"""A child stands still if it uses less than IDLE_SHARE of this time. On a machine with six processes for each CPU, a
new process has been seen to wait for half a second before it ran at all."""
IDLE_SHARE = 0.005
MAX_STRETCH = 30
"""The end by the wall clock, in multiples of the limit."""
_MIN_WAIT_S = 0.001


class Deadline:
    """The CPU time, in seconds, that a child of this process has left of `limit_s`."""

    def __init__(self, child: int, limit_s: float) -> None:
        # The kernel's number for the CPU clock of another process: CPUCLOCK_SCHED in linux/posix-timers.h.
        self._clock = (~child << 3) | 2
        self._limit_s = limit_s
        self._window_s = max(limit_s, IDLE_S)
        self._window_started = time.monotonic()
        self._window_used = 0.0
        self._end = self._window_started + MAX_STRETCH * limit_s

    def left_s(self) -> float:
        """Seconds to wait before asking again; 0 when the child's time is up."""
        now, used = time.monotonic(), self._used()
        idle_at = self._window_started + self._window_s
        if used >= self._limit_s or now >= self._end:
            return 0.0
        if now >= idle_at:
            if used - self._window_used < IDLE_SHARE * (now - self._window_started):
                return 0.0
            self._window_started, self._window_used = now, used
            idle_at = now + self._window_s
        # It can't use more of a CPU than the time that passes.
        return max(_MIN_WAIT_S, min(self._limit_s - used, idle_at - now, self._end - now))

    def _used(self) -> float:
        with contextlib.suppress(OSError):  # it has ended
            return time.clock_gettime(self._clock)
        return 0.0
