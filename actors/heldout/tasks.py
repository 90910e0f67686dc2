"""The held-out tasks: small and fixed, outside of the buffer and of every batch.

A self-play run makes its own tasks, so its solve rate rises as well when its proposals become trivial. These tasks stay
what they are. A proposal that is one of them is neither stored, solved nor trained (`is_held_out`).
"""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from executor.tasks import Task

TASKS = Path(__file__).with_name("tasks.jsonl")
"""The tasks that ship; `python -m launch.shipped.heldout_tasks` writes them anew."""
SET = 2
"""The number of the set. Its tasks never change: other tasks are another set, with another number."""


@dataclass(frozen=True)
class HeldoutTask:
    """A task to measure with. `difficulty`: 1 (one operation) to 4 (a loop, or three steps)."""

    name: str
    difficulty: int
    task: Task
    normal: str
    """Its normalised program (`Facts.normal`). Tasks of one program have it in common."""

    def to_json(self) -> dict[str, Any]:
        """As plain data."""
        task = self.task
        return {
            "name": self.name,
            "difficulty": self.difficulty,
            "kind": task.kind,
            "program": task.program,
            "normal": self.normal,
            "inputs": list(task.inputs),
            "outputs": list(task.outputs),
            "message": task.message,
        }

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> HeldoutTask:
        """The inverse of `to_json`; raises KeyError or ValueError."""
        task = Task(data["kind"], data["program"], tuple(data["inputs"]), tuple(data["outputs"]), data["message"])
        return cls(data["name"], int(data["difficulty"]), task, data["normal"])


def load_tasks(count: int = 0) -> list[HeldoutTask]:
    """The first `count` held-out tasks, in the order of the file; 0: all.

    The order is such that kinds and difficulties are balanced among the first N, whatever N is.
    """
    lines = TASKS.read_text().splitlines()
    return [HeldoutTask.from_json(json.loads(line)) for line in lines[: count or None]]


def digest(tasks: Iterable[HeldoutTask]) -> str:
    """12 characters that tell one set of tasks from another."""
    text = "".join(json.dumps(one.to_json(), sort_keys=True, allow_nan=False) for one in tasks)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def is_held_out(task: Task, normal: str) -> bool:
    """Whether a held-out task, of whichever kind, has the program of `task`, normalised to `normal`, and one of its
    inputs. A task of a kind that the set has not is never one of them."""
    kinds, keys = _known()
    return task.kind in kinds and any((normal, given) in keys for given in task.inputs)


@functools.cache
def held_out_programs() -> frozenset[str]:
    """The normalised programs of the held-out tasks."""
    return frozenset(one.normal for one in load_tasks())


@functools.cache
def _known() -> tuple[frozenset[str], frozenset[tuple[str, str]]]:
    """The kinds of the set, and its pairs of normalised program and input."""
    tasks = load_tasks()
    return frozenset(one.task.kind for one in tasks), frozenset((t.normal, i) for t in tasks for i in t.task.inputs)
