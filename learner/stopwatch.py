"""Measures how long the steps of a procedure take."""

from __future__ import annotations

import time


class Stopwatch:
    """Seconds by name of the step; laps of the same name add up."""

    def __init__(self, *names: str) -> None:
        """`names`: steps that count 0 until they have a lap."""
        self.seconds = dict.fromkeys(names, 0.0)
        self._mark = time.monotonic()

    def lap(self, name: str) -> None:
        """End the step `name`, which began at the last lap; the next step begins."""
        now = time.monotonic()
        self.seconds[name] = self.seconds.get(name, 0.0) + now - self._mark
        self._mark = now
