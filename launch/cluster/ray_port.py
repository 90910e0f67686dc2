"""The few calls that the supervisor makes on Ray, as an interface: tests answer in Ray's place.

A *handle* stands for an actor process, a *reference* for the result of a call on it; both are opaque. What Ray raises is turned
into three errors: a process ended, a process is being started again by Ray, or the call itself failed.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Sequence
from typing import Any, Protocol

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from launch.cluster.placement import Node, Place

Handle = Any
Reference = Any


class CallFailed(Exception):
    """A call on an actor raised; the message is the cause in one line."""


class ProcessEnded(CallFailed):
    """A call on an actor came to nothing because its process ended."""


class ProcessRestarting(ProcessEnded):
    """A call on an actor came to nothing because its process ended and Ray is starting it again."""


class RayPort(Protocol):
    """Ray, as far as a supervisor uses it."""

    def nodes(self) -> tuple[Node, ...]:
        """The live nodes of the cluster."""

    def start(self, place: Place, actor: type, *arguments: Any, **options: Any) -> Handle:
        """Start an actor process at `place`; `options` are those of `ray.remote`. Returns before it runs."""

    def call(self, handle: Handle, method: str, *arguments: Any) -> Reference:
        """Call a method; returns at once. References among the arguments are replaced by their results."""

    def finished(self, references: Sequence[Reference], timeout_s: float = 0.0, count: int = 1) -> list[Reference]:
        """The references with a result or an error, at most `count`; waits up to `timeout_s` for that many.

        Without references it waits `timeout_s`.
        """

    def result(self, reference: Reference, timeout_s: float | None = None) -> Any:
        """The result of a call; waits for it. Raises CallFailed, and TimeoutError after `timeout_s`."""

    def kill(self, handle: Handle, *, restart: bool = False) -> None:
        """End an actor's process, if it still runs. `restart`: Ray may start it again."""


class Ray:
    """The cluster that this process is connected to."""

    def nodes(self) -> tuple[Node, ...]:
        """See `RayPort`."""
        found = [node for node in ray.nodes() if node["Alive"]]
        return tuple(
            Node(
                node["NodeID"],
                num_cpus=node["Resources"].get("CPU", 0.0),
                num_gpus=int(node["Resources"].get("GPU", 0)),
                address=node["NodeManagerAddress"],
            )
            for node in sorted(found, key=lambda node: node["NodeID"])
        )

    def start(self, place: Place, actor: type, *arguments: Any, **options: Any) -> Handle:
        """See `RayPort`."""
        options |= {"num_cpus": place.num_cpus, "num_gpus": place.num_gpus}
        if place.node is not None:
            # Soft: a node that is lost meanwhile is no reason not to start elsewhere.
            options["scheduling_strategy"] = NodeAffinitySchedulingStrategy(place.node, soft=True)
        return ray.remote(**options)(actor).remote(*arguments)

    def call(self, handle: Handle, method: str, *arguments: Any) -> Reference:
        """See `RayPort`."""
        return getattr(handle, method).remote(*arguments)

    def finished(self, references: Sequence[Reference], timeout_s: float = 0.0, count: int = 1) -> list[Reference]:
        """See `RayPort`."""
        if not references:
            time.sleep(timeout_s)
            return []
        done, _ = ray.wait(list(references), num_returns=min(count, len(references)), timeout=timeout_s)
        return list(done)

    def result(self, reference: Reference, timeout_s: float | None = None) -> Any:
        """See `RayPort`."""
        try:
            return ray.get(reference, timeout=timeout_s)
        except ray.exceptions.GetTimeoutError as error:
            raise TimeoutError(f"no answer within {timeout_s:.0f} s") from error
        except Exception as error:
            raise translated(error) from error

    def kill(self, handle: Handle, *, restart: bool = False) -> None:
        """See `RayPort`."""
        with contextlib.suppress(ray.exceptions.RayError):
            ray.kill(handle, no_restart=not restart)


def translated(error: Exception) -> CallFailed:
    """The error for what Ray raised, with the cause in one line and without Ray's frames around it."""
    cause = getattr(error, "cause", None) or error
    if isinstance(cause, ray.exceptions.ActorUnavailableError):
        return ProcessRestarting("its process ended")
    if isinstance(cause, ray.exceptions.RayActorError):
        if isinstance(cause, ray.exceptions.ActorDiedError) and "creation task" in str(cause):
            return ProcessEnded(_last_line(cause))  # what its constructor raised
        return ProcessEnded("its process ended")  # Ray's own words are a paragraph of what might have been
    if isinstance(cause, ray.exceptions.OutOfMemoryError):
        return ProcessEnded("Ray ended its process: the machine was short of memory")
    return CallFailed(f"{type(cause).__name__}: {_last_line(cause)}")


def _last_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[-1] if lines else ""
