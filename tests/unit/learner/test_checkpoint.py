from __future__ import annotations

import contextlib
import os
import shutil
import threading
from collections.abc import Callable
from pathlib import Path

import msgpack
import numpy as np
import pytest

from learner.checkpoint import CheckpointError, Checkpoints, Finish, read_stream_state, write_stream_state
from learner.fields import WireError
from learner.ledger import conserved, totals
from learner.places import Holder
from learner.ranks import Ranks
from learner.settings import BatchSettings
from learner.staleness import Gate
from learner.trajectory import SCHEMA_VERSION, Cell, Role, Status, Trajectory, VersionSpan, dumps, encode


def trajectory(slot: int, role: Role, spans: list[tuple[int, int, int]], reward: float, **parts: float) -> Trajectory:
    length = spans[-1][2]
    return Trajectory(
        "run", "a", 0, slot, "e", Cell("deduction", role), np.array([1], np.int32),
        np.zeros(length, np.int32), np.zeros(length, np.float32), tuple(VersionSpan(*s) for s in spans), reward, parts,
        Status.TRUNCATED if length > 3 else Status.STOPPED,
    )  # fmt: skip


def test_ledger_and_queue_come_back(tmp_path: Path) -> None:
    batch = BatchSettings(propose={"deduction": 2}, solve={})
    gate = Gate(batch, 0, solutions=1)
    holder = Holder("a", 0)
    first, second = (gate.grant(holder, 10) for _ in range(2))
    assert first is not None
    assert second is not None
    queued = trajectory(first.propose[0], Role.PROPOSE, [(0, 0, 2)], -1.0)
    assert gate.arrive(queued.slot, holder, queued.cell, 0)
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


HOLDER = Holder("a", 0)


def write_text(text: str) -> Callable[[Path], Finish]:
    def write(folder: Path) -> Finish:
        def finish(group: object) -> None:
            (folder / "model").mkdir()
            (folder / "model" / "part").write_text(text)

        return finish

    return write


def save(checkpoints: Checkpoints, version: int, text: str = "") -> Path:
    checkpoints.save(version, Ranks(), write_text(text or str(version)))
    checkpoints.wait()
    return checkpoints.directory / f"step_{version:08d}"


def names(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir())


def test_nothing_saved_is_nothing_to_resume(tmp_path: Path) -> None:
    for checkpoints in (Checkpoints(tmp_path / "absent", 2), Checkpoints(tmp_path, 2)):
        assert checkpoints.recover() == []
        assert checkpoints.latest() is None


def test_the_newest_are_kept_and_the_latest_is_the_newest(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path / "checkpoints", keep=2)
    for version in (2, 9, 10, 100):
        folder = save(checkpoints, version)
        assert checkpoints.latest() == folder
    assert names(checkpoints.directory) == ["step_00000010", "step_00000100"]
    assert (folder / "model" / "part").read_text() == "100"


def test_the_run_goes_on_while_a_checkpoint_is_written(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path, keep=1)
    first = save(checkpoints, 1)
    begun, go_on = threading.Event(), threading.Event()

    def write(folder: Path) -> Finish:
        (folder / "small").write_text("at once")

        def finish(group: object) -> None:
            (folder / "part").write_text("half")
            begun.set()
            assert go_on.wait(30)

        return finish

    checkpoints.save(2, Ranks(), write)
    assert begun.wait(30)
    assert checkpoints.latest() == first, "seen before it was complete"
    go_on.set()
    checkpoints.wait()
    assert checkpoints.latest() == tmp_path / "step_00000002"
    assert names(tmp_path) == ["step_00000002"]
    assert names(tmp_path / "step_00000002") == ["complete.json", "part", "small"]


def test_the_next_checkpoint_waits_for_the_one_before(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path, keep=3)
    for version in (1, 2, 3):
        checkpoints.save(version, Ranks(), write_text(str(version)))
    checkpoints.wait()
    assert names(tmp_path) == ["step_00000001", "step_00000002", "step_00000003"]


