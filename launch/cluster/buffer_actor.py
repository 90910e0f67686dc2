"""The task buffer's process: serves the store to the rollout actors and the learner, as a Ray actor."""

from __future__ import annotations

import asyncio
import logging
import os
import sqlite3
import time
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import ray

from actors.buffer.file import TaskBufferError
from actors.buffer.remote import Answer, RemoteBuffer, Request
from actors.buffer.task_buffer import TaskBuffer
from actors.labelled import LabelledProgram
from executor.signals import ignore_signals
from launch.cluster.cpu import cpu_seconds
from launch.cluster.environment import prepare_part
from launch.config import Config
from launch.run.folder import OwnerLost, RunFolder, log_to
from launch.run.task_buffer import open_tasks

_LOG = logging.getLogger(__name__)

T = TypeVar("T")

OWNER_EVERY_S = 1.0
"""Seconds between two looks whether the run folder has another owner."""


class BufferActor:
    """Serves requests one after the other; a snapshot is written beside them, on a thread of its own.

    Ray restarts the process when it ends. The file has everything that was answered, and is opened as it is.

    When a request fails because of the file (a full disk, for example), the error is raised to its caller and, from
    then on, by `metrics`. The supervisor and the learner ask for metrics all the time, so the run ends and does not go
    on without its tasks.
    """

    def __init__(self, config: Config, folder: RunFolder, log_number: int = 0) -> None:
        """`log_number`: of its log; a process that Ray restarts goes on with the same one."""
        self._config = config
        self._folder = folder
        ignore_signals()
        log_to(self._folder, "buffer", log_number, config.run.log_level)
        self._store: TaskBuffer | None = None
        self._checked_at = 0.0
        self._failure: Exception | None = None
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Ray calls a deprecated function of its own there
            restarted = ray.get_runtime_context().was_current_actor_reconstructed
        if restarted and self._folder.tasks.exists():
            self._store = TaskBuffer(self._folder.tasks, config.buffer)

    def open(self, resume: bool) -> None:
        """See `launch.run.task_buffer.open_tasks`."""
        prepare_part(self._config)
        self._store = open_tasks(self._config, self._folder, resume)
        _LOG.info("the task buffer is open: %s", self._store.sizes())

    def several(self, requests: Sequence[Request]) -> list[Answer]:
        """Requests of one rollout actor, one after the other. What is wrong with one is the answer to it."""
        return self._ask(lambda store: [_answer(store, *request) for request in requests])

    def labelled(self, count: int, seed: str) -> list[LabelledProgram]:
        """See `TaskBuffer.labelled`."""
        return self._ask(lambda store: store.labelled(count, seed))

    def metrics(self) -> dict[str, float]:
        """See `TaskBuffer.metrics`. Raises the error of the request that the file made fail, if there was one."""
        if self._failure is not None:
            raise self._failure
        return self._ask(TaskBuffer.metrics)

    @ray.method(concurrency_group="counts")  # type: ignore[untyped-decorator]
    def counts(self) -> dict[str, float]:
        """`metrics`, without waiting for the requests that came before: a new version grants many episodes at once,
        and the learner records its step at that moment."""
        if self._failure is not None:
            raise self._failure
        assert self._store is not None
        return self._store.metrics()

    @ray.method(concurrency_group="snapshot")  # type: ignore[untyped-decorator]
    def snapshot(self, path: Path) -> None:
        """See `TaskBuffer.snapshot`. Requests are served meanwhile."""
        assert self._store is not None
        self._store.snapshot(path)

    def pid(self) -> int:
        """The process id, for drills."""
        return os.getpid()

    def cpu(self) -> dict[str, float]:
        """See `launch.cluster.cpu.cpu_seconds`."""
        return cpu_seconds()

    def close(self) -> None:
        """Close the file. No request may come after this."""
        if self._store is not None:
            self._store.close()

    def _ask(self, request: Callable[[TaskBuffer], T]) -> T:
        assert self._store is not None
        try:
            if time.monotonic() > self._checked_at + OWNER_EVERY_S:
                self._folder.check_owner()
                self._checked_at = time.monotonic()
            return request(self._store)
        except (sqlite3.Error, TaskBufferError, OwnerLost, OSError) as error:
            self._failure = error
            _LOG.exception("the task buffer failed for good")
            raise


def _answer(store: TaskBuffer, method: str, arguments: Sequence[Any]) -> Answer:
    try:
        return Answer(getattr(store, method)(*arguments))
    except (KeyError, ValueError) as error:
        return Answer(None, error)


def options(max_restarts: int) -> dict[str, Any]:
    """The options of `ray.remote` for this actor."""
    # Snapshots have a thread of their own, so that no episode waits for one; counts, so that they wait for no episode.
    return {"concurrency_groups": {"snapshot": 1, "counts": 1}, "max_restarts": max_restarts}


def ask_buffer(handle: Any, request: str, *arguments: Any) -> Any:
    """Ask the actor and wait for the answer: `RemoteBuffer.ask` for callers without an event loop."""
    return asyncio.run(RemoteBuffer(handle).ask(request, *arguments))
