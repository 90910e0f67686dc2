"""A run's folder, `runs/<name>/`: its paths, the event log that every process appends to, and the processes' own
logs."""

from __future__ import annotations

import json
import logging
import os
import platform
import sys
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

from launch.json_lines import to_json
from launch.logs import log_to_stderr

_LOG = logging.getLogger(__name__)


class RunFolder:
    """The paths of one run."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.config = path / "config.toml"
        self.metrics = path / "metrics.jsonl"
        self.totals = path / "totals.json"
        self.events = path / "events.jsonl"
        self.trajectories = path / "trajectories"
        self.tasks = path / "tasks.sqlite"
        self.tensorboard = path / "tensorboard"
        self.checkpoints = path / "checkpoints"
        self.logs = path / "logs"

    def create(self) -> None:
        """Make the folders."""
        for folder in (self.trajectories, self.tensorboard, self.checkpoints, self.logs):
            folder.mkdir(parents=True, exist_ok=True)

    def read_metrics(self) -> list[dict[str, Any]]:
        """One object a step, in order."""
        if not self.metrics.exists():
            return []
        # A line without its end is one that a kill cut short.
        lines = self.metrics.read_text().splitlines(keepends=True)
        return [json.loads(line) for line in lines if line.endswith("\n") and line.strip()]


def append_event(folder: RunFolder, name: str, **details: Any) -> None:
    """One line in `events.jsonl`; any process may write there, since a line goes out in one piece."""
    line = to_json({"time": time.time(), "event": name, **details})
    _LOG.info("event %s %s", name, to_json(details))
    with folder.events.open("a") as file:
        file.write(line + "\n")


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


def log_to(folder: RunFolder, process: str, attempt: int, level: str) -> Path:
    """Send this process's log records and output, and its children's output, to `logs/<process>.<attempt>.log`.

    `level`: of the log records, one of `launch.arguments.LOG_LEVELS`.
    """
    path = folder.logs / f"{process}.{attempt}.log"
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    sys.stdout.flush()
    sys.stderr.flush()
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    os.close(descriptor)
    log_to_stderr(f"{process}.{attempt}", level)
    _LOG.info("the process starts: azr %s, Python %s", version("azr"), platform.python_version())
    return path
