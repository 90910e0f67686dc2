"""The objects that all parts of the supervisor share: configuration, run folder, Ray, console, clock."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from executor.user_error import UserError
from launch.cluster.ray_port import RayPort
from launch.config import Config
from launch.run.folder import RunFolder, append_event

if TYPE_CHECKING:
    from launch.cluster.workload import Workload


class RunFailed(UserError):
    """A part of the run failed for good; the message names it and its log."""

    exit_code = 1


@dataclass(frozen=True)
class RunContext:
    """The run that is supervised, and the supervisor's means to act on it."""

    config: Config
    folder: RunFolder
    """Its path is absolute, because Ray's actors have working directories of their own."""
    ray: RayPort
    say: Callable[[str], None]
    """Prints a line on the console."""
    workload: Workload
    """What learner ranks and rollout actors do."""
    clock: Callable[[], float] = time.monotonic
    """Returns seconds since any fixed moment."""

    def event(self, name: str, **details: Any) -> None:
        """Append a line to the run's `events.jsonl`."""
        append_event(self.folder, name, **details)
