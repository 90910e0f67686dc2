"""Opens the run's task buffer: a new one, or the one of the checkpoint that the run goes on from.

A checkpoint holds a snapshot of the buffer. On resume that snapshot becomes `tasks.sqlite` again, so that buffer,
ledger, queue and weights are of one moment; what the buffer had before moves aside, whole, into a file that an event
names.
"""

from __future__ import annotations

import os
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

from actors.buffer.file import TaskBufferError, copy_database
from actors.buffer.task_buffer import TaskBuffer
from actors.seed_file import load_seeds
from launch.config import Config
from launch.run.folder import RunFolder, append_event
from learner.checkpoint import Checkpoints

SNAPSHOT = "tasks.sqlite"
"""The snapshot's name in a checkpoint's folder."""


def open_tasks(config: Config, folder: RunFolder, resume: bool) -> TaskBuffer:
    """The buffer of a run that starts or goes on; a new one gets the tasks of `selfplay.seed_tasks`.

    A resume without a checkpoint, which has taken no step, keeps the buffer: the tasks that were proposed to seed it.
    Raises TaskBufferError for a file that cannot be used, SeedError for a seed file that cannot, and
    InfrastructureError.
    """
    checkpoint = Checkpoints(folder.checkpoints, 1).latest() if resume else None
    if checkpoint is not None:
        restore(folder, checkpoint)
    elif not resume or config.run.mode == "serial":
        # Serial mode repeats a run by its seed, so it begins with an empty buffer.
        set_aside(folder, "no checkpoint to go on from" if resume else "a new run")
    store = TaskBuffer(folder.tasks, config.buffer)
    try:
        if checkpoint is None and config.selfplay.seed_tasks:
            selfplay, file = config.selfplay, seed_file(config.selfplay.seed_tasks)
            report = load_seeds(file, config.executor, store, selfplay.rules, selfplay.label_pairs)
            for line, why in report.rejected:
                append_event(folder, "seed_rejected", file=config.selfplay.seed_tasks, line=line, why=why)
            append_event(folder, "seeds_loaded", file=config.selfplay.seed_tasks, **report.counts())
    except BaseException:
        store.close()
        raise
    return store


def seed_file(name: str) -> Path:
    """The file that `selfplay.seed_tasks` names."""
    return Path(os.path.expanduser(name))


def restore(folder: RunFolder, checkpoint: Path) -> None:
    """Bring back a checkpoint's snapshot. Killed at any point, it can simply be done again. Raises TaskBufferError for
    one that is damaged."""
    fresh = folder.path / f".{SNAPSHOT}.restored"
    try:
        copy_database(checkpoint / SNAPSHOT, fresh)
        with closing(sqlite3.connect(fresh)) as database:  # the copy is of pages, whatever is in them
            (found,) = database.execute("PRAGMA quick_check(1)").fetchone()
        if found != "ok":
            raise sqlite3.DatabaseError(found)
    except sqlite3.OperationalError:
        raise  # a full disk, a file in use: the snapshot is whole
    except sqlite3.DatabaseError as error:
        raise TaskBufferError(
            f"the task buffer in the checkpoint {checkpoint} is damaged ({str(error).strip()}). Move the checkpoint "
            "away: the run then goes on from the one before"
        ) from None
    set_aside(folder, f"the run goes on from {checkpoint.name}", checkpoint / SNAPSHOT)
    fresh.rename(folder.tasks)


def set_aside(folder: RunFolder, why: str, kept: Path | None = None) -> Path | None:
    """Move `tasks.sqlite` to `tasks.aside.N.sqlite`, with an event that names it; returns the new path.

    None where there was no file, or where all that it has is in the buffer `kept` too, and it was deleted.
    """
    path = folder.tasks
    if not path.exists():
        for rest in _beside(path):
            rest.unlink(missing_ok=True)
        return None
    try:
        later = _later(path, kept)
    except sqlite3.OperationalError as error:
        if "locked" in str(error):
            raise TaskBufferError(
                f"{path} is open elsewhere: close what holds it (a run that goes on, an sqlite3 shell)"
            ) from None
        later = {"unreadable": str(error)}
    except sqlite3.DatabaseError as error:  # whatever it is, it is kept
        later = {"unreadable": str(error)}
    if not any(later.values()):
        for file in (path, *_beside(path)):
            file.unlink(missing_ok=True)
        return None
    number = 1
    while (aside := folder.path / f"tasks.aside.{number}.sqlite").exists():
        number += 1
    # A log that could not be folded in belongs to its file.
    for rest, name in zip(_beside(path), _beside(aside), strict=True):
        if rest.exists():
            rest.rename(name)
    append_event(folder, "tasks_set_aside", file=aside.name, why=why, **later)
    path.rename(aside)
    return aside


def _beside(path: Path) -> tuple[Path, Path]:
    return path.with_name(f"{path.name}-wal"), path.with_name(f"{path.name}-shm")


def _later(path: Path, kept: Path | None) -> dict[str, Any]:
    """Count what the buffer at `path` has beyond `kept`, or beyond what every buffer starts with: `tasks`, above id
    `after_id`, and `attempts`. Folds the file's log in."""
    database = sqlite3.connect(path.absolute().as_uri(), uri=True, timeout=2, isolation_level=None)
    try:
        database.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        database.execute("PRAGMA journal_mode=DELETE")
        if kept is None:
            (tasks,) = database.execute("SELECT count(*) FROM tasks WHERE episode_id <> 'zero'").fetchone()
            (attempts,) = database.execute("SELECT ifnull(sum(attempts), 0) FROM history").fetchone()
            return {"tasks": tasks, "attempts": attempts}
        database.execute("ATTACH ? AS kept", (f"{kept.absolute().as_uri()}?mode=ro",))
        (after,) = database.execute("SELECT ifnull(max(id), 0) FROM kept.tasks").fetchone()
        (tasks,) = database.execute("SELECT count(*) FROM tasks WHERE id > ?", (after,)).fetchone()
        total = "SELECT ifnull(sum(attempts), 0) FROM {}history"
        attempts = (
            database.execute(total.format("main.")).fetchone()[0]
            - database.execute(total.format("kept.")).fetchone()[0]
        )
        return {"tasks": tasks, "attempts": attempts, "after_id": after if tasks or attempts else 0}
    finally:
        database.close()
