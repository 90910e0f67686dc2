"""The section of `azr doctor` about the file system of the run folders: the journal that a task buffer gets there."""

from __future__ import annotations

import os
import sqlite3
import tempfile
from pathlib import Path

from actors.buffer.file import open_database
from actors.buffer.journal import file_system, journal_of, why_no_log
from executor.user_error import UserError
from launch.config import Config
from launch.doctor.report import Check, CheckState, Section

_PURPOSE = "a fast task buffer: SQLite's write-ahead log, which needs a file system of one machine"
_MEND = "set run.dir to a local file system, if one machine runs everything; azr works without it"


def storage(config: Config) -> Section:
    """Open a task buffer of its own where `run.dir` is, or will be, and report the journal."""
    wanted = config.folder.parent
    folder = next(path for path in (wanted.absolute(), *wanted.absolute().parents) if path.is_dir())
    name = f"run folders ({wanted}, {file_system(folder) or 'file system unknown'})"
    if not os.access(folder, os.W_OK):
        return Section(name, (Check("journal", CheckState.INFO, f"not tried: {folder} cannot be written to"),))
    try:
        with tempfile.TemporaryDirectory(dir=folder, prefix=".azr-doctor-") as trial:
            path = Path(trial) / "tasks.sqlite"
            database, _ = open_database(path, config.buffer.journal)
            try:
                journal = journal_of(database)
            finally:
                database.close()
            why = why_no_log(path) or "SQLite cannot use it there, or buffer.journal forbids it"
    except (UserError, sqlite3.Error, OSError) as error:
        return Section(name, (Check("journal", CheckState.FAILED, str(error), _PURPOSE, "set run.dir elsewhere"),))
    if journal == "wal":
        return Section(name, (Check("journal", CheckState.ON, "write-ahead log", _PURPOSE),))
    return Section(name, (Check("journal", CheckState.OFF, f"a rollback journal instead: {why}", _PURPOSE, _MEND),))
