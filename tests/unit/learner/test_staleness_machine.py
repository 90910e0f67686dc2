"""The gate and its ledger, driven through any order of events beside a model that knows what each slot may still do.

What is not exercised here: sockets, threads, and whether an engine tells the truth about its versions.
"""

from __future__ import annotations

import json
import random
from collections import Counter
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
from hypothesis import HealthCheck
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from learner.ledger import CellCounts, conserved, totals, verdict
from learner.places import Holder
from learner.settings import BatchSettings, OnStale
from learner.staleness import NUMBERS_PER_LIFE, Gate, Grant
from learner.trajectory import Cell, Role
from tests.examples import examples, is_deep

KINDS = BatchSettings().kinds

CELLS = BatchSettings().cells

quotas = st.dictionaries(st.sampled_from(list(KINDS)), st.integers(0, 4), min_size=1)


@dataclass(frozen=True)
class Played:
    """What the model knows of a slot in flight."""

    holder: Holder
    cell: Cell
    since: int
    """The version that was published when it was granted: no token can be older."""


@dataclass
class World:
    """Everything that a checkpoint takes back: the model's side of a gate."""

    in_flight: dict[int, Played] = field(default_factory=dict)
    queued: dict[int, tuple[Cell, int, int]] = field(default_factory=dict)
    """Slot -> cell, oldest version, version of the learner when it came in."""
    ended: dict[int, Played] = field(default_factory=dict)
    """Slots that no trajectory may fill any more."""
    trained: set[int] = field(default_factory=set)
    spent: Counter[Cell] = field(default_factory=Counter)
    """Returned slots."""
    shortfall: Counter[Cell] = field(default_factory=Counter)
    """Places of the trained batches that nothing was trained on."""
    unpublished: Counter[Cell] = field(default_factory=Counter)
    """Trained since the last publication."""
    batches: int = 0
    version: int = 0
    retired: set[Holder] = field(default_factory=set)

    def copy(self) -> World:
        return replace(self, **{k: v.copy() for k, v in vars(self).items() if not isinstance(v, int)})


