"""The queue: rollouts that came in and wait to be trained, in step with the gate. No I/O, no clocks, no threads.

    slot -> trajectory   `arrive` keeps a trajectory if the gate takes it
    ready -> batch       `batch` returns the trajectories of the gate's next batch, once that is whole
    trained -> leave     `trained` removes them, after the optimizer step over them

  Q1  The queue holds one trajectory for each slot that the gate counts as queued, and none for any other slot.

The stream server and serial mode share this class; a simulator can put its own rollouts in.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Generic, Protocol, TypeVar

from learner.places import Holder
from learner.staleness import Gate
from learner.trajectory import Cell


class Queueable(Protocol):
    """The fields of a trajectory that the queue and the gate need."""

    @property
    def slot(self) -> int:
        """The granted slot that it fills."""

    @property
    def cell(self) -> Cell:
        """The cell of the slot."""

    @property
    def oldest_version(self) -> int:
        """The oldest policy version that produced a token."""


T = TypeVar("T", bound=Queueable)


class BatchQueue(Generic[T]):
    """Trajectories by slot, from their arrival until they are trained."""

    def __init__(self, gate: Gate) -> None:
        self.gate = gate
        self._by_slot: dict[int, T] = {}

    def __len__(self) -> int:
        """Trajectories that wait."""
        return len(self._by_slot)

    def arrive(self, trajectory: T, holder: Holder) -> bool:
        """Take in a trajectory that `holder` sent; returns whether it was kept (`Gate.arrive` says why not)."""
        kept = self.gate.arrive(trajectory.slot, holder, trajectory.cell, trajectory.oldest_version)
        if kept:
            self._by_slot[trajectory.slot] = trajectory
        return kept

    def batch(self) -> list[T] | None:
        """The next batch in the order of grants, without removing it; None as long as it is not whole."""
        slots = self.gate.ready()
        return None if slots is None else [self._by_slot[slot] for slot in slots]

    def trained(self, slots: Sequence[int]) -> None:
        """Remove a batch after the optimizer step over it. Raises ValueError unless `slots` are those of `batch`."""
        self.gate.trained(slots)
        for slot in slots:
            del self._by_slot[slot]

    def waiting(self) -> list[T]:
        """Every trajectory in the queue, in the order of grants."""
        return [self._by_slot[slot] for slot in sorted(self._by_slot)]

    def restore(self, trajectories: Iterable[T]) -> None:
        """Put back the queue of a checkpoint, whose gate is loaded already and may have dropped some of it."""
        self._by_slot.update({t.slot: t for t in trajectories if self.gate.is_queued(t.slot)})
