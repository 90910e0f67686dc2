"""The labelled programs of a task buffer, and which programs are to be labelled: two tables of its file."""

from __future__ import annotations

import json
import random
import sqlite3

from actors.buffer.file import program_digest
from actors.labelled import LabelledProgram


class Labels:
    """Reads and writes the tables `labelled` and `labels_tried`."""

    def __init__(self, database: sqlite3.Connection) -> None:
        self._database = database

    def needs_label(self, normal: str, with_message: bool) -> bool:
        """See `task_buffer.Buffer`."""
        tried = "SELECT 1 FROM labels_tried WHERE program_digest = ? AND with_message = ?"
        return self._database.execute(tried, (program_digest(normal), with_message)).fetchone() is None

    def label(self, program: LabelledProgram) -> None:
        """See `task_buffer.Buffer`."""
        pairs = json.dumps(program.pairs, allow_nan=False)
        self._database.execute(
            "INSERT INTO labelled (program_digest, program, normal, pairs, message) VALUES (?, ?, ?, ?, ?) "
            "ON CONFLICT DO UPDATE SET message = excluded.message WHERE message = ''",
            (program_digest(program.normal), program.program, program.normal, pairs, program.message),
        )

    def label_tried(self, normal: str, with_message: bool) -> None:
        """See `task_buffer.Buffer`."""
        values = program_digest(normal), with_message
        self._database.execute("INSERT OR IGNORE INTO labels_tried VALUES (?, ?)", values)

    def labelled(self, count: int, seed: str) -> list[LabelledProgram]:
        """Up to `count` distinct labelled programs, drawn uniformly. A function of the seed and of what is there."""
        (known,) = self._database.execute("SELECT ifnull(max(id), 0) FROM labelled").fetchone()
        found = []
        for one in random.Random(seed).sample(range(1, known + 1), min(count, known)):
            program, normal, pairs, message = self._database.execute(
                "SELECT program, normal, pairs, message FROM labelled WHERE id = ?", (one,)
            ).fetchone()
            found.append(LabelledProgram(program, normal, tuple((i, o) for i, o in json.loads(pairs)), message))
        return found
