"""Seconds by phase."""

from __future__ import annotations

import time


class PhaseClock:
    """Each lap belongs to the phase that has just ended; laps of one phase add up."""

    def __init__(self, *phases: str) -> None:
        """`phases`: those that count 0 until they have a lap."""
        self.seconds = dict.fromkeys(phases, 0.0)
        self._mark = time.monotonic()

    def lap(self, phase: str) -> None:
        """`phase` has just ended."""
        now = time.monotonic()
        self.seconds[phase] = self.seconds.get(phase, 0.0) + now - self._mark
        self._mark = now
