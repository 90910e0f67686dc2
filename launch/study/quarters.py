"""What a run was like in each quarter of its steps, and at its end: new tasks, diversity, step time, memory."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any

from actors.kinds.registry import kinds, names

Rows = Sequence[Mapping[str, Any]]
"""Metrics of steps, in order (`RunFolder.read_metrics`)."""

DIVERSITY = ("ignores_input", "duplicates", "distinct_programs", "copies")
"""Shares of proposals and answers, by kind of task (docs/metrics.md)."""
_OF_PROGRAMS = ("ignores_input", "distinct_programs")
MEMORY = ("memory/learner_mib", "memory/actor_mib/max")
PARTS = 4


def diversity_of(rows: Rows) -> dict[str, float]:
    """`DIVERSITY` and `entropy` -> mean over the rows and the kinds that have it; left out where none has.

    What is said of programs is of kinds that write them. Induction is given its programs, several proposals one; its
    `ignores_input` says that inputs were chosen badly.
    """
    shares = {
        name: mean_of(
            rows, [f"{name}/{kind.name}" for kind in kinds() if kind.writes_program or name not in _OF_PROGRAMS]
        )
        for name in DIVERSITY
    }
    return _known(shares | {"entropy": mean_of(rows, ["entropy"])})


def quarters(rows: Rows) -> list[dict[str, float]]:
    """For each quarter of the steps: `diversity_of` it, the mean of `MEMORY`, `new_tasks` (tasks that the buffer took,
    for each step) and `step_s` (seconds from step to step). Empty for a run of fewer than 8 steps.

    The last two are counted from the end of the first step, which includes what comes before it, such as seeding.
    """
    if len(rows) < 2 * PARTS:
        return []
    found = []
    for part in range(PARTS):
        start, end = (len(rows) * bound // PARTS for bound in (part, part + 1))
        before, last = rows[max(0, start - 1)], rows[end - 1]
        steps = last["step"] - before["step"]
        tasks = _tasks(before), _tasks(last)
        slopes = {
            "new_tasks": None if tasks[0] is None or tasks[1] is None else (tasks[1] - tasks[0]) / steps,
            "step_s": (last["time_s"] - before["time_s"]) / steps,
        }
        memory = {name: mean_of(rows[start:end], [name]) for name in MEMORY}
        found.append(diversity_of(rows[start:end]) | _known(slopes | memory))
    return found


def _tasks(row: Mapping[str, Any]) -> float | None:
    """Tasks that the buffer has taken since the run began; None where it does not say."""
    known = [value for kind in names() if (value := row.get(f"buffer/{kind}")) is not None]
    return sum(known) + (row.get("buffer/evicted") or 0.0) if known else None


def mean_of(rows: Rows, metrics: Sequence[str]) -> float | None:
    """The mean of these metrics over the rows that have them; None where none has."""
    values = [row[metric] for row in rows for metric in metrics if row.get(metric) is not None]
    return fmean(values) if values else None


def _known(numbers: Mapping[str, float | None]) -> dict[str, float]:
    return {name: float(f"{value:.5g}") for name, value in numbers.items() if value is not None}
