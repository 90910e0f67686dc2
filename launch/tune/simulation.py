"""One simulated run: actors, engines, episodes, gate, learner and publications, and what it predicts.

    consumes     a scenario (`scenario.py`) and a calibration (`calibration.py`)
    drives       `learner.staleness.Gate`, `learner.turns.Turns`, `learner.queue.BatchQueue` and
                 `actors.concurrency.ConcurrencyController`, the objects of a run
    gives        steps with their times and ages, and shares of waiting

A simulation with one seed always gives the same. `simulate` is of the steady state, to compare settings; `play_run`
is of a run from its first step on, to compare with a recorded one. What is left out: failures, restarts, checkpoints,
held-out measurements, and the drift of lengths and validity beyond the calibration's last version.
"""

from __future__ import annotations

import random
import statistics
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

import simpy

from actors.concurrency import ConcurrencyController
from actors.kinds.registry import kind_of
from launch.tune.actor_model import ActorModel, Delays
from launch.tune.calibration import Calibration, CalibrationError
from launch.tune.engine_model import EngineModel, StepCost
from launch.tune.learner_model import LearnerCost, LearnerModel, Step
from launch.tune.machine import Machine, Role
from launch.tune.scenario import Scenario
from launch.tune.workload import Workload
from learner.places import Holder
from learner.staleness import Gate
from learner.turns import Seat

TRAJECTORIES = 2000
"""Trajectories that a simulation counts, about: with fewer, lengths differ by chance."""
COUNTED = (6, 40)
"""Least and most steps that it counts, by default."""
BUFFERED = 64
"""Tasks of a kind that the buffer of a settled simulation has from the start."""
SEEDS = (0, 1, 2)


@dataclass(frozen=True)
class Prediction:
    """What a run does in its steady state: means over its steps but the first ones."""

    steps: tuple[Step, ...]
    skipped: int
    """Steps at the start that are in no mean."""
    num_actors: int
    devices: int
    engine_busy: float
    """Mean share of the time in which an engine computed steps."""
    preempted: int
    max_queued: int
    token_s: float
    """Seconds a token that a request takes, from its coming to its last token."""

    @property
    def _counted(self) -> tuple[Step, ...]:
        return self.steps[self.skipped :]

    @property
    def seconds(self) -> float:
        """Simulated seconds of the counted steps."""
        return self.steps[-1].end_s - self.steps[self.skipped - 1].end_s

    @property
    def step_s(self) -> float:
        """Mean seconds a step."""
        return self.seconds / len(self._counted)

    @property
    def steps_per_hour(self) -> float:
        """Training steps an hour."""
        return 3600 / self.step_s

    @property
    def trained_per_s(self) -> float:
        """Response tokens trained a second."""
        return sum(step.tokens for step in self._counted) / self.seconds

    @property
    def generated_per_s(self) -> float:
        """Response tokens sampled a second, by all engines."""
        return (self.steps[-1].generated - self.steps[self.skipped - 1].generated) / self.seconds

    @property
    def age_mean(self) -> float:
        """Mean age of a trained trajectory, in versions."""
        return sum(s.age_mean * s.trajectories for s in self._counted) / sum(s.trajectories for s in self._counted)

    @property
    def age_max(self) -> int:
        """Greatest age."""
        return max(step.age_max for step in self._counted)

    @property
    def learner_waits(self) -> float:
        """Share of the time in which the learner waited for its batch."""
        return sum(step.wait_s for step in self._counted) / self.seconds

    @property
    def actors_wait(self) -> float:
        """Share of the actors' time in which they had nothing granted."""
        idle = self.steps[-1].idle_s - self.steps[self.skipped - 1].idle_s
        return idle / (self.seconds * self.num_actors)

    @property
    def train_s(self) -> float:
        """Mean seconds of training in a step."""
        return statistics.fmean(step.train_s for step in self._counted)

    @property
    def device_hours_per_mtoken(self) -> float:
        """Device-hours for a million trained tokens."""
        return self.devices * 1e6 / self.trained_per_s / 3600


