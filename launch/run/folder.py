"""A run's folder, `runs/<name>/`: its paths, its attempts, the event log that every process appends to, and the
processes' own logs."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import platform
import re
import sys
import time
from collections.abc import Callable, Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any, ClassVar

from executor.user_error import UserError
from launch.json_file import read_json
from launch.json_lines import to_json
from launch.logs import log_to_stderr
from learner.disk import matches

_LOG = logging.getLogger(__name__)


class RunFolderError(UserError):
    """A run folder that cannot be used; the message says what to do."""


class OwnerLost(RunFolderError):
    """Another process took over the folder that this process owned."""

    exit_code: ClassVar[int] = 1


class AttemptFolder:
    """`attempts/NNN/`: what one start or resume of the run began with, and what it set aside."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.number = int(path.name)
        self.config = path / "config.toml"
        self.record = path / "attempt.json"

    def began(self) -> dict[str, Any]:
        """`attempt`, `time` (UTC), `host`, `machine` in words, version of `azr`, `pid` and `command` of the attempt;
        empty where they cannot be read."""
        return read_json(self.record)

    def new_aside(self) -> Path:
        """Make the next of `aside.1/`, `aside.2/` ..., for records that are moved out of the way."""
        numbers = [int(number) for path in self.path.glob("aside.*") if (number := path.name[6:]).isdecimal()]
        aside = self.path / f"aside.{max(numbers, default=0) + 1}"
        aside.mkdir(parents=True)
        return aside


class RunFolder:
    """The paths of one run."""

    def __init__(self, path: Path, claim: str = "") -> None:
        self.path = path
        self.config = path / "config.toml"
        self.metrics = path / "metrics.jsonl"
        self.totals = path / "totals.json"
        self.events = path / "events.jsonl"
        self.trajectories = path / "trajectories"
        self.tasks = path / "tasks.sqlite"
        self.tensorboard = path / "tensorboard"
        self.checkpoints = path / "checkpoints"
        self.heldout = path / "heldout"
        self.logs = path / "logs"
        self.attempts = path / "attempts"
        self.owner = path / "owner.lock"
        self.control = path / "control.json"
        self.claim = claim
        """The token in `owner.lock` by which this run owns the folder (`launch.run.owner`); empty: it owns none."""

    def absolute(self) -> RunFolder:
        """The same folder, for processes with working directories of their own."""
        return RunFolder(self.path.absolute(), self.claim)

    def loss(self) -> str:
        """The sentence for a run whose folder another process has taken over; empty while it owns it, or owns none."""
        if not self.claim:
            return ""
        try:
            lines = self.owner.read_text().splitlines()
        except FileNotFoundError:
            lines = []
        except OSError:
            return ""  # a file system that does not answer tells nothing
        if f"token={self.claim}" in lines:
            return ""
        return (
            f"this process does not own {self.path} any more, and writes nothing more there: it gave no heartbeat for "
            f"too long and another process took over, or {self.owner} was removed"
        )

    def check_owner(self) -> None:
        """Raise OwnerLost if this run owned the folder and has lost it. Every process of a run calls it before it
        writes."""
        if loss := self.loss():
            raise OwnerLost(loss)

    def create(self) -> None:
        """Make the folders."""
        for folder in (self.trajectories, self.tensorboard, self.checkpoints, self.logs):
            folder.mkdir(parents=True, exist_ok=True)

    def newest_attempt(self) -> AttemptFolder | None:
        """The attempt that began last, or None."""
        return found[-1] if (found := self.all_attempts()) else None

    def all_attempts(self) -> list[AttemptFolder]:
        """The attempts, the first one first."""
        found = matches(self.attempts, "[0-9]+")
        return [AttemptFolder(path) for path in sorted(found, key=lambda path: int(path.name))]

    def new_attempt(self) -> AttemptFolder:
        """Make the folder of the next attempt."""
        newest = self.newest_attempt()
        attempt = AttemptFolder(self.attempts / f"{newest.number + 1 if newest else 1:03d}")
        attempt.path.mkdir(parents=True)
        return attempt

    def next_log(self, process: str) -> int:
        """The number of the next log of `process`: one more than those of its logs."""
        logs = matches(self.logs, rf"{re.escape(process)}\.[0-9]+\.log")
        return 1 + max((int(log.name.split(".")[-2]) for log in logs), default=-1)

    def read_metrics(self) -> list[dict[str, Any]]:
        """One object a step, in order."""
        if not self.metrics.exists():
            return []
        # A line without its end is one that a kill cut short.
        lines = self.metrics.read_text().splitlines(keepends=True)
        return [json.loads(line) for line in lines if line.endswith("\n") and line.strip()]

    def read_events(self) -> list[dict[str, Any]]:
        """The events (`append_event`), the oldest first. Lines that a kill or a full disk cut short are left out."""
        try:
            lines = self.events.read_bytes().splitlines()
        except FileNotFoundError:
            return []
        found = []
        for line in lines:
            with contextlib.suppress(ValueError):
                found.append(json.loads(line))
        return [event for event in found if isinstance(event, dict)]


