"""Small studies, and results as runs leave them, for tests of `launch/study`."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from actors.kinds.registry import names
from launch.run.folder import RunFolder, append_event
from launch.study.definition import Arm, Budget, Judgement, Study, StudyRun, interleaved, write_study
from launch.study.folder import StudyFolder, digest
from launch.study.result import Measured, RunResult

TASKS = 100
"""Held-out tasks of a kind."""


def make_study(seeds: Sequence[int] = (0, 1, 2), arms: Sequence[str] = ("K0", "K2"), **changes: Any) -> Study:
    """A study whose first arm is the baseline of the others."""
    data = {
        "study": "staleness",
        "question": "How old may data be?",
        "written": "2026-11-27 10:00:00 UTC",
        "recipe": "smollm2-cpu-small",
        "recipe_sha256": "0" * 64,
        "seeds": tuple(seeds),
        "order": interleaved(tuple(arms), tuple(seeds)),
        "budget": Budget(steps=8),
        "judgement": Judgement(heldout_every=4, margin=0.05),
        "arms": tuple(
            Arm(name=name, overrides=(f"learner.max_staleness={name[1:]}",), baseline=arms[0] if place else None)
            for place, name in enumerate(arms)
        ),
    }
    return Study.model_validate(data | changes)


def write(study: Study, path: Path) -> StudyFolder:
    """Write a study's folder, with a recipe of the digest that it names."""
    folder = StudyFolder(path)
    path.mkdir(parents=True, exist_ok=True)
    folder.recipe.write_text('base = "smollm2-cpu-small"\n')
    write_study(study.model_copy(update={"recipe_sha256": digest(folder.recipe)}), folder.definition)
    return folder


def make_result(run: StudyRun, courses: Mapping[int, float] | None = None, **changes: Any) -> RunResult:
    """The result of a complete run. `courses`: version -> accuracy on the held-out tasks."""
    measured = [
        Measured(
            version=version,
            time_s=10.0 * version + run.seed,
            tokens_trained=100.0 * version,
            mean=share,
            low=share - 0.02,
            high=share + 0.02,
            solved={kind: (round(4 * share * TASKS), 4 * TASKS) for kind in names()},
            samples=4,
            noise=1e-5,
        )
        for version, share in (courses or {}).items()
    ]
    steps = [1.0, 4.0, 8.0]
    data = {
        "arm": run.arm,
        "seed": run.seed,
        "status": "complete",
        "exit_code": 0,
        "written": "2026-11-27 11:00:00 UTC",
        "attempts": 1,
        "machine": "here, 2 cores",
        "azr": "0.1.0",
        "steps": max([8, *(courses or {})]),
        "seconds": 80.0 + run.seed,
        "tokens_trained": 800.0,
        "tokens_generated": 1000.0,
        "tokens_dropped": {"stale": 3.0, "aborted": 2.0},
        "age_mean": 1.0,
        "age_max": 2.0,
        "series": {
            "step": steps,
            "time_s": [10.0, 40.0, 80.0],
            "reward_mean": [-0.9, None, -0.5],
            "age_mean": [0.0, 1.0, 2.0],
        },
        "heldout": tuple(measured),
    }
    return RunResult.model_validate(data | changes)


def write_run(folder: RunFolder, rows: Sequence[Mapping[str, Any]], why: str | None = "complete") -> None:
    """Write a run folder as `azr train` leaves it. `why`: of its end; None: it was killed."""
    folder.create()
    with folder.metrics.open("a") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)
    append_event(folder, "run_started", attempt=1, step=0)
    if why is not None:
        append_event(folder, "run_ended", why=why)


def row(step: int, **more: Any) -> dict[str, Any]:
    """A row of metrics."""
    return {
        "step": step,
        "version": step,
        "time_s": 10.0 * step,
        "tokens_trained": 100,
        "tokens_generated": 120.0 * step,
        "batch_size": 4,
        "age_mean": 1.0,
        "age_max": 1.0,
        "reward_mean": -0.5,
        "wait_for_batch_s": 2.0,
        "ledger/trained": 4.0 * step,
    } | more
