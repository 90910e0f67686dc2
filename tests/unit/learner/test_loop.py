"""The learner's main loop, over the real gate, queue and turns: two actors play, and what is trained is only
counted."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest

from learner.ledger import conserved, totals
from learner.loop import Hooks, learn
from learner.phase import Phase
from learner.places import Holder
from learner.queue import BatchQueue
from learner.ranks import Ranks
from learner.schedule import CheckpointSchedule
from learner.settings import BatchSettings, LearnerSettings
from learner.staleness import Gate, Grant
from learner.stream.reports import Reports
from learner.trajectory import Cell, Role, Trajectory, VersionSpan
from learner.turns import Seat, Turns

BATCH = BatchSettings(kinds=("deduction",), propose={"deduction": 3}, solve={"deduction": 5})
EVENTS = ("published", "train", "publish", "step", "save", "drain")


class Actors:
    """Two actors that answer everything that they are granted, the last grant first: the `Stream` of the loop."""

    def __init__(self, gate: Gate, capacity: int = 100) -> None:
        self.gate = gate
        self.queue: BatchQueue[Trajectory] = BatchQueue(gate)
        self.turns: Turns[Seat] = Turns(gate)
        self.seats = [Seat(Holder(name, 0), capacity) for name in ("one", "two")]
        for seat in self.seats:
            self.turns.enter(seat)
        self.generated: Counter[Holder] = Counter()
        self.reports = Reports()
        self.returns = False
        """Whether they give everything back."""

    def next_batch(self, timeout_s: float, interrupt: Callable[[], bool]) -> list[Trajectory] | None:
        while True:
            if interrupt() or self.turns.newcomers:
                return None
            if (batch := self.queue.batch()) is not None:
                return batch
            assert self.play(), f"nobody can play: {self.gate.waiting_for()}"

    def play(self) -> int:
        """Answer everything that may be granted; returns the number of episodes."""
        played = list(self.turns.grants(self.seats))
        for seat, grant in reversed(played):
            self.answer(seat, grant)
        return len(played)

    def answer(self, seat: Seat, grant: Grant) -> None:
        for slot in grant.slots:
            cell = Cell(grant.kind, Role.PROPOSE if slot in grant.propose else Role.SOLVE)
            if self.returns:
                assert self.gate.give_back(slot, seat.holder)
            else:
                assert self.queue.arrive(sampled(slot, cell, seat), seat.holder)
                self.generated[seat.holder] += 2

    def queued(self) -> list[Trajectory]:
        return self.queue.waiting()

    def mark_trained(self, slots: Sequence[int]) -> None:
        self.queue.trained(slots)

    def mark_published(self, version: int) -> None:
        self.gate.published(version)
        self.play()

    @contextmanager
    def _frozen(self) -> Iterator[None]:
        yield

    def frozen(self) -> AbstractContextManager[object]:
        return self._frozen()

    def stats(self) -> dict[str, float]:
        for seat in self.seats:
            self.reports.report(seat.holder, {"tokens_generated": float(self.generated[seat.holder])})
        return self.reports.combined() | {"actors": float(len(self.seats))}

    def join(self, actor_id: str, incarnation: int, loaded_version: int = -1) -> None:
        """A new life of an actor, which gets its weights before it plays."""
        self.seats.append(Seat(Holder(actor_id, incarnation), 100, loaded_version=loaded_version))
        self.turns.enter(self.seats[-1])

    def leave(self, actor_id: str) -> None:
        """The actor dies, or leaves; the learner has heard its last report."""
        self.stats()
        (seat,) = (seat for seat in self.seats if seat.holder.actor_id == actor_id)
        self.seats.remove(seat)
        self.turns.leave(seat)
        self.gate.lose(seat.holder)
        self.reports.leave(seat.holder)


def sampled(slot: int, cell: Cell, seat: Seat) -> Trajectory:
    """A trajectory by the version that the actor's engine runs."""
    return Trajectory(
        "run", *seat.holder, slot, "e", cell, np.array([1], np.int32), np.array([2, 3], np.int32),
        np.array([-0.5, -0.5], np.float32), (VersionSpan(seat.loaded_version, 0, 2),), 1.0,
    )  # fmt: skip


