"""Settings of the task buffer."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from actors.buffer.journal import JournalChoice
from executor.settings_table import SettingsTable


class BufferSettings(SettingsTable):
    """`[buffer]`: which past tasks are drawn, and how many stay in the draw."""

    sampling: Literal["uniform", "recency", "learnability"] = "uniform"
    """How past tasks are drawn: `uniform`, `recency` or `learnability`.
    `uniform`: every active task with the same probability. `recency`: newer tasks more often, by
    `buffer.recency_half_life`. `learnability`: a task to solve again in proportion to p (1 - p), where p is its solve
    rate so far (an unseen task counts as one half); references of proposers uniformly."""
    recency_half_life: float = Field(default=1000.0, ge=1)
    """Half-life of `sampling = "recency"`, in tasks of a kind.
    A task that this many tasks followed is drawn half as often as the newest. Small: only the latest tasks are seen
    again. Large: nearly uniform."""
    capacity: int = Field(default=0, ge=0)
    """Maximum number of active tasks of each kind; 0: no bound.
    Beyond it, one task leaves the draw for each that enters. It stays in the file and still counts as known."""
    settled_attempts: int = Field(default=16, ge=1)
    """Attempts after which a task that was always or never solved leaves first when `buffer.capacity` is reached.
    After those, the oldest leaves. Small: tasks are judged settled by chance."""
    journal: JournalChoice = "auto"
    """Journal of the task buffer's file: `auto`, `wal` or `rollback`.
    `wal`: a write-ahead log, which is faster, and safe on a local file system only. `rollback`: a rollback journal, on
    any file system with file locks. `auto`: a log unless the file system is one that machines share (NFS, Lustre)."""
