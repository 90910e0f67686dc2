"""The task buffer: every valid task with where it came from, durable in SQLite, open to anybody's SQL
(`runs/<name>/tasks.sqlite`).

Used three ways, as in Absolute Zero: references for proposers, programs for induction proposers, and tasks to solve again
where fresh proposals do not fill a batch. A task enters once, whatever its reward: tasks are the same where kind, normalised
program and inputs are (and, for induction, the message).

A request takes O(log n) steps at n tasks. What is drawn from is, for each kind, the ordered ids of its *active* tasks, in
memory (`ordered_ids.py`, 8 bytes a task); all else is a look-up by integer key. What a request has changed is committed before
it returns: it outlives the death of the process. (A machine that loses its power may forget the last moments, never the file's
consistency: WAL with `synchronous=NORMAL`. A checkpoint's snapshot is on the disk before the checkpoint has its name.)

A task that leaves the draw (`BufferSettings.capacity`) stays in the file, is still known, and still counts its solutions.
"""

from __future__ import annotations

import asyncio
import json
import math
import random
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from actors.buffer_file import TaskBufferError, Transaction, copy_database, open_database, row_of
from actors.buffer_settings import BufferSettings
from actors.ordered_ids import OrderedIds
from actors.prompts import ZERO_NORMAL, ZERO_TASK
from executor.tasks import Kind, Task

GIVEN = -1
"""`proposer_version` of what no policy proposed: the zero triplet, and tasks of a seed file."""


class Added(NamedTuple):
    """What became of a task."""

    task_id: int | None
    """Its number; None where the buffer knew the task already."""
    duplicate: bool
    """Whether the buffer knew it: the first proposer keeps it."""


class Buffer(Protocol):
    """What an episode knows of the buffer."""

    async def references(self, kind: Kind, count: int, seed: str) -> list[tuple[int, Task]]:
        """Up to `count` distinct tasks with their ids, oldest first. For induction: of deduction and abduction."""

    async def replay(self, kind: Kind, seed: str) -> tuple[int, Task] | None:
        """One task of `kind` to solve again; None where there is none."""

    async def add(
        self,
        task: Task,
        *,
        normal: str,
        proposer_version: int,
        episode_id: str,
        references: Sequence[int] = (),
        reward: float | None = None,
    ) -> Added:
        """Store a valid task. `normal`: its normalised program (`Facts.normal`), or the program where there is none;
        `references`: what its proposer was shown; `reward`: the proposer's, where it is known by now."""

    async def record(self, task_id: int, version: int, attempts: int, solved: int) -> None:
        """Add to a task's history: of `attempts` solutions by policy `version`, so many `solved` it."""

    async def rewarded(self, task_id: int, reward: float) -> None:
        """What the proposer of a task was paid, once its solutions are judged."""


