"""Logging of azr's processes: one format everywhere, so that the logs of several nodes can be put in order.

    2026-11-27T03:22:56.123Z node17 rollout3.1 4711 INFO actors.rollout: joined the weight group

The fields are the time in UTC, the host, the process (`driver`, `learner<rank>`, `rollout<index>`, `buffer`, `serial`,
`sft`) with the number of its log file, its process id, the level, and the module. Each line of a message with several
lines has all fields, so `sort -s -k1,1 runs/NAME/logs/*` merges the logs of a run by time and keeps tracebacks whole.

Modules log to `logging.getLogger(__name__)`. What other libraries print into the same files keeps the form that they
give it.
"""

from __future__ import annotations

import contextlib
import logging
import os
import platform
import sys
import time
from pathlib import Path

PACKAGES = ("executor", "actors", "learner", "launch")
_OWN = "azr"


class Formatter(logging.Formatter):
    """The format above, of one process."""

    converter = staticmethod(time.gmtime)
    default_time_format = "%Y-%m-%dT%H:%M:%S"
    default_msec_format = "%s.%03dZ"

    def __init__(self, process: str) -> None:
        super().__init__()
        self._process = process
        self._host = platform.node()

    def format(self, record: logging.LogRecord) -> str:
        """The record's message and traceback, each line with all fields."""
        text = super().format(record)  # the default format is the message alone, with the traceback after it
        fields = (
            f"{self.formatTime(record)} {self._host} {self._process} {os.getpid()} {record.levelname} {record.name}: "
        )
        return "\n".join(fields + line for line in text.splitlines() or [""])


def log_to_stderr(process: str, level: str) -> None:
    """Write this process's log records to its standard error, which a Ray actor has as its log file."""
    _install(logging.StreamHandler(), process, level)


def log_to_file(file: Path, process: str, level: str) -> None:
    """Append this process's log records to `file`; its standard error, where a person looks, stays free of them."""
    _install(_File(file, encoding="utf-8", errors="backslashreplace"), process, level)


def close_log() -> None:
    """Remove the handler of `log_to_stderr` or `log_to_file`: what this process logs from now on is of no run."""
    root = logging.getLogger()
    for handler in [one for one in root.handlers if one.get_name() == _OWN]:
        root.removeHandler(handler)
        with contextlib.suppress(OSError):  # what a full disk has not taken
            handler.close()


class _File(logging.FileHandler):
    """A log file. Libraries may close all handlers; this one then opens its file again. A run goes on without a log
    where that fails, or the disk is full, and says so once."""

    _told = False

    def emit(self, record: logging.LogRecord) -> None:
        try:
            super().emit(record)
        except OSError:
            self.handleError(record)

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802 (the name is logging's)
        error = sys.exception()
        if not isinstance(error, OSError):
            super().handleError(record)
        elif not self._told:  # logging would print a traceback for every record
            self._told = True
            sys.stderr.write(f"azr: the log {self.baseFilename} cannot be written: {type(error).__name__}: {error}\n")


def _install(handler: logging.Handler, process: str, level: str) -> None:
    """Replace the handler of an earlier call. Levels: `level` for this project's modules, WARNING for other
    libraries."""
    close_log()
    handler.set_name(_OWN)
    handler.setFormatter(Formatter(process))
    logging.getLogger().addHandler(handler)
    for package in PACKAGES:
        logging.getLogger(package).setLevel(level.upper())
