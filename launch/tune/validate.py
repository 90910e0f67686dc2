"""Predictions beside what was measured: each held-out trial, and how far the predictions can be trusted.

The calibration has seen the trials whose purpose is `calibration`, and no other. Of every held-out trial, steps an hour
and the mean age are predicted by simulating the run from its first step to its last, with several seeds, and held
against its trace. The first step does not count on either side.

    throughput_error_median, throughput_error_max    |predicted / measured - 1| of steps an hour
    age_error_max                                    |predicted - measured| mean age, in versions
    rank_correlation                                 Spearman's, of trained tokens a second; the lower one of real
                                                     trials and of rehearsals
    regret                                           what the trial that is predicted to be the fastest lacks, measured,
                                                     to the one that is; the greater one of both groups
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from launch.bench.report import Goal
from launch.json_lines import to_json
from launch.tune.calibration import Calibration, CalibrationError, Figure, StreamFigures, load_calibration
from launch.tune.rehearsed import control_plane, rehearsed_calibration, rehearsed_scenario
from launch.tune.scenario import Scenario
from launch.tune.simulation import play_run
from launch.tune.trace import Trace, read_traces

CALIBRATION = "calibration.json"
"""Name of the calibration's file in a folder of traces."""
FINDINGS = "findings.json"
"""Name of the findings' file there: the validation as it was when the traces were recorded."""
SEEDS = range(5)
MANY = 500
"""Trajectories of a batch from which one seed is enough."""
GOALS = {
    "throughput_error_median": Goal(0.05, at_most=True),
    "throughput_error_max": Goal(0.10, at_most=True),
    "age_error_max": Goal(0.15, at_most=True),
    "rank_correlation": Goal(0.9),
    "regret": Goal(0.03, at_most=True),
}


@dataclass(frozen=True)
class Compared:
    """One trial, predicted and measured."""

    trace: Trace
    steps_per_hour: float
    steps_deviation: float
    """Standard deviation of the predicted steps an hour over seeds."""
    age_mean: float
    trained_per_s: float

    @property
    def throughput_error(self) -> float:
        """Predicted / measured - 1, of steps an hour."""
        return self.steps_per_hour / self.trace.steps_per_hour - 1

    @property
    def age_error(self) -> float:
        """Predicted - measured, in versions."""
        return self.age_mean - self.trace.age_mean


@dataclass(frozen=True)
class Validation:
    """All trials that have a trace."""

    trials: list[Compared]

    @property
    def held_out(self) -> list[Compared]:
        """Those that the calibration has not seen."""
        return [one for one in self.trials if one.trace.purpose == "held-out"]

    @property
    def keys(self) -> dict[str, float]:
        """The figures of merit (see the head)."""
        errors = [abs(one.throughput_error) for one in self.held_out]
        groups = [[one for one in self.held_out if one.trace.rehearsed is rehearsed] for rehearsed in (False, True)]
        groups = [group for group in groups if len(group) > 2]
        found = {
            "throughput_error_median": statistics.median(errors),
            "throughput_error_max": max(errors),
            "age_error_max": max(abs(one.age_error) for one in self.held_out),
        }
        if groups:
            found["rank_correlation"] = min(_rank_correlation(group) for group in groups)
            found["regret"] = max(_regret(group) for group in groups)
        return found

    def to_json(self) -> dict[str, Any]:
        """The keys, the goals, and every trial."""
        keys = self.keys
        return {
            **keys,
            "goals": {
                key: {"at_most" if goal.at_most else "at_least": goal.target, "met": goal.met(keys[key])}
                for key, goal in GOALS.items()
                if key in keys
            },
            "trials": [
                {
                    "name": one.trace.name,
                    "purpose": one.trace.purpose,
                    "rehearsed": one.trace.rehearsed,
                    "steps_per_hour": {"predicted": one.steps_per_hour, "measured": one.trace.steps_per_hour},
                    "throughput_error": one.throughput_error,
                    "deviation_over_seeds": one.steps_deviation / one.steps_per_hour,
                    "age_mean": {"predicted": one.age_mean, "measured": one.trace.age_mean},
                    "trained_per_s": {"predicted": one.trained_per_s, "measured": one.trace.trained_per_s},
                    "machine": one.trace.machine,
                }
                for one in self.trials
            ],
        }

    def write(self, path: Path) -> None:
        """Write `to_json` to `path`. Raises CalibrationError."""
        try:
            path.write_text(to_json(self.to_json(), indent=1) + "\n")
        except OSError as error:
            raise CalibrationError(f"{path} could not be written: {error.strerror}") from None

    def show(self, console: Console) -> None:
        """Print every trial, then the keys."""
        table = Table("trial", box=None, pad_edge=False, header_style="bold")
        for heading in ("steps/h predicted", "measured", "error", "age predicted", "measured", "error"):
            table.add_column(heading, justify="right", no_wrap=True)
        for one in self.trials:
            table.add_row(
                one.trace.name + (" (seen)" if one.trace.purpose == "calibration" else ""),
                f"{one.steps_per_hour:,.0f}",
                f"{one.trace.steps_per_hour:,.0f}",
                f"{one.throughput_error:+.1%}",
                f"{one.age_mean:.2f}",
                f"{one.trace.age_mean:.2f}",
                f"{one.age_error:+.2f}",
            )
        console.print(table)
        for key, value in self.keys.items():
            goal = GOALS[key]
            console.print(f"{key:24} {value:7.3f}   goal {goal}: {'met' if goal.met(value) else 'missed'}")