@contextlib.contextmanager
def usable(folder: RunFolder) -> Iterator[None]:
    """Raise RunFolderError for an OSError in the block: something in `folder` cannot be read or written."""
    try:
        yield
    except OSError as error:
        raise RunFolderError(
            f"{folder.path} cannot be used: {error.strerror} ({error.filename or folder.path}). This user must be able "
            "to read and write everything in it, and the disk must have room"
        ) from None


def append_event(folder: RunFolder, name: str, **details: Any) -> None:
    """One line in `events.jsonl`; any process may write there, since a line goes out in one piece.

    A last line without its end, which a full disk has cut short, is ended first. Nothing is written once the folder is
    lost to another owner.
    """
    line = to_json({"time": time.time(), "event": name, **details}) + "\n"
    _LOG.info("event %s %s", name, to_json(details))
    if folder.loss():
        return
    with folder.events.open("ab+", buffering=0) as file:
        size = file.seek(0, os.SEEK_END)
        cut = size > 0 and os.pread(file.fileno(), 1, size - 1) != b"\n"
        file.write(("\n" + line if cut else line).encode())


def end_at_once(folder: RunFolder, why: str) -> None:
    """Record the end of a run whose process ends at once, and give its folder back. Raises OwnerLost."""
    _LOG.error("the process ends at once: %s", why)
    folder.check_owner()
    append_event(folder, "run_ended", why=why)
    folder.control.unlink(missing_ok=True)
    folder.owner.unlink(missing_ok=True)


def checkpoint_event(
    folder: RunFolder, measured: Callable[[float], object] = lambda seconds: None
) -> Callable[[int, float], None]:
    """A function for `Checkpoints(on_complete=...)` that records each checkpoint as an event.

    `measured` is told its seconds.
    """

    def complete(step: int, seconds: float) -> None:
        measured(seconds)
        append_event(folder, "checkpoint", step=step, seconds=round(seconds, 3))

    return complete


def work_log(folder: RunFolder, actor_id: str, wanted: bool) -> Callable[[dict[str, Any]], None] | None:
    """A function that appends an entry to `executor_work.<actor>.jsonl`, for `Judge(record=...)`; None unless
    `wanted`."""
    if not wanted:
        return None
    # Line by line, for the life of the process: what an actor was asked last is there when it is killed.
    stream = (folder.path / f"executor_work.{actor_id}.jsonl").open("a", buffering=1)

    def record(entry: dict[str, Any]) -> None:
        stream.write(to_json(entry) + "\n")

    return record


def log_to(folder: RunFolder, process: str, number: int, level: str) -> Path:
    """Send this process's log records and output, and its children's output, to `logs/<process>.<number>.log`.

    `level`: of the log records, one of `launch.arguments.LOG_LEVELS`.
    """
    path = folder.logs / f"{process}.{number}.log"
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    sys.stdout.flush()
    sys.stderr.flush()
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    os.close(descriptor)
    log_to_stderr(f"{process}.{number}", level)
    _LOG.info("the process starts: azr %s, Python %s", version("azr"), platform.python_version())
    return path
