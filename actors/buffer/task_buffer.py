"""The task buffer: every valid task with its origin, in a SQLite file that any SQL client can read
(`runs/<name>/tasks.sqlite`).

It has three uses, as in Absolute Zero: references for proposers, programs for proposers that write about one, and tasks
to solve again where fresh proposals do not fill a batch. A task enters once, whatever its reward. Two tasks are the
same if their kinds, normalised programs and inputs are the same, and so is all else by which their kind tells tasks
apart (`TaskKind.identity`).

A request takes O(log n) steps at n tasks. Draws use, for each kind, the ordered ids of its *active* tasks in memory
(`ordered_ids.py`, 8 bytes a task); all else is a look-up by integer key. A change is committed before its request
returns, so it survives the process. (A machine that loses its power may lose the last moments, but not the file's
consistency: WAL with `synchronous=NORMAL`. A checkpoint's snapshot is on the disk before the checkpoint has its name.)

A task that leaves the draw (`BufferSettings.capacity`) stays in the file, is still known, and still counts its
solutions.
"""

from __future__ import annotations

import json
import math
import random
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, Protocol

from actors.buffer.file import TaskBufferError, Transaction, copy_database, open_database, row_of
from actors.buffer.labels import Labels
from actors.buffer.ordered_ids import OrderedIds
from actors.buffer.settings import BufferSettings
from actors.kinds.registry import kind_of, kinds, names
from actors.labelled import LabelledProgram
from actors.prompts import ZERO_NORMAL, ZERO_TASK
from executor.tasks import Task

GIVEN = -1
"""`proposer_version` of tasks that no policy proposed: the zero triplet, and those of a seed file."""
MAX_REFUSED = 64
"""Most tasks that a draw by learnability refuses: each costs a look-up."""


@dataclass(frozen=True)
class NewTask:
    """A valid task, as it enters the buffer."""

    task: Task
    normal: str
    """Its normalised program (`Facts.normal`), or the program where there is none."""
    proposer_version: int
    """Oldest policy version in the proposal's tokens, or `GIVEN`."""
    episode_id: str
    references: tuple[int, ...] = ()
    """Ids of the tasks that its proposer was shown."""
    reward: float | None = None
    """The proposer's reward, where it is known by now."""


class Added(NamedTuple):
    """The result of adding a task."""

    task_id: int
    """Its number."""
    duplicate: bool
    """Whether the buffer knew the task, from another proposal or given: it then stays the first proposer's. A proposal
    that is added again, as by an actor that had no answer, is the same one."""


class Buffer(Protocol):
    """The task buffer as episodes use it."""

    async def references(self, kinds: tuple[str, ...], count: int, seed: str) -> list[tuple[int, Task]]:
        """Up to `count` distinct tasks of `kinds` with their ids, oldest first."""

    async def replay(self, kind: str, seed: str) -> tuple[int, Task] | None:
        """One task of `kind` to solve again; None where there is none."""

    async def add(self, new: NewTask) -> Added:
        """Store a valid task."""

    async def record(self, task_id: int, version: int, attempts: int, solved: int) -> None:
        """Add to a task's history: policy `version` made `attempts` solutions, of which `solved` were correct."""

    async def rewarded(self, task_id: int, reward: float) -> None:
        """Record the reward of a task's proposer, once the task's solutions are judged."""

    async def needs_label(self, normal: str, with_message: bool) -> bool:
        """Whether a program is to be labelled: True until `label_tried` is called for its normal form, and for a task
        of it with a message until it is called for one with a message."""

    async def label(self, program: LabelledProgram) -> None:
        """Store a labelled program; of one whose normal form is known, only a message that was missing."""

    async def label_tried(self, normal: str, with_message: bool) -> None:
        """Record that the labelling of a program has ended: it is stored, or was left out."""


