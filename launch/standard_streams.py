"""Standard input, output and error of this process, in any state that its caller left them in: closed, a pipe that
nobody reads, a terminal that is gone, an encoding that lacks characters."""

from __future__ import annotations

import atexit
import contextlib
import io
import logging
import os
import select
import sys
import threading
import weakref
from collections.abc import Callable
from typing import TextIO, cast

_LOG = logging.getLogger(__name__)

HELD = 1 << 18
"""Characters that wait for a reader at most."""
PATIENCE_S = 2.0
"""Seconds for which a flush waits for a reader."""


def prepare_streams() -> None:
    """Open the closed ones on the null device, and let standard output escape what its encoding lacks.

    A process that starts with a closed descriptor 0, 1 or 2 gives that number to the next file that it opens, and
    whatever prints would write into that file. Python has None in place of a closed stream.
    """
    for number in (0, 1, 2):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # the lowest free number: this one
            os.set_inheritable(number, True)
    for name, number, mode in (("stdin", 0, "r"), ("stdout", 1, "w"), ("stderr", 2, "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, open(number, mode, encoding="utf-8", closefd=False))  # noqa: SIM115
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")


def silence(stream: TextIO) -> None:
    """Let `stream` write to the null device from now on, what it holds in memory included."""
    with contextlib.suppress(OSError, ValueError):  # it has no descriptor, or is closed
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, stream.fileno())
        os.close(null)


def lasting(stream: TextIO) -> TextIO:
    """An output stream that writes to `stream`, never fails and never blocks: once something cannot be written, it is
    silent; what nobody reads is left out, and the next reader is told.

    For a run: the terminal or the pipe that it prints to may end long before it, or stand still (Ctrl-S, a pager), and
    its log has the same lines.
    """
    with _LOCK:
        if stream not in _LASTING:
            _LASTING[stream] = _Lasting(stream)
        return cast("TextIO", _LASTING[stream])  # it has what is used of one


_LOCK = threading.Lock()
_LASTING: weakref.WeakKeyDictionary[TextIO, _Lasting] = weakref.WeakKeyDictionary()
"""One for each stream: two of them would write in any order."""


class _Lasting(io.TextIOBase):
    """See `lasting`. A thread of its own writes to the descriptor, so that only this thread waits for a reader."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._changed = threading.Condition()
        self._texts: list[str] = []
        self._left_out = 0
        """Texts that did not fit into `HELD` characters."""
        self._writing = False
        self._late = False
        """A flush has waited in vain since the thread last had nothing to write."""
        self._lost = False
        try:
            stream.flush()  # what others have printed comes first
            self._descriptor = stream.fileno()
        except (OSError, ValueError):  # a text in memory; or it is closed, and the first text tells
            self._descriptor = -1
        else:
            threading.Thread(target=self._run, name="console", daemon=True).start()
            atexit.register(self.flush)

    @property
    def encoding(self) -> str:  # type: ignore[override]
        """See `io.TextIOBase`."""
        return self._stream.encoding or "utf-8"

    def write(self, text: str) -> int:
        """See `io.TextIOBase`; raises nothing."""
        with self._changed:
            if not self._lost:
                if self._descriptor < 0:
                    self._try(lambda: self._stream.write(text))
                elif sum(map(len, self._texts)) + len(text) > HELD:
                    self._left_out += 1
                else:
                    self._texts.append(text)
                    self._changed.notify_all()
        return len(text)

    def flush(self) -> None:
        """Wait for what was written, `PATIENCE_S` at most, and not at all while nobody reads; raises nothing."""
        with self._changed:
            if self._descriptor < 0 and not self._lost:
                self._try(self._stream.flush)
            elif self._descriptor >= 0 and not self._late:
                self._late = not self._changed.wait_for(self._is_done, PATIENCE_S)

    def isatty(self) -> bool:
        """See `io.TextIOBase`."""
        return not self._lost and self._stream.isatty()

    def fileno(self) -> int:
        """See `io.TextIOBase`."""
        return self._stream.fileno()

    def _is_done(self) -> bool:
        return self._lost or not (self._texts or self._writing)

    def _run(self) -> None:
        while not self._lost:
            with self._changed:
                self._writing = False
                self._late = self._late and bool(self._texts)
                self._changed.notify_all()
                self._changed.wait_for(lambda: self._texts)
                text = "".join(self._texts)
                if self._left_out:
                    text += f"\n({self._left_out} pieces of output are left out: nobody read them; the log has them)\n"
                self._texts, self._left_out, self._writing = [], 0, True
            self._try(lambda text=text: self._write_out(text.encode(self.encoding, "backslashreplace")))  # type: ignore[misc]

    def _write_out(self, data: bytes) -> None:
        """Write to the descriptor, without the stream's lock: a process cannot end while a thread holds that."""
        while data:
            if self._stream.closed:
                raise ValueError("it is closed")  # its descriptor may be another file's by now
            try:
                data = data[os.write(self._descriptor, data) :]
            except BlockingIOError:  # another process that shares the terminal has set it so
                select.select([], [self._descriptor], [])

    def _try(self, write: Callable[[], object]) -> None:
        try:
            write()
        except (OSError, ValueError) as error:
            silence(self._stream)
            _LOG.warning("the console cannot be written (%s): it is silent from here on, and the run goes on", error)
            with self._changed:
                self._lost = True
                self._changed.notify_all()