@dataclass
class Run:
    """The parts of a run that are not under test, and a log of what the loop asked them for."""

    steps: int = 3
    max_staleness: int = 1
    checkpoint_every: int = 0
    checkpoint_minutes: float = 0
    step_s: float = 0
    """Seconds that a step takes on the clock of the loop."""
    version: int = 0
    stop_at: int | None = None
    """Interrupt the run once this version is published."""
    log: list[tuple[str, int]] = field(default_factory=list)
    rows: list[dict[str, float]] = field(default_factory=list)
    batches: list[list[Trajectory]] = field(default_factory=list)
    fresh: list[int] = field(default_factory=list)
    phases: list[Phase] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.ranks = Ranks()
        self.gate = Gate(BATCH, self.max_staleness, solutions=2, version=self.version)
        self.actors = Actors(self.gate)

    # the trainer

    def train(self, batch: Sequence[Trajectory], fresh: Callable[[], Sequence[Trajectory]]) -> dict[str, float]:
        self.log.append(("train", self.version))
        self.batches.append(list(batch))
        self.fresh.append(len(fresh()))
        self.version += 1
        return {"loss": 0.25}

    # the publisher

    def publish(self, version: int) -> dict[str, float]:
        self.log.append(("publish", version))
        for seat in self.actors.seats:
            seat.loaded_version = version
        return {"transfer_s": 0.5}

    def close(self) -> None:
        """Nothing to close."""

    # the hooks

    def learn(self) -> None:
        hooks = Hooks(
            interrupted=lambda: self.stop_at is not None and self.gate.version >= self.stop_at,
            on_step=self.on_step,
            save=lambda version: self.log.append(("save", version)),
            describe=lambda batch: {"described": float(len(batch))},
            on_phase=lambda phase, step: self.phases.append(phase),
            drain=lambda: self.log.append(("drain", self.version)),
            published=lambda version: self.log.append(("published", version)),
        )
        settings = LearnerSettings(
            steps=self.steps, max_staleness=self.max_staleness, checkpoint_every=self.checkpoint_every,
            checkpoint_minutes=self.checkpoint_minutes, batch=BATCH,
        )  # fmt: skip
        learn(self, self.actors, self, settings, hooks, lambda: self.step_s * self.version)  # type: ignore[arg-type]

    def on_step(self, metrics: dict[str, float], batch: Sequence[Trajectory]) -> None:
        assert list(batch) == self.batches[-1]
        self.log.append(("step", self.version))
        self.rows.append(metrics)

    def of(self, *names: str) -> list[tuple[str, int]]:
        assert set(names) <= set(EVENTS)
        return [event for event in self.log if event[0] in names]


@pytest.mark.parametrize("max_staleness", [0, 1, 3])
def test_two_actors_fill_every_batch_and_each_makes_one_version(max_staleness: int) -> None:
    run = Run(steps=4, max_staleness=max_staleness)
    run.learn()
    slots = [trajectory.slot for batch in run.batches for trajectory in batch]
    assert len(slots) == len(set(slots)), "nothing is trained twice"
    for number, batch in enumerate(run.batches):
        cells = Counter(trajectory.cell.role for trajectory in batch)
        assert cells == {Role.PROPOSE: 3, Role.SOLVE: 5}
        assert [t.slot for t in batch] == sorted(t.slot for t in batch), "the order of grants"
        assert {t.actor_id for t in batch} == {"one", "two"}
        assert all(0 <= number - t.oldest_version <= max_staleness for t in batch)
    assert run.of("train", "publish") == [
        ("publish", 0), *(event for v in range(4) for event in (("train", v), ("publish", v + 1)))
    ]  # fmt: skip
    assert conserved(run.gate.ledger())
    assert totals(run.gate.ledger())["trained"] == 4 * 8


def test_a_step_is_recorded_with_the_numbers_of_all_who_had_a_part_in_it() -> None:
    run = Run(steps=2)
    run.learn()
    assert [(row["step"], row["version"]) for row in run.rows] == [(1, 1), (2, 2)]
    first, second = run.rows
    assert (first["loss"], first["described"], first["actors"]) == (0.25, 8.0, 2.0)
    assert (first["tokens_generated"], second["tokens_generated"]) == (48.0, 64.0), "of both actors, so far"
    assert (first["age_mean"], second["age_mean"]) == (0.0, 1.0), "the batch after the first was sampled beside it"
    assert (first["ledger/trained"], second["ledger/trained"]) == (8.0, 16.0)
    assert first["ledger/queued"] == 16.0
    assert (first["weights/transfer_s"], second["weights/transfer_s"]) == (1.0, 0.5), (
        "the first publication is in step 1"
    )
    assert first["wait_for_batch_s"] >= 0
    assert run.fresh == [16, 16], "what waits, the batch included, is there to be probed"