class TaskBuffer(Labels):
    """The store itself, in the process that owns the file. Not for use by several threads, but for `snapshot`, `sizes`
    and `metrics`."""

    def __init__(self, path: Path, settings: BufferSettings | None = None) -> None:
        """Open or create; a new buffer starts with the zero triplet. Raises TaskBufferError for a file of another
        form, JournalError."""
        self._path = path
        self._settings = settings or BufferSettings()
        database, new = open_database(path, self._settings.journal)
        super().__init__(database)
        try:
            self._apply_settings()
            self._active = {kind: self._active_ids(kind) for kind in self._kinds()}
            known = dict(self._database.execute("SELECT name, value FROM meta"))
            self._counters = {name: int(known.get(name, 0)) for name in ("evicted", "duplicates")}
            if new:
                for zero in (kind.from_triplet(ZERO_TASK) for kind in kinds()):
                    if zero is not None:
                        self.add(NewTask(zero, ZERO_NORMAL, GIVEN, "zero"))
            for kind in self._active:
                with Transaction(self._database):
                    evicted = self._shrink(kind)
                self._forget(kind, evicted)
        except BaseException:
            self._database.close()
            raise

    def references(self, kinds: tuple[str, ...], count: int, seed: str) -> list[tuple[int, Task]]:
        """See `Buffer`. A function of the seed, the settings and the active tasks."""
        pools = [self._active[kind] for kind in kinds if kind in self._active]
        return [(task_id, self._read(task_id)) for task_id in self._draw(pools, count, seed)]

    def replay(self, kind: str, seed: str) -> tuple[int, Task] | None:
        """See `Buffer`. A function of the seed, the settings, the active tasks and, by learnability, their solutions so
        far."""
        if self._settings.sampling == "learnability" and self._active.get(kind):
            task_id = self._draw_learnable(self._active[kind], seed)
            return task_id, self._read(task_id)
        found = self.references((kind,), 1, seed)
        return found[0] if found else None

    def add(self, new: NewTask) -> Added:
        """See `Buffer`."""
        task, evicted = new.task, list[int]()
        values = (*row_of(task, new.normal, kind_of(task.kind).identity(task)), new.proposer_version, new.episode_id)
        with Transaction(self._database) as database:
            cursor = database.execute(
                "INSERT OR IGNORE INTO tasks (kind, digest, program_digest, program, inputs, outputs, message, texts, "
                "proposer_version, episode_id, created, reward) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
                (*values, time.time(), new.reward),
            )
            if is_new := cursor.rowcount > 0:
                task_id = cursor.lastrowid or 0
                database.executemany(
                    "INSERT OR IGNORE INTO task_references VALUES (?, ?)", [(task_id, one) for one in new.references]
                )
                evicted = self._shrink(task.kind, task_id)
            else:
                known = "SELECT id, episode_id FROM tasks WHERE digest = ?"
                task_id, episode_id = database.execute(known, (values[1],)).fetchone()
                if duplicate := new.proposer_version < 0 or episode_id != new.episode_id:
                    self._count("duplicates", 1)
        # Only now is it certain: memory follows the file.
        if not is_new:
            self._counters["duplicates"] += duplicate
            return Added(task_id, duplicate)
        self._active.setdefault(task.kind, OrderedIds()).append(task_id)
        self._forget(task.kind, evicted)
        return Added(task_id, False)

    def record(self, task_id: int, version: int, attempts: int, solved: int) -> None:
        """See `Buffer`. Raises ValueError for counts that cannot be, KeyError for a task that is not there."""
        if not 0 <= solved <= attempts:
            raise ValueError(f"{solved} of {attempts} attempts solved task {task_id}")
        if attempts == 0:
            return
        # In one statement: the right-hand sides see the row as it was.
        settled = "attempts + :attempts >= :enough AND solved + :solved IN (0, attempts + :attempts)"
        enough = self._settings.settled_attempts
        with Transaction(self._database) as database:
            cursor = database.execute(
                f"UPDATE tasks SET attempts = attempts + :attempts, solved = solved + :solved, settled = ({settled}), "
                "last_solved_version = CASE WHEN :solved THEN max(ifnull(last_solved_version, :version), :version) "
                "ELSE last_solved_version END WHERE id = :id",
                {"attempts": attempts, "solved": solved, "version": version, "id": task_id, "enough": enough},
            )
            if not cursor.rowcount:
                raise KeyError(f"there is no task {task_id}")
            database.execute(
                "INSERT INTO history VALUES (?, ?, ?, ?) ON CONFLICT DO UPDATE SET "
                "attempts = attempts + excluded.attempts, solved = solved + excluded.solved",
                (task_id, version, attempts, solved),
            )

    def rewarded(self, task_id: int, reward: float) -> None:
        """See `Buffer`. Raises KeyError for a task that is not there."""
        if not self._database.execute("UPDATE tasks SET reward = ? WHERE id = ?", (reward, task_id)).rowcount:
            raise KeyError(f"there is no task {task_id}")

    def sizes(self) -> dict[str, int]:
        """Active tasks by kind. Any thread may call it, and `metrics`."""
        return {kind: len(ids) for kind, ids in list(self._active.items())}

    def metrics(self) -> dict[str, float]:
        """`buffer/<kind>`: active tasks; `buffer/evicted` and `buffer/duplicates`: how many there were, of all
        kinds."""
        return {f"buffer/{name}": float(count) for name, count in {**self.sizes(), **self._counters}.items()}

    def snapshot(self, path: Path) -> None:
        """Write the buffer, as of now, to a file of its own; from any thread, while requests go on."""
        copy_database(self._path, path)

    def close(self) -> None:
        """Close the file; what was added is in it."""
        self._database.close()

    def _kinds(self) -> list[str]:
        """All registered kinds, and those of the file whose packages are not installed here."""
        rows = self._database.execute("SELECT DISTINCT kind FROM tasks ORDER BY kind")
        return list(dict.fromkeys([*names(), *(row[0] for row in rows)]))

    def _active_ids(self, kind: str) -> OrderedIds:
        rows = self._database.execute("SELECT id FROM tasks WHERE kind = ? AND active = 1 ORDER BY id", (kind,))
        return OrderedIds(row[0] for row in rows)

    def _apply_settings(self) -> None:
        """Settle tasks by the present number of attempts, where the file was written under another."""
        enough = self._settings.settled_attempts
        known = self._database.execute("SELECT value FROM meta WHERE name = 'settled_attempts'").fetchone()
        if known != (enough,):
            settled = f"(attempts >= {int(enough)} AND solved IN (0, attempts))"
            with Transaction(self._database) as database:
                database.execute(f"UPDATE tasks SET settled = {settled} WHERE settled <> {settled}")
                database.execute("INSERT OR REPLACE INTO meta VALUES ('settled_attempts', ?)", (enough,))

    def _draw(self, pools: Sequence[OrderedIds], count: int, seed: str) -> list[int]:
        """Up to `count` distinct ids, ascending. By recency they are drawn one after another, each by its rank among
        those that are not drawn yet; of several pools, first a pool, by its share of what is left."""
        generator = random.Random(seed)
        total = sum(len(pool) for pool in pools)
        count = min(count, total)
        if self._settings.sampling != "recency":
            ranks = generator.sample(range(total), count)
        else:
            ranks = []
            taken: list[list[int]] = [[] for _ in pools]  # by pool: ages, ascending
            for _ in range(count):
                which = generator.choices(
                    range(len(pools)), [len(pool) - len(ages) for pool, ages in zip(pools, taken, strict=True)]
                )[0]
                pool, ages = pools[which], taken[which]
                age = _recent(len(pool) - len(ages), self._settings.recency_half_life, generator.random())
                for other in ages:
                    age += other <= age
                ages.append(age)
                ages.sort()
                ranks.append(sum(len(one) for one in pools[:which]) + len(pool) - 1 - age)
        ids = []
        for rank in ranks:
            for pool in pools:
                if rank < len(pool):
                    ids.append(pool[rank])
                    break
                rank -= len(pool)
        return sorted(ids)

    def _draw_learnable(self, pool: OrderedIds, seed: str) -> int:
        """An id of `pool`, with a probability in proportion to its `learnability`: drawn uniformly and accepted with
        that probability. Where `MAX_REFUSED` in a row are refused, the next one is taken."""
        generator = random.Random(seed)
        for _ in range(MAX_REFUSED):
            task_id = pool[generator.randrange(len(pool))]
            counts = self._database.execute("SELECT attempts, solved FROM tasks WHERE id = ?", (task_id,)).fetchone()
            if counts is None or generator.random() < learnability(*counts):
                return task_id
        return pool[generator.randrange(len(pool))]

    def _shrink(self, kind: str, newcomer: int | None = None) -> list[int]:
        """Take out of the draw what is beyond the capacity, in the file; returns the ids. Never the newcomer: a full
        buffer goes on taking what is new."""
        active = self._active.get(kind) or OrderedIds()
        excess = len(active) + (newcomer is not None) - self._settings.capacity if self._settings.capacity else 0
        if excess <= 0:
            return []
        rows = self._database.execute(
            "SELECT id FROM tasks WHERE kind = ? AND active = 1 AND settled = 1 ORDER BY id LIMIT ?", (kind, excess)
        )
        leaving = [row[0] for row in rows]
        chosen = set(leaving)
        rank = 0
        while len(leaving) < excess:
            if active[rank] not in chosen:
                leaving.append(active[rank])
            rank += 1
        self._database.executemany("UPDATE tasks SET active = 0 WHERE id = ?", [(one,) for one in leaving])
        self._count("evicted", excess)
        return leaving

    def _forget(self, kind: str, ids: Sequence[int]) -> None:
        for one in ids:
            self._active[kind].remove(one)
        self._counters["evicted"] += len(ids)

    def _count(self, name: str, more: int) -> None:
        self._database.execute(
            "INSERT INTO meta VALUES (?, ?) ON CONFLICT DO UPDATE SET value = value + excluded.value", (name, more)
        )

    def _read(self, task_id: int) -> Task:
        row = self._database.execute(
            "SELECT kind, program, inputs, outputs, message, texts FROM tasks WHERE id = ?", (task_id,)
        ).fetchone()
        if row is None:
            raise TaskBufferError(
                f"task {task_id} has gone from {self._path}: nothing may be deleted while the run goes on"
            )
        kind, program, inputs, outputs, message, texts = row
        return Task(kind, program, tuple(json.loads(inputs)), tuple(json.loads(outputs)), message, json.loads(texts))


