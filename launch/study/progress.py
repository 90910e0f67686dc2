"""The progress of a study on the terminal: which run, its step, and when everything is done."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any

from rich.console import Console
from rich.status import Status

from launch.run.folder import RunFolder
from launch.standard_streams import lasting
from launch.study.definition import Study, StudyRun
from launch.study.result import RunResult

START_S = 45.0
"""Seconds from the start of `azr train` to its first step and from its last one to its end, before any was measured."""
SAY_EVERY_S = 60.0
"""Seconds between two lines about a run where there is no terminal."""
LOOK_EVERY_S = 5.0
"""Seconds between two looks at a run's metrics on a terminal. They are read whole, on a machine that trains."""


class Progress:
    """Says where a study is; on a terminal one line that changes, elsewhere a line a minute."""

    def __init__(self, study: Study) -> None:
        self._study = study
        self._terminal = Console(file=lasting(sys.stdout), highlight=False, soft_wrap=True)
        self._status: Status | None = None
        self._run: StudyRun | None = None
        self._number = 0
        self._left: list[StudyRun] = []
        self._results: dict[str, RunResult] = {}
        self._began = 0.0
        self._said = 0.0
        self._overheads: list[float] = []

    def say(self, text: str) -> None:
        """One line of news."""
        self._terminal.print(text, markup=False)

    def begin(self, run: StudyRun, results: Mapping[str, RunResult]) -> None:
        """A run begins, or goes on. `results`: of the runs that are over."""
        runs = self._study.runs_in_order()
        self._run, self._results = run, dict(results)
        self._number = runs.index(run) + 1
        self._left = [other for other in runs if other.name not in results and other != run]
        self._began = self._said = time.monotonic()
        self.say(f"run {self._number} of {len(runs)}: {run.name}")
        if self._terminal.is_terminal:
            self._status = self._terminal.status(f"{run.name} starts")
            self._status.start()

    def look(self, folder: RunFolder) -> None:
        """Show how far the present run is."""
        now = time.monotonic()
        if now < self._said + (SAY_EVERY_S if self._status is None else LOOK_EVERY_S):
            return
        self._said = now
        text = self._describe(folder)
        if self._status is not None:
            self._status.update(text)
        else:
            self.say(text)

    def ended(self, result: RunResult) -> None:
        """The present run is over."""
        self._overheads.append(max(0.0, time.monotonic() - self._began - result.seconds))
        if result.status == "failed":
            self.end(f"{result.run.name} FAILED (exit code {result.exit_code}): {result.error}")
            return
        solved = [measured.mean for measured in result.heldout]
        accuracy = f", held-out {solved[0]:.1%} -> {solved[-1]:.1%}" if solved else ""
        age = f", mean age {result.age_mean:.2f}" if result.age_mean is not None else ""
        self.end(f"{result.run.name} is complete: {result.steps} steps in {result.seconds:.0f} s{age}{accuracy}")

    def end(self, text: str) -> None:
        """Close the changing line, and say `text`."""
        if self._status is not None:
            self._status.stop()
            self._status = None
        self.say(text)

    def _describe(self, folder: RunFolder) -> str:
        assert self._run is not None
        runs = len(self._study.order)
        head = f"{self._run.name} ({self._number} of {runs})"
        rows = folder.read_metrics()
        if not rows:
            return f"{head}: starts, {time.monotonic() - self._began:.0f} s"
        step = rows[-1]["step"]
        # The first step takes longer: it compiles, and waits for the seeding, and for the initial model's measurement.
        if not (steady := rows[1:]):
            return f"{head}: step {step}"
        step_s = _mean_of(steady[-5:], "step_s")
        budget = self._study.budget
        if budget.steps is not None:
            done, left_s = f"step {step} of {budget.steps}", (budget.steps - step) * step_s
        elif budget.tokens is not None:
            trained = sum(row.get("tokens_trained") or 0.0 for row in rows)
            done = f"step {step}, {trained:,.0f} of {budget.tokens:,} tokens"
            tokens = _mean_of(steady, "tokens_trained")
            left_s = (budget.tokens - trained) * (_mean_of(steady, "step_s") / tokens if tokens else 0.0)
        else:
            assert budget.minutes is not None
            minutes = rows[-1]["time_s"] / 60
            done, left_s = f"step {step}, minute {minutes:.1f} of {budget.minutes:g}", 60 * (budget.minutes - minutes)
        whole_s = rows[-1]["time_s"] - (rows[0].get("step_s") or 0.0) + step_s + max(0.0, left_s)
        if budget.minutes is not None:
            whole_s = 60 * budget.minutes
        whole = max(0.0, left_s) + sum(self._expected_s(run, whole_s) for run in self._left)
        return f"{head}: {done}; all runs are done in about {_clock(whole)}"

    def _expected_s(self, run: StudyRun, of_present: float) -> float:
        """Seconds of a run that is to be made: as long as others of its arm, or others at all, or the present one,
        which takes `of_present`."""
        # The first run also measures the initial model, which later ones mostly take over.
        start_s = fmean(self._overheads[1:] or self._overheads or [START_S])
        complete = [result for result in self._results.values() if result.status == "complete"]
        seconds = [result.seconds for result in complete if result.arm == run.arm] or [r.seconds for r in complete]
        return start_s + (fmean(seconds) if seconds else of_present)


def _mean_of(rows: Sequence[Mapping[str, Any]], name: str) -> float:
    return fmean(row.get(name) or 0.0 for row in rows)


def _clock(seconds: float) -> str:
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 120 else f"{minutes / 60:.1f} h"
