"""The file of the task buffer: its tables, how it is opened, changed and copied."""

from __future__ import annotations

import hashlib
import json
import sqlite3
from collections.abc import Sequence
from pathlib import Path

from actors.buffer.journal import JournalChoice, prepare, set_journal
from executor.tasks import Task
from executor.user_error import UserError
from learner.disk import sync

SCHEMA_VERSION = 3
"""`PRAGMA user_version` of a file of this form. 1, which had no number yet, knew no provenance; 2 knew no `texts`, and
is brought to form 3 when it is opened."""
READABLE_SCHEMAS = (2, SCHEMA_VERSION)
BUSY_S = 60.0
"""Seconds that a statement waits while another process, such as a user's, holds the file."""

# Indices: `digest` finds what is known; `tasks_active` lists the draw without reading the tasks; `tasks_settled` gives
# what leaves it first. The latter two hold no more than the rows that they are asked about (and the columns of their
# conditions, without which SQLite would read the tasks themselves).
_SCHEMA = """
CREATE TABLE tasks (
    id INTEGER PRIMARY KEY,            -- in the order of entry
    kind TEXT NOT NULL,
    digest BLOB NOT NULL UNIQUE,       -- of kind, normalised program, inputs, and what else tells tasks of a kind apart
    program_digest BLOB NOT NULL,      -- of the normalised program: the same program under other names is equal
    program TEXT NOT NULL,
    inputs TEXT NOT NULL,              -- JSON array of canonical literals
    outputs TEXT NOT NULL,             -- JSON array of canonical literals
    message TEXT NOT NULL,
    texts TEXT NOT NULL DEFAULT '{}',  -- JSON object: what else a kind needs, by name
    proposer_version INTEGER NOT NULL, -- oldest policy version in the proposal's tokens; -1: given, not proposed
    episode_id TEXT NOT NULL,
    created REAL NOT NULL,             -- seconds since the epoch
    reward REAL,                       -- the proposer's; null where none was given
    attempts INTEGER NOT NULL DEFAULT 0,
    solved INTEGER NOT NULL DEFAULT 0,
    last_solved_version INTEGER,       -- newest policy version that solved it; null: none has
    active INTEGER NOT NULL DEFAULT 1, -- 0: it has left the draw
    settled INTEGER NOT NULL DEFAULT 0 -- 1: solved always or never, in enough attempts
) STRICT;
CREATE INDEX tasks_active ON tasks (kind, active) WHERE active = 1;
CREATE INDEX tasks_settled ON tasks (kind, active, settled) WHERE active = 1 AND settled = 1;
CREATE TABLE task_references (         -- what the proposer of a task was shown
    task_id INTEGER NOT NULL,
    reference_id INTEGER NOT NULL,
    PRIMARY KEY (task_id, reference_id)
) STRICT, WITHOUT ROWID;
CREATE TABLE history (                 -- solutions by the policy version that wrote them
    task_id INTEGER NOT NULL,
    version INTEGER NOT NULL,
    attempts INTEGER NOT NULL,
    solved INTEGER NOT NULL,
    PRIMARY KEY (task_id, version)
) STRICT, WITHOUT ROWID;
CREATE TABLE meta (name TEXT PRIMARY KEY, value INTEGER NOT NULL) STRICT, WITHOUT ROWID;
"""
# Made in files of every form when they are opened: nothing else depends on it.
_LABELLED = (
    """
CREATE TABLE IF NOT EXISTS labelled (  -- programs with pairs of input and output, for a supervised loss
    id INTEGER PRIMARY KEY,            -- 1, 2, ... without a gap
    program_digest BLOB NOT NULL UNIQUE, -- of the normalised program, as in tasks
    program TEXT NOT NULL,
    normal TEXT NOT NULL,
    pairs TEXT NOT NULL,               -- JSON array of [input, output]
    message TEXT NOT NULL
) STRICT
""",
    """
CREATE TABLE IF NOT EXISTS labels_tried ( -- programs whose labelling has ended: they are in `labelled` or left out
    program_digest BLOB NOT NULL,
    with_message INTEGER NOT NULL,     -- 1: of a task with a message
    PRIMARY KEY (program_digest, with_message)
) STRICT, WITHOUT ROWID
""",
)
# For files with labels from before `labels_tried`: what is labelled is not labelled again.
_WITHOUT_CLAIMS = (
    "INSERT OR IGNORE INTO labels_tried SELECT program_digest, 0 FROM labelled",
    "INSERT OR IGNORE INTO labels_tried SELECT program_digest, 1 FROM labelled WHERE message <> ''",
    "DROP TABLE IF EXISTS label_claims",
)


