"""SIGINT, SIGTERM, SIGUSR2 and SIGHUP as requests to stop, heard in every phase of a run.

    state      signal                                   effect
    STARTING   any                                      the process ends at once, exit code `NOTHING_TO_SAVE`
    RUNNING    any, with unsaved work                   the run is asked to stop; STOPPING
    RUNNING    any, without unsaved work                the process ends at once, exit code `NOTHING_TO_SAVE`
    STOPPING   SIGTERM, SIGUSR2, SIGHUP                 none: schedulers send several signals for one request
    STOPPING   first SIGINT, or within `SAME_S` of it   none: a press of Ctrl-C may send several
    STOPPING   SIGINT, later                            the process ends at once, exit code `LOST` (`SAVED` after
                                                        `saved`)

A request to stop may have a bound (`StopLimits`): seconds from the request, and a time by which the run is saved. As
that time comes near, the run is asked to stop as by a signal.

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
from dataclasses import dataclass
from enum import StrEnum

from executor.signals import requests

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

LAST_S = 2.0
"""Seconds before the end of a stop's time in which a run that is saved ends at once, with its own exit code."""
LOSS_EVERY_S = 1.0
"""Seconds between two looks whether another process took over the run."""
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


@dataclass(frozen=True)
class StopLimits:
    """The time that a stop has; None: it has no bound."""

    grace_s: float | None = None
    """Seconds from a signal after which a scheduler kills, which is each but SIGUSR2, until the run is saved
    (`--grace-s`)."""
    stop_by: float | None = None
    """Unix time by which the run is saved, and is asked to stop in time for it (`--stop-by`)."""


UNLIMITED = StopLimits()


