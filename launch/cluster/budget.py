"""Counts the failures of one part of a run: how many are allowed, and how long to wait before each restart. Pure."""

from __future__ import annotations

from collections import deque


class FailureBudget:
    """Allows `most` failures within `window_s` seconds; older failures do not count.

    A part that fails once a day is therefore always restarted, and a part that fails immediately each time stops the
    run. The wait before the k-th restart within the window is 2^k seconds, at most `longest_s`.
    """

    def __init__(self, most: int, window_s: float, longest_s: float = 60.0) -> None:
        self.most = most
        self.window_s = window_s
        self._longest_s = longest_s
        self._failures: deque[float] = deque()
        self.total = 0
        """All failures, also those that no longer count."""

    def failed(self, now: float) -> float | None:
        """Count a failure at `now` (seconds).

        Returns the seconds to wait before the restart, or None: the budget is spent.
        """
        while self._failures and now - self._failures[0] > self.window_s:
            self._failures.popleft()
        self._failures.append(now)
        self.total += 1
        count = len(self._failures)
        return min(2.0**count, self._longest_s) if count <= self.most else None