@pytest.mark.parametrize("late", [False, True])
def test_a_write_that_fails_is_told_and_leaves_the_previous_one_whole(tmp_path: Path, late: bool) -> None:
    checkpoints = Checkpoints(tmp_path, keep=1)
    first = save(checkpoints, 1, "good")

    def fail(folder: Path) -> Finish:
        (folder / "left over").write_text("half")

        def full(group: object) -> None:
            raise OSError("the disk is full")

        return full

    checkpoints.save(2, Ranks(), fail)
    with pytest.raises(CheckpointError, match="step_00000002 could not be written: the disk is full"):
        checkpoints.save(3, Ranks(), write_text("3")) if late else checkpoints.wait()
    assert checkpoints.latest() == first
    assert (first / "model" / "part").read_text() == "good"

    again = save(checkpoints, 2, "after")  # it is told once
    assert checkpoints.latest() == again
    assert names(again) == ["complete.json", "model"], "what the failed attempt left behind went in"
    assert names(tmp_path) == ["step_00000002"]


def test_saving_a_version_again_replaces_it(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path, keep=2)
    save(checkpoints, 3, "first")
    assert (save(checkpoints, 3, "second") / "model" / "part").read_text() == "second"
    assert names(tmp_path) == ["step_00000003"]


class Killed(BaseException):
    """Nothing after it runs."""


@pytest.mark.parametrize("at", range(12))
def test_killed_at_any_moment_of_a_replacement_a_whole_one_is_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at: int
) -> None:
    """Of version 2 there is a checkpoint; another is named over it, and version 1 goes. Each change on the disk may be
    the last."""
    checkpoints = Checkpoints(tmp_path, keep=1)
    save(checkpoints, 2, "old")
    save(Checkpoints(tmp_path, keep=2), 1, "older")
    partial = tmp_path / ".partial_00000002"
    write_text("new")(partial if partial.mkdir() is None else partial)(None)
    count = 0

    def killing(function: Callable[..., object]) -> Callable[..., object]:
        def call(*args: object, **kwargs: object) -> object:
            nonlocal count
            if count == at:
                raise Killed
            count += 1
            return function(*args, **kwargs)

        return call

    with monkeypatch.context() as patched:
        patched.setattr(Path, "rename", killing(Path.rename))
        patched.setattr(Path, "write_text", killing(Path.write_text))
        patched.setattr(shutil, "rmtree", killing(shutil.rmtree))
        patched.setattr("os.fsync", killing(os.fsync))
        with contextlib.suppress(Killed):
            checkpoints._name(2, partial, tmp_path / "step_00000002")
    assert Checkpoints(tmp_path, keep=1).recover() == []
    latest = checkpoints.latest()
    assert latest is not None
    assert latest.name == "step_00000002"
    assert (latest / "model" / "part").read_text() in ("old", "new")
    assert set(names(tmp_path)) <= {"step_00000002", "step_00000001"}


def damage(folder: Path, how: str) -> None:
    if how == "no list":
        (folder / "complete.json").unlink()
    elif how == "list cut":
        (folder / "complete.json").write_text("{")
    elif how == "missing":
        (folder / "model" / "part").unlink()
    else:
        (folder / "model" / "part").write_text("")


@pytest.mark.parametrize(
    ("how", "why"),
    [
        ("no list", "no complete.json"),
        ("list cut", "cannot be read"),
        ("missing", "model/part is missing"),
        ("cut", "model/part has 0 bytes, not 1"),
    ],
)
def test_an_incomplete_checkpoint_is_named_and_the_one_before_is_used(tmp_path: Path, how: str, why: str) -> None:
    checkpoints = Checkpoints(tmp_path, keep=3)
    for version in (1, 2, 3):
        save(checkpoints, version)
    for version in (2, 3):
        damage(tmp_path / f"step_{version:08d}", how)
    assert checkpoints.latest() == tmp_path / "step_00000001"
    told = checkpoints.recover()
    assert len(told) == 2
    assert "step_00000003" in told[0] and why in told[0] and "going on from step_00000001" in told[0]
    assert names(tmp_path) == ["broken_00000002", "broken_00000003", "step_00000001"]
    (tmp_path / "step_00000003").mkdir()
    checkpoints.recover()
    assert names(tmp_path) == ["broken_00000002", "broken_00000003", "broken_00000003.2", "step_00000001"]
    assert checkpoints.recover() == []
    assert checkpoints.latest() == tmp_path / "step_00000001"


def test_without_a_complete_one_a_run_does_not_start_from_nothing(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path, keep=3)
    damage(save(checkpoints, 1), "missing")
    with pytest.raises(CheckpointError, match="no complete checkpoint is left.*step_00000001: model/part is missing"):
        checkpoints.recover()
    assert names(tmp_path) == ["step_00000001"]


