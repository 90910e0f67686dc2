from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from executor.tasks import Kind
from learner.checkpoint import Checkpoints, read_stream_state, write_stream_state
from learner.metrics import describe_batch
from learner.ranks import Ranks
from learner.settings import BatchSettings
from learner.staleness import Gate, Holder, conserved, totals
from learner.trajectory import Cell, Role, Status, Trajectory, VersionSpan, WireError, encode


def trajectory(slot: int, role: Role, spans: list[tuple[int, int, int]], reward: float, **parts: float) -> Trajectory:
    length = spans[-1][2]
    return Trajectory(
        "run", "a", 0, slot + 1, slot, "e", Cell(Kind.DEDUCTION, role), np.array([1], np.int32),
        np.zeros(length, np.int32), np.zeros(length, np.float32), tuple(VersionSpan(*s) for s in spans), reward, parts,
        Status.TRUNCATED if length > 3 else Status.STOPPED,
    )  # fmt: skip


def test_a_write_that_fails_leaves_the_last_checkpoint(tmp_path: Path) -> None:
    store = Checkpoints(tmp_path, keep=2)
    assert store.latest() is None
    store.save(1, Ranks(), lambda folder: (folder / "x").write_text("1") and None)

    def fail(folder: Path) -> None:
        (folder / "x").write_text("2")
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        store.save(2, Ranks(), fail)
    latest = store.latest()
    assert latest is not None
    assert latest.name == "step_00000001"
    assert (latest / "x").read_text() == "1"


def test_the_newest_are_kept(tmp_path: Path) -> None:
    store = Checkpoints(tmp_path, keep=2)
    for version in (8, 9, 10):
        store.save(version, Ranks(), lambda folder: (folder / "x").write_text("") and None)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["step_00000009", "step_00000010"]


def test_ledger_and_queue_come_back(tmp_path: Path) -> None:
    batch = BatchSettings(propose={Kind.DEDUCTION: 2}, solve={})
    gate = Gate(batch, 0, solutions=1)
    holder = Holder("a", 0)
    first, second = (gate.grant(holder, 10) for _ in range(2))
    assert first is not None
    assert second is not None
    queued = trajectory(first.propose[0], Role.PROPOSE, [(0, 0, 2)], -1.0)
    assert gate.arrive(queued.slot, holder, queued.cell)
    write_stream_state(tmp_path, gate.state_dict(), [queued])

    state, trajectories = read_stream_state(tmp_path)
    again = Gate(batch, 0, solutions=1)
    again.load_state_dict(state)
    assert [t.slot for t in trajectories] == [queued.slot]
    assert totals(again.ledger()) == {
        "granted": 2, "trained": 0, "dropped": 1, "returned": 0, "queued": 1, "in_flight": 0,
    }  # fmt: skip
    replacement = again.grant(Holder("a", 1), 10)
    assert replacement is not None
    assert replacement.propose[0] not in (*first.propose, *second.propose)


def test_a_batch_is_described_by_what_is_in_it() -> None:
    batch = [
        trajectory(0, Role.PROPOSE, [(2, 0, 2)], 0.5, valid=1.0),
        trajectory(1, Role.PROPOSE, [(1, 0, 1), (2, 1, 4)], -1.0, valid=0.0),
        trajectory(2, Role.SOLVE, [(2, 0, 2)], 1.0, correct=1.0, replayed=1.0),
        trajectory(3, Role.SOLVE, [(2, 0, 2)], -0.5, correct=0.0, replayed=0.0),
    ]
    numbers = describe_batch(batch, version=3)
    assert numbers["valid_rate/deduction"] == 0.5
    assert numbers["solve_rate/deduction"] == 0.5
    assert numbers["solve_rate_fresh/deduction"] == 0.0
    assert numbers["reward/deduction/propose"] == -0.25
    assert numbers["truncated/deduction/propose"] == 0.5
    assert numbers["age_max"] == 2
    assert numbers["age_mean"] == pytest.approx(1.25)
    assert numbers["age_generation"] == pytest.approx(0.25)
    assert numbers["age_queue"] == pytest.approx(1.0)
    assert numbers["spanning"] == 0.25
    assert not any("abduction" in name for name in numbers), "an empty cell has no rate"


HOLDER = Holder("a", 0)


def write_text(text: str) -> object:
    def write(folder: Path) -> None:
        (folder / "model").mkdir()
        (folder / "model" / "part").write_text(text)

    return write


