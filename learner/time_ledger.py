"""A ledger of seconds: what one thread spent its time on, and the rest that no part accounts for."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

LEARNER_PARTS = (
    "wait_for_batch",
    "packing",
    "forward_backward",
    "optimizer",
    "mismatch",
    "connect",
    "gather",
    "send",
    "wait_loaded",
    "recording",
    "checkpoint",
    "other",
)
"""Parts of the time of the learner's main thread, in the order of a step (`learner.metrics.entries.LEARNER_TIME`)."""


class TimeLedger:
    """Seconds by part since the last `take`. Belongs to one thread.

    Parts are measured each by itself, and the whole by another look at the clock. So code that lies in no part shows as
    `unaccounted`.
    """

    def __init__(self, parts: Iterable[str], clock: Callable[[], float] = time.monotonic) -> None:
        """`parts`: their names; others are refused with KeyError. `clock` returns seconds."""
        self._clock = clock
        self._seconds = dict.fromkeys(parts, 0.0)
        self._began = self._mark = clock()
        self._open: list[str] = []

    @contextmanager
    def during(self, part: str) -> Iterator[None]:
        """Count the block's time to `part`. A block within another one takes its time from that one."""
        if part not in self._seconds:
            raise KeyError(part)
        self._charge()
        self._open.append(part)
        try:
            yield
        finally:
            self._charge()
            self._open.pop()

    def add(self, part: str, seconds: float) -> None:
        """Count seconds that were measured elsewhere, outside of any block."""
        self._seconds[part] += seconds

    def take(self) -> dict[str, float]:
        """Return seconds by part since the last call, with `total` and what of it is `unaccounted`; begin anew."""
        self._charge()
        total = self._mark - self._began
        taken = self._seconds | {"total": total, "unaccounted": total - sum(self._seconds.values())}
        self._began = self._mark
        self._seconds = dict.fromkeys(self._seconds, 0.0)
        return taken

    def _charge(self) -> None:
        now = self._clock()
        if self._open:
            self._seconds[self._open[-1]] += now - self._mark
        self._mark = now