def simulate(scenario: Scenario, calibration: Calibration, seed: int = 0, counted: int | None = None) -> Prediction:
    """Simulate a run in its steady state: with a full buffer, and lengths as at the end of the calibration's runs.

    `counted`: steps that count; by default as many as have about `TRAJECTORIES` trajectories, within `COUNTED`. They
    are rounded up to a multiple of max_staleness + 1, since batches that are open together often end together. The
    first max_staleness + 1 steps do not count, and a few more: until each open batch was granted by running engines.

    Raises CalibrationError where the calibration has no lengths of a kind that the scenario plays.
    """
    if counted is None:
        counted = min(COUNTED[1], max(COUNTED[0], round(TRAJECTORIES / max(1, scenario.quota))))
    open_batches = scenario.max_staleness + 1
    counted = -(-counted // open_batches) * open_batches
    skipped = open_batches + 1
    return _simulate(scenario, calibration, seed, skipped + counted, skipped, settled=True)


def play_run(scenario: Scenario, calibration: Calibration, seed: int, steps: int) -> Prediction:
    """Simulate a run from its first step to its last, as it would be recorded: with an empty buffer, and lengths and
    validity by version. The first step does not count. Raises CalibrationError as `simulate` does."""
    return _simulate(scenario, calibration, seed, steps, 1, settled=False)


def _simulate(
    scenario: Scenario, calibration: Calibration, seed: int, steps: int, skipped: int, settled: bool
) -> Prediction:
    _check(scenario, calibration)
    env = simpy.Environment()
    engine_place, learner_place = _machines(env, scenario, calibration)
    batch = scenario.batch
    gate = Gate(
        batch,
        scenario.max_staleness,
        scenario.selfplay.solutions,
        scenario.selfplay.proposals_per_prompt,
        on_stale=scenario.on_stale,
    )
    cost = LearnerCost.of(calibration.learner, scenario.learner_threads, scenario.data_ranks, scenario.model_ranks)
    learner = LearnerModel(env, *learner_place, gate, cost, calibration.weights, steps)
    rng, references = random.Random(seed), scenario.selfplay.references
    workload = Workload(calibration.workload, references, rng, settled, scenario.distinct_prompts)
    for kind in batch.kinds:
        if settled:
            workload.stock(kind, BUFFERED)
        else:  # the buffer starts with one task of its own, of each kind that writes its program
            own = int(kind_of(kind).writes_program)
            proposed = scenario.selfplay.seed_tasks_target // len(batch.kinds)
            workload.stock(kind, max(own + scenario.buffered.get(kind, 0), proposed))
    stream = calibration.stream
    delays = Delays(calibration.executor.validate_s.value, calibration.executor.verify_s.value, stream.message_s.value)
    actors = []
    for index in range(scenario.num_actors):
        engine = EngineModel(
            env,
            *engine_place(index),
            StepCost.of(calibration.engine),
            scenario.max_num_seqs,
            scenario.max_num_batched_tokens,
            calibration.engine.kv_tokens.value * scenario.kv_share,
            scenario.engine_threads if not scenario.on_gpu else 1,
        )
        adapt = scenario.adapt
        actor = ActorModel(
            env,
            Seat(Holder(f"rollout{index}", 0), scenario.concurrency),
            engine,
            workload,
            scenario.selfplay,
            delays,
            learner.arrive,
            learner.give_back,
            learner.grew,
            ConcurrencyController(scenario.concurrency, adapt) if adapt.enabled else None,
            lambda: learner.version,
        )
        learner.connect(actor)
        actors.append(actor)
    env.run(until=learner.ended)
    busy = sum(actor.engine.busy_s for actor in actors) / (env.now * len(actors))
    return Prediction(
        steps=tuple(learner.steps),
        skipped=skipped,
        num_actors=len(actors),
        devices=scenario.devices,
        engine_busy=busy,
        preempted=sum(actor.engine.preempted for actor in actors),
        max_queued=learner.max_queued,
        token_s=sum(a.engine.request_s for a in actors) / max(1, sum(a.engine.finished_tokens for a in actors)),
    )


@dataclass(frozen=True)
class Estimate:
    """A predicted number with its spread over seeds, and over the calibration's uncertainty where that was drawn."""

    mean: float
    spread: float
    """Standard deviation over the simulations."""


def estimate(predictions: list[Prediction], name: str) -> Estimate:
    """The property `name` of several predictions (`Prediction`)."""
    values = [float(getattr(prediction, name)) for prediction in predictions]
    return Estimate(statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else 0.0)


def step_times(prediction: Prediction) -> list[float]:
    """Seconds of each step but the first."""
    return [after.end_s - before.end_s for before, after in pairwise(prediction.steps)]


def _machines(
    env: simpy.Environment, scenario: Scenario, calibration: Calibration
) -> tuple[Callable[[int], tuple[Machine, str]], tuple[Machine, str]]:
    """Where things run, as (machine, pool): an engine by its index, and the learner."""
    if scenario.on_gpu:  # devices of their own: nobody shares
        return lambda index: (Machine(env, {"engine": 1}), "engine"), (Machine(env, {"learner": 1}), "learner")
    sharing = calibration.sharing
    interference = {
        (Role.ENGINE, Role.LEARNER): sharing.engine_beside_learner.value,
        (Role.LEARNER, Role.ENGINE): sharing.learner_beside_engine.value,
        (Role.ENGINE, Role.ENGINE): sharing.engine_beside_engine.value,
    }
    if scenario.engine_cores is not None and scenario.learner_cores is not None:
        pinned = Machine(env, {"engines": scenario.engine_cores, "learner": scenario.learner_cores}, interference)
        return lambda index: (pinned, "engines"), (pinned, "learner")
    shared = Machine(env, {"machine": scenario.cores}, interference)
    return lambda index: (shared, "machine"), (shared, "machine")


def _check(scenario: Scenario, calibration: Calibration) -> None:
    missing = [
        cell.name
        for cell in scenario.batch.cells
        if scenario.batch.quota(cell) and not calibration.workload.get(cell.name)
    ]
    if missing:
        raise CalibrationError(
            f"the calibration {calibration.name!r} has no lengths of {', '.join(missing)}: calibrate on a run that "
            "plays these kinds"
        )
