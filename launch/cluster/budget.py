"""How often a part may fail before the run stops, and how long to wait before it starts again. Pure: the clock is passed in."""

from __future__ import annotations

from collections import deque


class FailureBudget:
    """At most `most` failures within `window_s` seconds; older ones are forgiven.

    A part that fails once a day is started again for ever; one that fails at once, every time, stops the run. The wait
    before the k-th start within the window is 2^k seconds, at most `longest_s`.
    """

    def __init__(self, most: int, window_s: float, longest_s: float = 60.0) -> None:
        self.most = most
        self.window_s = window_s
        self._longest_s = longest_s
        self._failures: deque[float] = deque()
        self.total = 0
        """Failures ever."""

    def failed(self, now: float) -> float | None:
        """Count a failure at `now` (seconds); returns how long to wait before the next start, None where the budget is spent."""
        while self._failures and now - self._failures[0] > self.window_s:
            self._failures.popleft()
        self._failures.append(now)
        self.total += 1
        count = len(self._failures)
        return min(2.0**count, self._longest_s) if count <= self.most else None
