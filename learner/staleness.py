"""The gate: what may start, and what a batch is made of. With the ledger (`ledger.py`) and the places (`places.py`).

Policy only: no I/O, no clocks, no threads. The stream server, serial mode and a simulator drive the same objects.

Batch `b` makes version `b + 1` out of version `b`. A batch has `quota` *places* in every cell. A *slot* is granted for
one trajectory and sits on one place. With `v` the published version (trained, and loaded by every engine), `t` the next
batch to train (`t = v`, or more between training and publishing) and `K = max_staleness`:

  G1  batch b is open, and its places are granted, once b <= v + K. Hence in every cell
          granted - settled <= (K + 1) * quota
      A slot is settled when the version that it trained is published, or when it is dropped or returned.
  G2  age = b - (oldest version in the tokens) <= K for all that is trained, unless `on_stale` is `train`.
  G3  A place of an open batch is ungranted, in flight, queued or spent; it has one of these states and never moves
      between batches: only slots do. A trajectory that comes in makes it queued. A dropped slot makes it ungranted
      again: it is granted anew. A returned slot (its actor had no task to fill it with) spends it: the batch goes on
      without it.
  G4  Batch t is ready when each of its places is queued or spent. It has quota - spent trajectories in each cell; what
      is queued keeps its place, so nothing is trained twice or in another batch.
  L1  granted = trained + dropped + returned + queued + in flight, in every cell, at every moment.

`on_stale` says who sits on which place when a slot comes in, filled or returned:

  wait    Its own. Nothing overtakes a straggler, so slow and hard tasks are not under-represented. G2 holds by
          construction: a slot of batch b was granted at version b - K or later.
  drop    The earliest place of its cell that is not filled; who sat there sits on the other's place from now on. So a
          batch is what came first, and a straggler holds nothing up. Its place says what version it would train: a
          trajectory that would be too old there is dropped as `stale` at once (what is queued keeps its place, hence
          G2).
  train   As `drop`, but the old trajectory is taken and counted (`stale_trained`).

At K = 0 only one batch is open, so there is nothing to overtake: the three are one, and exactly synchronous.

No deadlock, at any K, in any mode. Slots are handed out as *episodes*: some proposals of one kind, with the slots of
their solutions, to one actor. An actor that holds a proposal thus holds all that the proposal can come to need, so
every slot in flight comes in, or its actor fails or is lost: nobody waits for a slot while holding one. Any ungranted
place is granted to whoever asks and has nothing in flight. Batch t is open once t - 1 is published. A slot that is
granted at version t comes in with age <= K whatever its place, so only the finitely many that were in flight before can
be dropped as stale. Hence the places of batch t are filled or spent after finitely many events; if everything is
returned, all are spent.

Restarts. A gate is restored from a checkpoint, and with it the ledger of that moment. If the actors died, too, what was
in flight is dropped, and numbers go on where they were: a run that is resumed is the run that was not interrupted. If
they live (`keep_in_flight`), what was in flight may still come in; an actor says what it has (`reclaim`), the rest is
dropped. What was granted *after* the checkpoint is unknown to the restored gate, is in no count, and is refused:

  R1  slots and episodes of a later life of the learner have numbers that no earlier life has used: they start at
      life_id * 2**32, where life_id = the checkpoint's life_id + life. `life` counts the restarts under one supervisor,
      so life ids rise from life to life, also where two lives start from the same checkpoint or from none.

Tokens that were sampled from a version which the restart undid count as of the version from which the learner went on
(`learner/lineage.py`). Their log-probabilities are their own, so the correction holds for them as for any other.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from learner.ledger import CellCounts, DropReason
from learner.lineage import Lineage
from learner.places import Holder, OpenBatch, Places
from learner.settings import BatchSettings, OnStale
from learner.trajectory import Cell, Role

NUMBERS_PER_LIFE = 1 << 32
"""More slots than one life of a learner can grant."""


@dataclass(frozen=True, slots=True)
class Grant:
    """The slots of one episode: proposals of one kind and the solutions that judge them, or solutions alone
    (replay)."""

    episode: int
    kind: str
    batch: int
    """The batch on whose places the slots sit at first."""
    propose: tuple[int, ...]
    solve: tuple[int, ...]

    @property
    def slots(self) -> tuple[int, ...]:
        """All slots of the episode."""
        return self.propose + self.solve


class Gate:
    """Grants slots under bounded staleness, forms batches, and keeps the ledger."""

    def __init__(
        self,
        batch: BatchSettings,
        max_staleness: int,
        solutions: int,
        proposals_per_prompt: int = 1,
        version: int = 0,
        on_stale: OnStale = "wait",
        life: int = 0,
    ) -> None:
        """`solutions`: maximum number of solve slots that are granted with one proposal. `version`: the first published
        version. `life`: number of restarts of the learner during which actors may have lived on (R1)."""
        self.max_staleness = max_staleness
        self.version = version
        self.on_stale = on_stale
        self.life = life
        self.late = 0
        """Number of trajectories that were refused: their slot ended, is queued already, was never granted, or is held
        by another actor."""
        self._cells = batch.cells
        """Cells of the configuration and of the checkpoint that was restored."""
        self._quota = Counter({cell: batch.quota(cell) for cell in batch.cells})
        self._solutions = solutions
        self._proposals_per_prompt = proposals_per_prompt
        self._life_id = life
        self.lineage = Lineage({life: version} if life else {})
        """The versions from which the lives of the learner went on."""
        self._next_slot = self._next_episode = self._life_id * NUMBERS_PER_LIFE
        self._places = Places()
        self._retired: set[Holder] = set()
        self._counts: dict[Cell, CellCounts] = {cell: CellCounts() for cell in self._cells}
        self._trained_batches = version
        self._open()

    @property
    def life_id(self) -> int:
        """The present life, among all lives of the run (R1)."""
        return self._life_id

    # -- granting ------------------------------------------------------------------------------------------------

    def grant(self, holder: Holder, room: int) -> Grant | None:
        """Grant one more episode to `holder`; None if the gate is shut, or the holder has no room for it or is retired.

        `room` is the number of slots that the holder may have in flight. An episode larger than that still goes to a
        holder with nothing in flight, for otherwise it could never be played.
        """
        number = self._next_to_grant()
        if number is None or holder in self._retired:
            return None
        batch = self._places.batches[number]
        kind = batch.neediest(self._quota)
        propose, solve = batch.episode_size(kind, self._proposals_per_prompt, self._solutions)
        held = self.in_flight(holder)
        if held and held + propose + solve > room:
            return None
        self._next_episode += 1
        return Grant(
            episode=self._next_episode,
            kind=kind,
            batch=number,
            propose=self._take(number, Cell(kind, Role.PROPOSE), propose, holder),
            solve=self._take(number, Cell(kind, Role.SOLVE), solve, holder),
        )

    def knows(self, cell: Cell) -> bool:
        """Whether `cell` is one of this run's."""
        return cell in self._counts

    @property
    def is_shut(self) -> bool:
        """Whether no place can be granted now, to any holder."""
        return self._next_to_grant() is None

    def _next_to_grant(self) -> int | None:
        """The first batch with ungranted places that G1 allows. A larger K before may have further ones open."""
        newest = self.version + self.max_staleness
        return next(
            (n for n, batch in self._places.batches.items() if n <= newest and any(batch.ungranted.values())), None
        )

    def _take(self, number: int, cell: Cell, count: int, holder: Holder) -> tuple[int, ...]:
        self._counts[cell].granted += count
        slots = tuple(range(self._next_slot, self._next_slot + count))
        self._next_slot += count
        self._places.take(number, cell, slots, holder)
        return slots

    # -- what happens to a slot ----------------------------------------------------------------------------------

    def arrive(self, slot: int, holder: Holder, cell: Cell, oldest_version: int) -> bool:
        """Take in a trajectory. `oldest_version`: the oldest policy version that sampled one of its tokens.

        True: it waits to be trained, keep it. False: it was dropped as stale, or `holder` does not have that slot in
        flight and it is counted in `late`.
        """
        entry = self._places.find_in_flight(slot, holder)
        if entry is None or entry.cell != cell:
            self.late += 1
            return False
        self._advance(slot)
        if self.on_stale == "drop" and entry.batch - oldest_version > self.max_staleness:
            self._drop([slot], DropReason.STALE)
            return False
        self._places.queue(slot, self._trained_batches, oldest_version)
        return True

    def give_back(self, slot: int, holder: Holder) -> bool:
        """Return a slot for which `holder` had no task: the batch goes on without it. False if `holder` does not hold
        it."""
        entry = self._places.find_in_flight(slot, holder)
        if entry is None:
            return False
        self._advance(slot)
        self._places.spend(slot)
        self._counts[entry.cell].returned += 1
        return True

    def fail(self, slot: int, holder: Holder) -> bool:
        """Drop a slot that `holder` could not play: an engine or executor failure, never a verdict on the model. False
        if `holder` does not hold it."""
        if self._places.find_in_flight(slot, holder) is None:
            return False
        self._drop([slot], DropReason.ROLLOUT_FAILED)
        return True

    def lose(self, holder: Holder) -> int:
        """Drop everything that `holder` has in flight, and forget the holder. Returns the number of slots."""
        reason = DropReason.RETIRED if holder in self._retired else DropReason.ACTOR_LOST
        self._retired.discard(holder)
        return self._drop(list(self._places.held(holder)), reason)

    def retire(self, holder: Holder) -> int:
        """Grant `holder` nothing more. Returns the number of slots that it still has in flight; `lose` ends it once
        that is 0, or a deadline is over."""
        self._retired.add(holder)
        return self.in_flight(holder)

    def reclaim(self, holder: Holder, slots: Collection[int]) -> list[int]:
        """Agree with a `holder` that connected on the slots it is playing, or has played without acknowledgement.

        What it should have and has not is dropped. Returns those of `slots` that are its own; the others will be
        refused, so it need not go on with them.
        """
        claimed = set(slots)
        gone = [slot for slot in self._places.held(holder) if slot not in claimed]
        first_of_life = self._life_id * NUMBERS_PER_LIFE
        self._drop([slot for slot in gone if slot >= first_of_life], DropReason.GRANT_LOST)
        self._drop([slot for slot in gone if slot < first_of_life], DropReason.LEARNER_RESTART)
        return sorted(self._places.held(holder))

    def _advance(self, slot: int) -> None:
        """Unless stragglers are waited for, let the slot overtake them."""
        if self.on_stale != "wait":
            self._places.advance(slot)

    def _drop(self, slots: Collection[int], reason: DropReason) -> int:
        """Drop slots: they will not be trained, and their places are granted again. Returns the number of slots."""
        for slot in slots:
            self._counts[self._places.slots[slot].cell].dropped[reason] += 1
            self._places.vacate(slot)
        return len(slots)

    # -- batches and versions ------------------------------------------------------------------------------------

    def ready(self) -> list[int] | None:
        """Return the slots of the next batch in the order of grants; None until each of its places is queued or
        spent."""
        return sorted(self._places.batches[self._trained_batches].queued) if self.is_ready else None

    @property
    def is_ready(self) -> bool:
        """Whether each place of the next batch is queued or spent (G4)."""
        batch = self._places.batches.get(self._trained_batches)
        return batch is not None and batch.filled

    @property
    def first_unopened(self) -> int:
        """The first batch whose places are not made yet, so that it gets the present quotas."""
        return max(self._places.batches, default=self._trained_batches - 1) + 1

    def is_queued(self, slot: int) -> bool:
        """Whether the slot's trajectory waits to be trained."""
        entry = self._places.slots.get(slot)
        return entry is not None and entry.arrived is not None

    def arrivals(self, slots: Iterable[int]) -> dict[int, int]:
        """Return, by queued slot, the version that the learner had made when it came in
        (`learner.metrics.batch.describe_ages`)."""
        return {slot: arrived for slot in slots if (arrived := self._places.slots[slot].arrived) is not None}

    def trained(self, slots: Iterable[int]) -> None:
        """Record the optimizer step over the next batch. Raises ValueError unless `slots` are what `ready` returned."""
        members = sorted(slots)
        if members != self.ready():
            raise ValueError(f"{len(members)} slots were trained that are not batch {self._trained_batches}")
        for slot in members:
            entry = self._places.slots.pop(slot)
            counts = self._counts[entry.cell]
            counts.trained += 1
            counts.stale_trained += entry.batch - entry.oldest > self.max_staleness
        del self._places.batches[self._trained_batches]
        self._trained_batches += 1

    def published(self, version: int) -> None:
        """Record that every engine has loaded `version`: what it trained is settled, and a further batch opens. Raises
        ValueError unless it is the number of batches trained."""
        if version != self._trained_batches:
            raise ValueError(f"published version {version}, but {self._trained_batches} batches were trained")
        self.version = version
        self._open()

    def limit_staleness(self, max_staleness: int) -> None:
        """Set K from now on. What was granted under a larger one is still trained, up to that age."""
        self.max_staleness = max_staleness
        self._open()

    def _open(self) -> None:
        for number in range(self._trained_batches, self.version + self.max_staleness + 1):
            if number not in self._places.batches:
                self._places.batches[number] = OpenBatch(self._cells, self._quota)

    # -- the ledger ----------------------------------------------------------------------------------------------

    def in_flight(self, holder: Holder | None = None) -> int:
        """Number of slots in flight, at `holder` or in all."""
        if holder is not None:
            return len(self._places.held(holder))
        return len(self._places.slots) - self._places.num_queued

    def holders(self) -> list[Holder]:
        """Actors that have slots in flight."""
        return self._places.holders()

    def queued(self) -> int:
        """Number of trajectories that wait to be trained."""
        return self._places.num_queued

    def ledger(self) -> dict[Cell, CellCounts]:
        """Return a copy of the counts of every cell that is in use."""
        counts = {cell: CellCounts.of(c.events()) for cell, c in self._counts.items()}
        for entry in self._places.slots.values():
            if entry.arrived is None:
                counts[entry.cell].in_flight += 1
            else:
                counts[entry.cell].queued += 1
        return {cell: c for cell, c in counts.items() if self._quota[cell] or c.granted}

    def waiting_for(self) -> str:
        """Return a text for people: the places that the next batch lacks, and the actors that hold them."""
        number = self._trained_batches
        if number not in self._places.batches:
            return f"batch {number} is not open: version {number - self.max_staleness} is not published yet"
        return f"batch {number}: " + (self._places.lacking(number) or "complete")

    # -- checkpoints ---------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """Return plain data (msgpack or JSON) that `load_state_dict` restores."""
        return {
            "version": self.version,
            "trained_batches": self._trained_batches,
            "life_id": self._life_id,
            "lineage": self.lineage.state(),
            "next_slot": self._next_slot,
            "next_episode": self._next_episode,
            "late": self.late,
            **self._places.state_dict(),
            "retired": sorted(list(holder) for holder in self._retired),
            "counts": {cell.name: counts.events() for cell, counts in self._counts.items()},
        }

    def load_state_dict(self, state: Mapping[str, Any], keep_in_flight: bool = False) -> int:
        """Restore a checkpoint of any `max_staleness` and `on_stale`; returns the number of queued slots that were
        dropped.

        What is queued and would be older than `max_staleness` when it is trained is dropped as stale, so that G2 holds
        after a resume with a lower bound too, unless `on_stale` is `train`.

        What was in flight is dropped: its actors are gone, and its places are granted again. With `keep_in_flight` they
        may be alive; then this must be a later life (R1; ValueError otherwise), actors that come back `reclaim`, and of
        those in `holders` that do not, `lose` after a deadline.
        """
        if keep_in_flight and not self.life:
            raise ValueError("the first life of a learner has no actors from before it: keep_in_flight needs life >= 1")
        self.version = state["version"]
        self._trained_batches = state["trained_batches"]
        before = state["life_id"] if "life_id" in state else state["epoch"]  # its name in older checkpoints
        self._life_id = before + self.life
        self.lineage = Lineage.of_state(state.get("lineage", ()))
        if self.life:
            self.lineage.begin(self._life_id, self._trained_batches)
        self._next_slot = max(state["next_slot"], self._life_id * NUMBERS_PER_LIFE)
        self._next_episode = max(state["next_episode"], self._life_id * NUMBERS_PER_LIFE)
        self.late = state["late"]
        # A run may go on with other kinds: what a checkpoint has of those before is still played and counted.
        self._counts |= {Cell.parse(name): CellCounts.of(events) for name, events in state["counts"].items()}
        self._cells = tuple(self._counts)
        self._places.load_state_dict(state, self._cells)
        self._retired = {Holder(*holder) for holder in state["retired"]} if keep_in_flight else set()
        if not keep_in_flight:
            in_flight = [slot for slot, entry in self._places.slots.items() if entry.arrived is None]
            self._drop(in_flight, DropReason.LEARNER_RESTART)
        stale = self._places.queued_beyond(self.max_staleness) if self.on_stale != "train" else []
        for slot in stale:
            self._counts[self._places.slots[slot].cell].dropped[DropReason.STALE] += 1
            self._places.unqueue(slot)
        self._open()
        return len(stale)
