"""Seed files: tasks in a file, to start a run's buffer with (`azr seeds save`, `selfplay.seed_tasks`).

A line is one task, as JSON: {"kind": "deduction", "program": ..., "inputs": [literal, ...], "outputs": [literal, ...],
"message": ..., "texts": {name: ...}}. `outputs`, `message` and `texts` may be left out.

A file is not trusted: when it is loaded, the executor validates each task as it does a proposal, and computes its
outputs. A line that is no valid task, or that states other outputs, is rejected, by number and reason.
"""

from __future__ import annotations

import asyncio
import json
import sqlite3
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

from actors.buffer.file import READABLE_SCHEMAS, SCHEMA_VERSION
from actors.buffer.task_buffer import GIVEN, NewTask, TaskBuffer
from actors.environment import Environment
from actors.heldout.tasks import is_held_out
from actors.kinds.registry import names
from actors.labelled import LabelledProgram
from actors.labeller import Labeller
from executor.judge import Judge
from executor.pool import SandboxPool
from executor.settings import ExecutorSettings
from executor.tasks import Proposal, Rejection, Task, ValidationRules
from executor.user_error import UserError

AT_ONCE = 64
"""Tasks that are validated at the same time."""


class SeedError(UserError):
    """A seed file, or a run to make one from, that cannot be used; the message says what to do."""


@dataclass
class SeedReport:
    """The outcome of loading a seed file."""

    added: Counter[str] = field(default_factory=Counter)
    """New tasks by kind."""
    duplicates: int = 0
    """Tasks that the buffer had already."""
    rejected: list[tuple[int, str]] = field(default_factory=list)
    """Line number and reason of each line that is no task."""

    def counts(self) -> dict[str, int]:
        """The report as plain numbers, for an event."""
        added = {kind: self.added[kind] for kind in names()}
        return {**added, "duplicates": self.duplicates, "rejected": len(self.rejected)}


def save(
    database_file: Path,
    file: Path,
    kinds: list[str] | None = None,
    max_version: int | None = None,
    limit: int | None = None,
) -> Counter[str]:
    """Write tasks to a new file `file`; returns how many by kind. Raises SeedError."""
    try:
        database = sqlite3.connect(f"{database_file.absolute().as_uri()}?mode=ro", uri=True, timeout=10)
        try:
            (version,) = database.execute("PRAGMA user_version").fetchone()
            if version not in READABLE_SCHEMAS:
                raise SeedError(f"{database_file} is of form {version or 1}; this azr reads form {SCHEMA_VERSION}")
            texts = "texts" if version == SCHEMA_VERSION else "'{}'"
            rows = [
                row
                for kind in kinds or [row[0] for row in database.execute("SELECT DISTINCT kind FROM tasks")]
                for row in database.execute(
                    f"SELECT id, kind, program, inputs, outputs, message, {texts} FROM tasks WHERE kind = ? AND "
                    "episode_id <> 'zero' AND proposer_version <= ? ORDER BY id LIMIT ?",
                    (kind, 2**62 if max_version is None else max_version, -1 if limit is None else limit),
                )
            ]
        finally:
            database.close()
    except sqlite3.Error as error:
        raise SeedError(f"{database_file} cannot be read as a task buffer: {error}") from None
    lines = [
        json.dumps(
            {"kind": kind, "program": program, "inputs": json.loads(inputs), "outputs": json.loads(outputs)}
            | ({"message": message} if message else {})
            | ({"texts": json.loads(texts)} if texts != "{}" else {}),
            allow_nan=False,
        )
        for _, kind, program, inputs, outputs, message, texts in sorted(rows)
    ]
    if not lines:
        raise SeedError(f"{database_file} has no task of these kinds and versions; no file was written")
    try:
        with file.open("x") as target:
            target.writelines(f"{line}\n" for line in lines)
    except FileExistsError:
        raise SeedError(f"{file} exists already: give another name, or remove it") from None
    except OSError as error:
        raise SeedError(f"{file} cannot be written: {error}") from None
    return Counter(row[1] for row in rows)


