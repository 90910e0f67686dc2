from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from executor.tasks import Kind
from learner.checkpoint import Checkpoints, read_stream_state, write_stream_state
from learner.metrics import describe_batch
from learner.ranks import Ranks
from learner.settings import BatchSettings
from learner.staleness import Gate, Holder, totals
from learner.trajectory import Cell, Role, Status, Trajectory, VersionSpan


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