class Interrupts:
    """Decides what a signal does to this run. `listening` makes one that signals reach."""

    def __init__(
        self,
        end: Callable[[int], object] = os._exit,
        clock: Callable[[], float] = time.monotonic,
        limits: StopLimits = UNLIMITED,
    ) -> None:
        """`end` ends the process with an exit code; `clock` returns seconds."""
        self.limits = limits
        self._end = end
        self._clock = clock
        self._lock = threading.Lock()
        self._ending = threading.Lock()
        self._stop: Callable[[], bool] = lambda: False
        self._say: Callable[[str], None] = _say_on_stderr
        self._needed_s: Callable[[], float] = lambda: 0.0
        self.killed_at: float | None = None
        """When a scheduler kills this process, on `clock`, as far as a signal says so; None while none did."""
        self._pressed_at: float | None = None
        self._saved = False
        self.state = State.STARTING
        self.loss: Callable[[], str] = lambda: ""
        """Says why this process must write nothing more: another one took over its run. Empty while none did."""
        self._looked_at = -LOSS_EVERY_S
        self.last_acts: list[Callable[[str], object]] = []
        """Called with the reason before the process ends at once, newest first: what must not stay behind."""

    @property
    def stopping(self) -> bool:
        """Whether the run was asked to stop."""
        return self.state is State.STOPPING

    def left_s(self) -> float | None:
        """Seconds that the stop which was asked for still has until the run is saved; None: it has no bound.

        A later signal may shorten it: `killed_at` then changes.
        """
        ends = []
        if self.killed_at is not None:
            ends.append(self.killed_at - self._clock())
        if self.limits.stop_by is not None:
            ends.append(self.limits.stop_by - time.time())
        return min(ends, default=None)

    @contextlib.contextmanager
    def running(
        self,
        stop: Callable[[], bool],
        say: Callable[[str], None],
        needed_s: Callable[[], float] = lambda: 0.0,
    ) -> Iterator[None]:
        """Until the block ends, the first signal asks the run to stop and save.

        `stop` asks; it returns False where the run has no unsaved work. It is called on another thread, and again where
        a signal shortens the time. `say` prints a line on the console. `needed_s`: seconds that a stop would take at
        this moment, for `StopLimits.stop_by`.
        """
        self._stop, self._say, self._needed_s = stop, say, needed_s
        if self.state is State.STARTING:
            self.state = State.RUNNING
        try:
            yield
        finally:
            if self.state is State.RUNNING:
                self.state = State.STARTING
            self._say, self._needed_s = _say_on_stderr, lambda: 0.0

    def saved(self) -> None:
        """Note that the run has saved all its work, and only closes what it opened."""
        self._saved = True

    def came(self, number: int) -> None:
        """Act on one signal, by its number."""
        with self._lock:
            pressed = number == signal.SIGINT
            shortened = number != signal.SIGUSR2 and self.killed_at is None and self.limits.grace_s is not None
            if shortened:
                self.killed_at = self._clock() + (self.limits.grace_s or 0.0)
            if self.state is State.STOPPING:
                if shortened:
                    self._stop()
                    self._tell(f"saving within {max(0.0, self.left_s() or 0.0):.0f} s ({signal.Signals(number).name})")
                if pressed:
                    self._pressed_again()
            elif pressed:
                self._pressed_at = self._clock()
                self._ask("", _AGAIN)
            else:
                self._ask(f" ({signal.Signals(number).name})")

    def look(self) -> None:
        """End the process at once where another one took over its run, and where the time of a stop is up after the
        run was saved. Ask the run to stop once its end, `StopLimits.stop_by`, is no further away than a stop takes."""
        if self._clock() > self._looked_at + LOSS_EVERY_S:
            self._looked_at = self._clock()
            if loss := self.loss():
                self.end(LOST, loss)
        if self._saved and self.stopping and (left := self.left_s()) is not None and left < LAST_S:
            self.end(SAVED, "ended before everything was closed, because its time is up; the run was saved before")
        stop_by = self.limits.stop_by
        if stop_by is not None and not self.stopping and time.time() >= stop_by - self._needed_s():
            with self._lock:
                if not self.stopping:
                    self._ask(f" (its end, {time.strftime('%H:%M:%S', time.localtime(stop_by))}, is near)")

    def _ask(self, why: str, then: str = "") -> None:
        """Ask the run to stop, or end the process where it has nothing to save."""
        if self.state is not State.RUNNING or not self._stop():
            self.end(NOTHING_TO_SAVE, f"interrupted{why}; there was nothing to save")
            return
        self.state = State.STOPPING
        left = self.left_s()
        bound = "" if left is None else f" within {max(0.0, left):.0f} s"
        what = "after the present step, and saving" if left is None else f"and saving{bound}"
        self._tell(f"stopping {what}{why}{then}")

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
def listening(limits: StopLimits = UNLIMITED, to_exit: bool = False) -> Iterator[Interrupts]:
    """Listen to requests to stop (`executor.signals.requests`), and look at the time, until the block ends.

    On a thread other than the main one nothing is heard. Call it before other threads are started: the signals are
    blocked in this thread, and so in all that follow, and one thread waits for them. So no handler of a library, such
    as Ray's for SIGTERM, gets them.

    `to_exit`: the process ends after the block. Signals that come later, while libraries close, are ignored: they would
    replace the exit code, by which a scheduler knows that the run has saved.
    """
    found = Interrupts(limits=limits)
    if threading.current_thread() is not threading.main_thread():
        yield found
        return
    ended = threading.Event()
    heard = requests()
    before = signal.pthread_sigmask(signal.SIG_BLOCK, heard)
    # For a library that unblocks them, as Python's `multiprocessing` does on the thread that starts its tracker.
    handlers = {number: signal.signal(number, lambda came, _: _in_thread(found, came)) for number in heard}
    thread = threading.Thread(target=_listen, args=(found, ended, heard), name="azr-interrupts", daemon=True)
    thread.start()
    try:
        yield found
    finally:
        ended.set()
        thread.join()
        for number, handler in handlers.items():
            signal.signal(number, signal.SIG_IGN if to_exit else handler)
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def stop_details(left_s: float | None, save_s: float) -> dict[str, float]:
    """Details of the event `stopping`: seconds that the stop has, and those of them that are kept for the last
    checkpoint. Empty without a bound."""
    return {} if left_s is None else {"left_s": round(left_s, 1), "save_s": round(save_s, 1)}


def _listen(found: Interrupts, ended: threading.Event, heard: tuple[signal.Signals, ...]) -> None:
    while not ended.wait(_LOOK_S):
        # Not `sigtimedwait`: after a SIGSTOP that outlasts its timeout it returns a signal that never came.
        for number in signal.sigpending() & set(heard):
            signal.sigwait({number})
            found.came(number)
        found.look()


def _in_thread(found: Interrupts, number: int) -> None:
    threading.Thread(target=found.came, args=(number,), daemon=True).start()


def _say_on_stderr(text: str) -> None:
    with contextlib.suppress(OSError):
        if sys.stderr.isatty():
            os.write(2, _SHOW_CURSOR)  # a live view hides it
        os.write(2, f"azr: {text}\n".encode())
