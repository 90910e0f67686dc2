"""The task buffer: what goes in once, comes out by seed, and is still there after a crash."""

from __future__ import annotations

import asyncio
import itertools
import json
import os
import re
import signal
import sqlite3
import subprocess
import sys
import tempfile
import threading
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from actors.buffer.file import SCHEMA_VERSION, TaskBufferError
from actors.buffer.settings import BufferSettings
from actors.buffer.task_buffer import Added, LocalBuffer, NewTask, TaskBuffer, learnability
from actors.kinds.registry import kind_of
from actors.labelled import LabelledProgram
from actors.prompts import ZERO_TASK
from actors.seed_file import save
from executor.tasks import Task
from learner.settings import BatchSettings
from tests.unit.actors.buffer.test_buffer_model import in_memory

KINDS = BatchSettings().kinds


@pytest.fixture
def path(tmp_path: Path) -> Iterator[Path]:
    """In a file system in memory, if there is one: a rollback journal waits for the disk at every commit."""
    with tempfile.TemporaryDirectory(dir=in_memory() or tmp_path) as folder:
        yield Path(folder) / "tasks.sqlite"


@pytest.fixture(params=["wal", "rollback"])
def store(path: Path, request: pytest.FixtureRequest) -> Iterator[TaskBuffer]:
    store = TaskBuffer(path, BufferSettings(journal=request.param))
    yield store
    store.close()


def make(number: int, kind: str = "deduction") -> Task:
    return Task(kind, f"def f(x):\n    return {number}", ("1", "2"), (f"{number}", f"{number}"), "m")


EPISODES = itertools.count()


def put(store: TaskBuffer, task: Task, version: int = 0, episode: str = "", **more: Any) -> int | None:
    """Add a task, of an episode of its own; returns its number, or None where the buffer knew it."""
    episode = episode or f"e{next(EPISODES)}"
    added = store.add(NewTask(task, normal=task.program, proposer_version=version, episode_id=episode, **more))
    return None if added.duplicate else added.task_id


def row(path: Path, task_id: int, *columns: str) -> tuple[object, ...]:
    with sqlite3.connect(path) as database:
        found: tuple[object, ...] = database.execute(
            f"SELECT {', '.join(columns)} FROM tasks WHERE id = ?", (task_id,)
        ).fetchone()
    return found


def test_it_starts_from_the_zero_triplet(store: TaskBuffer, path: Path) -> None:
    assert store.sizes() == {"deduction": 1, "abduction": 1, "induction": 0}
    for kind in ("deduction", "abduction"):
        ((task_id, task),) = store.references(kind_of(kind).reference_kinds, 6, "seed")
        assert (task.kind, task.program, task.inputs, task.outputs) == (
            kind, ZERO_TASK.program, ZERO_TASK.inputs, ZERO_TASK.outputs,
        )  # fmt: skip
        assert store.replay(kind, "seed") == (task_id, task)
        assert row(path, task_id, "proposer_version", "episode_id") == (-1, "zero")
    assert store.replay("induction", "seed") is None


def test_the_first_induction_proposer_has_a_program_to_work_with(store: TaskBuffer) -> None:
    ((_, task),) = store.references(("deduction", "abduction"), 1, "seed")
    assert task.program == ZERO_TASK.program


@pytest.mark.parametrize("kind", list(KINDS))
def test_a_task_comes_out_as_it_went_in(store: TaskBuffer, kind: str) -> None:
    task = Task(
        kind, "def f(a, b):\n    return 'é\\n\"' + a", ("'x', \"y\"", "'\\u2028', 1"), ("'1'", "'2'"), "a 'hint'"
    )
    task_id = put(store, task, 3, "7.1")
    assert task_id is not None
    drawn = {found for found in (store.replay(kind, str(seed)) for seed in range(30)) if found}
    assert (task_id, task) in drawn