class TaskBuffer:
    """The store itself, in the process that owns the file. Not for use by several threads, but for `snapshot`."""

    def __init__(self, path: Path, settings: BufferSettings | None = None) -> None:
        """Open or create; a new buffer starts with the zero triplet. Raises TaskBufferError for a file of another form."""
        self._path = path
        self._settings = settings or BufferSettings()
        self._database, new = open_database(path)
        try:
            self._apply_settings()
            self._active = {
                kind: OrderedIds(
                    row[0]
                    for row in self._database.execute(
                        "SELECT id FROM tasks WHERE kind = ? AND active = 1 ORDER BY id", (kind,)
                    )
                )
                for kind in Kind
            }
            known = dict(self._database.execute("SELECT name, value FROM meta"))
            self._counters = {name: int(known.get(name, 0)) for name in ("evicted", "duplicates")}
            if new:
                for kind in (Kind.DEDUCTION, Kind.ABDUCTION):
                    zero = Task(kind, ZERO_TASK.program, ZERO_TASK.inputs, ZERO_TASK.outputs)
                    self.add(zero, normal=ZERO_NORMAL, proposer_version=GIVEN, episode_id="zero")
            for kind in Kind:
                with Transaction(self._database):
                    evicted = self._shrink(kind)
                self._forget(kind, evicted)
        except BaseException:
            self._database.close()
            raise

    def references(self, kind: Kind, count: int, seed: str) -> list[tuple[int, Task]]:
        """See `Buffer`. A function of the seed, the settings and the active tasks."""
        pools = [self._active[k] for k in ((Kind.DEDUCTION, Kind.ABDUCTION) if kind is Kind.INDUCTION else (kind,))]
        return [(task_id, self._read(task_id)) for task_id in self._draw(pools, count, seed)]

    def replay(self, kind: Kind, seed: str) -> tuple[int, Task] | None:
        """See `Buffer`. A function of the seed, the settings and the active tasks."""
        drawn = self._draw([self._active[kind]], 1, seed)
        return (drawn[0], self._read(drawn[0])) if drawn else None

    def add(
        self,
        task: Task,
        *,
        normal: str,
        proposer_version: int,
        episode_id: str,
        references: Sequence[int] = (),
        reward: float | None = None,
    ) -> Added:
        """See `Buffer`."""
        evicted: list[int] = []
        with Transaction(self._database) as database:
            cursor = database.execute(
                "INSERT OR IGNORE INTO tasks (kind, digest, program_digest, program, inputs, outputs, message, "
                "proposer_version, episode_id, created, reward) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
                (*row_of(task, normal), proposer_version, episode_id, time.time(), reward),
            )
            task_id = cursor.lastrowid if cursor.rowcount else None
            if task_id is None:
                self._count("duplicates", 1)
            else:
                database.executemany(
                    "INSERT OR IGNORE INTO task_references VALUES (?, ?)", [(task_id, one) for one in references]
                )
                evicted = self._shrink(task.kind, task_id)
        # Only now is it certain: memory follows the file.
        if task_id is None:
            self._counters["duplicates"] += 1
            return Added(None, True)
        self._active[task.kind].append(task_id)
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
        """Active tasks by kind."""
        return {kind.value: len(ids) for kind, ids in self._active.items()}

    def metrics(self) -> dict[str, float]:
        """`buffer/<kind>`: active tasks; `buffer/evicted` and `buffer/duplicates`: how many there were, of all kinds."""
        return {f"buffer/{name}": float(count) for name, count in {**self.sizes(), **self._counters}.items()}

    def snapshot(self, path: Path) -> None:
        """Write the buffer, as of now, to a file of its own; from any thread, while requests go on."""
        copy_database(self._path, path)

    def close(self) -> None:
        """Close the file; what was added is in it."""
        self._database.close()

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
        if self._settings.sampling == "uniform":
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

    def _shrink(self, kind: Kind, newcomer: int | None = None) -> list[int]:
        """Take out of the draw what is beyond the capacity, in the file; returns the ids. Never the newcomer: a full
        buffer goes on taking what is new."""
        active = self._active[kind]
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

    def _forget(self, kind: Kind, ids: Sequence[int]) -> None:
        for one in ids:
            self._active[kind].remove(one)
        self._counters["evicted"] += len(ids)

    def _count(self, name: str, more: int) -> None:
        self._database.execute(
            "INSERT INTO meta VALUES (?, ?) ON CONFLICT DO UPDATE SET value = value + excluded.value", (name, more)
        )

    def _read(self, task_id: int) -> Task:
        row = self._database.execute(
            "SELECT kind, program, inputs, outputs, message FROM tasks WHERE id = ?", (task_id,)
        ).fetchone()
        if row is None:
            raise TaskBufferError(
                f"task {task_id} has gone from {self._path}: nothing may be deleted while the run goes on"
            )
        kind, program, inputs, outputs, message = row
        return Task(Kind(kind), program, tuple(json.loads(inputs)), tuple(json.loads(outputs)), message)