def test_phases_come_in_the_order_of_the_loop() -> None:
    run = Run(steps=1)
    run.learn()
    assert run.phases == [Phase.WAITING_FOR_BATCH, Phase.TRAINING, Phase.PUBLISHING, Phase.RECORDING, Phase.SAVING]


def test_an_actor_that_joins_gets_the_present_weights_and_nothing_is_trained_for_it() -> None:
    run = Run(steps=1)
    run.learn()
    run.log.clear()
    run.steps = 2
    run.actors.join("three", 0)
    publish, seen = run.publish, []

    def late(version: int) -> dict[str, float]:
        """The first publication does not reach the newcomer, as if it had joined after it."""
        phases = publish(version)
        if not seen:
            run.actors.seats[-1].loaded_version = -1
        seen.append(version)
        return phases

    run.publish = late  # type: ignore[method-assign]
    run.learn()
    assert run.of("publish", "train") == [("publish", 1), ("publish", 1), ("train", 1), ("publish", 2)]
    assert run.of("step") == [("step", 2)]


def test_checkpoints_are_written_when_they_are_due_and_once_at_the_end() -> None:
    run = Run(steps=5, checkpoint_every=2)
    run.learn()
    assert run.of("save") == [("save", 2), ("save", 4), ("save", 5)]
    due = Run(steps=4, checkpoint_every=2)
    due.learn()
    assert due.of("save") == [("save", 2), ("save", 4)]


def test_checkpoints_are_written_after_minutes_as_well() -> None:
    run = Run(steps=8, checkpoint_minutes=1, step_s=25)
    run.learn()
    assert run.of("save") == [("save", 3), ("save", 6), ("save", 8)]
    both = Run(steps=8, checkpoint_minutes=1, step_s=25, checkpoint_every=5)
    both.learn()
    assert run.of("save") != both.of("save") == [("save", 3), ("save", 5), ("save", 8)]


def test_rank_0_decides_for_all_ranks_when_a_checkpoint_is_due() -> None:
    """The clock of another rank says something else."""
    shared: list[bool] = []

    class Rank0(Ranks):
        def share(self, decide: Callable[[], Any]) -> Any:
            shared.append(decide())
            return shared[-1]

    class Rank1(Ranks):
        def share(self, decide: Callable[[], Any]) -> Any:
            return shared[-1]

    times = {0: 0.0, 1: 0.0}
    schedules = [
        CheckpointSchedule(4, 1, rank(i, 2), 0, lambda i=i: times[i])  # type: ignore[misc]
        for i, rank in enumerate((Rank0, Rank1))
    ]
    found = []
    for step in range(1, 9):
        times = {0: 35.0 * step, 1: 1000.0 * (step % 2)}
        due = [schedule.due(step) for schedule in schedules]
        assert due[0] == due[1]
        if due[0]:
            found.append(step)
            for schedule in schedules:
                schedule.mark_saved(step)
    assert found == [2, 4, 6, 8]


def test_an_interrupted_run_drains_and_saves_what_it_has() -> None:
    run = Run(steps=5, stop_at=2)
    run.learn()
    assert run.of("train", "drain", "save") == [("train", 0), ("train", 1), ("drain", 2), ("save", 2)]
    assert run.phases[-2:] == [Phase.DRAINING, Phase.SAVING]


def test_a_run_that_is_interrupted_right_after_a_checkpoint_neither_drains_nor_saves_again() -> None:
    run = Run(steps=5, stop_at=2, checkpoint_every=2)
    run.learn()
    assert run.of("drain", "save") == [("save", 2)]


def test_a_resumed_run_publishes_its_version_and_goes_on() -> None:
    run = Run(steps=3, version=2)
    run.learn()
    assert run.of("published", "train", "publish") == [
        ("publish", 2), ("published", 2), ("train", 2), ("publish", 3),
    ]  # fmt: skip


def test_a_run_that_has_its_steps_publishes_and_ends() -> None:
    run = Run(steps=2, version=2)
    run.learn()
    assert run.log == [("publish", 2)]


def test_a_batch_to_which_nothing_came_is_an_error_with_the_mend() -> None:
    run = Run()
    run.actors.returns = True
    with pytest.raises(RuntimeError, match=r"every slot was returned.*learner\.batch\.propose"):
        run.learn()
    assert run.of("train", "save") == []