def save(checkpoints: Checkpoints, version: int, text: str = "") -> Path:
    return checkpoints.save(version, Ranks(), write_text(text or str(version)))  # type: ignore[arg-type]


def names(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir())


def test_nothing_saved_is_nothing_to_resume(tmp_path: Path) -> None:
    assert Checkpoints(tmp_path / "absent", 2).latest() is None
    assert Checkpoints(tmp_path, 2).latest() is None


def test_the_newest_are_kept_and_the_latest_is_the_newest(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path / "checkpoints", keep=2)
    for version in (2, 9, 10, 100):
        folder = save(checkpoints, version)
        assert checkpoints.latest() == folder
    assert names(checkpoints.directory) == ["step_00000010", "step_00000100"]
    assert (folder / "model" / "part").read_text() == "100"


def test_a_checkpoint_has_no_name_while_it_is_written(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path, keep=1)
    first = save(checkpoints, 1)

    def write(folder: Path) -> None:
        (folder / "part").write_text("half")
        assert checkpoints.latest() == first, "seen before it was complete"

    assert checkpoints.save(2, Ranks(), write) == checkpoints.latest() == tmp_path / "step_00000002"


def test_a_write_that_fails_leaves_the_previous_one_whole(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path, keep=1)
    first = save(checkpoints, 1, "good")

    def fail(folder: Path) -> None:
        (folder / "left over").write_text("half")
        raise OSError("the disk is full")

    with pytest.raises(OSError, match="disk is full"):
        checkpoints.save(2, Ranks(), fail)
    assert checkpoints.latest() == first
    assert [path.name for path in tmp_path.glob("step_*")] == ["step_00000001"]
    assert (first / "model" / "part").read_text() == "good"

    again = save(checkpoints, 2, "after")
    assert checkpoints.latest() == again
    assert names(again) == ["model"], "what the failed attempt left behind went in"
    assert names(tmp_path) == ["step_00000002"]


def test_saving_a_version_again_replaces_it(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path, keep=2)
    save(checkpoints, 3, "first")
    assert (save(checkpoints, 3, "second") / "model" / "part").read_text() == "second"
    assert names(tmp_path) == ["step_00000003"]


def make(slot: int, cell: Cell) -> Trajectory:
    return Trajectory(
        "run", "a", 0, slot, slot, "e", cell, np.array([1, 2], np.int32), np.array([3], np.int32),
        np.array([-0.25], np.float32), (VersionSpan(0, 0, 1),), 0.5,
    )  # fmt: skip


def test_gate_and_queue_come_back_together(tmp_path: Path) -> None:
    def gate() -> Gate:
        return Gate(BatchSettings(propose={Kind.DEDUCTION: 2}, solve={Kind.DEDUCTION: 3}), 1, solutions=2)

    before = gate()
    grants = list(iter(lambda: before.grant(HOLDER, 100), None))
    cell = Cell(Kind.DEDUCTION, Role.PROPOSE)
    queued = [make(grant.propose[0], cell) for grant in grants[:3]]
    assert all(before.arrive(t.slot, HOLDER, cell) for t in queued)
    write_stream_state(tmp_path, before.state_dict(), queued)

    state, waiting = read_stream_state(tmp_path)
    after = gate()
    after.load_state_dict(state)
    assert [[bytes(f) for f in encode(t)] for t in waiting] == [[bytes(f) for f in encode(t)] for t in queued]
    assert conserved(after.ledger())
    sums = totals(after.ledger())
    assert (sums["queued"], sums["in_flight"], sums["dropped"]) == (3, 0, before.in_flight())
    # What was lost in flight is granted again, and the queue fits the batch that it was meant for.
    while (slots := after.ready()) is None:
        grant = after.grant(HOLDER, 100)
        assert grant is not None
        for slot in grant.slots:
            after.arrive(slot, HOLDER, Cell(grant.kind, Role.PROPOSE if slot in grant.propose else Role.SOLVE))
    assert {t.slot for t in queued[:2]} <= set(slots)
    assert len(slots) == 5


def test_a_damaged_queue_is_refused(tmp_path: Path) -> None:
    gate = Gate(BatchSettings(), 0, solutions=1)
    write_stream_state(tmp_path, gate.state_dict(), [make(0, Cell(Kind.DEDUCTION, Role.SOLVE))])
    file = tmp_path / "queue.msgpack"
    file.write_bytes(file.read_bytes()[:-4] + np.array([np.nan], "<f4").tobytes())
    with pytest.raises(WireError, match="not_finite"):
        read_stream_state(tmp_path)
