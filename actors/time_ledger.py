"""The ledger of an actor's seconds: what its engine did at each moment or, where it stood still, what it waited for.

Much goes on at once in an actor. Each moment counts to the first of these that holds:

    loading          new weights are put in place
    paused           the engine stands still for new weights, and waits for them
    engine           it has requests. Its steps are measured where they run (`actors/engine/step_times.py`), as
                     `prefill`, `decode` and `between` (two steps); what they leave of this time is unaccounted
    executor         it has no request, and programs run in the sandbox
    other            it has no request, and episodes are in play: prompts, the task buffer
    wait_for_grants  nothing is granted
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from enum import StrEnum


class Activity(StrEnum):
    """Something that goes on in an actor; of several, the first counts."""

    LOADING = "loading"
    PAUSED = "paused"
    ENGINE = "engine"
    EXECUTOR = "executor"
    EPISODE = "other"


WAITING = "wait_for_grants"
"""Where none of the activities goes on."""


class TimeLedger:
    """Seconds by activity, of one actor. It belongs to the actor's event loop."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        """`clock` returns seconds."""
        self._clock = clock
        self._active: Counter[Activity] = Counter()
        self._seconds: dict[str, float] = {}
        self._since = 0.0
        self._state: str = WAITING
        self.restart()

    def restart(self) -> None:
        """Forget what was measured: the time begins now."""
        self._seconds = dict.fromkeys((*Activity, WAITING), 0.0)
        self._since = self._clock()

    @contextmanager
    def during(self, activity: Activity) -> Iterator[None]:
        """`activity` goes on while the block does; several blocks may, at once."""
        self._change(activity, 1)
        try:
            yield
        finally:
            self._change(activity, -1)

    def waited(self, seconds: float) -> None:
        """Of the loading that goes on, `seconds` were spent on waiting for bytes: they count as paused."""
        self._seconds[Activity.LOADING] -= seconds
        self._seconds[Activity.PAUSED] += seconds

    def seconds(self) -> dict[str, float]:
        """Seconds by activity; together, the time since the start. They never fall: loading counts once it is over."""
        if self._state != Activity.LOADING:
            self._change(Activity.EPISODE, 0)
        return {str(name): seconds for name, seconds in self._seconds.items()}

    def _change(self, activity: Activity, by: int) -> None:
        now = self._clock()
        self._seconds[self._state] += now - self._since
        self._since = now
        self._active[activity] += by
        self._state = next((one for one in Activity if self._active[one]), WAITING)
