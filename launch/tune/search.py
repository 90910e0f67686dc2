"""The search: candidates around a recipe, each simulated, and the one to recommend.

Three things are varied without being asked for, since they change nothing that is learned but the age of the data: the
split of devices, `learner.max_staleness`, and the engines' concurrency. Batch quotas and the shape of episodes are
varied only on request: they change the algorithm.

1. Splits x staleness. 2. Concurrency, for the best of these. 3. Quotas and episodes, if asked for, for the best.

The recommendation is the candidate with the least mean age among those whose throughput is within `TOLERANCE` of the
best. A difference smaller than that is no reason for older data.
"""

from __future__ import annotations

import random
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from launch.tune.calibration import Calibration
from launch.tune.scenario import Scenario
from launch.tune.simulation import SEEDS, Prediction, simulate

STALENESS = (0, 1, 2, 4, 8)
TOLERANCE = 0.02
"""Relative difference of throughput that is no reason for older data."""
REFINED = 3
"""Best candidates whose concurrency is varied."""
VARIED = ("split", "staleness", "concurrency")
ON_REQUEST = ("quotas", "episodes")
DRAWS = 12
"""Calibrations that are drawn from the figures' errors, to say how sure a gain is."""


@dataclass(frozen=True)
class Candidate:
    """Settings, and what they come to."""

    changes: Mapping[str, Any]
    """Settings that differ from the recipe, by dotted key."""
    scenario: Scenario
    predictions: tuple[Prediction, ...] = field(repr=False)

    def mean(self, name: str) -> float:
        """Mean over the seeds of a property of `Prediction`."""
        return statistics.fmean(float(getattr(prediction, name)) for prediction in self.predictions)

    @property
    def throughput(self) -> float:
        """Trained tokens a second."""
        return self.mean("trained_per_s")

    @property
    def age(self) -> float:
        """Mean age in versions."""
        return self.mean("age_mean")

    @property
    def cost(self) -> float:
        """Device-hours for a million trained tokens."""
        return self.mean("device_hours_per_mtoken")


@dataclass(frozen=True)
class Gain:
    """A change of throughput, relative, with its standard deviation over draws of the calibration."""

    mean: float
    deviation: float


@dataclass(frozen=True)
class Search:
    """What was tried."""

    present: Candidate
    """The recipe as it is."""
    candidates: tuple[Candidate, ...]
    """All of them, the present one included."""
    chosen: Candidate

    @property
    def pareto(self) -> list[Candidate]:
        """Candidates that no other one beats in throughput, mean age and cost, the fastest first; of two that are
        equal, the one with less changed."""
        return sorted((one for one in self.candidates if not self._beaten(one)), key=lambda one: -one.throughput)

    def _beaten(self, one: Candidate) -> bool:
        """Whether another candidate is at least as good in all three and better in one, or as good with less
        changed."""
        mine = (-one.throughput, one.age, one.cost, len(one.changes))
        return any(
            all(theirs <= own for theirs, own in zip(other_is, mine, strict=True)) and other_is != mine
            for other in self.candidates
            if (other_is := (-other.throughput, other.age, other.cost, len(other.changes)))
        )


class Searcher:
    """Simulates scenarios, each once."""

    def __init__(
        self,
        calibration: Calibration,
        counted: int | None = None,
        seeds: Sequence[int] = SEEDS,
        progress: Callable[[str], None] = lambda text: None,
    ) -> None:
        """`counted`: as for `simulate`. `progress`: called with a text before each simulation."""
        self._calibration = calibration
        self._counted = counted
        self._seeds = tuple(seeds)
        self._progress = progress
        self._done: dict[str, tuple[Prediction, ...]] = {}
        """By the text of a scenario, which has all of its settings; tables with dictionaries cannot be hashed."""

    def search(self, scenario: Scenario, vary: Sequence[str] = VARIED) -> Search:
        """Search around `scenario`. `vary`: names of `VARIED` and `ON_REQUEST`."""
        present = self.candidate(scenario, {})
        found = [present]
        for changes in _splits(scenario) if "split" in vary else ({},):
            bounds = STALENESS if "staleness" in vary else (scenario.max_staleness,)
            found += [self.candidate(scenario, {**changes, "learner.max_staleness": bound}) for bound in bounds]
        rounds: list[Callable[[Scenario], Iterator[dict[str, Any]]]] = []
        rounds += [_concurrencies] if "concurrency" in vary else []
        rounds += [_quotas] if "quotas" in vary else []
        rounds += [_episodes] if "episodes" in vary else []
        for varied in rounds:
            best = sorted(found, key=lambda one: -one.throughput)[:REFINED]
            for one in {id(c): c for c in (*best, choose(found))}.values():
                found += [self.candidate(scenario, {**one.changes, **more}) for more in varied(one.scenario)]
        unique = list({repr(one.scenario): one for one in reversed(found)}.values())[::-1]
        return Search(present, tuple(unique), choose(unique))

    def candidate(self, scenario: Scenario, changes: Mapping[str, Any]) -> Candidate:
        """Simulate `scenario` with `changes`, dotted keys of settings."""
        changed = apply(scenario, changes)
        key = repr(changed)
        if key not in self._done:
            self._progress(describe(changes))
            self._done[key] = tuple(simulate(changed, self._calibration, seed, self._counted) for seed in self._seeds)
        real = {key: value for key, value in changes.items() if apply(scenario, {key: value}) != scenario}
        return Candidate(real, changed, self._done[key])

    def gain(self, over: Scenario, under: Scenario, draws: int = DRAWS, seed: int = 0) -> Gain:
        """Throughput of `over` relative to that of `under`, less 1. Each draw has another calibration, within the
        errors of its figures, and the same one for both."""
        rng = random.Random(seed)
        ratios = []
        for draw in range(draws):
            drawn = draw_calibration(self._calibration, rng)
            fast, slow = (simulate(one, drawn, draw, self._counted).trained_per_s for one in (over, under))
            ratios.append(fast / slow - 1)
        return Gain(statistics.fmean(ratios), statistics.stdev(ratios))