@pytest.mark.parametrize(
    ("change", "taken"),
    [
        ({}, False),
        ({"program": "\n" + make(1).program + "\n"}, False),
        ({"outputs": ("3", "4")}, False),
        ({"kind": "abduction"}, True),
        ({"program": make(2).program}, True),
        ({"inputs": ("2", "1")}, True),
        ({"inputs": ("1, 2", "2")}, True),
        ({"message": "other"}, False),
    ],
)
def test_a_task_enters_once(store: TaskBuffer, change: dict[str, object], taken: bool) -> None:
    fields = {name: getattr(make(1), name) for name in ("kind", "program", "inputs", "outputs", "message")}
    first = put(store, make(1), 0, "a")
    before = sum(store.sizes().values())
    again = put(store, Task(**(fields | change)), 5, "b")  # type: ignore[arg-type]
    assert first is not None
    assert (again is not None) == taken
    assert again != first
    assert sum(store.sizes().values()) == before + taken


def test_the_first_proposer_of_a_task_is_the_one_that_is_kept(store: TaskBuffer, path: Path) -> None:
    task_id = put(store, make(1), 3, "first")
    put(store, make(1), 9, "second")
    assert task_id is not None
    assert row(path, task_id, "proposer_version", "episode_id") == (3, "first")


def test_references_are_distinct_and_oldest_first(store: TaskBuffer) -> None:
    for number in range(20):
        put(store, make(number))
    ids = [task_id for task_id, _ in store.references(("deduction",), 8, "seed")]
    assert len(set(ids)) == 8
    assert ids == sorted(ids)
    assert all(task.kind == "deduction" for _, task in store.references(("deduction",), 99, "seed"))
    assert len(store.references(("deduction",), 99, "seed")) == 21
    assert store.references(("deduction",), 0, "seed") == []


def test_induction_proposers_draw_from_deduction_and_abduction_only(store: TaskBuffer) -> None:
    for number in range(3):
        for kind in KINDS:
            put(store, make(number, kind))
    found = store.references(("deduction", "abduction"), 99, "seed")
    assert Counter(task.kind for _, task in found) == {"deduction": 4, "abduction": 4}
    replayed = {store.replay("induction", str(seed))[1].kind for seed in range(9)}  # type: ignore[index]
    assert replayed == {"induction"}


def test_draws_are_a_function_of_the_seed_and_of_what_is_stored(path: Path, tmp_path: Path) -> None:
    def draws(file: Path) -> tuple[list[int], list[int]]:
        store = TaskBuffer(file)
        for number in range(40):
            put(store, make(number))
        seeds = [str(seed) for seed in range(30)]
        result = (
            [task_id for seed in seeds for task_id, _ in store.references(("deduction",), 2, seed)],
            [store.replay("deduction", seed)[0] for seed in seeds],  # type: ignore[index]
        )
        store.close()
        return result

    first = draws(path)
    assert draws(path) == first, "reopened"
    assert draws(tmp_path / "other.sqlite") == first, "another file with the same tasks"
    assert len(set(first[1])) > 10, "the seed has no say"


def test_every_task_can_be_drawn(store: TaskBuffer) -> None:
    ids = {put(store, make(number)) for number in range(5)}
    drawn = Counter(store.replay("deduction", str(seed))[0] for seed in range(600))  # type: ignore[index]
    assert set(drawn) == ids | {1}
    assert min(drawn.values()) > 50  # 100 are expected of each; 5 deviations are 46


def test_a_store_that_was_never_closed_has_lost_nothing(store: TaskBuffer, path: Path) -> None:
    task_id = put(store, make(1), 3, "e")
    assert task_id is not None
    store.record(task_id, 0, 4, 1)
    again = TaskBuffer(path)  # the first one still has the file open, as a killed process would have had
    assert again.sizes() == {"deduction": 2, "abduction": 1, "induction": 0}
    assert (task_id, make(1)) in again.references(("deduction",), 9, "seed")
    assert put(again, make(1), 9, "f") is None, "what it knows from the file enters twice"
    again.close()
    assert row(path, task_id, "attempts", "solved") == (4, 1)


