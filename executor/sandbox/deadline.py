"""The deadline of a child: it ends once it has used its limit of CPU time, however busy the machine is.

Two more rules end a child that uses little or no CPU. A child that is idle (it sleeps, or waits for a reader) ends
after IDLE_S seconds, or after the limit if that is longer. And every child ends after MAX_STRETCH times the limit by
the wall clock. The policy offers no way to sleep, so honest programs meet neither rule.

A child that gets no CPU looks like an idle one. The process that waits for it shares its control group, and then gets
none in time either: where it wakes up late, nothing is said about the child.
"""

from __future__ import annotations

import contextlib
import math
import time

IDLE_S = 4.0
"""A child is idle if it uses the CPU for less than IDLE_SHARE of this time, in seconds. On a machine with six processes
a CPU, a new process was seen to wait for half a second before it ran at all."""
IDLE_SHARE = 0.005
LATE_SHARE = 0.1
"""A child is not idle if the process that waits for it was late for this share of the time, summed over its waits."""
LOOKS = 8
"""Waits of which the time consists, at least."""
MAX_STRETCH = 30
"""Multiple of the limit after which every child ends, by the wall clock."""
_MIN_WAIT_S = 0.001


class Deadline:
    """Measures the CPU time that a child of this process has left. `child`: its process id; `limit_s`: CPU seconds."""

    def __init__(self, child: int, limit_s: float) -> None:
        # The kernel's number for the CPU clock of another process: CPUCLOCK_SCHED in linux/posix-timers.h.
        self._clock = (~child << 3) | 2
        self._limit_s = limit_s
        self._window_s = max(limit_s, IDLE_S)
        self._window_started = time.monotonic()
        self._window_used = 0.0
        self._late_s = 0.0
        """Seconds of this window in which the caller was still waiting after the time that it had asked for."""
        self._planned = math.inf
        """When the caller is expected back."""
        self._end = self._window_started + MAX_STRETCH * limit_s

    def left_s(self) -> float:
        """Seconds to wait before asking again, or until the child ends; 0 when the child's time is up."""
        now, used = time.monotonic(), self._used()
        self._late_s += max(0.0, now - self._planned)
        idle_at = self._window_started + self._window_s
        if used >= self._limit_s or now >= self._end:
            return 0.0
        if now >= idle_at:
            window_s = now - self._window_started
            if used - self._window_used < IDLE_SHARE * window_s and self._late_s < LATE_SHARE * window_s:
                return 0.0
            self._window_started, self._window_used, self._late_s = now, used, 0.0
            idle_at = now + self._window_s
        # It can't use more of a CPU than the time that passes.
        look_s = self._window_s / LOOKS
        wait_s = max(_MIN_WAIT_S, min(self._limit_s - used, idle_at - now, self._end - now, look_s))
        self._planned = now + wait_s
        return wait_s

    def _used(self) -> float:
        with contextlib.suppress(OSError):  # it has ended
            return time.clock_gettime(self._clock)
        return 0.0
