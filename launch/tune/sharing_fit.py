"""What processes on one machine cost each other, found with the simulator: the factors with which it is as slow as the
runs were.

Each factor has a number of the runs that it decides: seconds of sampling a token for an engine, seconds of training a
row for the learner. The factor is multiplied by measured / simulated until they agree. So it holds all that sharing
costs and the model of shares of cores does not have: memory bandwidth, caches, the processes that are not simulated.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import NamedTuple

from launch.tune.calibration import Calibration, Figure, SharingFigures
from launch.tune.records import RunRecord
from launch.tune.scenario import Scenario
from launch.tune.simulation import SEEDS, Prediction, play_run

ROUNDS = 5
BOUNDS = (0.8, 3.0)
"""Least and greatest factor. Below 1 is possible: noise, or a clock that is faster under load."""


class _Observed(NamedTuple):
    token_s: float
    row_s: float


def fit_sharing(runs: Sequence[RunRecord], calibration: Calibration) -> Calibration:
    """The calibration with the factors that its runs tell."""
    overlapped = [r for r in runs if r.config.learner.max_staleness > 0 and r.config.actors.num_actors == 1]
    several = [r for r in runs if r.config.learner.max_staleness == 0 and r.config.actors.num_actors > 1]
    factors = {name: getattr(calibration.sharing, name) for name in SharingFigures.model_fields}
    for _ in range(ROUNDS):
        changed = dict(factors)
        if overlapped:
            pairs = [(_measured(run), _simulated(run, calibration)) for run in overlapped]
            changed["engine_beside_learner"] = _corrected(
                factors["engine_beside_learner"], [m.token_s / s.token_s for m, s in pairs], overlapped
            )
            changed["learner_beside_engine"] = _corrected(
                factors["learner_beside_engine"], [m.row_s / s.row_s for m, s in pairs], overlapped
            )
        if several:
            ratios = [_measured(run).token_s / _simulated(run, calibration).token_s for run in several]
            changed["engine_beside_engine"] = _corrected(factors["engine_beside_engine"], ratios, several)
        factors = changed
        calibration = calibration.model_copy(update={"sharing": SharingFigures(**factors)})
    return calibration


def _corrected(factor: Figure, ratios: Sequence[float], runs: Sequence[RunRecord]) -> Figure:
    value = min(BOUNDS[1], max(BOUNDS[0], factor.value * statistics.fmean(ratios)))
    spread = statistics.stdev(ratios) / len(ratios) ** 0.5 if len(ratios) > 1 else 0.05
    names = ", ".join(run.name for run in runs)
    return Figure(value=value, error=value * spread, unit="factor", source=f"simulations beside {names}")


def _measured(run: RunRecord) -> _Observed:
    items = [item for step, batch in run.batches.items() if step > 1 for item in batch]
    tokens = sum(item.response for item in items)
    rows = run.steady
    trained = sum(row["train_s"] for row in rows) / sum(row["tokens_computed"] for row in rows)
    return _Observed(sum(item.sampling_s for item in items) / max(1, tokens), trained)


def _simulated(run: RunRecord, calibration: Calibration) -> _Observed:
    scenario = Scenario.of(run.config, calibration)
    found = [play_run(scenario, calibration, seed, len(run.rows)) for seed in SEEDS]
    return _Observed(statistics.fmean(p.token_s for p in found), statistics.fmean(_row_s(p) for p in found))


def _row_s(prediction: Prediction) -> float:
    steps = prediction.steps[1:]
    return sum(step.train_s for step in steps) / sum(step.rows for step in steps)