def test_the_solve_history_adds_up(store: TaskBuffer, path: Path) -> None:
    first, second = put(store, make(1)), put(store, make(2))
    assert first is not None
    assert second is not None
    store.record(first, 7, 4, 1)
    store.record(first, 8, 8, 0)
    store.record(first, 7, 2, 1)
    assert row(path, first, "attempts", "solved", "last_solved_version") == (14, 2, 7)
    assert row(path, second, "attempts", "solved", "last_solved_version") == (0, 0, None)
    with sqlite3.connect(path) as database:
        assert database.execute("SELECT * FROM history").fetchall() == [(first, 7, 6, 2), (first, 8, 8, 0)]


def test_the_local_buffer_is_the_store_and_never_waits(store: TaskBuffer) -> None:
    local = LocalBuffer(store)

    async def story() -> None:
        pending = asyncio.create_task(asyncio.sleep(0))
        new = NewTask(make(1), normal="n", proposer_version=0, episode_id="e")
        task_id, duplicate = await local.add(new)
        assert not duplicate
        assert await local.add(new) == Added(task_id, False), "the answer was lost, and it is asked again"
        assert await local.add(replace(new, episode_id="another")) == Added(task_id, True)
        assert store.metrics()["buffer/duplicates"] == 1
        await local.rewarded(task_id, 0.5)
        assert await local.replay("deduction", "s") == store.replay("deduction", "s")
        assert await local.references(("deduction",), 2, "s") == store.references(("deduction",), 2, "s")
        await local.record(task_id, 2, 1, 1)
        assert not pending.done(), "it yielded to the event loop"
        await pending

    asyncio.run(story())


def test_the_message_tells_induction_tasks_apart(store: TaskBuffer) -> None:
    one = make(1, "induction")
    assert put(store, one) is not None
    assert put(store, Task(one.kind, one.program, one.inputs, one.outputs, "another")) is not None
    assert put(store, Task(one.kind, one.program, one.inputs, one.outputs, " m ")) is None


def test_programs_that_differ_in_names_only_are_one(store: TaskBuffer, path: Path) -> None:
    first = Task("deduction", "def f(x): return x", ("1",), ("1",))
    second = Task("deduction", "def f(y):\n    return y  # y", ("1",), ("1",))
    other = Task("deduction", "def f(y):\n    return y  # y", ("2",), ("2",))
    same: dict[str, Any] = {"normal": "def f(a): return a", "proposer_version": 0, "episode_id": "e"}
    one, two = store.add(NewTask(first, **same)), store.add(NewTask(other, **same))
    assert store.add(NewTask(second, **same | {"episode_id": "another"})) == Added(one.task_id, True)
    assert one.task_id and two.task_id
    assert row(path, one.task_id, "program_digest") == row(path, two.task_id, "program_digest")
    assert store.metrics()["buffer/duplicates"] == 1


def test_the_border_between_the_parts_of_a_task_cannot_be_forged(store: TaskBuffer) -> None:
    for program, inputs in (("p\0q", ("1",)), ("p", ("q", "1")), ('p", "q', ("1",)), ("p", ('q", "1',))):
        assert put(store, Task("deduction", program, inputs, inputs)) is not None


def test_provenance_is_kept(store: TaskBuffer, path: Path) -> None:
    first, second = put(store, make(1)), put(store, make(2), reward=0.25)
    assert first and second
    task_id = put(store, make(3), 9, "4.2", references=[second, first, second])
    assert task_id
    store.rewarded(task_id, -0.5)
    assert row(path, task_id, "proposer_version", "episode_id", "reward") == (9, "4.2", -0.5)
    assert row(path, second, "reward") == (0.25,)
    assert row(path, first, "reward") == (None,)
    with sqlite3.connect(path) as database:
        assert database.execute("SELECT * FROM task_references").fetchall() == [(task_id, first), (task_id, second)]