class LocalBuffer:
    """`Buffer` over a store in this process; never yields to the event loop (serial mode)."""

    def __init__(self, store: TaskBuffer) -> None:
        self._store = store

    async def references(self, kind: Kind, count: int, seed: str) -> list[tuple[int, Task]]:
        """See `Buffer`."""
        return self._store.references(kind, count, seed)

    async def replay(self, kind: Kind, seed: str) -> tuple[int, Task] | None:
        """See `Buffer`."""
        return self._store.replay(kind, seed)

    async def add(
        self,
        task: Task,
        *,
        normal: str,
        proposer_version: int,
        episode_id: str,
        references: Sequence[int] = (),
        reward: float | None = None,
    ) -> Added:
        """See `Buffer`."""
        return self._store.add(
            task,
            normal=normal,
            proposer_version=proposer_version,
            episode_id=episode_id,
            references=references,
            reward=reward,
        )

    async def record(self, task_id: int, version: int, attempts: int, solved: int) -> None:
        """See `Buffer`."""
        self._store.record(task_id, version, attempts, solved)

    async def rewarded(self, task_id: int, reward: float) -> None:
        """See `Buffer`."""
        self._store.rewarded(task_id, reward)


RETRY_S = 0.2
"""Between two requests to a buffer that starts again."""
PATIENCE_S = 180.0
"""How long one request is made again: a buffer that hangs is found out, ended and started again well within it."""


class RemoteBuffer:
    """`Buffer` over a Ray actor that holds the store.

    While that actor starts again, requests are made again, for `patience_s` seconds; then what failed them is raised, or
    TimeoutError. One whose answer was lost with the actor may so be carried out twice: a draw is the same again, and a task
    is added once; only an attempt may count twice.
    """

    def __init__(self, handle: Any, patience_s: float = PATIENCE_S) -> None:
        self._handle = handle
        self._patience_s = patience_s

    async def references(self, kind: Kind, count: int, seed: str) -> list[tuple[int, Task]]:
        """See `Buffer`."""
        found: list[tuple[int, Task]] = await self.ask("references", kind, count, seed)
        return found

    async def replay(self, kind: Kind, seed: str) -> tuple[int, Task] | None:
        """See `Buffer`."""
        found: tuple[int, Task] | None = await self.ask("replay", kind, seed)
        return found

    async def add(
        self,
        task: Task,
        *,
        normal: str,
        proposer_version: int,
        episode_id: str,
        references: Sequence[int] = (),
        reward: float | None = None,
    ) -> Added:
        """See `Buffer`."""
        added: Added = await self.ask(
            "add",
            task,
            normal=normal,
            proposer_version=proposer_version,
            episode_id=episode_id,
            references=references,
            reward=reward,
        )
        return added

    async def record(self, task_id: int, version: int, attempts: int, solved: int) -> None:
        """See `Buffer`."""
        await self.ask("record", task_id, version, attempts, solved)

    async def rewarded(self, task_id: int, reward: float) -> None:
        """See `Buffer`."""
        await self.ask("rewarded", task_id, reward)

    async def ask(self, request: str, *arguments: Any, **named: Any) -> Any:
        """Make any request of the actor."""
        from ray.exceptions import ActorUnavailableError

        deadline = time.monotonic() + self._patience_s
        while True:
            try:
                answer = getattr(self._handle, request).remote(*arguments, **named)
                return await asyncio.wait_for(answer, max(0.0, deadline - time.monotonic()))
            except ActorUnavailableError:
                if time.monotonic() > deadline:
                    raise
                await asyncio.sleep(RETRY_S)
            except TimeoutError:
                raise TimeoutError(f"the task buffer did not answer {request!r} for {self._patience_s:.0f} s") from None


def _recent(size: int, half_life: float, uniform: float) -> int:
    """An age, 0 to size - 1, drawn with weight 2^(-age / half_life), from a number that is uniform in [0, 1)."""
    beyond = 2.0 ** (-size / half_life)
    # The geometric distribution's inverse, cut off at `size`.
    return min(size - 1, int(-half_life * math.log2(1.0 - uniform * (1.0 - beyond))))