class TaskBufferError(UserError):
    """A file that cannot be used as a task buffer; the message says what to do."""


def open_database(path: Path, journal: JournalChoice = "auto") -> tuple[sqlite3.Connection, bool]:
    """Open or create; the flag says whether the file is new.

    Raises TaskBufferError for a file of another form, JournalError for a file system that permits no journal.
    """
    database = sqlite3.connect(path, timeout=BUSY_S, check_same_thread=False, isolation_level=None)
    try:
        why = prepare(database, path, journal)
        try:
            (version,) = database.execute("PRAGMA user_version").fetchone()
            (tables,) = database.execute("SELECT count(*) FROM sqlite_master").fetchone()
        except sqlite3.DatabaseError as error:
            raise TaskBufferError(f"{path} is no task buffer ({error}); move it away") from None
        if version == 2:
            with Transaction(database):
                database.execute("ALTER TABLE tasks ADD COLUMN texts TEXT NOT NULL DEFAULT '{}'")
                database.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")
        elif (tables or version) and version != SCHEMA_VERSION:
            raise TaskBufferError(
                f"{path} is a task buffer of form {version or 1}; this azr reads form {SCHEMA_VERSION}. Go on with the "
                "azr that wrote it, or move the file away and start a new run (its tasks can come along as a seed "
                "file, selfplay.seed_tasks)"
            )
        set_journal(database, path, why)
        database.execute("PRAGMA cache_size=-65536")  # KiB
        if not tables:
            database.executescript(f"BEGIN; {_SCHEMA} PRAGMA user_version = {SCHEMA_VERSION}; COMMIT;")
        former = {name for (name,) in database.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
        if not {"labelled", "labels_tried"} <= former or "label_claims" in former:
            with Transaction(database):
                for statement in (*_LABELLED, *_WITHOUT_CLAIMS):
                    database.execute(statement)
    except BaseException:
        database.close()
        raise
    return database, not tables


def copy_database(source: Path, target: Path) -> None:
    """Write one state of a buffer that may be in use to a file of its own, which is on the disk when this returns."""
    partial = target.with_name(f"{target.name}.partial")
    partial.unlink(missing_ok=True)
    # A connection of its own reads one state to the end, whatever is committed meanwhile.
    reading, writing = sqlite3.connect(source, timeout=BUSY_S), sqlite3.connect(partial)
    try:
        reading.backup(writing)
        writing.execute("PRAGMA journal_mode=DELETE")  # one file, nothing beside it
    finally:
        writing.close()
        reading.close()
    sync(partial)
    partial.rename(target)
    sync(target.parent)


class Transaction:
    """A transaction: the file keeps all changes made inside it, or none if it raises."""

    def __init__(self, database: sqlite3.Connection) -> None:
        self._database = database

    def __enter__(self) -> sqlite3.Connection:
        self._database.execute("BEGIN IMMEDIATE")
        return self._database

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:
            self._database.execute("COMMIT")
        elif self._database.in_transaction:  # some errors, such as a full disk, have ended it by themselves
            self._database.execute("ROLLBACK")


def row_of(task: Task, normal: str, identity: Sequence[str]) -> tuple[str, bytes, bytes, str, str, str, str, str]:
    """The columns of `tasks` from `kind` to `texts`. `identity`: see `TaskKind.identity`."""
    parts = [task.kind, normal.strip(), *task.inputs, *identity]
    return (
        task.kind,
        _digest(parts),
        program_digest(normal),
        task.program,
        json.dumps(task.inputs, allow_nan=False),
        json.dumps(task.outputs, allow_nan=False),
        task.message,
        json.dumps(dict(task.texts), allow_nan=False),
    )


def program_digest(normal: str) -> bytes:
    """The digest of a normalised program."""
    return _digest(normal.strip())


def _digest(parts: str | list[str]) -> bytes:
    # As JSON, so that no text of a program can pass for the border between two parts.
    return hashlib.sha256(json.dumps(parts, allow_nan=False).encode()).digest()[:16]
