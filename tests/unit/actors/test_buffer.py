"""The task buffer: what goes in once, comes out by seed, and is still there after a crash."""

from __future__ import annotations

import asyncio
import sqlite3
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from actors.buffer import LocalBuffer, TaskBuffer
from actors.prompts import ZERO_TASK
from executor.tasks import Kind, Task


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "tasks.sqlite"


@pytest.fixture
def store(path: Path) -> Iterator[TaskBuffer]:
    store = TaskBuffer(path)
    yield store
    store.close()


def make(number: int, kind: Kind = Kind.DEDUCTION) -> Task:
    return Task(kind, f"def f(x):\n    return {number}", ("1", "2"), (f"{number}", f"{number}"), "m")


def row(path: Path, task_id: int, *columns: str) -> tuple[object, ...]:
    with sqlite3.connect(path) as database:
        found: tuple[object, ...] = database.execute(
            f"SELECT {', '.join(columns)} FROM tasks WHERE id = ?", (task_id,)
        ).fetchone()
    return found


def test_it_starts_from_the_zero_triplet(store: TaskBuffer, path: Path) -> None:
    assert store.sizes() == {"deduction": 1, "abduction": 1, "induction": 0}
    for kind in (Kind.DEDUCTION, Kind.ABDUCTION):
        ((task_id, task),) = store.references(kind, 6, "seed")
        assert (task.kind, task.program, task.inputs, task.outputs) == (
            kind, ZERO_TASK.program, ZERO_TASK.inputs, ZERO_TASK.outputs,
        )  # fmt: skip
        assert store.replay(kind, "seed") == (task_id, task)
        assert row(path, task_id, "proposer_version", "episode_id") == (-1, "zero")
    assert store.replay(Kind.INDUCTION, "seed") is None


def test_the_first_induction_proposer_has_a_program_to_work_with(store: TaskBuffer) -> None:
    ((_, task),) = store.references(Kind.INDUCTION, 1, "seed")
    assert task.program == ZERO_TASK.program


@pytest.mark.parametrize("kind", list(Kind))
def test_a_task_comes_out_as_it_went_in(store: TaskBuffer, kind: Kind) -> None:
    task = Task(
        kind, "def f(a, b):\n    return 'é\\n\"' + a", ("'x', \"y\"", "'\\u2028', 1"), ("'1'", "'2'"), "a 'hint'"
    )
    task_id = store.add(task, 3, "7.1")
    assert task_id is not None
    drawn = {found for found in (store.replay(kind, str(seed)) for seed in range(30)) if found}
    assert (task_id, task) in drawn


@pytest.mark.parametrize(
    ("change", "taken"),
    [
        ({}, False),
        ({"program": "\n" + make(1).program + "\n"}, False),
        ({"outputs": ("3", "4")}, False),
        ({"kind": Kind.ABDUCTION}, True),
        ({"program": make(2).program}, True),
        ({"inputs": ("2", "1")}, True),
        ({"inputs": ("1, 2", "2")}, True),
        ({"message": "other"}, True),
    ],
)
def test_a_task_enters_once(store: TaskBuffer, change: dict[str, object], taken: bool) -> None:
    fields = {name: getattr(make(1), name) for name in ("kind", "program", "inputs", "outputs", "message")}
    first = store.add(make(1), 0, "a")
    before = sum(store.sizes().values())
    again = store.add(Task(**(fields | change)), 5, "b")  # type: ignore[arg-type]
    assert first is not None
    assert (again is not None) == taken
    assert again != first
    assert sum(store.sizes().values()) == before + taken


def test_the_first_proposer_of_a_task_is_the_one_that_is_kept(store: TaskBuffer, path: Path) -> None:
    task_id = store.add(make(1), 3, "first")
    store.add(make(1), 9, "second")
    assert task_id is not None
    assert row(path, task_id, "proposer_version", "episode_id") == (3, "first")