def test_what_cannot_be_is_refused(store: TaskBuffer, path: Path) -> None:
    for attempts, solved in ((2, 3), (2, -1), (-1, -1)):
        with pytest.raises(ValueError):
            store.record(1, 0, attempts, solved)
    for call in (lambda: store.record(99, 0, 1, 1), lambda: store.rewarded(99, 1.0)):
        with pytest.raises(KeyError):
            call()
    store.record(1, 0, 0, 0)
    with sqlite3.connect(path) as database:
        assert database.execute("SELECT count(*) FROM history").fetchone() == (0,)


# -- what is drawn -----------------------------------------------------------------------------------------------


def test_learnability_draws_what_is_solved_sometimes(path: Path) -> None:
    store = TaskBuffer(path, BufferSettings(sampling="learnability"))
    counts = {"unseen": (0, 0), "half": (8, 4), "always": (8, 8), "never": (30, 0)}
    ids = {}
    for number, (name, (attempts, solved)) in enumerate(counts.items()):
        ids[put(store, make(number, "induction"))] = name
        store.record(max(one for one in ids if one), 1, attempts, solved)
    draws = 3000
    drawn = Counter(ids[found[0]] for i in range(draws) if (found := store.replay("induction", f"seed {i}")))
    weights = {name: learnability(*count) for name, count in counts.items()}
    assert weights["unseen"] == weights["half"] == 1 > weights["always"] > weights["never"] > 0
    for name, weight in weights.items():
        share = weight / sum(weights.values())
        assert abs(drawn[name] / draws - share) < 5 * (share * (1 - share) / draws) ** 0.5, (name, drawn)
    references = Counter(store.references(("induction",), 1, f"seed {i}")[0][0] for i in range(400))
    assert min(references.values()) > 60, "references are drawn uniformly"
    assert store.replay("nothing", "seed") is None
    store.close()


def test_a_program_is_labelled_once_and_keeps_the_first_message(path: Path) -> None:
    store = TaskBuffer(path)
    first = LabelledProgram("def f(x):\n    return -x", "n", (("1", "-1"), ("'}'", "'\\n'")))
    renamed = LabelledProgram("def f(y):\n    return -y", "n", (("2", "-2"),), "negates")
    for program in (first, renamed, replace(renamed, message="later"), first):
        store.label(program)
    store.label(replace(first, normal="other"))
    store.close()
    store = TaskBuffer(path)
    found = {program.normal: program for program in store.labelled(9, "s")}
    assert found == {"n": replace(first, message="negates"), "other": replace(first, normal="other")}
    assert store.sizes()["deduction"] == 1, "a labelled program is no task"
    for message in (False, True):
        assert store.needs_label("n", message), "once, and once more for a message"
        store.label_tried("n", message)
        store.label_tried("n", message)
        assert not store.needs_label("n", message)
    assert store.needs_label("other", False)
    store.close()


def test_recency_halves_with_the_half_life(path: Path) -> None:
    store = TaskBuffer(path, BufferSettings(sampling="recency", recency_half_life=2))
    for number in range(7):
        put(store, make(number))
    drawn = Counter(store.replay("deduction", str(seed))[0] for seed in range(8000))  # type: ignore[index]
    ids = sorted(drawn, reverse=True)
    assert len(ids) == 8
    total = sum(2 ** (-age / 2) for age in range(8))
    for age, task_id in enumerate(ids):
        expected = 8000 * 2 ** (-age / 2) / total
        assert abs(drawn[task_id] - expected) < 5 * expected**0.5
    store.close()


def test_recent_references_are_distinct_and_can_be_all(path: Path) -> None:
    store = TaskBuffer(path, BufferSettings(sampling="recency", recency_half_life=1))
    for number in range(40):
        put(store, make(number))
        put(store, make(number, "abduction"))
    for kind, total in (("deduction", 41), ("induction", 82)):
        for count in (1, 6, 40, 99):
            ids = [task_id for task_id, _ in store.references(kind_of(kind).reference_kinds, count, "seed")]
            assert ids == sorted(set(ids))
            assert len(ids) == min(count, total)
    kinds = Counter(store.references(("deduction", "abduction"), 1, str(seed))[0][1].kind for seed in range(400))
    assert min(kinds["deduction"], kinds["abduction"]) > 150
    store.close()


