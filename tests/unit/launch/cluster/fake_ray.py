"""Ray, answered by the test: no process starts, and a call has the result that the test gives it."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from typing import Any

from launch.cluster.placement import Assignment, Needs, Node
from launch.cluster.ray_port import translated


class Clock:
    """Seconds that pass when the test says so."""

    def __init__(self, now: float = 0.0) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now


class FakeRay:
    """A handle is `<name>.<how often that name was started before>`, a reference `<handle>.<method>#<number>`."""

    def __init__(self, nodes: tuple[Node, ...] = (Node("here", num_cpus=64),)) -> None:
        self.alive = nodes
        self.others: tuple[tuple[str, Needs], ...] = ()
        """What other jobs take."""
        self.started: dict[str, tuple[Assignment, tuple[Any, ...], dict[str, Any]]] = {}
        """Handle -> its assignment, arguments and options."""
        self.calls: list[tuple[Any, ...]] = []
        """(handle, method, *arguments) of every call."""
        self.killed: list[str] = []
        self.restarted: list[str] = []
        """Those of `killed` that Ray may start again."""
        self.waited_s: list[float] = []
        self.always: dict[str, Any] = {}
        """`<handle>.<method>` -> the result of every such call; an exception is raised as Ray's."""
        self.once: dict[str, Any] = {}
        """Reference -> its result; goes before `always`."""
        self.references: list[str] = []
        self.answers: dict[str, Any] = {}
        """Node -> what `on_nodes` gets from it; from others it gets what the function says here."""
        self.clock: Clock | None = None
        """Goes on where nothing but the time is waited for."""

    def nodes(self) -> tuple[Node, ...]:
        return self.alive

    def in_use(self) -> tuple[tuple[str, Needs], ...]:
        return self.others

    def on_nodes(
        self, nodes: Collection[str], function: Callable[..., Any], *arguments: Any, timeout_s: float
    ) -> dict[str, Any]:
        return {node: self.answers.get(node) or function(*arguments) for node in nodes}

    def start(self, assignment: Assignment, actor: type, *arguments: Any, **options: Any) -> str:
        before = sum(handle.split(".")[0] == assignment.name for handle in self.started)
        handle = f"{assignment.name}.{before}"
        self.started[handle] = (assignment, arguments, options)
        return handle

    def call(self, handle: str, method: str, *arguments: Any) -> str:
        self.calls.append((handle, method, *arguments))
        self.references.append(f"{handle}.{method}#{len(self.references)}")
        return self.references[-1]

    def finished(self, references: Sequence[str], timeout_s: float = 0.0, count: int = 1) -> list[str]:
        self.waited_s.append(timeout_s)
        if not references and self.clock is not None:
            self.clock.now += timeout_s
        return [ref for ref in references if self._has(ref)][:count]

    def result(self, reference: str, timeout_s: float | None = None) -> Any:
        if not self._has(reference):
            raise TimeoutError(f"no answer within {timeout_s} s")
        result = self.once.get(reference, self.always.get(reference.split("#")[0]))
        if isinstance(result, Exception):
            raise translated(result)
        return result

    def kill(self, handle: str, *, restart: bool = False) -> None:
        self.killed.append(handle)
        if restart:
            self.restarted.append(handle)

    def answer_latest(self, call: str, result: Any) -> None:
        """Give the newest reference of `<handle>.<method>` its result."""
        self.once[next(ref for ref in reversed(self.references) if ref.split("#")[0] == call)] = result

    def count(self, handle: str, method: str) -> int:
        """How often a method was called."""
        return sum(call[:2] == (handle, method) for call in self.calls)

    def _has(self, reference: str) -> bool:
        return reference in self.once or reference.split("#")[0] in self.always