def test_references_are_distinct_and_oldest_first(store: TaskBuffer) -> None:
    for number in range(20):
        store.add(make(number), 0, "e")
    ids = [task_id for task_id, _ in store.references(Kind.DEDUCTION, 8, "seed")]
    assert len(set(ids)) == 8
    assert ids == sorted(ids)
    assert all(task.kind is Kind.DEDUCTION for _, task in store.references(Kind.DEDUCTION, 99, "seed"))
    assert len(store.references(Kind.DEDUCTION, 99, "seed")) == 21
    assert store.references(Kind.DEDUCTION, 0, "seed") == []


def test_induction_proposers_draw_from_deduction_and_abduction_only(store: TaskBuffer) -> None:
    for number in range(3):
        for kind in Kind:
            store.add(make(number, kind), 0, "e")
    found = store.references(Kind.INDUCTION, 99, "seed")
    assert Counter(task.kind for _, task in found) == {Kind.DEDUCTION: 4, Kind.ABDUCTION: 4}
    replayed = {store.replay(Kind.INDUCTION, str(seed))[1].kind for seed in range(9)}  # type: ignore[index]
    assert replayed == {Kind.INDUCTION}


def test_draws_are_a_function_of_the_seed_and_of_what_is_stored(path: Path, tmp_path: Path) -> None:
    def draws(file: Path) -> tuple[list[int], list[int]]:
        store = TaskBuffer(file)
        for number in range(40):
            store.add(make(number), 0, "e")
        seeds = [str(seed) for seed in range(30)]
        result = (
            [task_id for seed in seeds for task_id, _ in store.references(Kind.DEDUCTION, 2, seed)],
            [store.replay(Kind.DEDUCTION, seed)[0] for seed in seeds],  # type: ignore[index]
        )
        store.close()
        return result

    first = draws(path)
    assert draws(path) == first, "reopened"
    assert draws(tmp_path / "other.sqlite") == first, "another file with the same tasks"
    assert len(set(first[1])) > 10, "the seed has no say"


def test_every_task_can_be_drawn(store: TaskBuffer) -> None:
    ids = {store.add(make(number), 0, "e") for number in range(5)}
    drawn = Counter(store.replay(Kind.DEDUCTION, str(seed))[0] for seed in range(600))  # type: ignore[index]
    assert set(drawn) == ids | {1}
    assert min(drawn.values()) > 50  # 100 are expected of each; 5 deviations are 46


def test_a_store_that_was_never_closed_has_lost_nothing(store: TaskBuffer, path: Path) -> None:
    task_id = store.add(make(1), 3, "e")
    assert task_id is not None
    store.record(task_id, 4, 1)
    again = TaskBuffer(path)  # the first one still has the file open, as a killed process would have had
    assert again.sizes() == {"deduction": 2, "abduction": 1, "induction": 0}
    assert (task_id, make(1)) in again.references(Kind.DEDUCTION, 9, "seed")
    assert again.add(make(1), 9, "f") is None, "what it knows from the file enters twice"
    again.close()
    assert row(path, task_id, "attempts", "solved") == (4, 1)


def test_the_solve_history_adds_up(store: TaskBuffer, path: Path) -> None:
    first, second = store.add(make(1), 0, "e"), store.add(make(2), 0, "e")
    assert first is not None
    assert second is not None
    store.record(first, 4, 1)
    store.record(first, 8, 5)
    assert row(path, first, "attempts", "solved") == (12, 6)
    assert row(path, second, "attempts", "solved") == (0, 0)


def test_the_local_buffer_is_the_store_and_never_waits(store: TaskBuffer) -> None:
    local = LocalBuffer(store)

    async def story() -> None:
        pending = asyncio.create_task(asyncio.sleep(0))
        task_id = await local.add(make(1), 0, "e")
        assert task_id is not None
        assert await local.add(make(1), 0, "e") is None
        assert await local.replay(Kind.DEDUCTION, "s") == store.replay(Kind.DEDUCTION, "s")
        assert await local.references(Kind.DEDUCTION, 2, "s") == store.references(Kind.DEDUCTION, 2, "s")
        await local.record(task_id, 1, 1)
        assert not pending.done(), "it yielded to the event loop"
        await pending

    asyncio.run(story())
