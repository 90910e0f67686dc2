"""SIGINT, SIGTERM and SIGUSR2 as requests to stop, heard in every phase of a run.

    state      signal                                   effect
    STARTING   any                                      the process ends at once, exit code `NOTHING_TO_SAVE`
    RUNNING    any, with unsaved work                   the run is asked to stop; STOPPING
    RUNNING    any, without unsaved work                the process ends at once, exit code `NOTHING_TO_SAVE`
    STOPPING   SIGTERM, SIGUSR2                         none: schedulers send several signals for one request
    STOPPING   first SIGINT, or within `SAME_S` of it   none: a press of Ctrl-C may send several
    STOPPING   SIGINT, later                            the process ends at once, exit code `LOST` (`SAVED` after
                                                        `saved`)

Signals are handled on a thread of their own, because the main thread can be inside of a library for a minute. "At once"
is a SIGKILL to all descendants and `os._exit`: no library code runs, so none can hang, crash, or print a traceback.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from enum import StrEnum

from executor.signals import SIGNALS

INTERRUPTED = "interrupted"
"""The reason of a stop that a signal asked for, as `TrainingStatus.stop` has it."""
COMPLETE = "complete"
"""The reason of an end with all steps taken, in events."""
SAME_S = 5.0
"""Seconds after the first SIGINT in which further ones count as the same press of Ctrl-C."""

SAVED = 75
"""Exit code of a run that was stopped early and saved; `EX_TEMPFAIL` of sysexits.h: try again later."""
NOTHING_TO_SAVE = 130
"""Exit code of a run that was interrupted while it had no unsaved work: before its first step, for example."""
LOST = 1
"""Exit code of a run that a second Ctrl-C ended: work since its last checkpoint is lost."""

_LOOK_S = 0.2
_AGAIN = f"; Ctrl-C again, {SAME_S:.0f} s from now or later, stops at once and loses it"
_SHOW_CURSOR = b"\x1b[?25h"


class State(StrEnum):
    """How far the run is, as the effect of a signal depends on it."""

    STARTING = "starting"
    """It has no work to save yet."""
    RUNNING = "running"
    """It can be asked to stop."""
    STOPPING = "stopping"
    """It was asked to stop."""


class Interrupts:
    """Decides what a signal does to this run. `listening` makes one that signals reach."""

    def __init__(self, end: Callable[[int], object] = os._exit, clock: Callable[[], float] = time.monotonic) -> None:
        """`end` ends the process with an exit code; `clock` returns seconds."""
        self._end = end
        self._clock = clock
        self._lock = threading.Lock()
        self._ending = threading.Lock()
        self._stop: Callable[[], bool] = lambda: False
        self._say: Callable[[str], None] = _say_on_stderr
        self._pressed_at: float | None = None
        self._saved = False
        self.state = State.STARTING
        self.last_acts: list[Callable[[str], object]] = []
        """Called with the reason before the process ends at once, newest first: what must not stay behind."""

    @property
    def stopping(self) -> bool:
        """Whether the run was asked to stop."""
        return self.state is State.STOPPING

    @contextlib.contextmanager
    def running(self, stop: Callable[[], bool], say: Callable[[str], None]) -> Iterator[None]:
        """Until the block ends, the first signal asks the run to stop and save.

        `stop` asks; it returns False where the run has no unsaved work. It is called on another thread. `say` prints a
        line on the console.
        """
        self._stop, self._say = stop, say
        if self.state is State.STARTING:
            self.state = State.RUNNING
        try:
            yield
        finally:
            if self.state is State.RUNNING:
                self.state = State.STARTING
            self._say = _say_on_stderr

    def saved(self) -> None:
        """Note that the run has saved all its work, and only closes what it opened."""
        self._saved = True

    def came(self, number: int) -> None:
        """Act on one signal, by its number."""
        with self._lock:
            pressed = number == signal.SIGINT
            if self.state is State.STOPPING:
                if pressed:
                    self._pressed_again()
            elif self.state is State.RUNNING and self._stop():
                self.state = State.STOPPING
                if pressed:
                    self._pressed_at = self._clock()
                why = "" if pressed else f" ({signal.Signals(number).name})"
                self._tell(f"stopping after the present step, and saving{why}{_AGAIN if pressed else ''}")
            else:
                self.end(NOTHING_TO_SAVE, "interrupted; there was nothing to save")

    def _pressed_again(self) -> None:
        """Act on a SIGINT while the run stops already."""
        if self._pressed_at is None:
            self._pressed_at = self._clock()
            self._tell(f"stopping already{_AGAIN}")
        elif self._clock() < self._pressed_at + SAME_S:
            return
        elif self._saved:
            self.end(SAVED, "ended at once by a second interrupt; the run was saved before")
        else:
            self.end(LOST, "stopped at once by a second interrupt; what was not saved is lost")

    def _tell(self, text: str) -> None:
        with contextlib.suppress(OSError):  # the console may be gone
            self._say(text)

    def end(self, code: int, why: str) -> None:
        """End this process and its descendants at once; `why` is shown. Only the first call does it."""
        if not self._ending.acquire(blocking=False):
            return
        _say_on_stderr(why)
        with contextlib.suppress(Exception):
            from launch.run.descendants import (
                descendants,
                end_all,
            )  # not imported before it is needed: starts are quick

            end_all(descendants())
        for act in reversed(self.last_acts):
            with contextlib.suppress(Exception):
                act(why)
        self._end(code)


@contextlib.contextmanager
def listening() -> Iterator[Interrupts]:
    """Listen to SIGINT, SIGTERM and SIGUSR2 until the block ends.

    On a thread other than the main one nothing is heard. Call it before other threads are started: the signals are
    blocked in this thread, and so in all that follow, and one thread waits for them. So no handler of a library, such
    as Ray's for SIGTERM, gets them.
    """
    found = Interrupts()
    if threading.current_thread() is not threading.main_thread():
        yield found
        return
    ended = threading.Event()
    before = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    # For a library that unblocks them, as Python's `multiprocessing` does on the thread that starts its tracker.
    handlers = {number: signal.signal(number, lambda came, _: _in_thread(found, came)) for number in SIGNALS}
    thread = threading.Thread(target=_listen, args=(found, ended), name="azr-interrupts", daemon=True)
    thread.start()
    try:
        yield found
    finally:
        ended.set()
        thread.join()
        for number, handler in handlers.items():
            signal.signal(number, handler)
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _listen(found: Interrupts, ended: threading.Event) -> None:
    while not ended.is_set():
        if (taken := signal.sigtimedwait(SIGNALS, _LOOK_S)) is not None:
            found.came(taken.si_signo)


def _in_thread(found: Interrupts, number: int) -> None:
    threading.Thread(target=found.came, args=(number,), daemon=True).start()


def _say_on_stderr(text: str) -> None:
    with contextlib.suppress(OSError):
        if sys.stderr.isatty():
            os.write(2, _SHOW_CURSOR)  # a live view hides it
        os.write(2, f"azr: {text}\n".encode())