def validate(folder: Path, seeds: Sequence[int] = SEEDS, most: int | None = None) -> Validation:
    """Predict every trial that has a trace in `folder`; of larger batches than `most` trajectories none. Raises
    CalibrationError."""
    traces = read_traces(folder)
    real = [trace for trace in traces if not trace.rehearsed]
    rehearsals = [trace for trace in traces if trace.rehearsed]
    if not any(trace.purpose == "held-out" for trace in traces):
        raise CalibrationError(f"{folder} has no trace of a held-out trial: azr tune --validate --measure makes them")
    if real:
        calibration = load_calibration(folder / CALIBRATION)
        found = [(trace, Scenario.of(trace.config, calibration), calibration) for trace in real]
    else:
        found = []
    found += _rehearsed(rehearsals) if rehearsals else []
    return Validation([compare(*one, seeds) for one in found if most is None or one[1].quota <= most])


def compare(trace: Trace, scenario: Scenario, calibration: Calibration, seeds: Sequence[int] = SEEDS) -> Compared:
    """Predict one trial."""
    scenario = scenario.with_changes(buffered=trace.buffered)
    seeds = seeds if scenario.quota < MANY else seeds[:1]
    found = [play_run(scenario, calibration, seed, len(trace.rows)) for seed in seeds]
    rates = [one.steps_per_hour for one in found]
    return Compared(
        trace=trace,
        steps_per_hour=statistics.fmean(rates),
        steps_deviation=statistics.stdev(rates) if len(rates) > 1 else 0.0,
        age_mean=statistics.fmean(one.age_mean for one in found),
        trained_per_s=statistics.fmean(one.trained_per_s for one in found),
    )


def _rehearsed(traces: Sequence[Trace]) -> list[tuple[Trace, Scenario, Calibration]]:
    """Rehearsals with what predicts them: all that is calibrated is the control plane, on those that are for that."""
    seen = [trace for trace in traces if trace.purpose == "calibration"]
    if not seen:
        raise CalibrationError("no rehearsal is for calibration: the control plane's time is unknown")
    rows = [(trace.config.actors.num_actors, row) for trace in seen for row in trace.rows[1:]]
    settings = seen[0].config.rehearsal
    weights, between = control_plane(rows, settings.load_s / settings.time_scale)
    message = Figure(value=0.002, error=0.002, unit="s", source="assumed")
    stream = StreamFigures(message_s=message, trajectory_s=message)
    found = []
    for trace in traces:
        config = trace.config
        calibration = rehearsed_calibration(config, weights, between, stream)
        found.append((trace, rehearsed_scenario(config, calibration), calibration))
    return found


def _rank_correlation(group: Sequence[Compared]) -> float:
    """Spearman's rank correlation of predicted and measured trained tokens a second."""
    predicted, measured = (
        np.argsort(np.argsort(values))
        for values in ([one.trained_per_s for one in group], [one.trace.trained_per_s for one in group])
    )
    return float(np.corrcoef(predicted, measured)[0, 1])


def _regret(group: Sequence[Compared]) -> float:
    """Relative loss of trained tokens a second by choosing the trial that is predicted to be the fastest."""
    chosen = max(group, key=lambda one: one.trained_per_s)
    return 1 - chosen.trace.trained_per_s / max(one.trace.trained_per_s for one in group)
