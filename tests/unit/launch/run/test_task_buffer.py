"""The buffer at the start of a run: a resumed run has the tasks that its checkpoint knew, and loses none of the
others."""

from __future__ import annotations

import json
import shutil
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from actors.buffer.file import TaskBufferError
from actors.buffer.task_buffer import NewTask, TaskBuffer
from executor.tasks import Task
from launch.config import Config
from launch.run.folder import RunFolder
from launch.run.task_buffer import SNAPSHOT, open_tasks, restore, set_aside
from launch.settings import RunSettings
from learner.checkpoint import seal

CONFIG = Config(run=RunSettings(name="run"))


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    folder = RunFolder(tmp_path / "run")
    folder.create()
    return folder


def put(store: TaskBuffer, number: int) -> int:
    task = Task("deduction", f"def f(x): return {number}", ("1",), (str(number),))
    task_id = store.add(NewTask(task, normal=task.program, proposer_version=number, episode_id="e")).task_id
    assert task_id is not None
    return task_id


def checkpoint(folder: RunFolder, store: TaskBuffer, version: int) -> Path:
    path = folder.checkpoints / f"step_{version:08d}"
    path.mkdir(parents=True)
    store.snapshot(path / SNAPSHOT)
    seal(path, version)
    return path


def events(folder: RunFolder) -> list[dict[str, Any]]:
    if not folder.events.exists():
        return []
    lines = [json.loads(line) for line in folder.events.read_text().splitlines()]
    return [{key: value for key, value in line.items() if key != "time"} for line in lines]


def programs(path: Path) -> list[str]:
    with closing(sqlite3.connect(path)) as database:
        rows = database.execute("SELECT program FROM tasks WHERE episode_id <> 'zero' ORDER BY id")
        return [program.removeprefix("def f(x): return ") for (program,) in rows]


@pytest.mark.parametrize("killed", [False, True])
def test_a_resumed_run_has_its_checkpoints_tasks_and_the_rest_lies_aside(folder: RunFolder, killed: bool) -> None:
    store = open_tasks(CONFIG, folder, resume=False)
    put(store, 1)
    at = checkpoint(folder, store, 10)
    store.record(1, 4, 8, 4)
    put(store, 2)
    put(store, 3)
    draws = TaskBuffer(at / SNAPSHOT)
    expected = draws.references(("deduction",), 2, "s")
    draws.close()
    if killed:  # its log is still beside it
        shutil.copytree(folder.path, folder.path.with_name("copy"))
        store.close()
        shutil.rmtree(folder.path)
        folder.path.with_name("copy").rename(folder.path)
        assert folder.tasks.with_name("tasks.sqlite-wal").stat().st_size > 0
    store.close()
    again = open_tasks(CONFIG, folder, resume=True)
    assert again.sizes()["deduction"] == 2
    assert again.references(("deduction",), 2, "s") == expected
    assert put(again, 2) == 4, "what lies aside is not known, and its number is free again"
    again.close()
    assert programs(folder.tasks) == ["1", "2"]
    assert programs(folder.path / "tasks.aside.1.sqlite") == ["1", "2", "3"]
    assert events(folder) == [
        {
            "event": "tasks_set_aside", "file": "tasks.aside.1.sqlite", "why": "the run goes on from step_00000010",
            "tasks": 2, "attempts": 8, "after_id": 3,
        }
    ]  # fmt: skip
    assert sorted(p.name for p in folder.path.glob("*tasks*")) == ["tasks.aside.1.sqlite", "tasks.sqlite"]


def test_the_newest_checkpoint_counts_and_nothing_later_leaves_nothing_aside(folder: RunFolder) -> None:
    store = open_tasks(CONFIG, folder, resume=False)
    put(store, 1)
    checkpoint(folder, store, 10)
    put(store, 2)
    checkpoint(folder, store, 20)
    store.close()
    open_tasks(CONFIG, folder, resume=True).close()
    assert programs(folder.tasks) == ["1", "2"]
    assert events(folder) == []
    assert sorted(p.name for p in folder.path.glob("*tasks*")) == ["tasks.sqlite"]


