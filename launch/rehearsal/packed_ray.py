"""Ray for a rehearsal with several rollout actors in one process: the supervisor sees a process for each.

A handle of a packed actor is a place in an `ActorHost`. Where the host's process ends, each of its actors has ended,
and the next one that is started begins another process.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from launch.cluster.placement import Assignment, Needs, Node, Part
from launch.cluster.ray_port import Handle, ProcessEnded, Ray, Reference
from launch.rehearsal.actor_host import ActorHost, ActorKilled

CALLS_AT_ONCE = 8
"""Calls to one actor that may go on at the same time: its `run`, and questions."""


@dataclass(frozen=True, eq=False)
class Packed:
    """The handle of one actor in a shared process."""

    host: Any
    """Ray's handle of the process."""
    key: str
    """The actor's name in it."""
    arguments: tuple[Any, ...]
    """What its `run` gets."""


class PackedRay(Ray):
    """See `RayPort`."""

    def __init__(self, actors_per_process: int) -> None:
        self._size = actors_per_process
        self._hosts: dict[tuple[str, int], Any] = {}
        """(node, number of the process) -> its handle, of processes that are not known to have ended."""
        self._started: dict[int, int] = {}
        """By number of a process: how many were started."""
        self._calls: dict[Reference, Any] = {}
        """Call on a packed actor -> handle of the process."""

    @property
    def hosts(self) -> dict[int, Any]:
        """The processes that are not known to have ended, by number."""
        return {number: host for (_, number), host in self._hosts.items()}

    def nodes(self) -> tuple[Node, ...]:
        """See `RayPort`. A packed actor takes its share of a CPU."""
        return tuple(replace(node, num_cpus=node.num_cpus * self._size) for node in super().nodes())

    def in_use(self) -> tuple[tuple[str, Needs], ...]:
        """See `RayPort`."""
        return tuple((name, replace(needs, num_cpus=needs.num_cpus * self._size)) for name, needs in super().in_use())

    def start(self, assignment: Assignment, actor: type, *arguments: Any, **options: Any) -> Handle:
        """See `RayPort`."""
        if assignment.part is not Part.ROLLOUT:
            return super().start(assignment, actor, *arguments, **options)
        workload, config, folder, index, incarnation, *rest = arguments
        place = assignment.node, index // self._size
        if place not in self._hosts:
            life = self._started.get(place[1], 0)
            self._started[place[1]] = life + 1
            self._hosts[place] = super().start(
                assignment,
                ActorHost,
                config,
                folder,
                place[1],
                life,
                max_concurrency=CALLS_AT_ONCE * self._size,
            )
        key = f"rollout{index}.{incarnation}"
        return Packed(self._hosts[place], key, (workload, config, index, incarnation, *rest))

    def call(self, handle: Handle, method: str, *arguments: Any) -> Reference:
        """See `RayPort`."""
        if not isinstance(handle, Packed):
            return super().call(handle, method, *arguments)
        more = handle.arguments if method == "run" else ()
        reference = super().call(handle.host, method, handle.key, *more, *arguments)
        self._calls[reference] = handle.host
        return reference

    def finished(self, references: Sequence[Reference], timeout_s: float = 0.0, count: int = 1) -> list[Reference]:
        """See `RayPort`. Those that have ended are returned together: where a process ends, many have."""
        done = super().finished(references, timeout_s, count)
        return super().finished(references, 0.0, len(references)) if done else done

    def result(self, reference: Reference, timeout_s: float | None = None) -> Any:
        """See `RayPort`."""
        try:
            found = super().result(reference, timeout_s)
        except ProcessEnded:
            host = self._calls.pop(reference, None)
            self._hosts = {place: other for place, other in self._hosts.items() if other is not host}
            raise
        except Exception as error:
            cause = getattr(error.__cause__, "cause", None)
            if isinstance(cause, ActorKilled):
                raise ProcessEnded("it was killed") from error
            raise
        self._calls.pop(reference, None)
        return found

    def kill(self, handle: Handle, *, restart: bool = False) -> None:
        """See `RayPort`."""
        if not isinstance(handle, Packed):
            super().kill(handle, restart=restart)
        elif handle.host in self._hosts.values():
            super().call(handle.host, "kill", handle.key)


def process_of(handle: Handle) -> Handle:
    """The handle of the whole process that a rollout actor is in."""
    return handle.host if isinstance(handle, Packed) else handle