def read_seeds(file: Path) -> list[tuple[int, str]]:
    """The lines of a file with their numbers. Raises SeedError where it cannot be read or no line has a task's form."""
    try:
        text = file.read_text(encoding="utf-8")
    except OSError as error:
        raise SeedError(f"selfplay.seed_tasks = {file} cannot be read: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise SeedError(f"selfplay.seed_tasks = {file} cannot be read: it is not UTF-8 text ({error})") from None
    lines = [(number, line) for number, line in enumerate(text.split("\n"), 1) if line.strip()]
    first = ""
    for number, line in lines:
        try:
            _parse(line)
            return lines
        except SeedError as error:
            first = first or f"; line {number}: {error}"
    raise SeedError(f"selfplay.seed_tasks = {file}: none of its {len(lines)} lines is a task{first}")


def load_seeds(
    file: Path, settings: ExecutorSettings, store: TaskBuffer, rules: ValidationRules, label_pairs: int = 0
) -> SeedReport:
    """Validate a file's tasks in sandboxes of its own, and add those that pass, in the file's order.

    `label_pairs`: of each distinct program that is labelled for a supervised loss (`selfplay.label_pairs`). Raises
    SeedError where the file cannot be read or nothing in it is a task, and InfrastructureError.
    """
    lines = read_seeds(file)
    report, found = SeedReport(), []
    for number, result in asyncio.run(validate_lines(lines, settings, rules)):
        if isinstance(result, str):
            report.rejected.append((number, result))
            continue
        found.append(result)
        task, normal = result
        added = store.add(NewTask(task, normal, GIVEN, f"seed:{file.name}:{number}"))
        report.duplicates += added.duplicate
        report.added[task.kind] += not added.duplicate
    if not report.added and not report.duplicates:
        first = f"; line {report.rejected[0][0]}: {report.rejected[0][1]}" if report.rejected else ""
        raise SeedError(f"selfplay.seed_tasks = {file}: none of its {len(lines)} lines is a task{first}")
    if label_pairs:
        for program in asyncio.run(label_tasks(found, settings, label_pairs)):
            store.label(program)
            store.label_tried(program.normal, bool(program.message))
    return report


async def label_tasks(
    found: Sequence[tuple[Task, str]], settings: ExecutorSettings, num_pairs: int, seed: int = 0
) -> list[LabelledProgram]:
    """Label the distinct programs of tasks, each given with its normalised program, in sandboxes of their own: see
    `Labeller.label_all`. Raises InfrastructureError."""
    async with sandboxes(settings) as environment:
        return await Labeller(environment, num_pairs).label_all(found, str(seed))


async def validate_lines(
    lines: Sequence[tuple[int, str]], settings: ExecutorSettings, rules: ValidationRules | None = None
) -> list[tuple[int, tuple[Task, str] | str]]:
    """Validate numbered lines in sandboxes of their own: number and result (see `validate`) of each, in the same order.

    Raises InfrastructureError.
    """
    found: list[tuple[int, tuple[Task, str] | str]] = []
    async with sandboxes(settings, rules) as environment:
        for start in range(0, len(lines), AT_ONCE):
            part = lines[start : start + AT_ONCE]
            results = await asyncio.gather(*(validate(environment, line) for _, line in part))
            found += [(number, result) for (number, _), result in zip(part, results, strict=True)]
    return found


@asynccontextmanager
async def sandboxes(settings: ExecutorSettings, rules: ValidationRules | None = None) -> AsyncIterator[Environment]:
    """An environment with sandboxes of its own, which end with the block."""
    pool = SandboxPool(settings)
    await pool.start()
    try:
        yield Environment(Judge(pool, settings, rules=rules))
    finally:
        await pool.close()


async def validate(environment: Environment, line: str) -> tuple[Task, str] | str:
    """The task of a line with its normalised program, or why there is none."""
    try:
        proposal, outputs = _parse(line)
    except SeedError as error:
        return str(error)
    result = await environment.validate(proposal)
    if isinstance(result, Rejection):
        return f"{result.reason.value}: {result.detail}" if result.detail else result.reason.value
    if outputs is not None and result.outputs != outputs:
        return f"outputs differ: the file says {', '.join(outputs)[:200]}; it is {', '.join(result.outputs)[:200]}"
    facts = await environment.inspect(result.program)
    normal = facts.normal if facts else result.program
    return "it is a held-out task" if is_held_out(result, normal) else (result, normal)


def _parse(line: str) -> tuple[Proposal, tuple[str, ...] | None]:
    try:
        item = json.loads(line)
    except ValueError as error:  # RecursionError is none: the C parser raises it for deep nesting
        raise SeedError(f"no JSON: {error}") from None
    except RecursionError:
        raise SeedError("no JSON that is nested so deeply can be a task") from None
    if not isinstance(item, dict) or set(item) - {"kind", "program", "inputs", "outputs", "message", "texts"}:
        raise SeedError("a line is an object with kind, program, inputs, and perhaps outputs, message and texts")
    texts = {name: item.get(name, "") for name in ("kind", "program", "message")}
    lists = {name: item[name] for name in ("inputs", "outputs") if item.get(name) is not None}
    if not all(isinstance(text, str) for text in texts.values()) or "inputs" not in lists:
        raise SeedError("kind, program and message are strings, inputs and outputs are lists of strings")
    if not all(isinstance(one, list) and all(isinstance(text, str) for text in one) for one in lists.values()):
        raise SeedError("inputs and outputs are lists of strings, each a literal as text")
    more = item.get("texts") or {}
    if not isinstance(more, dict) or not all(isinstance(text, str) for text in more.values()):
        raise SeedError("texts is an object of strings")
    if texts["kind"] not in names():
        raise SeedError(f"kind {texts['kind'][:40]!r} is none of {', '.join(names())}")
    proposal = Proposal(texts["kind"], texts["program"], tuple(lists["inputs"]), texts["message"], more)
    return proposal, tuple(lists["outputs"]) if "outputs" in lists else None
