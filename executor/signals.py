"""Keeps the signals that ask a run to stop from its processes: its driver alone acts on them.

A scheduler sends SIGTERM or SIGUSR2 to every process of a job, a terminal SIGINT to every process in the foreground,
and SIGHUP when it closes. `end_with_parent` is about the one signal that the kernel sends by itself.
"""

from __future__ import annotations

import contextlib
import ctypes
import signal
from collections.abc import Iterator

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR2, signal.SIGHUP)
"""Requests to stop. SIGUSR2 is what schedulers are asked to send ahead of a time limit, since NCCL uses SIGUSR1. SIGHUP
comes when the terminal closes, as at the end of an ssh session."""
_PR_SET_PDEATHSIG = 1  # prctl(2), Linux
_LIBC = ctypes.CDLL(None)


def requests() -> tuple[signal.Signals, ...]:
    """The signals that this process takes as requests to stop: all, but SIGHUP where it was started to ignore it, as
    `nohup` does."""
    ignored = signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    return tuple(number for number in SIGNALS if not (ignored and number == signal.SIGHUP))


@contextlib.contextmanager
def withheld() -> Iterator[None]:
    """Processes that this thread starts in the block, and theirs, never receive the signals: they inherit the mask.

    `Popen.terminate` does not end such a process either; `kill` does.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def ignore_signals() -> None:
    """Ignore the signals in this process, whichever thread calls it.

    `signal.signal` works on the main thread only, and a Ray actor runs on another one.
    """
    libc = ctypes.CDLL(None)
    libc.signal.argtypes, libc.signal.restype = (ctypes.c_int, ctypes.c_void_p), ctypes.c_void_p
    for number in SIGNALS:
        libc.signal(number, int(signal.SIG_IGN))


def end_with_parent() -> None:
    """The kernel kills this process when the thread that started it ends. Also as `preexec_fn` of `Popen`.

    A process that is killed, as for lack of memory, can end nothing itself.
    """
    _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
