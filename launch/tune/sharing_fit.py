"""What processes on one machine cost each other, found with the simulator: the factors with which it is as slow as the
runs were.

Each factor has a number of the runs that it decides: seconds of sampling a token for an engine, seconds of training
over those of the same batches alone for the learner. The factor is multiplied by measured / simulated until they agree.
So it holds all that sharing costs and the model of shares of cores does not have: memory bandwidth, caches, the
processes that are not simulated.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from launch.tune.calibration import Calibration, Figure, SharingFigures
from launch.tune.learner_model import LearnerCost, Packed
from launch.tune.records import RunRecord
from launch.tune.scenario import Scenario
from launch.tune.simulation import SEEDS, play_run

ROUNDS = 5
BOUNDS = (0.8, 3.0)
"""Least and greatest factor. Below 1 is possible: noise, or a clock that is faster under load."""


class _Observed(NamedTuple):
    token_s: float
    slowdown: float
    """Seconds of training over what the same batches take alone."""


def fit_sharing(runs: Sequence[RunRecord], calibration: Calibration) -> Calibration:
    """The calibration with the factors that its runs tell."""
    overlapped = [r for r in runs if r.config.learner.max_staleness > 0 and r.config.actors.num_actors == 1]
    several = [r for r in runs if r.config.learner.max_staleness == 0 and r.config.actors.num_actors > 1]
    factors = {name: getattr(calibration.sharing, name) for name in SharingFigures.model_fields}
    for _ in range(ROUNDS):
        changed = dict(factors)
        if overlapped:
            pairs = [(_measured(run, calibration), _simulated(run, calibration)) for run in overlapped]
            changed["engine_beside_learner"] = _corrected(
                factors["engine_beside_learner"], [m.token_s / s.token_s for m, s in pairs], overlapped
            )
            changed["learner_beside_engine"] = _corrected(
                factors["learner_beside_engine"], [m.slowdown / s.slowdown for m, s in pairs], overlapped
            )
        if several:
            pairs = [(_measured(run, calibration), _simulated(run, calibration)) for run in several]
            changed["engine_beside_engine"] = _corrected(
                factors["engine_beside_engine"], [m.token_s / s.token_s for m, s in pairs], several
            )
        factors = changed
        calibration = calibration.model_copy(update={"sharing": SharingFigures(**factors)})
    return calibration


def _corrected(factor: Figure, ratios: Sequence[float], runs: Sequence[RunRecord]) -> Figure:
    value = min(BOUNDS[1], max(BOUNDS[0], factor.value * statistics.fmean(ratios)))
    spread = statistics.stdev(ratios) / len(ratios) ** 0.5 if len(ratios) > 1 else 0.05
    names = ", ".join(run.name for run in runs)
    return Figure(value=value, error=value * spread, unit="factor", source=f"simulations beside {names}")


def _measured(run: RunRecord, calibration: Calibration) -> _Observed:
    items = [item for step, batch in run.batches.items() if step > 1 for item in batch]
    tokens = sum(item.response for item in items)
    rows = run.steady
    scenario = Scenario.of(run.config, calibration)
    cost = LearnerCost.of(calibration.learner, scenario.learner_threads, scenario.data_ranks, scenario.model_ranks)
    alone = sum(cost.seconds(_packed(row)) for row in rows)
    trained = sum(row["train_s"] for row in rows)
    return _Observed(sum(item.sampling_s for item in items) / max(1, tokens), trained / alone)


def _packed(row: Mapping[str, Any]) -> Packed:
    """The recorded batch of a step, on one rank."""
    rows = int(row["tokens_computed"])
    return Packed(rows, rows, int(row["tokens_trained"]))


def _simulated(run: RunRecord, calibration: Calibration) -> _Observed:
    scenario = Scenario.of(run.config, calibration)
    found = [play_run(scenario, calibration, seed, len(run.rows)) for seed in SEEDS]
    steps = [step for prediction in found for step in prediction.steps[1:]]
    slowdown = sum(step.train_s for step in steps) / sum(step.work_s for step in steps)
    return _Observed(statistics.fmean(p.token_s for p in found), slowdown)
