"""The task buffer against a model of a few lines: any sequence of requests, evictions, crashes and new openings."""

from __future__ import annotations

import os
import random
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from actors.buffer.settings import BufferSettings
from actors.buffer.task_buffer import NewTask, TaskBuffer
from actors.kinds.registry import kind_of
from executor.tasks import Task
from learner.settings import BatchSettings
from tests.examples import examples

KINDS = BatchSettings().kinds

CHOICES = st.builds(
    BufferSettings,
    sampling=st.sampled_from(["uniform", "recency", "learnability"]),
    recency_half_life=st.sampled_from([1.0, 3.0]),
    capacity=st.sampled_from([0, 1, 3, 5]),
    settled_attempts=st.integers(1, 4),
    journal=st.sampled_from(["wal", "rollback"]),
)


def in_memory() -> str | None:
    """A folder in a file system in memory; None where there is none."""
    return "/dev/shm" if os.access("/dev/shm", os.W_OK) else None


@dataclass
class Entry:
    """A task as the model knows it."""

    task: Task
    episode: str = ""
    attempts: int = 0
    solved: int = 0
    active: bool = True


class BufferMachine(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.folder = Path(tempfile.mkdtemp(dir=in_memory()))
        self.path = self.folder / "tasks.sqlite"
        self.entries: dict[int, Entry] = {}
        self.seed = 0
        self.duplicates = self.evicted = 0

    @initialize(choice=CHOICES)
    def start(self, choice: BufferSettings) -> None:
        self.choice = choice
        self.store = TaskBuffer(self.path, choice)
        for task_id, kind in enumerate(("deduction", "abduction"), 1):
            found = self.store.replay(kind, "s")
            assert found is not None and found[0] == task_id
            self.entries[task_id] = Entry(found[1])

    def teardown(self) -> None:
        if hasattr(self, "store"):
            self.store.close()
        shutil.rmtree(self.folder)

    def active(self, *kinds: str) -> list[int]:
        return [task_id for task_id, e in sorted(self.entries.items()) if e.active and e.task.kind in kinds]

    def shrink(self, kind: str) -> None:
        def settled(task_id: int) -> bool:
            e = self.entries[task_id]
            return e.attempts >= self.choice.settled_attempts and e.solved in (0, e.attempts)

        while self.choice.capacity and len(active := self.active(kind)) > self.choice.capacity:
            leaving = min(active, key=lambda task_id: (not settled(task_id), task_id))
            self.entries[leaving].active = False
            self.evicted += 1

    @rule(
        kind=st.sampled_from(KINDS),
        number=st.integers(0, 25),
        references=st.lists(st.integers(1, 9), max_size=3),
        episode=st.sampled_from(["e1", "e2"]),
    )
    def add(self, kind: str, number: int, references: list[int], episode: str) -> None:
        """Also one that was added before, by its own episode, whose answer was lost, or by another one."""
        task = Task(kind, f"def f(x): return {number}", ("1", "2"), ("3", "4"), "m")
        known = [task_id for task_id, entry in self.entries.items() if entry.task == task]
        added = self.store.add(
            NewTask(task, normal=task.program, proposer_version=0, episode_id=episode, references=tuple(references))
        )
        if known:
            assert added == (known[0], self.entries[known[0]].episode != episode)
            self.duplicates += added.duplicate
        else:
            assert not added.duplicate
            assert added.task_id > max(self.entries)
            self.entries[added.task_id] = Entry(task, episode)
            self.shrink(kind)

    @rule(data=st.data(), version=st.integers(0, 3), attempts=st.integers(0, 5))
    def record(self, data: st.DataObject, version: int, attempts: int) -> None:
        task_id = data.draw(st.sampled_from(sorted(self.entries)))
        solved = data.draw(st.sampled_from([0, attempts, attempts // 2]))
        self.store.record(task_id, version, attempts, solved)
        self.entries[task_id].attempts += attempts
        self.entries[task_id].solved += solved

    @rule(kind=st.sampled_from(KINDS), count=st.integers(0, 12))
    def references(self, kind: str, count: int) -> None:
        self.seed += 1
        pool = self.active("deduction", "abduction") if kind == "induction" else self.active(kind)
        found = self.store.references(kind_of(kind).reference_kinds, count, str(self.seed))
        ids = [task_id for task_id, _ in found]
        assert ids == sorted(set(ids))
        assert set(ids) <= set(pool)
        assert len(ids) == min(count, len(pool))
        assert all(self.entries[task_id].task == task for task_id, task in found)
        assert found == self.store.references(kind_of(kind).reference_kinds, count, str(self.seed))
        if kind != "induction" and self.choice.sampling == "uniform":
            ranks = random.Random(str(self.seed)).sample(range(len(pool)), min(count, len(pool)))
            assert ids == sorted(pool[rank] for rank in ranks)

    @rule(kind=st.sampled_from(KINDS))
    def replay(self, kind: str) -> None:
        self.seed += 1
        found = self.store.replay(kind, str(self.seed))
        pool = self.active(kind)
        assert (found is None) == (not pool)
        if found is not None:
            assert found[0] in pool
            assert found[1] == self.entries[found[0]].task

    @rule(choice=st.none() | CHOICES, closed=st.booleans())
    def open_again(self, choice: BufferSettings | None, closed: bool) -> None:
        draws = [self.store.references(kind_of(kind).reference_kinds, 4, "before") for kind in KINDS]
        before = self.store
        if closed:
            before.close()
        elif choice is not None:  # a journal is changed when nobody else has the file open
            choice = choice.model_copy(update={"journal": self.choice.journal})
        self.store = TaskBuffer(self.path, choice or self.choice)
        before.close()  # where it was open, as a killed process would have had it
        if choice is None:
            assert draws == [self.store.references(kind_of(kind).reference_kinds, 4, "before") for kind in KINDS]
        else:
            self.choice = choice
            for kind in KINDS:
                self.shrink(kind)

    @precondition(lambda self: hasattr(self, "store"))
    @rule()
    def go_on_from_a_snapshot(self) -> None:
        copy = self.folder / "copy.sqlite"
        self.store.snapshot(copy)
        self.store.close()
        self.path.unlink()
        copy.rename(self.path)
        self.store = TaskBuffer(self.path, self.choice)

    @invariant()
    def counts_agree(self) -> None:
        if hasattr(self, "store"):
            expected = {f"buffer/{kind}": len(self.active(kind)) for kind in KINDS}
            expected |= {"buffer/evicted": self.evicted, "buffer/duplicates": self.duplicates}
            assert self.store.metrics() == expected


BufferMachine.TestCase.settings = examples(60, steps=40)
TestBufferModel = BufferMachine.TestCase
