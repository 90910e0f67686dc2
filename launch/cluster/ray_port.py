"""The calls that the supervisor makes on Ray, as an interface that tests implement without Ray.

A *handle* stands for an actor process, a *reference* for the result of a call on it; both are opaque. Ray's exceptions
are translated into three: a process ended, Ray is restarting a process, or the call itself raised.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Collection, Sequence
from typing import Any, Protocol

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from executor.outcomes import InfrastructureError
from executor.user_error import UserError
from launch.cluster.placement import Assignment, Needs, Node

Handle = Any
Reference = Any


class CallFailed(Exception):
    """A call on an actor raised; the message is the cause in one line."""

    lasting = False
    """Whether another try would fail in the same way."""


class ProcessEnded(CallFailed):
    """A call on an actor has no result because its process ended."""


class ProcessRestarting(ProcessEnded):
    """A call on an actor has no result because its process ended; Ray is restarting it."""


class RayPort(Protocol):
    """The part of Ray that a supervisor uses."""

    def nodes(self) -> tuple[Node, ...]:
        """The live nodes of the cluster."""

    def in_use(self) -> tuple[tuple[str, Needs], ...]:
        """The CPUs and GPUs that processes of any job take, by the name of their node."""

    def on_nodes(
        self, nodes: Collection[str], function: Callable[..., Any], *arguments: Any, timeout_s: float
    ) -> dict[str, Any]:
        """Call a function in a process on each of `nodes`; returns the results by node.

        In place of a result there is a CallFailed, or a TimeoutError where none came within `timeout_s`.
        """

    def start(self, assignment: Assignment, actor: type, *arguments: Any, **options: Any) -> Handle:
        """Start an actor process as `assignment` says; returns at once. `options`: more options of `ray.remote`."""

    def call(self, handle: Handle, method: str, *arguments: Any) -> Reference:
        """Call a method; returns at once. A reference among the arguments is replaced by its result."""

    def finished(self, references: Sequence[Reference], timeout_s: float = 0.0, count: int = 1) -> list[Reference]:
        """At most `count` references that have a result or an error; waits up to `timeout_s` for that many.

        With no references it sleeps for `timeout_s`.
        """

    def result(self, reference: Reference, timeout_s: float | None = None) -> Any:
        """Wait for the result of a call. Raises CallFailed, and TimeoutError after `timeout_s`."""

    def kill(self, handle: Handle, *, restart: bool = False) -> None:
        """Kill an actor's process, if it still runs. `restart`: Ray may restart it."""


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
                role=node["Labels"].get("role", ""),
                index=int(index) if (index := node["Labels"].get("node_index", "")).isdecimal() else None,
            )
            for node in sorted(found, key=lambda node: node["NodeID"])
        )

    def in_use(self) -> tuple[tuple[str, Needs], ...]:
        """See `RayPort`."""
        available = ray._private.state.available_resources_per_node()
        return tuple(
            (node.name, Needs(node.num_cpus - free.get("CPU", 0.0), node.num_gpus - int(free.get("GPU", 0))))
            for node in Ray.nodes(self)
            if (free := available.get(node.name)) is not None
        )

    def on_nodes(
        self, nodes: Collection[str], function: Callable[..., Any], *arguments: Any, timeout_s: float
    ) -> dict[str, Any]:
        """See `RayPort`."""
        task = ray.remote(num_cpus=0, max_retries=0)(function)
        calls = {
            task.options(scheduling_strategy=NodeAffinitySchedulingStrategy(node, soft=False)).remote(*arguments): node
            for node in nodes
        }
        done = set(self.finished(list(calls), timeout_s, count=len(calls)))
        answers: dict[str, Any] = {}
        for call, node in calls.items():
            if call not in done:
                ray.cancel(call, force=True)
                answers[node] = TimeoutError(f"no answer within {timeout_s:.0f} s")
                continue
            try:
                answers[node] = ray.get(call)
            except Exception as error:
                answers[node] = translated(error)
        return answers

    def start(self, assignment: Assignment, actor: type, *arguments: Any, **options: Any) -> Handle:
        """See `RayPort`."""
        options |= {"num_cpus": assignment.num_cpus, "num_gpus": assignment.num_gpus}
        # Hard: Ray knows nothing of roles, tensor-parallel groups and the buffer's file. A lost node is an error.
        options["scheduling_strategy"] = NodeAffinitySchedulingStrategy(assignment.node, soft=False)
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
    """The CallFailed for an exception of Ray's, with the cause in one line and without Ray's frames around it."""
    cause = getattr(error, "cause", None) or error
    if isinstance(cause, ray.exceptions.ActorUnavailableError):
        return ProcessRestarting("its process ended")
    if isinstance(cause, ray.exceptions.RayActorError):
        if isinstance(cause, ray.exceptions.ActorDiedError) and "creation task" in str(cause):
            return ProcessEnded(_last_line(cause))  # the error that its constructor raised
        return ProcessEnded("its process ended")  # Ray's own text is a paragraph of guesses
    if isinstance(cause, ray.exceptions.ActorUnschedulableError):
        return ProcessEnded("its machine is lost")
    if isinstance(cause, ray.exceptions.OutOfMemoryError):
        return ProcessEnded("Ray ended its process: the machine was short of memory")
    if isinstance(cause, UserError):
        failed = CallFailed(str(cause))
        failed.lasting = not isinstance(cause, InfrastructureError)  # a sandbox may start the next time
        return failed
    return CallFailed(f"{type(cause).__name__}: {_last_line(cause)}")


def _last_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[-1] if lines else ""