def test_a_full_buffer_takes_every_new_task_and_lets_the_oldest_go(path: Path) -> None:
    store = TaskBuffer(path, BufferSettings(capacity=3))
    ids = [put(store, make(number)) for number in range(6)]
    assert [task_id for task_id, _ in store.references(("deduction",), 9, "s")] == ids[3:]
    assert put(store, make(0)) is None, "what has left the draw is still known"
    assert ids[0]
    store.record(ids[0], 1, 8, 4)
    assert row(path, ids[0], "active", "attempts") == (0, 8)
    assert store.metrics() == {
        "buffer/deduction": 3, "buffer/abduction": 1, "buffer/induction": 0, "buffer/evicted": 4,
        "buffer/duplicates": 1,
    }  # fmt: skip
    store.close()


def test_what_is_solved_always_or_never_leaves_first(path: Path) -> None:
    store = TaskBuffer(path, BufferSettings(capacity=5, settled_attempts=8))
    ids = [put(store, make(number)) for number in range(4)]
    for task_id, solved in zip(ids, (4, 0, 8, 8), strict=True):
        assert task_id
        store.record(task_id, 0, 8, solved)
    assert ids[3]
    store.record(ids[3], 1, 8, 7)  # no longer always
    for number in range(10, 13):
        put(store, make(number))
    left = {task_id for task_id, _ in store.references(("deduction",), 9, "s")}
    assert left == {ids[0], ids[3], *range(left_max := max(left) - 2, left_max + 3)}
    store.close()


def test_a_buffer_full_of_settled_tasks_still_renews_itself(path: Path) -> None:
    """The curriculum cannot freeze: the newcomer stays, however many attempts all others have had."""
    store = TaskBuffer(path, BufferSettings(capacity=1, settled_attempts=1))
    for number in range(5):
        task_id = put(store, make(number))
        assert task_id
        assert store.replay("deduction", "s") == (task_id, make(number))
        store.record(task_id, number, 8, 0)
    store.close()


def test_a_smaller_capacity_holds_from_the_next_opening(path: Path) -> None:
    store = TaskBuffer(path)
    ids = [put(store, make(number)) for number in range(6)]
    assert ids[5]
    store.record(ids[5], 0, 8, 0)
    store.close()
    store = TaskBuffer(path, BufferSettings(capacity=4, settled_attempts=8))
    assert [task_id for task_id, _ in store.references(("deduction",), 9, "s")] == ids[1:5]
    store.close()
    store = TaskBuffer(path, BufferSettings(capacity=4, settled_attempts=8))
    assert store.metrics()["buffer/evicted"] == 3
    store.close()


@pytest.mark.parametrize(
    "statement",
    [
        "SELECT id FROM tasks WHERE kind = 'deduction' AND active = 1 ORDER BY id",
        "SELECT id FROM tasks WHERE kind = 'deduction' AND active = 1 AND settled = 1 ORDER BY id LIMIT 1",
    ],
)
def test_lists_of_ids_come_from_an_index_alone(store: TaskBuffer, path: Path, statement: str) -> None:
    with sqlite3.connect(path) as database:
        plan = [step[-1] for step in database.execute(f"EXPLAIN QUERY PLAN {statement}")]
    assert len(plan) == 1
    assert "USING COVERING INDEX" in plan[0]


# -- the file ----------------------------------------------------------------------------------------------------


def test_an_older_file_is_refused_in_words(path: Path) -> None:
    with sqlite3.connect(path) as database:
        database.execute("CREATE TABLE tasks (id INTEGER PRIMARY KEY, kind TEXT)")
    with pytest.raises(TaskBufferError, match="form 1; this azr reads form 3"):
        TaskBuffer(path)
    with sqlite3.connect(path) as database:
        database.execute(f"PRAGMA user_version = {SCHEMA_VERSION + 1}")
    with pytest.raises(TaskBufferError, match="form 4"):
        TaskBuffer(path)


