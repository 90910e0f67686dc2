"""SIGINT and SIGTERM (SLURM's) as requests to stop."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator
from typing import Any


class Interrupts:
    """A counter of the interrupts that have come."""

    count = 0


@contextlib.contextmanager
def interrupts(react: Callable[[int], None] = lambda count: None) -> Iterator[Interrupts]:
    """Count SIGINT and SIGTERM until the block ends, and call `react` with the count at each, in the signal handler.

    On a thread other than the main one nothing is caught, since Python delivers signals to the main thread.
    """
    found = Interrupts()
    if threading.current_thread() is not threading.main_thread():
        yield found
        return

    def handle(signum: int, frame: Any) -> None:
        found.count += 1
        react(found.count)

    previous = {s: signal.signal(s, handle) for s in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield found
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
