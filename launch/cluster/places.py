"""The places of a run's processes while it goes on: on which node each is, and where it goes when its node is lost."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence

from launch.cluster.placement import Assignment, Needs, Node, Part, PlacementError, place, place_actor, place_ranks
from launch.cluster.ray_port import RayPort
from launch.config import Config

BUSY_S = 15.0
"""Seconds to wait for what other processes in the cluster hold: those of a run that has just ended go away by then."""


class Places:
    """The assignments in force. `settle` comes first."""

    def __init__(
        self,
        config: Config,
        ray: RayPort,
        say: Callable[[str], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`say` prints a line on the console; `clock` gives seconds."""
        self._config = config
        self._ray = ray
        self._say = say
        self._clock = clock
        self._addresses: dict[str, str] = {}
        self._ranks: tuple[Assignment, ...] = ()
        self._actors: dict[int, Assignment] = {}

    def settle(self) -> None:
        """Place every process of the run. Raises PlacementError where they do not fit, or other jobs leave no room."""
        nodes = self._nodes()
        placed = beside_others(self._ray, lambda taken: place(self._config, nodes, taken=taken), self._clock)
        self._ranks = tuple(each for each in placed if each.part is Part.LEARNER)
        self._actors = {each.index: each for each in placed if each.part is Part.ROLLOUT}
        self.buffer = next(each for each in placed if each.part is Part.BUFFER)
        """The task buffer's. It stays: the buffer's file may be on that node alone."""

    def ranks(self) -> tuple[Assignment, ...]:
        """Those of the learner's ranks; all are placed anew where a node of theirs is lost. Raises PlacementError."""
        nodes = self._nodes()
        if not {rank.node for rank in self._ranks} <= {node.name for node in nodes}:
            before = self._ranks
            self._ranks = place_ranks(self._config.learner.parallel, nodes, _taken(self._actors.values()))
            for old, new in zip(before, self._ranks, strict=True):
                self._tell(old, new)
        return self._ranks

    def actor(self, index: int) -> Assignment:
        """That of a rollout actor; a new one for an actor without one, or whose node is lost. Raises PlacementError."""
        found = self._actors.get(index)
        if found is None or self.is_lost(found):
            others = [actor for other, actor in self._actors.items() if other != index]
            new = place_actor(self._config, index, self._nodes(), _taken([*self._ranks, *others]))
            self._tell(found, new)
            self._actors[index] = found = new
        return found

    def leave(self, index: int) -> None:
        """Give back the place of a rollout actor that has left."""
        self._actors.pop(index, None)

    @property
    def nodes(self) -> set[str]:
        """The names of the nodes that processes of the run are on."""
        return {each.node for each in (*self._ranks, *self._actors.values(), self.buffer)}

    def is_lost(self, assignment: Assignment) -> bool:
        """Whether the node of an assignment is no longer in the cluster."""
        return assignment.node not in {node.name for node in self._nodes()}

    def _nodes(self) -> tuple[Node, ...]:
        nodes = self._ray.nodes()
        self._addresses |= {node.name: node.address or node.name for node in nodes}
        return nodes

    def _tell(self, old: Assignment | None, new: Assignment) -> None:
        if old is not None and old.node != new.node:
            lost = " is lost" if self.is_lost(old) else "'s learner ranks move"
            self._say(f"{self._addresses[old.node]}{lost}: {new.name} starts on {self._addresses[new.node]}")


def beside_others(
    ray: RayPort,
    place: Callable[[Sequence[tuple[str, Needs]]], tuple[Assignment, ...]],
    clock: Callable[[], float] = time.monotonic,
) -> tuple[Assignment, ...]:
    """What `place` gives beside the processes that are in the cluster already; waits up to `BUSY_S` for some to end.

    Raises PlacementError at once where there would be no room without them either.
    """
    place(())
    deadline = clock() + BUSY_S
    while True:
        try:
            return place(ray.in_use())
        except PlacementError as error:
            if clock() > deadline:
                raise PlacementError(f"{error}\nOther jobs of this Ray cluster hold the rest.") from None
        ray.finished([], timeout_s=0.5)


def _taken(assignments: Iterable[Assignment]) -> list[tuple[str, Needs]]:
    return [(each.node, each.needs) for each in assignments]
