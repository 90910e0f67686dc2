"""The gate and the ledger: what may start, and where everything that started is.

Policy only: no I/O, no clocks, no threads. The stream server, serial mode and a simulator drive the same objects.

Every *slot* is granted for one trajectory of one cell of one numbered batch; batch `b` makes version `b + 1` out of
version `b`. With `v` the published version (trained, and loaded by every engine) and `S = max_staleness`:

  G1  slots of batch b are granted only while b <= v + S, so that in every cell
          granted - settled <= (S + 1) * quota
  G2  batch b is trained at version b by construction, hence age = b - (oldest version in its tokens) <= S
  G3  batch b is ready when each of its slots is queued or was returned; `on_stale = wait` means that nothing overtakes a
      straggler, so slow and hard tasks are not under-represented
  L1  granted = trained + dropped + returned + queued + in flight, in every cell, at every moment

A slot is *settled* when the version that it trained is published, or when it is dropped or returned. A dropped slot (its
actor died) is granted again within the same batch. A returned slot (its actor had no task to fill it with) is not: the
batch goes on without it, so no batch waits for a cell that cannot fill.

Slots are handed out as *episodes*: some proposals of one kind, with the slots of their solutions, to one actor. An
actor that holds a proposal therefore already holds all that the proposal can come to need: nobody waits for a slot
while holding one, and there is no deadlock, at any staleness, valid proposals or not.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, NamedTuple

from executor.tasks import Kind
from learner.settings import BatchSettings
from learner.trajectory import CELLS, Cell, Role


class DropReason(StrEnum):
    """Why a slot's trajectory will never be trained."""

    ACTOR_LOST = "actor_lost"
    LEARNER_RESTART = "learner_restart"
    ROLLOUT_FAILED = "rollout_failed"


class Holder(NamedTuple):
    """One life of one actor."""

    actor_id: str
    incarnation: int


@dataclass(frozen=True, slots=True)
class Grant:
    """The slots of one episode: proposals of one kind and the solutions that judge them, or solutions alone (replay)."""

    episode: int
    kind: Kind
    batch: int
    propose: tuple[int, ...]
    solve: tuple[int, ...]

    @property
    def slots(self) -> tuple[int, ...]:
        """All slots of the episode."""
        return self.propose + self.solve


@dataclass(slots=True)
class _Slot:
    cell: Cell
    batch: int
    holder: Holder
    queued: bool = False


@dataclass(slots=True)
class CellCounts:
    """Where the slots of one cell are. `queued` and `in_flight` are counted from the slots themselves, the rest as events."""

    granted: int = 0
    trained: int = 0
    returned: int = 0
    dropped: Counter[str] = field(default_factory=Counter)
    queued: int = 0
    in_flight: int = 0

    @property
    def conserved(self) -> bool:
        """L1 for this cell."""
        ended = self.trained + self.returned + self.dropped.total()
        return self.granted == ended + self.queued + self.in_flight


