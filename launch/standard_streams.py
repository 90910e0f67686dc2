"""Standard input, output and error of this process, in any state that its caller left them in: closed, a pipe that
nobody reads, a terminal that is gone, an encoding that lacks characters."""

from __future__ import annotations

import contextlib
import io
import logging
import os
import sys
from typing import TextIO, cast

_LOG = logging.getLogger(__name__)


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
    """An output stream that writes to `stream` and never fails: once something cannot be written, it is silent.

    For a run: the terminal or the pipe that it prints to may end long before it, and its log has the same lines.
    """
    return cast("TextIO", _Lasting(stream))  # it has what is used of one


class _Lasting(io.TextIOBase):
    """See `lasting`."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._lost = False

    @property
    def encoding(self) -> str:  # type: ignore[override]
        """See `io.TextIOBase`."""
        return self._stream.encoding or "utf-8"

    def write(self, text: str) -> int:
        """See `io.TextIOBase`; raises nothing."""
        if not self._lost:
            try:
                self._stream.write(text)
            except (OSError, ValueError) as error:
                self._lose(error)
        return len(text)

    def flush(self) -> None:
        """See `io.TextIOBase`; raises nothing."""
        if not self._lost:
            try:
                self._stream.flush()
            except (OSError, ValueError) as error:
                self._lose(error)

    def isatty(self) -> bool:
        """See `io.TextIOBase`."""
        return not self._lost and self._stream.isatty()

    def fileno(self) -> int:
        """See `io.TextIOBase`."""
        return self._stream.fileno()

    def _lose(self, error: Exception) -> None:
        self._lost = True
        silence(self._stream)
        _LOG.warning("the console cannot be written (%s): it is silent from here on, and the run goes on", error)