def test_what_a_kill_left_is_removed(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path, keep=3)
    save(checkpoints, 1)
    (tmp_path / ".partial_00000002" / "model").mkdir(parents=True)
    (tmp_path / ".deleted_step_00000000").mkdir()
    assert checkpoints.recover() == []
    assert names(tmp_path) == ["step_00000001"]


def test_a_checkpoint_of_an_older_azr_is_refused_with_the_way_out(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path, keep=3)
    save(checkpoints, 1)
    old = tmp_path / "step_00000002" / "model"
    old.mkdir(parents=True)
    (old / "rank_00000.pt").write_text("")
    for read in (checkpoints.latest, checkpoints.recover):
        with pytest.raises(CheckpointError, match=r"step_00000002 is a checkpoint of format 1.*model.path=.*hf"):
            read()


def make(slot: int, cell: Cell) -> Trajectory:
    return Trajectory(
        "run", "a", 0, slot, "e", cell, np.array([1, 2], np.int32), np.array([3], np.int32),
        np.array([-0.25], np.float32), (VersionSpan(0, 0, 1),), 0.5,
    )  # fmt: skip


def test_gate_and_queue_come_back_together(tmp_path: Path) -> None:
    def gate() -> Gate:
        return Gate(BatchSettings(propose={"deduction": 2}, solve={"deduction": 3}), 1, solutions=2)

    before = gate()
    grants = list(iter(lambda: before.grant(HOLDER, 100), None))
    cell = Cell("deduction", Role.PROPOSE)
    queued = [make(grant.propose[0], cell) for grant in grants[:3]]
    assert all(before.arrive(t.slot, HOLDER, cell, 0) for t in queued)
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
            after.arrive(slot, HOLDER, Cell(grant.kind, Role.PROPOSE if slot in grant.propose else Role.SOLVE), 0)
    assert {t.slot for t in queued[:2]} <= set(slots)
    assert len(slots) == 5


def test_a_damaged_queue_is_refused(tmp_path: Path) -> None:
    gate = Gate(BatchSettings(), 0, solutions=1)
    write_stream_state(tmp_path, gate.state_dict(), [make(0, Cell("deduction", Role.SOLVE))])
    file = tmp_path / "queue.msgpack"
    file.write_bytes(file.read_bytes()[:-4] + np.array([np.nan], "<f4").tobytes())
    with pytest.raises(WireError, match="not_finite"):
        read_stream_state(tmp_path)


def test_a_queue_that_an_older_azr_wrote_is_read() -> None:
    # Written by the code of schema 1, whose trajectories carried the number of their message.
    state, waiting = read_stream_state(Path(__file__).parent / "schema_1")
    assert [(t.slot, t.incarnation, t.cell.name) for t in waiting] == [
        (0, 3, "deduction/propose"), (1, 3, "deduction/solve"), (2, 3, "deduction/propose"),
    ]  # fmt: skip
    assert [t.prompt_ids.tolist() for t in waiting] == [[1, 2, slot] for slot in range(3)]
    assert [t.logprobs.tolist() for t in waiting] == [[-0.5, -1.5 - slot] for slot in range(3)]
    assert [(t.reward, t.reward_parts, t.outcome, t.timings) for t in waiting] == [
        (0.5 - slot, {"valid": 1.0}, "valid", {"queue_s": 0.25}) for slot in range(3)
    ]
    gate = Gate(BatchSettings(propose={"deduction": 2}, solve={"deduction": 2}), 1, solutions=1)
    gate.load_state_dict(state)
    sums = totals(gate.ledger())
    assert conserved(gate.ledger())
    assert (sums["queued"], sums["in_flight"], sums["dropped"]) == (3, 0, 1)


def test_a_queue_that_a_newer_azr_wrote_is_refused_with_the_mend(tmp_path: Path) -> None:
    (frames,) = msgpack.unpackb(dumps([make(0, Cell("deduction", Role.SOLVE))]))
    header = msgpack.unpackb(frames[0]) | {"schema": SCHEMA_VERSION + 1}
    (tmp_path / "gate.json").write_text("{}")
    (tmp_path / "queue.msgpack").write_bytes(msgpack.packb([[msgpack.packb(header), *frames[1:]]]))
    with pytest.raises(
        WireError, match=r"unknown_schema: schema 3, .* reads \[1, 2\]: go on with the azr that wrote it"
    ):
        read_stream_state(tmp_path)
