"""Supervises the task buffer's process: asks for its metrics every second, and restarts it when it does not answer."""

from __future__ import annotations

import contextlib
import shlex

from launch.cluster.budget import FailureBudget
from launch.cluster.buffer_actor import BufferActor, options
from launch.cluster.context import RunContext, RunFailed
from launch.cluster.places import Places
from launch.cluster.ray_port import CallFailed, Handle, ProcessRestarting, Reference

ASK_EVERY_S = 1.0
"""Seconds between two requests for the metrics."""
SILENT_S = 60.0
"""Seconds without an answer after which the process is killed, for Ray to restart it."""


class BufferProcess:
    """Counts the restarts of the task buffer. Ray restarts a process that ends; one that hangs is killed here first."""

    def __init__(self, context: RunContext, places: Places) -> None:
        config = context.config
        self._context = context
        self._places = places
        self._budget = FailureBudget(config.supervision.max_buffer_restarts, config.supervision.restart_window_s)
        self._opened: Reference | None = None
        self._asked: Reference | None = None
        self._log_number = context.folder.next_log("buffer")
        self._asked_at = 0.0
        self.handle: Handle = None
        self.is_answering = True
        """False from the moment that its end or silence is noticed until it answers again."""
        self.metrics: dict[str, float] = {}
        """Its newest metrics."""

    @property
    def restarts(self) -> int:
        """Failures so far."""
        return self._budget.total

    def start(self, resume: bool) -> None:
        """Start the process and begin to open its file. Call `wait_until_open` next."""
        context = self._context
        self.handle = context.ray.start(
            self._places.buffer,
            BufferActor,
            context.config,
            context.folder,
            self._log_number,
            **options(context.config.supervision.max_buffer_restarts),
        )
        self._opened = context.ray.call(self.handle, "open", resume)

    def wait_until_open(self, timeout_s: float) -> None:
        """Wait until the file is open. Raises RunFailed where it cannot be opened, or not within `timeout_s`."""
        try:
            self._context.ray.result(self._opened, timeout_s)
        except (CallFailed, TimeoutError) as error:
            raise RunFailed(self._failure(error)) from None

    def poll(self) -> None:
        """Ask for the metrics, or take the answer; never waits.

        Raises RunFailed where the budget is spent or the file failed.
        """
        context, now = self._context, self._context.clock()
        if self._asked is None:
            if now - self._asked_at > ASK_EVERY_S:
                self._asked, self._asked_at = context.ray.call(self.handle, "metrics"), now
            return
        silent_s = min(SILENT_S, context.config.supervision.watchdog_s)
        if context.ray.finished([self._asked]):
            asked, self._asked = self._asked, None
            try:
                self.metrics = context.ray.result(asked)
                self.is_answering = True
            except ProcessRestarting as error:
                if self.is_answering:
                    self._lost(error, "ended", now)
                else:  # still the same restart
                    self._asked_at = now
            except CallFailed as error:
                raise RunFailed(self._failure(error)) from None
        elif now - self._asked_at > silent_s:
            said = f"has not answered for {silent_s:.0f} s"
            self._lost(TimeoutError(f"it {said}"), said, now)
            self._asked, self._asked_at = None, now
            context.ray.kill(self.handle, restart=True)

    def close(self) -> None:
        """Close the file; waits at most 10 s."""
        if self.handle is not None:
            ray = self._context.ray
            with contextlib.suppress(CallFailed, TimeoutError):  # the file is consistent at any moment
                ray.result(ray.call(self.handle, "close"), 10.0)

    def kill(self) -> None:
        """End the process."""
        if self.handle is not None:
            self._context.ray.kill(self.handle)

    def _lost(self, error: Exception, what: str, now: float) -> None:
        self.is_answering = False
        self._context.event("buffer_lost", why=str(error))
        if self._budget.failed(now) is None:
            raise RunFailed(self._failure(error))
        self._context.say(f"the task buffer {what}; it starts again on the same file")

    def _failure(self, error: Exception) -> str:
        if self._places.is_lost(self._places.buffer):
            return (
                "the machine of the task buffer and of the learner's first rank is lost. To go on from the last "
                f"checkpoint: azr train --resume {shlex.quote(str(self._context.folder.path))}"
            )
        log = self._context.folder.logs / f"buffer.{self._log_number}.log"
        return f"the task buffer failed: {error}\nIts log: {log}"
