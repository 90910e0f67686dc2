"""The learner's main loop, over the real gate, queue and turns: two actors play, and what is trained is only
counted."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest

from launch.bench.e2e_modes import steps_left_out
from learner.ledger import conserved, totals
from learner.loop import Hooks, learn
from learner.phase import Phase
from learner.protocols import StepGivenUp
from learner.ranks import Ranks
from learner.schedule import CheckpointSchedule
from learner.settings import LearnerSettings
from learner.staleness import Gate
from learner.time_ledger import LEARNER_PARTS, TimeLedger
from learner.trajectory import Role, Trajectory
from tests.unit.learner.playing import BATCH, Actors

EVENTS = ("published", "train", "publish", "step", "save", "drain")


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
    give_up_at: int | None = None
    """Give up the step from this version."""
    come_since: bool = False
    """Whether something has come in since the newest checkpoint."""
    log: list[tuple[str, int]] = field(default_factory=list)
    rows: list[dict[str, float]] = field(default_factory=list)
    batches: list[list[Trajectory]] = field(default_factory=list)
    fresh: list[int] = field(default_factory=list)
    phases: list[Phase] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.ranks = Ranks()
        self.time = TimeLedger(LEARNER_PARTS)
        self.gate = Gate(BATCH, self.max_staleness, solutions=2, version=self.version)
        self.actors = Actors(self.gate)

    # the trainer

    def train(
        self,
        batch: Sequence[Trajectory],
        fresh: Callable[[], Sequence[Trajectory]],
        gives_up: Callable[[], bool],
    ) -> dict[str, float]:
        self.log.append(("train", self.version))
        self.batches.append(list(batch))
        if gives_up():
            raise StepGivenUp
        self.fresh.append(len(fresh()))
        self.version += 1
        return {"loss": 0.25}

    # the publisher

    def publish(self, version: int) -> dict[str, float]:
        self.log.append(("publish", version))
        for seat in self.actors.seats:
            seat.loaded_version = version
        sparse = version > 0
        return {
            "transfer_s": 0.5,
            "bytes": 30.0 if sparse else 100.0,
            "weights_bytes": 100.0,
            "sparse_bytes": 100.0 if sparse else 0.0,
        }

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
            unsaved=lambda: self.come_since,
            gives_up_step=lambda: self.version == self.give_up_at,
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
    assert (first["weights/bytes"], first["weights/sparse_share"]) == (130.0, 0.5)
    assert (second["weights/bytes"], second["weights/sparse_share"]) == (30.0, 1.0)
    assert "weights/weights_bytes" not in first
    assert first["wait_for_batch_s"] >= 0
    assert run.fresh == [16, 16], "what waits, the batch included, is there to be probed"


@pytest.mark.parametrize(("before", "after"), [(0, 3), (3, 0), (4, 2), (1, 2)])
def test_a_bound_that_changes_holds_for_all_that_is_granted_from_then_on(before: int, after: int) -> None:
    run = Run(steps=16, max_staleness=before)
    record, changed_at = run.on_step, 5

    def on_step(metrics: dict[str, float], batch: Sequence[Trajectory]) -> None:
        record(metrics, batch)
        if run.version == changed_at:
            run.gate.limit_staleness(after)

    run.on_step = on_step  # type: ignore[method-assign]
    run.learn()
    bounds = [int(row["max_staleness"]) for row in run.rows]
    assert bounds == [before] * changed_at + [after] * (16 - changed_at)
    ages = [max(number - t.oldest_version for t in batch) for number, batch in enumerate(run.batches)]
    settled = changed_at + steps_left_out(before, after)
    assert all(age <= max(before, after) for age in ages)
    assert all(age <= after for age in ages[settled:]), ages
    assert ages[-1] == after, "the wider bound is used"
    assert conserved(run.gate.ledger())


def test_the_loops_seconds_are_all_accounted_for_but_for_calls_between_its_parts() -> None:
    run = Run(steps=3, checkpoint_every=1)
    run.learn()
    for row in run.rows:
        parts = sum(row[f"learner_time/{part}_s"] for part in (*LEARNER_PARTS, "unaccounted"))
        assert row["learner_time/total_s"] == pytest.approx(parts)
    assert run.rows[1]["learner_time/checkpoint_s"] > 0, "that of the step before"


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


@pytest.mark.parametrize("come_since", [False, True])
def test_a_run_that_is_interrupted_right_after_a_checkpoint_saves_again_what_has_come_in_since(
    come_since: bool,
) -> None:
    run = Run(steps=5, stop_at=2, checkpoint_every=2, come_since=come_since)
    run.learn()
    assert run.of("drain", "save") == [("save", 2), ("drain", 2), *([("save", 2)] if come_since else [])]


def test_a_run_that_has_its_steps_does_not_save_the_last_one_twice() -> None:
    run = Run(steps=2, checkpoint_every=2, come_since=True)
    run.learn()
    assert run.of("drain", "save") == [("save", 2)]


def test_a_step_that_is_given_up_leaves_its_batch_in_the_queue_and_is_not_recorded() -> None:
    run = Run(steps=5, give_up_at=2)
    run.learn()
    assert run.of("step", "drain", "save") == [("step", 1), ("step", 2), ("drain", 2), ("save", 2)]
    assert {trajectory.slot for trajectory in run.batches[-1]} <= {t.slot for t in run.actors.queued()}
    assert totals(run.gate.ledger())["trained"] == 2 * 8
    assert run.phases[-2:] == [Phase.DRAINING, Phase.SAVING]


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