def test_every_resume_has_an_aside_file_of_its_own(folder: RunFolder) -> None:
    store = open_tasks(CONFIG, folder, resume=False)
    checkpoint(folder, store, 1)
    for number in range(1, 4):
        put(store, number)
        store.close()
        store = open_tasks(CONFIG, folder, resume=True)
    store.close()
    assert [programs(folder.path / f"tasks.aside.{n}.sqlite") for n in (1, 2, 3)] == [["1"], ["2"], ["3"]]
    assert programs(folder.tasks) == []


@pytest.mark.parametrize(("mode", "resume"), [("async", False), ("serial", False), ("serial", True)])
def test_without_a_checkpoint_a_run_starts_from_the_zero_triplet(folder: RunFolder, mode: Any, resume: bool) -> None:
    store = open_tasks(CONFIG, folder, resume=False)
    put(store, 1)
    store.close()
    again = open_tasks(Config(run=RunSettings(name="run", mode=mode)), folder, resume)
    assert again.sizes() == {"deduction": 1, "abduction": 1, "induction": 0}
    again.close()
    assert programs(folder.path / "tasks.aside.1.sqlite") == ["1"]


def test_a_run_that_was_stopped_while_it_was_seeded_keeps_its_tasks(folder: RunFolder) -> None:
    store = open_tasks(CONFIG, folder, resume=False)
    put(store, 1)
    store.close()
    again = open_tasks(CONFIG, folder, resume=True)
    put(again, 2)
    again.close()
    assert programs(folder.tasks) == ["1", "2"]
    assert events(folder) == []


def test_a_restore_that_was_cut_short_can_be_done_again(folder: RunFolder) -> None:
    store = open_tasks(CONFIG, folder, resume=False)
    put(store, 1)
    at = checkpoint(folder, store, 10)
    put(store, 2)
    store.close()
    set_aside(folder, "as far as it got", at / SNAPSHOT)
    assert not folder.tasks.exists()
    restore(folder, at)
    assert programs(folder.tasks) == ["1"]
    assert programs(folder.path / "tasks.aside.1.sqlite") == ["1", "2"]


def test_a_file_that_cannot_be_read_is_kept(folder: RunFolder) -> None:
    store = open_tasks(CONFIG, folder, resume=False)
    at = checkpoint(folder, store, 10)
    store.close()
    folder.tasks.write_text("torn " * 1000)
    restore(folder, at)
    assert (folder.path / "tasks.aside.1.sqlite").read_text().startswith("torn")
    assert "unreadable" in events(folder)[0]
    assert programs(folder.tasks) == []


@pytest.mark.parametrize("part", range(6))
def test_a_damaged_snapshot_is_refused_wherever_the_damage_is(folder: RunFolder, part: int) -> None:
    with closing(TaskBuffer(folder.tasks, CONFIG.buffer)) as store:
        for number in range(200):
            put(store, number)
        saved = checkpoint(folder, store, 1)
    content = bytearray((saved / SNAPSHOT).read_bytes())
    start = len(content) * part // 6
    content[start : start + len(content) // 6] = bytes(len(content) // 6)
    (saved / SNAPSHOT).write_bytes(content)  # of the size that the checkpoint's list has
    before = folder.tasks.read_bytes()
    with pytest.raises(TaskBufferError, match="step_00000001 is damaged"):
        open_tasks(CONFIG, folder, resume=True)
    assert folder.tasks.read_bytes() == before, "and nothing was moved"


def test_a_buffer_that_another_run_has_open_is_not_taken_away(folder: RunFolder) -> None:
    store = open_tasks(CONFIG, folder, resume=False)
    put(store, 1)
    # It is enough that it is open.
    with pytest.raises(TaskBufferError, match="is open elsewhere"):
        open_tasks(CONFIG, folder, resume=False)
    store.close()
    assert programs(folder.tasks) == ["1"]