def choose(candidates: Sequence[Candidate]) -> Candidate:
    """The least mean age among the fastest (see the head); among equals the lowest bound, then the fewest devices."""
    fastest = max(one.throughput for one in candidates)
    near = [one for one in candidates if one.throughput >= (1 - TOLERANCE) * fastest]
    return min(
        near, key=lambda one: (round(one.age, 2), one.scenario.max_staleness, one.scenario.devices, len(one.changes))
    )


def draw_calibration(calibration: Calibration, rng: random.Random) -> Calibration:
    """A calibration whose figures are drawn from normal distributions with their errors, at least a tenth of them."""
    drawn = calibration
    for name, figure in calibration.figures().items():
        if figure.error and not name.startswith("solve_rate"):
            drawn = drawn.with_figure(name, max(0.1 * figure.value, rng.gauss(figure.value, figure.error)))
    return drawn


def describe(changes: Mapping[str, Any]) -> str:
    """The changes as overrides of the command line; `the recipe` if there are none."""
    return " ".join(as_overrides(changes)) or "the recipe"


def as_overrides(changes: Mapping[str, Any]) -> list[str]:
    """The changes, `KEY=VALUE` each."""
    return [f"{key}={_text(value)}" for key, value in changes.items()]


def _text(value: Any) -> str:
    if isinstance(value, dict):
        return "{" + ",".join(f"{key}={number}" for key, number in value.items()) + "}"
    return str(value).lower() if isinstance(value, bool) else str(value)


def apply(scenario: Scenario, changes: Mapping[str, Any]) -> Scenario:
    """The scenario with settings changed by dotted key. Raises KeyError for a setting that no scenario has."""
    fields: dict[str, Any] = {}
    for key, value in changes.items():
        match key:
            case "learner.batch.propose" | "learner.batch.solve":
                batch = fields.get("batch", scenario.batch)
                fields["batch"] = batch.model_copy(update={key.rpartition(".")[2]: value})
            case "selfplay.solutions" | "selfplay.proposals_per_prompt":
                selfplay = fields.get("selfplay", scenario.selfplay)
                fields["selfplay"] = selfplay.model_copy(update={key.rpartition(".")[2]: value})
            case _:
                fields[_FIELDS[key]] = value
    return scenario.with_changes(**fields)


_FIELDS = {
    "learner.max_staleness": "max_staleness",
    "learner.on_stale": "on_stale",
    "learner.threads": "learner_threads",
    "learner.parallel.data": "data_ranks",
    "actors.num_actors": "num_actors",
    "actors.concurrency": "concurrency",
    "engine.max_num_seqs": "max_num_seqs",
}
"""Setting -> field of the scenario."""


def _splits(scenario: Scenario) -> Iterator[dict[str, Any]]:
    """Other divisions of the same devices; on a CPU, other numbers of actors and of the learner's threads."""
    if not scenario.on_gpu:
        for actors in range(1, scenario.cores + 1):
            for threads in range(1, scenario.cores + 1):
                yield {"actors.num_actors": actors, "learner.threads": threads}
        return
    for ranks in range(1, scenario.devices // scenario.model_ranks + 1):
        actors = (scenario.devices - ranks * scenario.model_ranks) // scenario.engine_threads
        if actors >= 1 and (ranks & (ranks - 1) == 0 or ranks == scenario.data_ranks or scenario.devices <= 16):
            yield {"actors.num_actors": actors, "learner.parallel.data": ranks}


def _concurrencies(scenario: Scenario) -> Iterator[dict[str, Any]]:
    for factor in (0.5, 2.0):
        yield {"actors.concurrency": max(1, int(scenario.concurrency * factor))}
        yield {"engine.max_num_seqs": max(1, int(scenario.max_num_seqs * factor))}


def _quotas(scenario: Scenario) -> Iterator[dict[str, Any]]:
    for factor in (0.5, 2.0):
        yield {
            f"learner.batch.{role}": {
                kind: max(1, int(number * factor)) if number else 0 for kind, number in quotas.items()
            }
            for role, quotas in (("propose", scenario.batch.propose), ("solve", scenario.batch.solve))
        }


def _episodes(scenario: Scenario) -> Iterator[dict[str, Any]]:
    selfplay = scenario.selfplay
    yield {"selfplay.proposals_per_prompt": max(1, selfplay.proposals_per_prompt // 2)}
    yield {"selfplay.proposals_per_prompt": selfplay.proposals_per_prompt * 2}
    yield {"selfplay.solutions": max(1, selfplay.solutions // 2)}
    yield {"selfplay.solutions": selfplay.solutions * 2}