def test_a_file_of_form_2_goes_on_as_it_was(path: Path) -> None:
    """`buffer_form_2.sql` is a dump of a file that azr wrote before tasks had `texts`."""
    program, normal = "def f(x):\n    return x * 2", "def f(v0):\n    return v0 * 2"
    with sqlite3.connect(path) as database:
        database.executescript(Path(__file__).with_name("buffer_form_2.sql").read_text())
    seeds = path.with_name("seeds.jsonl")
    assert save(path, seeds) == {"deduction": 1, "abduction": 1, "induction": 2}, (
        "seeds are read from the file as it is"
    )
    for _ in range(2):  # it is brought to the present form once
        store = TaskBuffer(path)
        assert store.sizes() == {"deduction": 2, "abduction": 2, "induction": 2}
        assert [task for _, task in store.references(("deduction", "abduction", "induction"), 9, "s")] == [
            *(
                Task(kind, ZERO_TASK.program, ZERO_TASK.inputs, ZERO_TASK.outputs)
                for kind in ("deduction", "abduction")
            ),
            Task("deduction", program, ("2",), ("4",)),
            Task("abduction", program, ("'é'",), ("'éé'",)),
            Task("induction", program, ("1", "2"), ("2", "4"), "doubles"),
            Task("induction", program, ("1", "2"), ("2", "4")),
        ]
        for _, task in store.references(("deduction", "abduction", "induction"), 9, "s")[2:]:
            assert store.add(NewTask(task, normal, 9, "again")).duplicate, "what makes two tasks the same has changed"
        store.close()
    assert row(path, 3, "attempts, solved, reward, last_solved_version") == (8, 8, 0.5, 5)
    with sqlite3.connect(path) as database:
        assert database.execute("PRAGMA user_version").fetchone() == (SCHEMA_VERSION,)
    lines = [json.loads(line) for line in seeds.read_text().splitlines()]
    assert lines[0] == {"kind": "deduction", "program": program, "inputs": ["2"], "outputs": ["4"]}


@pytest.mark.parametrize("opened_since", [False, True])
def test_what_a_file_with_label_claims_has_labelled_is_not_labelled_again(path: Path, opened_since: bool) -> None:
    """A file as azr wrote it while it claimed programs; a later azr may have made `labels_tried`, and left it empty."""
    store = TaskBuffer(path)
    for normal, message in (("plain", ""), ("told", "doubles")):
        store.label(LabelledProgram(normal, normal, (("1", "2"), ("2", "4")), message))
    store.close()
    with sqlite3.connect(path) as database:
        database.execute(
            "CREATE TABLE label_claims (program_digest BLOB NOT NULL, with_message INTEGER NOT NULL, "
            "PRIMARY KEY (program_digest, with_message)) STRICT, WITHOUT ROWID"
        )
        database.execute("INSERT INTO label_claims SELECT program_digest, 0 FROM labelled")
        if not opened_since:
            database.execute("DROP TABLE labels_tried")
    for _ in range(2):
        store = TaskBuffer(path)
        needed = {(normal, told) for normal in ("plain", "told", "new") for told in (False, True)
                  if store.needs_label(normal, told)}  # fmt: skip
        assert needed == {("plain", True), ("new", False), ("new", True)}
        store.close()
    with sqlite3.connect(path) as database:
        assert not database.execute("SELECT * FROM sqlite_master WHERE name = 'label_claims'").fetchall()


def test_a_file_of_something_else_is_refused_in_words(path: Path) -> None:
    path.write_text("no database at all" * 100)
    with pytest.raises(TaskBufferError, match="no task buffer"):
        TaskBuffer(path)


