"""How the runs of a study went from quarter to quarter of their steps: new tasks, diversity, step time and memory."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import fmean

from launch.study.findings import ArmFindings
from launch.study.result import RunResult
from launch.study.table import number, share, table

PARTS = 4
"""Parts that a run is told in, of equally many steps."""
_SHARES = ("ignores_input", "duplicates", "distinct_programs", "copies")

ABOUT_COURSE = (
    "Means over each quarter of the steps, and over the complete runs: tasks that the buffer did not have, for each "
    "step; proposals that ignore their input; proposals that are known tasks; different programs of "
    "a batch; answers that repeat their input; entropy of the policy; time from step to step; resident memory of the "
    "learner, and of the largest actor with its engine and sandboxes (`buffer/...`, `ignores_input`, `duplicates`, "
    "`distinct_programs`, `copies`, `entropy`, `memory/...`)."
)


def course(found: Sequence[ArmFindings]) -> str:
    """The table of an arm's quarters; empty where no result counts the tasks."""
    rows = [
        [
            f"`{one.arm.name}`",
            f"{100 * part // PARTS} to {100 * (part + 1) // PARTS}%",
            number(_mean([_slope(run, "tasks", "step", part) for run in one.runs]), ".1f"),
            *(share(_mean([_level(run, name, part) for run in one.runs])) for name in _SHARES),
            number(_mean([_level(run, "entropy", part) for run in one.runs]), ".2f"),
            number(_mean([_slope(run, "time_s", "step", part) for run in one.runs]), ".1f"),
            *(
                number(_mean([_level(run, name, part) for run in one.runs]), ",.0f")
                for name in ("memory/learner_mib", "memory/actor_mib/max")
            ),
        ]
        for one in found
        for part in range(PARTS)
        if any(value is not None for run in one.runs for value in run.series.get("tasks", ()))
    ]
    headings = (
        "arm", "of the steps", "new tasks a step", "ignore their input", "known tasks", "distinct programs", "copies",
        "entropy, nats", "seconds a step", "learner, MiB", "actor, MiB",
    )  # fmt: skip
    return table(headings, rows) if rows else ""


def _places(run: RunResult, part: int) -> list[int]:
    """The places in the series of the steps of a part."""
    steps = run.series.get("step", [])
    return [
        place
        for place, step in enumerate(steps)
        if step is not None and max(0, math.ceil(PARTS * step / run.steps) - 1) == part
    ]


def _level(run: RunResult, name: str, part: int) -> float | None:
    """The mean of a series in a part; None where it has no value."""
    values = run.series.get(name, [])
    return _mean([values[place] for place in _places(run, part) if place < len(values)])


def _slope(run: RunResult, name: str, by: str, part: int) -> float | None:
    """How much a series that rises grew in a part, for one more of the series `by`: from the last point of the part
    before, or from the run's first point."""
    places, values, base = _places(run, part), run.series.get(name, []), run.series.get(by, [])
    if not places or len(values) != len(base):
        return None
    first, last = max(0, places[0] - 1), places[-1]
    ends = values[first], values[last], base[first], base[last]
    low, high, start, end = ends
    if low is None or high is None or start is None or end is None or end <= start:
        return None
    return (high - low) / (end - start)


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return fmean(known) if known else None
