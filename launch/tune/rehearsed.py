"""The calibration and the scenario of a rehearsal (`run.mode = "rehearse"`): its engines and its learner take the times
that its settings say, so only the control plane has to be measured."""

from __future__ import annotations

import random
import statistics
from collections.abc import Sequence
from typing import Any

from launch.config import Config
from launch.least_squares import fit_line, mean_and_error
from launch.rehearsal.lengths import lengths_of
from launch.tune.calibration import (
    Calibration,
    EngineFigures,
    ExecutorFigures,
    Figure,
    Group,
    Hardware,
    LearnerFigures,
    SharingFigures,
    StreamFigures,
    WeightFigures,
)
from launch.tune.scenario import Scenario
from learner.trajectory import Role

GROUPS = 200
"""Prompts that are drawn for each cell."""


def rehearsed_scenario(config: Config, calibration: Calibration) -> Scenario:
    """A rehearsal as a scenario: an engine's steps have no limit of tokens, and no two prompts are the same."""
    return Scenario.of(config, calibration).with_changes(max_num_batched_tokens=1 << 30, distinct_prompts=True)


def rehearsed_calibration(
    config: Config, weights: WeightFigures, between: Figure, stream: StreamFigures
) -> Calibration:
    """The times that a rehearsal's settings give, in seconds of its clock. `weights`, `between`, `stream`: what was
    measured of the control plane (`control_plane`)."""
    settings = config.rehearsal
    scale = settings.time_scale

    def given(value: float, unit: str = "s") -> Figure:
        return Figure(value=value / scale, error=0.0, unit=unit, source="settings of the rehearsal")

    return Calibration(
        name=config.run.name,
        hardware=Hardware(name="rehearsed", kind="gpu", cores=1),
        engine=EngineFigures(
            step_s=given(0.0),
            least_step_s=given(1 / settings.request_tokens_per_s),
            sequence_s=given(1 / settings.tokens_per_s),
            context_token_s=given(0.0),
            prompt_token_s=given(1 / settings.prefill_tokens_per_s),
            cached_share=Figure(value=0.0, error=0.0, unit="share", source="prompts differ"),
            block_tokens=1,
            kv_tokens=Figure(value=1e12, error=0.0, unit="tokens", source="the cache is not rehearsed"),
            threads=config.engine.tensor_parallel,
        ),
        learner=LearnerFigures(
            step_s=given(settings.learner_step_s),
            row_s=given(1 / settings.learner_tokens_per_s if settings.learner_tokens_per_s else 0.0),
            between_s=between,
            threads=1,
            parallel_share=Figure(value=0.0, error=0.0, unit="share", source="a rehearsed step does not scale"),
        ),
        weights=weights,
        executor=ExecutorFigures(validate_s=given(settings.execute_s), verify_s=given(settings.execute_s)),
        sharing=SharingFigures(
            engine_beside_learner=given(scale), learner_beside_engine=given(scale), engine_beside_engine=given(scale)
        ),
        stream=stream,
        workload=_workload(config),
        model_bytes=int(settings.weights_mb * 1e6),
    )


def control_plane(rows: Sequence[tuple[int, dict[str, Any]]], load_s: float) -> tuple[WeightFigures, Figure]:
    """The seconds of publications and of the rest of a step, from rows of metrics of rehearsals with their numbers of
    actors. `load_s`: what a rehearsed engine takes to load, in seconds of the clock.

    A publication is one line through the numbers of actors; what is not the load or the line is `load_s`'s tail.
    """
    actors = [float(number) for number, _ in rows]
    sends = [row["weights/connect_s"] + row["weights/send_s"] for _, row in rows]
    line = fit_line([[1.0] * len(rows), [number - 1 for number in actors]], sends)
    source = f"weights/* of {len(rows)} steps of rehearsals with {sorted(set(actors))} actors"

    def figure(value: float, error: float, unit: str = "s") -> Figure:
        return Figure(value=value, error=error, unit=unit, source=source)

    waits = mean_and_error([row["weights/wait_loaded_s"] for _, row in rows])
    rest = [
        row["step_s"]
        - row["wait_for_batch_s"]
        - row["train_s"]
        - row["weights/connect_s"]
        - row["weights/send_s"]
        - row["weights/wait_loaded_s"]
        for _, row in rows
    ]
    weights = WeightFigures(
        ready_s=figure(0.0, 0.0),
        send_s=figure(line.values[0], line.errors[0]),
        load_s=figure(max(load_s, waits[0]), waits[1]),
        actor_s=figure(line.values[1], line.errors[1], "s/actor"),
    )
    return weights, figure(max(0.0, statistics.fmean(rest)), mean_and_error(rest)[1])


def _workload(config: Config) -> dict[str, tuple[Group, ...]]:
    """Groups drawn from the lengths of the rehearsal."""
    lengths, rng = lengths_of(config), random.Random(0)
    found: dict[str, tuple[Group, ...]] = {}
    for cell in config.learner.batch.cells:
        groups = []
        for _ in range(GROUPS):
            sizes = lengths.draw(cell, rng)
            rate = lengths.rate(cell)
            verdicts = tuple(rng.random() < rate for _ in sizes.responses) if cell.role is Role.PROPOSE else ()
            groups.append(Group(version=0, prompt=sizes.prompt, responses=sizes.responses, valid=verdicts))
        found[cell.name] = tuple(groups)
    return found
