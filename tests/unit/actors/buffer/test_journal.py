"""The journal of the task buffer's file: which one is chosen, and that a file goes from one to the other whole."""

from __future__ import annotations

import os
import signal
import sqlite3
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest

from actors.buffer import journal
from actors.buffer.file import TaskBufferError, open_database
from actors.buffer.journal import JournalError, file_system, journal_of, why_no_log
from actors.buffer.settings import BufferSettings
from actors.buffer.task_buffer import NewTask, TaskBuffer
from executor.tasks import Task


def journal_at(path: Path, choice: journal.JournalChoice = "auto") -> str:
    database, _ = open_database(path, choice)
    try:
        return journal_of(database)
    finally:
        database.close()


def mounted(monkeypatch: pytest.MonkeyPatch, *mounts: tuple[Path, str]) -> None:
    found = [SimpleNamespace(mountpoint=str(point), fstype=kind) for point, kind in mounts]
    monkeypatch.setattr(psutil, "disk_partitions", lambda all: found)


def test_a_local_file_system_gets_a_write_ahead_log(tmp_path: Path) -> None:
    assert file_system(tmp_path) == file_system(tmp_path / "not" / "yet")
    assert file_system(Path("/proc/self")) == "proc"
    assert journal_at(tmp_path / "tasks.sqlite") == "wal"


@pytest.mark.parametrize("kind", ["nfs4", "lustre", "fuse.sshfs"])
def test_a_shared_file_system_gets_a_rollback_journal_and_the_log_says_why(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    mounted(monkeypatch, (Path("/"), "ext4"), (tmp_path, "xfs"), (tmp_path, kind), (tmp_path / "other", "ext4"))
    path = tmp_path / "tasks.sqlite"
    assert kind in why_no_log(path) and not why_no_log(tmp_path / "other" / "x")
    assert journal_at(path) == "truncate"
    assert kind in caplog.text and str(path) in caplog.text
    assert sorted(file.name for file in tmp_path.glob("*-shm")) == []
    assert journal_at(path, "wal") == "wal", "a user may know better"


def test_a_file_system_whose_shared_memory_fails_gets_a_rollback_journal(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """What SQLite finds: here the shared memory's file cannot be made, since a folder has its name."""
    path = tmp_path / "tasks.sqlite"
    path.with_name(".tasks.sqlite.probe-shm").mkdir()
    store = TaskBuffer(path)
    assert store.sizes()["deduction"] == 1
    store.close()
    assert journal_at(path) == "truncate"
    assert "rollback journal" in caplog.text


_WRITER = """
import os, signal, sys
from pathlib import Path
from actors.buffer.settings import BufferSettings
from actors.buffer.task_buffer import NewTask, TaskBuffer
from executor.tasks import Task
store = TaskBuffer(Path(sys.argv[1]), BufferSettings(journal=sys.argv[2]))
for number in range(20):
    task = Task("deduction", f"def f(x): return {number}", ("1",), (str(number),))
    store.add(NewTask(task, normal=task.program, proposer_version=0, episode_id="e"))
os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.parametrize(("first", "second"), [("wal", "rollback"), ("rollback", "wal")])
def test_a_killed_buffer_goes_on_whole_under_the_other_journal(first: str, second: str, tmp_path: Path) -> None:
    """A run folder may be moved to another file system: a log that is left is folded in, without shared memory."""
    path = tmp_path / "tasks.sqlite"
    process = subprocess.run([sys.executable, "-c", _WRITER, str(path), first], check=False)
    assert process.returncode == -signal.SIGKILL
    if first == "wal":
        assert path.with_name("tasks.sqlite-wal").stat().st_size > 0
        os.unlink(path.with_name("tasks.sqlite-shm"))
    store = TaskBuffer(path, BufferSettings.model_validate({"journal": second}))
    assert store.sizes()["deduction"] == 21
    store.snapshot(tmp_path / "copy")
    with sqlite3.connect(tmp_path / "copy") as copy:
        assert copy.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    store.close()
    assert [file.name for file in tmp_path.iterdir() if "-wal" in file.name or "-shm" in file.name] == []


def test_others_may_read_and_write_beside_a_rollback_journal(tmp_path: Path) -> None:
    """As sqlite3 of a user: the lock is given back once the file is open."""
    path = tmp_path / "tasks.sqlite"
    store = TaskBuffer(path, BufferSettings(journal="rollback"))
    with sqlite3.connect(path, timeout=0) as other:
        assert other.execute("SELECT count(*) FROM tasks").fetchone() == (2,)
        other.execute("UPDATE tasks SET reward = 1")
    task = Task("deduction", "def f(x): return 1", ("1",), ("1",))
    assert store.add(NewTask(task, normal=task.program, proposer_version=0, episode_id="e")).task_id == 3
    store.close()


def test_a_file_system_without_locks_is_refused_in_words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_locks(*_: object) -> None:
        raise OSError(38, os.strerror(38))

    monkeypatch.setattr(journal.fcntl, "lockf", no_locks)
    with pytest.raises(JournalError, match=r"has no file locks \(Function not implemented\).*-o flock"):
        journal_at(tmp_path / "tasks.sqlite", "rollback")


def test_a_file_of_something_else_is_left_as_it_is(tmp_path: Path) -> None:
    path = tmp_path / "tasks.sqlite"
    path.write_text("not a database, but long enough to be looked at\n" * 100)
    before = path.read_bytes()
    for choice in ("auto", "rollback"):
        with pytest.raises(TaskBufferError, match="is no task buffer"):
            open_database(path, choice)  # type: ignore[arg-type]
    assert path.read_bytes() == before