class Gate:
    """Grants slots under bounded staleness, forms batches in the order of grants, and keeps the ledger."""

    def __init__(
        self, batch: BatchSettings, max_staleness: int, solutions: int, proposals_per_prompt: int = 1, version: int = 0
    ) -> None:
        """`solutions`: n, the most solve slots that travel with one proposal. `version`: the first published version."""
        self.max_staleness = max_staleness
        self.version = version
        self._quota = {cell: batch.quota(cell) for cell in CELLS}
        self._solutions = solutions
        self._proposals_per_prompt = proposals_per_prompt
        self._next_slot = 0
        self._next_episode = 0
        self._needs: dict[int, dict[Cell, int]] = {}
        self._slots: dict[int, _Slot] = {}
        self._trained_unpublished: Counter[Cell] = Counter()
        self._counts: dict[Cell, CellCounts] = {cell: CellCounts() for cell in CELLS}
        self._trained_batches = version
        self._open()

    # -- granting ------------------------------------------------------------------------------------------------

    def grant(self, holder: Holder, room: int) -> Grant | None:
        """One more episode for `holder`, or None: the gate is shut, or the holder has no room for it.

        `room` is the number of slots that the holder may have in flight. An episode larger than that still goes to a
        holder with nothing in flight, for otherwise it could never be played.
        """
        for batch in sorted(self._needs):
            for kind in self._kinds_by_need(batch):
                propose, solve = self._episode_size(batch, kind)
                held = self.in_flight(holder)
                if held and held + propose + solve > room:
                    return None
                self._next_episode += 1
                return Grant(
                    episode=self._next_episode,
                    kind=kind,
                    batch=batch,
                    propose=self._take(batch, Cell(kind, Role.PROPOSE), propose, holder),
                    solve=self._take(batch, Cell(kind, Role.SOLVE), solve, holder),
                )
        return None

    def _kinds_by_need(self, batch: int) -> list[Kind]:
        """Kinds with ungranted slots, proposals first (their solutions take longest), then by the share still needed."""
        needs = self._needs[batch]

        def urgency(kind: Kind) -> tuple[float, float]:
            propose, solve = Cell(kind, Role.PROPOSE), Cell(kind, Role.SOLVE)
            return (
                needs[propose] / max(1, self._quota[propose]),
                needs[solve] / max(1, self._quota[solve]),
            )

        return sorted((k for k in Kind if needs[Cell(k, Role.PROPOSE)] or needs[Cell(k, Role.SOLVE)]), key=urgency)[
            ::-1
        ]

    def _episode_size(self, batch: int, kind: Kind) -> tuple[int, int]:
        """Proposals and solutions of the next episode: the solve slots are shared out evenly over the proposals."""
        needs = self._needs[batch]
        to_propose, to_solve = needs[Cell(kind, Role.PROPOSE)], needs[Cell(kind, Role.SOLVE)]
        if not to_propose:
            return 0, min(to_solve, self._solutions)
        propose = min(to_propose, self._proposals_per_prompt)
        fair_share = -(-to_solve * propose // to_propose)
        return propose, min(fair_share, propose * self._solutions)

    def _take(self, batch: int, cell: Cell, count: int, holder: Holder) -> tuple[int, ...]:
        self._needs[batch][cell] -= count
        self._counts[cell].granted += count
        slots = tuple(range(self._next_slot, self._next_slot + count))
        self._next_slot += count
        self._slots.update({slot: _Slot(cell, batch, holder) for slot in slots})
        return slots

    # -- what happens to a slot ----------------------------------------------------------------------------------

    def arrive(self, slot: int, holder: Holder, cell: Cell) -> bool:
        """A trajectory came in. False where `holder` does not hold that slot in flight (late, or never granted)."""
        entry = self._slots.get(slot)
        if entry is None or entry.queued or entry.holder != holder or entry.cell != cell:
            return False
        entry.queued = True
        return True

    def give_back(self, slot: int, holder: Holder) -> bool:
        """`holder` had nothing to fill the slot with: the batch goes on without it."""
        entry = self._slots.get(slot)
        if entry is None or entry.queued or entry.holder != holder:
            return False
        del self._slots[slot]
        self._counts[entry.cell].returned += 1
        return True

    def drop(self, slot: int, reason: DropReason) -> None:
        """The slot's trajectory will not be trained; the batch gets another slot in its place."""
        entry = self._slots.pop(slot)
        self._counts[entry.cell].dropped[reason] += 1
        self._needs[entry.batch][entry.cell] += 1

    def fail(self, slot: int, holder: Holder) -> bool:
        """`holder` could not play the slot (an engine or executor failure, never a verdict on the model)."""
        entry = self._slots.get(slot)
        if entry is None or entry.queued or entry.holder != holder:
            return False
        self.drop(slot, DropReason.ROLLOUT_FAILED)
        return True

    def lose(self, holder: Holder) -> int:
        """Drop everything that `holder` had in flight; returns how many slots."""
        lost = [slot for slot, entry in self._slots.items() if entry.holder == holder and not entry.queued]
        for slot in lost:
            self.drop(slot, DropReason.ACTOR_LOST)
        return len(lost)

    # -- batches and versions ------------------------------------------------------------------------------------

    def ready(self) -> list[int] | None:
        """The slots of the next batch, in the order of grants, once each of them is queued; else None."""
        batch = self._trained_batches
        if batch not in self._needs or any(self._needs[batch].values()):
            return None
        members = [(slot, entry) for slot, entry in self._slots.items() if entry.batch == batch]
        if not all(entry.queued for _, entry in members):
            return None
        return sorted(slot for slot, _ in members)

    def trained(self, slots: Iterable[int]) -> None:
        """The optimizer step over the next batch is done."""
        for slot in slots:
            entry = self._slots.pop(slot)
            self._counts[entry.cell].trained += 1
            self._trained_unpublished[entry.cell] += 1
        self._needs.pop(self._trained_batches)
        self._trained_batches += 1

    def published(self, version: int) -> None:
        """`version` is loaded by every engine: what it trained is settled, and a further batch opens."""
        if version != self._trained_batches:
            raise ValueError(f"published version {version}, but {self._trained_batches} batches were trained")
        self.version = version
        self._trained_unpublished.clear()
        self._open()

    def _open(self) -> None:
        for batch in range(self._trained_batches, self.version + self.max_staleness + 1):
            self._needs.setdefault(batch, dict(self._quota))

    # -- the ledger ----------------------------------------------------------------------------------------------

    def in_flight(self, holder: Holder | None = None) -> int:
        """Slots that are being played, by `holder` or by anyone."""
        return sum(not entry.queued for entry in self._slots.values() if holder in (None, entry.holder))

    def queued(self) -> int:
        """Trajectories that have arrived and wait to be trained."""
        return sum(entry.queued for entry in self._slots.values())

    def unsettled(self, cell: Cell) -> int:
        """`granted - settled`: what the bound G1 limits."""
        return sum(entry.cell == cell for entry in self._slots.values()) + self._trained_unpublished[cell]

    def ledger(self) -> dict[Cell, CellCounts]:
        """A copy of the counts of every cell that is in use."""
        counts = {
            cell: CellCounts(c.granted, c.trained, c.returned, Counter(c.dropped)) for cell, c in self._counts.items()
        }
        for entry in self._slots.values():
            if entry.queued:
                counts[entry.cell].queued += 1
            else:
                counts[entry.cell].in_flight += 1
        return {cell: c for cell, c in counts.items() if self._quota[cell] or c.granted}

    def waiting_for(self) -> str:
        """Words for a human: what the next batch still lacks, and who holds it."""
        batch = self._trained_batches
        if batch not in self._needs:
            return f"batch {batch} is not open: version {batch - self.max_staleness} is not published yet"
        ungranted = {cell.name: need for cell, need in self._needs[batch].items() if need}
        held: dict[str, Counter[str]] = defaultdict(Counter)
        for entry in self._slots.values():
            if entry.batch == batch and not entry.queued:
                held[entry.holder.actor_id][entry.cell.name] += 1
        parts = [f"{actor} plays {dict(cells)}" for actor, cells in sorted(held.items())]
        if ungranted:
            parts.append(f"nobody has taken {ungranted}")
        return f"batch {batch}: " + ("; ".join(parts) or "complete")

    # -- checkpoints ---------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """Plain data (msgpack or JSON) that `load_state_dict` restores."""
        return {
            "version": self.version,
            "trained_batches": self._trained_batches,
            "next_slot": self._next_slot,
            "next_episode": self._next_episode,
            "needs": {str(b): {cell.name: n for cell, n in needs.items()} for b, needs in self._needs.items()},
            "slots": [[s, e.cell.name, e.batch, *e.holder, e.queued] for s, e in self._slots.items()],
            "trained_unpublished": {cell.name: n for cell, n in self._trained_unpublished.items()},
            "counts": {
                cell.name: {
                    "granted": c.granted,
                    "trained": c.trained,
                    "returned": c.returned,
                    "dropped": dict(c.dropped),
                }
                for cell, c in self._counts.items()
            },
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore, then drop what was in flight: its actors are gone, and the batch gets other slots in their place."""
        self.version = state["version"]
        self._trained_batches = state["trained_batches"]
        self._next_slot = state["next_slot"]
        self._next_episode = state["next_episode"]
        self._needs = {
            int(b): dict.fromkeys(CELLS, 0) | {Cell.parse(name): n for name, n in needs.items()}
            for b, needs in state["needs"].items()
        }
        self._slots = {
            slot: _Slot(Cell.parse(name), batch, Holder(actor, incarnation), queued)
            for slot, name, batch, actor, incarnation, queued in state["slots"]
        }
        self._trained_unpublished = Counter({Cell.parse(n): k for n, k in state["trained_unpublished"].items()})
        self._counts = {
            Cell.parse(name): CellCounts(c["granted"], c["trained"], c["returned"], Counter(c["dropped"]))
            for name, c in state["counts"].items()
        }
        for slot in [slot for slot, entry in self._slots.items() if not entry.queued]:
            self.drop(slot, DropReason.LEARNER_RESTART)
        self._open()


def conserved(ledger: Mapping[Cell, CellCounts]) -> bool:
    """L1 in every cell."""
    return all(counts.conserved for counts in ledger.values())


def totals(ledger: Mapping[Cell, CellCounts]) -> dict[str, int]:
    """The ledger summed over cells, as it is logged: `granted`, `trained`, `dropped`, `returned`, `queued`, `in_flight`."""
    return {
        "granted": sum(c.granted for c in ledger.values()),
        "trained": sum(c.trained for c in ledger.values()),
        "dropped": sum(c.dropped.total() for c in ledger.values()),
        "returned": sum(c.returned for c in ledger.values()),
        "queued": sum(c.queued for c in ledger.values()),
        "in_flight": sum(c.in_flight for c in ledger.values()),
    }


def verdict(ledger: Mapping[Cell, CellCounts]) -> str:
    """The line that ends a run: `ledger: conserved (...)` or `ledger: VIOLATED (...)`."""
    sums = totals(ledger)
    detail = " + ".join(f"{sums[key]} {key}" for key in ("trained", "dropped", "returned", "queued", "in_flight"))
    if conserved(ledger):
        return f"ledger: conserved ({sums['granted']} granted = {detail})"
    broken = ", ".join(cell.name for cell, counts in ledger.items() if not counts.conserved)
    return f"ledger: VIOLATED in {broken} ({sums['granted']} granted, but {detail})"