def test_a_request_that_fails_changes_nothing(store: TaskBuffer, path: Path) -> None:
    before = store.sizes()
    with sqlite3.connect(path) as database:
        database.execute(
            "CREATE TRIGGER full BEFORE INSERT ON task_references BEGIN SELECT RAISE(FAIL, 'disk full'); END"
        )
    with pytest.raises(sqlite3.Error, match="disk full"):
        put(store, make(1), references=[1])
    with sqlite3.connect(path) as database:
        database.execute("DROP TRIGGER full")
    assert store.sizes() == before
    assert put(store, make(1), references=[1]) is not None


def test_a_snapshot_is_one_whole_file(store: TaskBuffer, tmp_path: Path) -> None:
    first = put(store, make(1))
    target = tmp_path / "there" / "tasks.sqlite"
    target.parent.mkdir()
    store.snapshot(target)
    put(store, make(2))
    assert sorted(p.name for p in target.parent.iterdir()) == ["tasks.sqlite"]
    copy = TaskBuffer(target)
    assert copy.sizes() == {"deduction": 2, "abduction": 1, "induction": 0}
    assert (first, make(1)) in copy.references(("deduction",), 9, "s")
    copy.close()


def test_snapshots_are_whole_while_requests_go_on(store: TaskBuffer, tmp_path: Path) -> None:
    done = threading.Event()

    def snapshots() -> None:
        for number in range(4):
            store.snapshot(tmp_path / f"{number}.copy")
        done.set()

    thread = threading.Thread(target=snapshots)
    thread.start()
    number = 0
    while not done.is_set():
        put(store, make(number), references=[1])
        number += 1
    thread.join()
    sizes = []
    for path in sorted(tmp_path.glob("*.copy")):
        with sqlite3.connect(path) as database:
            assert database.execute("PRAGMA integrity_check").fetchone() == ("ok",)
            (tasks,) = database.execute("SELECT count(*) FROM tasks WHERE episode_id <> 'zero'").fetchone()
            assert database.execute("SELECT count(*) FROM task_references").fetchone() == (tasks,)
            sizes.append(tasks)
    assert sizes == sorted(sizes)


def test_the_documented_sql_runs(store: TaskBuffer, path: Path) -> None:
    text = (Path(__file__).parents[4] / "docs" / "selfplay.md").read_text()
    blocks = re.findall(r"```sql\n(.*?)```", text, re.DOTALL)
    put(store, make(1), references=[1])
    store.record(1, 0, 8, 1)
    with sqlite3.connect(path) as database:
        statements = [part for block in blocks for part in block.split(";") if part.strip()]
        assert statements
        for statement in statements:
            database.execute(statement).fetchall()


_ADDER = """
import sys
from pathlib import Path
from actors.buffer.task_buffer import NewTask, TaskBuffer
from executor.tasks import Task
store = TaskBuffer(Path(sys.argv[1]))
for number in range(10**9):
    task = Task("deduction", f"def f(x): return {number}", ("1",), (str(number),))
    added = store.add(NewTask(task, normal=task.program, proposer_version=0, episode_id=str(number), references=(1,)))
    store.record(added.task_id, 0, 8, 3)
    print(added.task_id, flush=True)
"""


def test_what_was_acknowledged_outlives_a_kill(path: Path) -> None:
    process = subprocess.Popen([sys.executable, "-c", _ADDER, str(path)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    acknowledged = [int(process.stdout.readline()) for _ in range(300)]
    os.kill(process.pid, signal.SIGKILL)
    acknowledged += [int(line) for line in process.stdout.read().splitlines(keepends=True) if line.endswith("\n")]
    process.wait()
    store = TaskBuffer(path)
    with sqlite3.connect(path) as database:
        assert database.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        rows = database.execute("SELECT id FROM tasks WHERE attempts = 8 AND solved = 3").fetchall()
        linked = database.execute("SELECT task_id FROM task_references").fetchall()
    assert set(acknowledged) <= {task_id for (task_id,) in rows}
    assert set(acknowledged) <= {task_id for (task_id,) in linked}
    assert store.sizes()["deduction"] >= 1 + len(acknowledged)
    store.close()
