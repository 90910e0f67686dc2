"""The journal of a task buffer's file: a write-ahead log, or a rollback journal where the file system cannot have one.

SQLite's write-ahead log needs memory that all who have the file open share, and that only a local file system gives. On
NFS, Lustre and the like the file can be damaged without a word, so they are known by their names; where a local one
does not give such memory either, SQLite says so. A rollback journal needs file locks alone, but two or three waits for
the disk at each commit (40 commits a second on a busy disk that does 2,600 with a log), and lets a request wait while a
snapshot is written.
"""

from __future__ import annotations

import contextlib
import fcntl
import logging
import sqlite3
import tempfile
from pathlib import Path
from typing import Literal

import psutil

from executor.user_error import UserError

JournalChoice = Literal["auto", "wal", "rollback"]

NETWORKED = frozenset({
    "9p", "afs", "beegfs", "ceph", "cifs", "davfs", "gfs2", "glusterfs", "gpfs", "lustre", "mmfs", "ncpfs", "nfs",
    "nfs4", "ocfs2", "orangefs", "panfs", "pvfs2", "smb3", "smbfs", "wekafs",
})  # fmt: skip
"""File systems that several machines share, as the kernel names their types. Most of type `fuse.*` are shared, too."""

_LOG = logging.getLogger(__name__)


class JournalError(UserError):
    """A file system on which no journal works; the message says what to do."""


def file_system(path: Path) -> str:
    """The type of the file system that `path` is on, or will be, as the kernel calls it; "" if it cannot be told."""
    real = path.absolute().resolve()
    best, found = -1, ""
    for mount in psutil.disk_partitions(all=True):
        point = Path(mount.mountpoint)
        if real.is_relative_to(point) and len(point.parts) >= best:  # of several at one place, the last covers the rest
            best, found = len(point.parts), mount.fstype
    return found


def why_no_log(path: Path) -> str:
    """Why the file system of `path` is not fit for a write-ahead log; "" if nothing is known against it."""
    kind = file_system(path)
    return f"the file system is {kind}, which machines share" if kind in NETWORKED or kind.startswith("fuse.") else ""


def prepare(database: sqlite3.Connection, path: Path, choice: JournalChoice) -> str:
    """Decide on the journal before anything is read; returns why it is a rollback journal, "" if it is a log.

    Raises JournalError where the file system permits none.
    """
    why = {"auto": "", "wal": "", "rollback": "buffer.journal is 'rollback'"}[choice]
    if choice == "auto":
        why = why_no_log(path) or _try_log(path)
    if why:
        _check_locks(path.parent)
        # A log that the file still has is read without shared memory by a connection that has the file alone.
        database.execute("PRAGMA locking_mode=EXCLUSIVE")
    return why


def set_journal(database: sqlite3.Connection, path: Path, why: str) -> None:
    """Give the file its journal. `why`: what `prepare` returned. Raises JournalError or sqlite3.Error."""
    wanted = "truncate" if why else "wal"
    (mode,) = database.execute(f"PRAGMA journal_mode={wanted}").fetchone()
    if mode != wanted:
        raise JournalError(
            f"{path} cannot have the journal {wanted!r}: SQLite stays with {mode!r}. Set run.dir elsewhere"
        )
    # With NORMAL, a loss of power could damage a file with a rollback journal.
    database.execute(f"PRAGMA synchronous={'FULL' if why else 'NORMAL'}")
    if why:
        database.execute("PRAGMA locking_mode=NORMAL")
        database.execute("SELECT count(*) FROM sqlite_master").fetchone()  # only now is the lock given back
        _LOG.warning("%s has a rollback journal, which is slower than a write-ahead log: %s", path, why)


def journal_of(database: sqlite3.Connection) -> str:
    """The journal that the file has, in SQLite's words: `wal` or `truncate`."""
    mode: str = database.execute("PRAGMA journal_mode").fetchone()[0]
    return mode


def _try_log(path: Path) -> str:
    """Try a write-ahead log on a file of its own beside `path`; returns why it does not work, "" if it does."""
    probe = path.with_name(f".{path.name}.probe")
    database = sqlite3.connect(probe)
    try:
        (mode,) = database.execute("PRAGMA journal_mode=WAL").fetchone()
        database.execute("CREATE TABLE IF NOT EXISTS probe (x)")  # the first to use the shared memory
        return "" if mode == "wal" else f"SQLite stays with {mode!r}"
    except sqlite3.OperationalError as error:
        return str(error)
    finally:
        database.close()
        for name in ("", "-wal", "-shm"):
            with contextlib.suppress(OSError):
                probe.with_name(probe.name + name).unlink()


def _check_locks(folder: Path) -> None:
    """Raise JournalError where the file system has no file locks: SQLite would wait for one, and give up.

    On a file of its own: closing a file gives up all locks that the process has on it.
    """
    with tempfile.TemporaryFile(dir=folder) as probe:
        try:
            fcntl.lockf(probe, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise JournalError(
                f"the file system of {folder} ({file_system(folder)}) has no file locks ({error.strerror}), which the "
                "task buffer needs. Mount it with locks (Lustre: -o flock), or set run.dir to another one"
            ) from None
