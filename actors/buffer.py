"""The task buffer: every valid task, durable in SQLite, open to anybody's SQL (`runs/<name>/tasks.sqlite`).

Used three ways, as in Absolute Zero: references for proposers, programs for induction proposers, and tasks to solve again
where fresh proposals do not fill a batch. A task enters once, whatever its reward.
"""

from __future__ import annotations

import hashlib
import json
import random
import sqlite3
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

from actors.prompts import ZERO_TASK
from executor.tasks import Kind, Task

_SCHEMA = """
CREATE TABLE IF NOT EXISTS tasks (
    id INTEGER PRIMARY KEY,
    kind TEXT NOT NULL,
    digest TEXT NOT NULL UNIQUE,
    program TEXT NOT NULL,
    inputs TEXT NOT NULL,            -- JSON array of canonical literals
    outputs TEXT NOT NULL,           -- JSON array of canonical literals
    message TEXT NOT NULL,
    proposer_version INTEGER NOT NULL, -- oldest policy version in the proposal's tokens; -1: given (the zero triplet)
    episode_id TEXT NOT NULL,
    created REAL NOT NULL,           -- seconds since the epoch
    attempts INTEGER NOT NULL DEFAULT 0,
    solved INTEGER NOT NULL DEFAULT 0
) STRICT;
"""


class Buffer(Protocol):
    """What an episode knows of the buffer."""

    async def references(self, kind: Kind, count: int, seed: str) -> list[tuple[int, Task]]:
        """Up to `count` distinct tasks with their ids, drawn uniformly. For induction: of deduction and abduction."""

    async def replay(self, kind: Kind, seed: str) -> tuple[int, Task] | None:
        """One task of `kind` to solve again, drawn uniformly; None where there is none."""

    async def add(self, task: Task, proposer_version: int, episode_id: str) -> int | None:
        """Store a valid task; returns its id, or None where the buffer has it already."""

    async def record(self, task_id: int, attempts: int, solved: int) -> None:
        """Add to a task's solve history."""


class TaskBuffer:
    """The store itself, in the process that owns the file."""

    def __init__(self, path: Path) -> None:
        """Open or create; a new buffer starts with the zero triplet."""
        self._database = sqlite3.connect(path, check_same_thread=False)
        self._database.execute("PRAGMA journal_mode=WAL")
        self._database.execute("PRAGMA synchronous=NORMAL")
        self._database.executescript(_SCHEMA)
        self._ids: dict[Kind, list[int]] = {kind: [] for kind in Kind}
        for task_id, kind in self._database.execute("SELECT id, kind FROM tasks ORDER BY id"):
            self._ids[Kind(kind)].append(task_id)
        for kind in (Kind.DEDUCTION, Kind.ABDUCTION):
            if not self._ids[kind]:
                self.add(Task(kind, ZERO_TASK.program, ZERO_TASK.inputs, ZERO_TASK.outputs), -1, "zero")

    def references(self, kind: Kind, count: int, seed: str) -> list[tuple[int, Task]]:
        """See `Buffer`; in the order of their ids, oldest first."""
        kinds = (Kind.DEDUCTION, Kind.ABDUCTION) if kind is Kind.INDUCTION else (kind,)
        ids = [task_id for k in kinds for task_id in self._ids[k]]
        chosen = random.Random(seed).sample(ids, min(count, len(ids)))
        return [(task_id, self._read(task_id)) for task_id in sorted(chosen)]

    def replay(self, kind: Kind, seed: str) -> tuple[int, Task] | None:
        """See `Buffer`."""
        ids = self._ids[kind]
        if not ids:
            return None
        task_id = random.Random(seed).choice(ids)
        return task_id, self._read(task_id)

    def add(self, task: Task, proposer_version: int, episode_id: str) -> int | None:
        """See `Buffer`."""
        cursor = self._database.execute(
            "INSERT OR IGNORE INTO tasks (kind, digest, program, inputs, outputs, message, proposer_version, episode_id, "
            "created) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
            (
                task.kind.value,
                _digest(task),
                task.program,
                json.dumps(task.inputs),
                json.dumps(task.outputs),
                task.message,
                proposer_version,
                episode_id,
                time.time(),
            ),
        )
        self._database.commit()
        if cursor.rowcount == 0 or cursor.lastrowid is None:
            return None
        self._ids[task.kind].append(cursor.lastrowid)
        return cursor.lastrowid

    def record(self, task_id: int, attempts: int, solved: int) -> None:
        """See `Buffer`."""
        self._database.execute(
            "UPDATE tasks SET attempts = attempts + ?, solved = solved + ? WHERE id = ?", (attempts, solved, task_id)
        )
        self._database.commit()

    def sizes(self) -> dict[str, int]:
        """Tasks by kind."""
        return {kind.value: len(ids) for kind, ids in self._ids.items()}

    def close(self) -> None:
        """Close the file; what was added is on disk."""
        self._database.close()

    def _read(self, task_id: int) -> Task:
        row = self._database.execute(
            "SELECT kind, program, inputs, outputs, message FROM tasks WHERE id = ?", (task_id,)
        ).fetchone()
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

    async def add(self, task: Task, proposer_version: int, episode_id: str) -> int | None:
        """See `Buffer`."""
        return self._store.add(task, proposer_version, episode_id)

    async def record(self, task_id: int, attempts: int, solved: int) -> None:
        """See `Buffer`."""
        self._store.record(task_id, attempts, solved)


class RemoteBuffer:
    """`Buffer` over a Ray actor that holds the store."""

    def __init__(self, handle: Any) -> None:
        self._handle = handle

    async def references(self, kind: Kind, count: int, seed: str) -> list[tuple[int, Task]]:
        """See `Buffer`."""
        found: list[tuple[int, Task]] = await self._handle.references.remote(kind, count, seed)
        return found

    async def replay(self, kind: Kind, seed: str) -> tuple[int, Task] | None:
        """See `Buffer`."""
        found: tuple[int, Task] | None = await self._handle.replay.remote(kind, seed)
        return found

    async def add(self, task: Task, proposer_version: int, episode_id: str) -> int | None:
        """See `Buffer`."""
        task_id: int | None = await self._handle.add.remote(task, proposer_version, episode_id)
        return task_id

    async def record(self, task_id: int, attempts: int, solved: int) -> None:
        """See `Buffer`."""
        await self._handle.record.remote(task_id, attempts, solved)


def _digest(task: Task) -> str:
    parts: Sequence[str] = (task.kind.value, task.program.strip(), *task.inputs, task.message)
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()