class AnyOrder(RuleBasedStateMachine):
    """Grants, arrivals, duplicates, late arrivals, returns, failures, deaths, joins, leaving, training, restarts."""

    def __init__(self, mode: OnStale, staleness: int) -> None:
        super().__init__()
        self.mode, self.staleness = mode, staleness

    @initialize(propose=quotas, solve=quotas, n=st.integers(1, 4), group=st.integers(1, 3), actors=st.integers(1, 4))
    def start(self, propose: dict, solve: dict, n: int, group: int, actors: int) -> None:
        self.batch = BatchSettings(
            propose=propose if any((propose | solve).values()) else {"deduction": 1}, solve=solve
        )
        self.shape = (n, group)
        self.life = 0
        self.gate = self.new_gate()
        self.world = World()
        self.actors = [Holder(f"a{i}", 0) for i in range(actors)]
        self.numbers: set[int] = set()
        """Every slot and (negative) episode number since all actors were last gone."""
        self.checkpoint = json.dumps(self.gate.state_dict()), self.world.copy()

    def new_gate(self) -> Gate:
        return Gate(self.batch, self.staleness, *self.shape, on_stale=self.mode, life=self.life)

    # -- granting and playing

    @rule(data=st.data(), room=st.integers(1, 25), times=st.integers(1, 6))
    def grant(self, data: st.DataObject, room: int, times: int) -> None:
        holder = data.draw(st.sampled_from(self.actors))
        self.ask(holder, room, times)

    def ask(self, holder: Holder, room: int, times: int) -> None:
        for _ in range(times):
            before, shut = self.gate.in_flight(holder), self.gate.is_shut
            grant = self.gate.grant(holder, room)
            if grant is None:
                assert shut or before or holder in self.world.retired, "an idle actor was refused a free place"
                return
            assert not shut
            assert holder not in self.world.retired
            assert not before or before + len(grant.slots) <= room
            self.take(grant, holder)

    def take(self, grant: Grant, holder: Holder) -> None:
        assert grant.slots
        assert grant.batch <= self.world.version + self.staleness
        numbers = {*grant.slots, -1 - grant.episode}
        assert len(numbers) == len(grant.slots) + 1
        assert self.numbers.isdisjoint(numbers), "a number was used twice"
        self.numbers |= numbers
        for slot in grant.slots:
            cell = Cell(grant.kind, Role.PROPOSE if slot in grant.propose else Role.SOLVE)
            self.world.in_flight[slot] = Played(holder, cell, self.world.version)

    @precondition(lambda self: self.world.in_flight)
    @rule(data=st.data(), times=st.integers(1, 6))
    def arrive(self, data: st.DataObject, times: int) -> None:
        for _ in range(min(times, len(self.world.in_flight))):
            slot = data.draw(st.sampled_from(sorted(self.world.in_flight)))
            played = self.world.in_flight[slot]
            oldest = data.draw(st.integers(played.since, self.world.version))
            self.bring(slot, oldest)
            self.refused(slot, played)

    def bring(self, slot: int, oldest: int) -> None:
        played = self.world.in_flight.pop(slot)
        place = self.place(slot, played.cell)
        stale = sum(c.dropped["stale"] for c in self.gate.ledger().values())
        kept = self.gate.arrive(slot, played.holder, played.cell, oldest)
        assert kept is not (self.mode == "drop" and place - oldest > self.staleness)
        if kept:
            self.world.queued[slot] = played.cell, oldest, self.world.batches
            assert {entry[0]: entry[2] for entry in self.gate.state_dict()["slots"]}[slot] == place
        else:
            assert sum(c.dropped["stale"] for c in self.gate.ledger().values()) == stale + 1
            self.world.ended[slot] = played

    def place(self, slot: int, cell: Cell) -> int:
        """The batch that a slot which comes in now belongs to: its own, or the first that is not filled."""
        state = self.gate.state_dict()
        flying = {
            s: batch for s, name, batch, _, _, arrived, _ in state["slots"] if arrived is None and name == cell.name
        }
        if self.mode == "wait":
            return int(flying[slot])
        return min([*flying.values(), *(int(b) for b, ungranted in state["ungranted"].items() if ungranted[cell.name])])

    def refused(self, slot: int, played: Played) -> None:
        """Nothing that is sent again, late or under another name changes anything."""
        state = self.gate.state_dict()
        for cell in (played.cell, played.cell._replace(kind="induction")):
            for holder in (played.holder, Holder(played.holder.actor_id, played.holder.incarnation + 1)):
                if (holder, cell) != (played.holder, played.cell) or slot not in self.world.in_flight:
                    assert not self.gate.arrive(slot, holder, cell, self.world.version), "a slot was filled twice"
        if slot not in self.world.in_flight:
            assert not self.gate.give_back(slot, played.holder)
            assert not self.gate.fail(slot, played.holder)
        late = self.gate.late - state["late"]
        assert late >= 2
        assert self.gate.state_dict() == state | {"late": self.gate.late}

    @precondition(lambda self: self.world.in_flight or self.world.ended)
    @rule(data=st.data())
    def late(self, data: st.DataObject) -> None:
        everything = self.world.ended | self.world.in_flight
        slot = data.draw(st.sampled_from(sorted(everything)))
        self.refused(slot, everything[slot])

    @precondition(lambda self: self.world.in_flight)
    @rule(data=st.data(), how=st.sampled_from(["give_back", "fail"]), times=st.integers(1, 4))
    def end(self, data: st.DataObject, how: str, times: int) -> None:
        for _ in range(min(times, len(self.world.in_flight))):
            self.finish(data.draw(st.sampled_from(sorted(self.world.in_flight))), how)

    def finish(self, slot: int, how: str) -> None:
        played = self.world.in_flight.pop(slot)
        place = self.place(slot, played.cell)
        before = self.spent(played.cell)
        assert getattr(self.gate, how)(slot, played.holder)
        assert self.spent(played.cell) - before == (Counter([place]) if how == "give_back" else Counter())
        self.world.spent[played.cell] += how == "give_back"
        self.world.ended[slot] = played
        self.refused(slot, played)

    def spent(self, cell: Cell) -> Counter[int]:
        """Open batch -> places of the cell that nothing will be trained on."""
        state = self.gate.state_dict()
        sat_on = Counter(batch for _, name, batch, *_ in state["slots"] if name == cell.name)
        return Counter(
            {int(b): self.batch.quota(cell) - u[cell.name] - sat_on[int(b)] for b, u in state["ungranted"].items()}
        )

    @rule(seed=st.integers(0, 2**32), events=st.integers(10, 80), trouble=st.sampled_from([0.0, 0.05, 0.3]))
    def busy(self, seed: int, events: int, trouble: float) -> None:
        """Many events as they are in a run, so that the rules meet gates that are deep in one: the slots of an actor
        come in late or early, batch after batch is trained, now and then something goes wrong."""
        rng = random.Random(seed)
        # Some rollouts take very long.
        slow = set(range(rng.randrange(5), 10_000, rng.randint(4, 12)))
        for _ in range(events):
            flying = sorted(self.world.in_flight)
            fast = [slot for slot in flying if slot % NUMBERS_PER_LIFE not in slow] or flying
            if not flying or rng.random() < 0.3:
                self.ask(rng.choice(self.actors), rng.randint(1, 25), 3)
            elif rng.random() < trouble:
                match rng.randrange(4):
                    case 0:
                        self.finish(rng.choice(flying), "fail")
                    case 1:
                        self.finish(rng.choice(flying), "give_back")
                    case 2:
                        self.bring(*self.with_age(rng.choice(flying), rng))
                    case 3 if rng.random() < 0.2:
                        self.replace(rng.choice(self.actors))
            else:
                self.bring(*self.with_age(rng.choice(fast), rng))
            self.check()
            if (slots := self.gate.ready()) is not None and rng.random() < 0.8:
                self.step(slots)
                self.check()
            if self.world.version < self.world.batches and rng.random() < 0.6:
                self.publish()
                self.check()

    def with_age(self, slot: int, rng: random.Random) -> tuple[int, int]:
        since = self.world.in_flight[slot].since
        return slot, since if rng.random() < 0.7 else rng.randint(since, self.world.version)

    def check(self) -> None:
        self.the_ledger_is_conserved_and_bounded()
        self.every_place_of_an_open_batch_is_accounted_for()

    # -- actors that come and go

    @rule(data=st.data())
    def die(self, data: st.DataObject) -> None:
        """Or leave, when the deadline of its retirement is over; the next incarnation joins."""
        self.replace(data.draw(st.sampled_from(self.actors)))

    def replace(self, holder: Holder) -> None:
        self.lose(holder)
        self.actors[self.actors.index(holder)] = Holder(holder.actor_id, holder.incarnation + 1)

    def lose(self, holder: Holder) -> None:
        reason = "retired" if holder in self.world.retired else "actor_lost"
        mine = [slot for slot, played in self.world.in_flight.items() if played.holder == holder]
        before = sum(c.dropped[reason] for c in self.gate.ledger().values())
        assert self.gate.lose(holder) == len(mine)
        assert sum(c.dropped[reason] for c in self.gate.ledger().values()) == before + len(mine)
        for slot in mine:
            self.world.ended[slot] = self.world.in_flight.pop(slot)
        self.world.retired.discard(holder)

    @rule(data=st.data())
    def retire(self, data: st.DataObject) -> None:
        holder = data.draw(st.sampled_from(self.actors))
        assert self.gate.retire(holder) == sum(p.holder == holder for p in self.world.in_flight.values())
        self.world.retired.add(holder)

    @rule(data=st.data())
    def come_back(self, data: st.DataObject) -> None:
        """An actor whose connection broke says what it has."""
        self.reclaim(data, data.draw(st.sampled_from(self.actors)))

    def reclaim(self, data: st.DataObject, holder: Holder) -> None:
        mine = sorted(slot for slot, played in self.world.in_flight.items() if played.holder == holder)
        kept = [slot for slot in mine if data.draw(st.booleans())]
        strange = sorted(self.world.ended)[:3] + [10**15]
        assert self.gate.reclaim(holder, [*strange, *kept]) == kept
        for slot in set(mine).difference(kept):
            self.world.ended[slot] = self.world.in_flight.pop(slot)

    # -- batches and versions

    @rule(publish=st.booleans())
    def train(self, publish: bool) -> None:
        """Without publishing, as between two calls of the loop, or when publishing fails."""
        slots = self.gate.ready()
        if slots is not None:
            self.step(slots)
        if publish and self.world.version < self.world.batches:
            self.publish()

    def step(self, slots: list[int]) -> None:
        assert slots == sorted(set(slots))
        assert slots == self.gate.ready(), "looking changed the batch"
        assert self.world.trained.isdisjoint(slots), "trained twice"
        members = {slot: self.world.queued.pop(slot) for slot in slots}
        assert self.gate.arrivals(slots) == {slot: at for slot, (_, _, at) in members.items()}
        ages = [self.world.batches - oldest for _, oldest, _ in members.values()]
        if self.mode != "train":
            assert all(age <= self.staleness for age in ages), "G2"
        before = sum(c.stale_trained for c in self.gate.ledger().values())
        with pytest.raises(ValueError, match="not batch"):
            self.gate.trained([*slots, -1])
        self.gate.trained(slots)
        counted = sum(c.stale_trained for c in self.gate.ledger().values()) - before
        assert counted == sum(age > self.staleness for age in ages)
        sizes = Counter(cell for cell, _, _ in members.values())
        for cell in CELLS:
            assert sizes[cell] <= self.batch.quota(cell)
            self.world.shortfall[cell] += self.batch.quota(cell) - sizes[cell]
        self.world.unpublished += sizes
        self.world.trained.update(slots)
        self.world.batches += 1

    def publish(self) -> None:
        self.world.version = self.world.batches
        self.world.unpublished.clear()
        self.gate.published(self.world.version)

    # -- restarts

    @rule()
    def save(self) -> None:
        self.checkpoint = json.dumps(self.gate.state_dict()), self.world.copy()

    @rule(data=st.data(), returning=st.booleans(), crashes=st.integers(1, 2))
    def restart_with_actors_alive(self, data: st.DataObject, returning: bool, crashes: int) -> None:
        """Only the learner died. What was granted after the checkpoint is nobody's now, and is refused."""
        now = self.world
        state, saved = self.checkpoint
        self.world = saved.copy()
        self.life += crashes  # lives that ended before they saved anything
        self.gate = self.new_gate()
        self.gate.load_state_dict(json.loads(state), keep_in_flight=True)
        for slot, played in now.in_flight.items():
            if slot not in self.world.in_flight:
                self.world.ended[slot] = played
        if returning:
            for holder in self.actors:
                self.reclaim(data, holder)
            for holder in set(self.gate.holders()).difference(self.actors):
                self.lose(holder)
        else:
            self.actors += [holder for holder in self.gate.holders() if holder not in self.actors]
        assert len({holder.actor_id for holder in self.gate.holders()}) <= len(self.actors)

    @rule()
    def restart_of_everything(self) -> None:
        """A run that is resumed: other actors, a first life, and numbers that go on where the checkpoint was."""
        state, saved = self.checkpoint
        self.world = saved.copy()
        self.life = 0
        self.gate = self.new_gate()
        with pytest.raises(ValueError, match="life >= 1"):
            self.gate.load_state_dict(json.loads(state), keep_in_flight=True)
        self.gate.load_state_dict(json.loads(state))
        restored, before = totals(self.gate.ledger()), json.loads(state)
        assert restored["in_flight"] == 0
        assert restored["queued"] == len(self.world.queued)
        self.world.ended |= self.world.in_flight
        self.world.in_flight.clear()
        self.world.retired.clear()
        after = self.gate.state_dict()
        assert [after[key] for key in NUMBERING] == [before[key] for key in NUMBERING]
        self.actors = [Holder(holder.actor_id, holder.incarnation + 1) for holder in self.actors]
        # Whoever had a later number is gone.
        self.numbers = {n for n in self.numbers if -after["next_episode"] - 1 <= n < after["next_slot"]}

    # -- what always holds

    @invariant()
    def the_ledger_is_conserved_and_bounded(self) -> None:
        ledger = self.gate.ledger()
        assert conserved(ledger), verdict(ledger)
        flying, waiting = (
            Counter(played.cell for played in self.world.in_flight.values()),
            Counter(cell for cell, _, _ in self.world.queued.values()),
        )
        for cell, counts in ledger.items():
            assert (counts.in_flight, counts.queued) == (flying[cell], waiting[cell]), cell
            assert counts.returned == self.world.spent[cell]
        for cell in CELLS:
            counts = ledger.get(cell, CellCounts())
            unsettled = counts.granted - counts.ended + self.world.unpublished[cell]
            assert unsettled == flying[cell] + waiting[cell] + self.world.unpublished[cell]
            assert unsettled <= (self.staleness + 1) * self.batch.quota(cell), "G1"
        assert self.gate.in_flight() == len(self.world.in_flight)
        assert self.gate.queued() == len(self.world.queued)
        assert {h: self.gate.in_flight(h) for h in self.gate.holders()} == Counter(
            played.holder for played in self.world.in_flight.values()
        )
        assert sum(c.trained for c in ledger.values()) == len(self.world.trained)

    @invariant()
    def every_place_of_an_open_batch_is_accounted_for(self) -> None:
        state = self.gate.state_dict()
        places = Counter((name, batch) for _, name, batch, *_ in state["slots"])
        assert (
            len({slot for slot, *_ in state["slots"]})
            == len(state["slots"])
            == len(self.world.in_flight) + len(self.world.queued)
        )
        for cell in CELLS:
            spent = self.world.shortfall[cell]
            for batch, ungranted in state["ungranted"].items():
                open_places = self.batch.quota(cell) - ungranted[cell.name] - places[cell.name, int(batch)]
                assert ungranted[cell.name] >= 0
                assert open_places >= 0, "more slots than places"
                spent += open_places
            assert spent == self.world.spent[cell], "a batch has not exactly its quota less what was returned"
        assert sorted(map(int, state["ungranted"])) == list(
            range(self.world.batches, self.world.version + self.staleness + 1)
        )

    @invariant()
    def a_checkpoint_is_the_gate(self) -> None:
        state = self.gate.state_dict()
        copy = self.successor(state)
        after = copy.state_dict()
        assert all(after[key] > state[key] for key in NUMBERING)
        assert after["lineage"] == [*state["lineage"], [after["life_id"], state["trained_batches"]]]
        changed = {*NUMBERING, "lineage"}
        assert {k: v for k, v in after.items() if k not in changed} == {
            k: v for k, v in state.items() if k not in changed
        }
        assert (copy.ready(), copy.is_shut, copy.ledger()) == (
            self.gate.ready(), self.gate.is_shut, self.gate.ledger(),
        )  # fmt: skip

    def successor(self, state: dict[str, Any]) -> Gate:
        gate = Gate(self.batch, self.staleness, *self.shape, on_stale=self.mode, life=self.life + 1)
        gate.load_state_dict(json.loads(json.dumps(state)), keep_in_flight=True)
        return gate

    @rule(data=st.data(), returns=st.sampled_from([0.0, 0.5, 1.0]), room=st.integers(1, 30))
    def whatever_comes_next_a_batch_becomes_ready(self, data: st.DataObject, returns: float, room: int) -> None:
        """On a copy: all that is in flight comes in or is returned, by turns with grants to one new actor."""
        gate = self.successor(self.gate.state_dict())
        if self.world.version < self.world.batches:
            gate.published(self.world.batches)
        version = self.world.batches
        draw = data.draw(st.randoms(use_true_random=False))
        playing = dict(self.world.in_flight)
        newcomer = Holder("newcomer", 0)
        for _ in range(1000):
            if gate.ready() is not None:
                return
            for slot in draw.sample(sorted(playing), len(playing)):
                played = playing.pop(slot)
                if draw.random() < returns:
                    assert gate.give_back(slot, played.holder)
                elif not gate.arrive(slot, played.holder, played.cell, played.since):
                    assert self.mode == "drop"
                    assert played.since < version, "a fresh trajectory was dropped: this could go on for ever"
            grant = gate.grant(newcomer, room)
            assert grant is not None or gate.ready() is not None, f"deadlock: {gate.waiting_for()}"
            for slot in grant.slots if grant else ():
                cell = Cell(grant.kind, Role.PROPOSE if slot in grant.propose else Role.SOLVE)
                playing[slot] = Played(newcomer, cell, version)
        raise AssertionError(f"livelock: {gate.waiting_for()}")


NUMBERING = ("life_id", "next_slot", "next_episode")


@pytest.mark.timeout(7200 if is_deep() else 600)
@pytest.mark.parametrize("staleness", [0, 1, 3])
@pytest.mark.parametrize("mode", ["wait", "drop", "train"])
def test_any_order(mode: OnStale, staleness: int) -> None:
    quiet = [HealthCheck.too_slow, HealthCheck.filter_too_much]
    run_state_machine_as_test(
        lambda: AnyOrder(mode, staleness), settings=examples(16, steps=30, suppress_health_check=quiet)
    )