class LocalBuffer:
    """`Buffer` over a store in this process; never yields to the event loop (serial mode)."""

    def __init__(self, store: TaskBuffer) -> None:
        self._store = store

    async def references(self, kinds: tuple[str, ...], count: int, seed: str) -> list[tuple[int, Task]]:
        """See `Buffer`."""
        return self._store.references(kinds, count, seed)

    async def replay(self, kind: str, seed: str) -> tuple[int, Task] | None:
        """See `Buffer`."""
        return self._store.replay(kind, seed)

    async def add(self, new: NewTask) -> Added:
        """See `Buffer`."""
        return self._store.add(new)

    async def record(self, task_id: int, version: int, attempts: int, solved: int) -> None:
        """See `Buffer`."""
        self._store.record(task_id, version, attempts, solved)

    async def rewarded(self, task_id: int, reward: float) -> None:
        """See `Buffer`."""
        self._store.rewarded(task_id, reward)

    async def needs_label(self, normal: str, with_message: bool) -> bool:
        """See `Buffer`."""
        return self._store.needs_label(normal, with_message)

    async def label(self, program: LabelledProgram) -> None:
        """See `Buffer`."""
        self._store.label(program)

    async def label_tried(self, normal: str, with_message: bool) -> None:
        """See `Buffer`."""
        self._store.label_tried(normal, with_message)


def learnability(attempts: int, solved: int) -> float:
    """4 p (1 - p), 0 to 1, with p the mean of the solve rate after `solved` of `attempts` under a uniform prior.

    p (1 - p) is the variance of a solution's reward, without which there is no gradient: Foster and Foerster, "Learning
    to Reason at the Frontier of Learnability" (2025); Rutherford et al., "No Regrets" (2024). By the prior, p = (solved
    + 1) / (attempts + 2), an unseen task counts as 1, and no task as 0.
    """
    rate = (solved + 1) / (attempts + 2)
    return 4 * rate * (1 - rate)


def _recent(size: int, half_life: float, uniform: float) -> int:
    """An age, 0 to size - 1, drawn with weight 2^(-age / half_life), from a number that is uniform in [0, 1)."""
    beyond = 2.0 ** (-size / half_life)
    # The geometric distribution's inverse, cut off at `size`.
    return min(size - 1, int(-half_life * math.log2(1.0 - uniform * (1.0 - beyond))))
