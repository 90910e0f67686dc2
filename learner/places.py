"""Places: which slot sits on which place of which batch. Bookkeeping of the gate (`learner/staleness.py`), G3 there.

A place of an open batch is *ungranted*, *in flight*, *queued* or *spent*, and never moves between batches; slots do.

    take      ungranted -> in flight    a slot is granted
    queue     in flight -> queued       its trajectory came in
    spend     in flight -> spent        it was returned
    vacate    in flight -> ungranted    it was dropped: the place is granted again
    unqueue   queued -> ungranted       the same, of a checkpoint's queue: it is too old for the bound of the resume
    advance   an in-flight slot changes places with the earliest place of its cell that is not filled

Says nothing about who may do what, and counts nothing that has ended.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from learner.trajectory import Cell, Role


class Holder(NamedTuple):
    """One life of one actor."""

    actor_id: str
    incarnation: int


@dataclass(slots=True)
class Slot:
    """One granted slot, from its grant until it is trained, returned or dropped."""

    cell: Cell
    batch: int
    """The batch on whose place it sits."""
    holder: Holder
    arrived: int | None = None
    """The next batch to train when it came in; None while it is in flight."""
    oldest: int = -1
    """The oldest version that sampled a token of its trajectory; -1 while it is in flight."""


class OpenBatch:
    """The places of one open batch. The spent ones are those that are in none of the three."""

    def __init__(self, cells: Iterable[Cell], ungranted: Mapping[Cell, int]) -> None:
        self.ungranted = dict.fromkeys(cells, 0) | dict(ungranted)
        """Number of ungranted places by cell."""
        self.in_flight: dict[Cell, dict[int, None]] = {cell: {} for cell in self.ungranted}
        """Slots in flight by cell, the first to have sat down first."""
        self.queued: list[int] = []
        """Slots whose trajectories came in."""

    @property
    def filled(self) -> bool:
        """Whether each place is queued or spent."""
        return not any(self.ungranted.values()) and not any(self.in_flight.values())

    def neediest(self, quota: Mapping[Cell, int]) -> str:
        """The kind with the largest share of ungranted proposals, since their solutions take longest; then of ungranted
        solutions; among equals the last of `quota` (cell -> places in a batch)."""

        def urgency(kind: str) -> tuple[float, float]:
            propose, solve = Cell(kind, Role.PROPOSE), Cell(kind, Role.SOLVE)
            return (
                self.ungranted[propose] / max(1, quota.get(propose, 0)),
                self.ungranted[solve] / max(1, quota.get(solve, 0)),
            )

        return max(reversed(dict.fromkeys(cell.kind for cell in self.ungranted)), key=urgency)

    def episode_size(self, kind: str, proposals: int, solutions: int) -> tuple[int, int]:
        """Number of proposals and solutions of the next episode: at most `proposals`, and `solutions` for each. Solve
        slots are distributed evenly over proposals."""
        to_propose, to_solve = self.ungranted[Cell(kind, Role.PROPOSE)], self.ungranted[Cell(kind, Role.SOLVE)]
        if not to_propose:
            return 0, min(to_solve, solutions)
        propose = min(to_propose, proposals)
        fair_share = -(-to_solve * propose // to_propose)
        return propose, min(fair_share, propose * solutions)


class Places:
    """The places of all open batches, and the slots on them."""

    def __init__(self) -> None:
        self.batches: dict[int, OpenBatch] = {}
        """Open batches by number, in order."""
        self.slots: dict[int, Slot] = {}
        """Slots in flight and queued, in order of grants."""
        self._held: defaultdict[Holder, dict[int, None]] = defaultdict(dict)

    def take(self, number: int, cell: Cell, slots: Collection[int], holder: Holder) -> None:
        """`holder` is granted `slots` on ungranted places of batch `number`."""
        batch = self.batches[number]
        batch.ungranted[cell] -= len(slots)
        for slot in slots:
            self.slots[slot] = Slot(cell, number, holder)
            batch.in_flight[cell][slot] = None
            self._held[holder][slot] = None

    def find_in_flight(self, slot: int, holder: Holder) -> Slot | None:
        """The slot, if `holder` has it in flight."""
        entry = self.slots.get(slot)
        return entry if entry is not None and entry.arrived is None and entry.holder == holder else None

    def advance(self, slot: int) -> None:
        """Put an in-flight slot on the earliest place of its cell that is not filled. A straggler that sat there takes
        the slot's former place; an ungranted place changes batches with it."""
        entry = self.slots[slot]
        cell, later = entry.cell, self.batches[entry.batch]
        for number, batch in self.batches.items():
            if number == entry.batch:
                return
            straggler = next(iter(batch.in_flight[cell]), None)
            if straggler is not None:
                del batch.in_flight[cell][straggler]
                later.in_flight[cell][straggler] = None
                self.slots[straggler].batch = entry.batch
            elif batch.ungranted[cell]:
                batch.ungranted[cell] -= 1
                later.ungranted[cell] += 1
            else:
                continue
            del later.in_flight[cell][slot]
            batch.in_flight[cell][slot] = None
            entry.batch = number
            return

    def queue(self, slot: int, arrived: int, oldest: int) -> None:
        """The slot's trajectory came in while `arrived` was the next batch to train; `oldest`: see `Slot`."""
        entry = self._land(slot)
        entry.arrived, entry.oldest = arrived, oldest
        self.batches[entry.batch].queued.append(slot)

    def spend(self, slot: int) -> None:
        """The slot was returned: its batch goes on without it."""
        self._land(slot)
        del self.slots[slot]

    def vacate(self, slot: int) -> None:
        """The slot was dropped: its place is ungranted again."""
        entry = self._land(slot)
        del self.slots[slot]
        self.batches[entry.batch].ungranted[entry.cell] += 1

    def unqueue(self, slot: int) -> None:
        """The slot's trajectory will not be trained: its place is ungranted again."""
        entry = self.slots.pop(slot)
        batch = self.batches[entry.batch]
        batch.queued.remove(slot)
        batch.ungranted[entry.cell] += 1

    def held(self, holder: Holder) -> Collection[int]:
        """Slots that `holder` has in flight, in order of grants."""
        return self._held.get(holder, {}).keys()

    def holders(self) -> list[Holder]:
        """Actors that have slots in flight."""
        return list(self._held)

    @property
    def num_queued(self) -> int:
        """Slots whose trajectories wait to be trained."""
        return sum(len(batch.queued) for batch in self.batches.values())

    def queued_beyond(self, max_staleness: int) -> list[int]:
        """Queued slots that would be older than `max_staleness` when they are trained on the places where they are."""
        queued = ((slot, entry) for slot, entry in self.slots.items() if entry.arrived is not None)
        return [slot for slot, entry in queued if entry.batch - entry.oldest > max_staleness]

    def lacking(self, number: int) -> str:
        """Return a text for people: the places that open batch `number` lacks, and the actors that hold them; empty if
        none."""
        batch = self.batches[number]
        held: dict[str, Counter[str]] = defaultdict(Counter)
        for cell, slots in batch.in_flight.items():
            for slot in slots:
                held[self.slots[slot].holder.actor_id][cell.name] += 1
        parts = [f"{actor} plays {dict(cells)}" for actor, cells in sorted(held.items())]
        ungranted = {cell.name: count for cell, count in batch.ungranted.items() if count}
        if ungranted:
            parts.append(f"nobody has taken {ungranted}")
        return "; ".join(parts)

    def state_dict(self) -> dict[str, Any]:
        """Plain data (msgpack or JSON) that `load_state_dict` restores."""
        return {
            "ungranted": {
                str(number): {cell.name: count for cell, count in batch.ungranted.items()}
                for number, batch in self.batches.items()
            },
            "slots": [[s, e.cell.name, e.batch, *e.holder, e.arrived, e.oldest] for s, e in self.slots.items()],
        }

    def load_state_dict(self, state: Mapping[str, Any], cells: Collection[Cell]) -> None:
        """Restore a checkpoint. `cells`: every cell that a place may be of."""
        self.batches = {
            int(number): OpenBatch(cells, {Cell.parse(name): count for name, count in ungranted.items()})
            for number, ungranted in state["ungranted"].items()
        }
        self.slots, self._held = {}, defaultdict(dict)
        for slot, name, number, actor, incarnation, arrived, oldest in state["slots"]:
            entry = Slot(Cell.parse(name), number, Holder(actor, incarnation), arrived, oldest)
            self.slots[slot] = entry
            if arrived is None:
                self.batches[number].in_flight[entry.cell][slot] = None
                self._held[entry.holder][slot] = None
            else:
                self.batches[number].queued.append(slot)

    def _land(self, slot: int) -> Slot:
        """The slot is no longer in flight."""
        entry = self.slots[slot]
        del self.batches[entry.batch].in_flight[entry.cell][slot]
        held = self._held[entry.holder]
        del held[slot]
        if not held:
            del self._held[entry.holder]
        return entry
