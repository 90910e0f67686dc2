"""The small result file of a run, from which a study's page is made: series over steps and time, and totals."""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from itertools import accumulate, pairwise
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, Field, ValidationError, model_validator

from actors.heldout.measurement import Measurement, read_measurement
from executor.settings_table import SettingsTable
from launch.json_lines import to_json
from launch.run.folder import RunFolder
from launch.run.interrupts import COMPLETE
from launch.run.measurements import files
from launch.study.definition import PUT_BACK, StudyError, StudyRun, explain
from launch.study.folder import StudyFolder, now
from launch.study.quarters import PARTS, diversity_of, quarters
from launch.whole_file import write_text

MOST_POINTS = 200
"""Largest number of steps in a result; of longer runs every second, third ... is kept, and the last."""
SERIES = (
    "age_mean",
    "age_max",
    "reward_mean",
    "entropy",
    "ess",
    "kl_behave",
    "clip_fraction",
    "step_s",
    "wait_for_batch_share",
    "wait_for_policy_share",
)
"""Metrics whose course is kept. Beside them each point has step, time and tokens so far."""
LAST_STEPS = 5
"""Steps of the end of a run, whose diversity is kept."""
_ROUNDING = 1e-6
"""What numbers that are computed in different ways may differ by."""


def _is_count(count: tuple[int, int]) -> tuple[int, int]:
    if not 0 <= count[0] <= count[1] or not count[1]:
        raise ValueError(f"{count[0]} correct of {count[1]} solutions cannot be")
    return count


Count = Annotated[tuple[int, int], AfterValidator(_is_count)]
"""(correct solutions, solutions)."""
Share = Annotated[float, Field(ge=0, le=1 + _ROUNDING)]
Amount = Annotated[float, Field(ge=0)]


class Measured(SettingsTable):
    """One measurement on the held-out tasks."""

    version: int = Field(ge=0)
    time_s: Amount
    """Training time at which the run had this version."""
    tokens_trained: Amount
    """Tokens trained until then."""
    tokens_generated: Amount | None = None
    """Tokens generated until then, without those of measurements on held-out tasks."""
    mean: Share
    """Share of solutions that are correct, mean over the kinds."""
    low: Share
    """Lower end of its 95% interval over programs (`actors/heldout/intervals.py`)."""
    high: Share
    solved: dict[str, Count] = Field(min_length=1)
    """Kind -> (correct solutions, solutions)."""
    samples: int = Field(ge=1)
    """Solutions a task."""
    noise: Amount | None = None
    """Variance of the mean that sampling the solutions of these tasks gives; None with one sample a task."""
    programs: dict[str, dict[str, Count]] = {}
    """Kind -> digest of a program -> (correct solutions, solutions). Of a run's first and last measurement alone."""

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        if not self.low - _ROUNDING <= self.mean <= self.high + _ROUNDING:
            raise ValueError(f"mean = {self.mean} is not between low = {self.low} and high = {self.high}")
        for kind, programs in self.programs.items():
            total = tuple(sum(counts) for counts in zip(*programs.values(), strict=True))
            if total != self.solved.get(kind):
                raise ValueError(f"programs.{kind} has other counts than solved.{kind}")
        return self


class RunResult(SettingsTable):
    """What is kept of a run."""

    arm: str
    seed: int
    status: Literal["complete", "failed"]
    exit_code: int | None
    """Of `azr train`; None where it was not waited for, as under SLURM."""
    error: str = ""
    """The last words of a run that failed."""
    written: str
    """When this file was written, UTC."""
    attempts: int = Field(ge=0)
    """Starts and resumes of the run."""
    machine: str
    """Where the run was made; empty where it was not recorded."""
    azr: str
    steps: int = Field(default=0, ge=0)
    seconds: Amount = 0.0
    """Time of training, with what was lost by kills; without starting up, the measurement of the initial model, and the
    time between attempts."""
    tokens_trained: Amount = 0.0
    tokens_generated: Amount | None = None
    """Without those of measurements on held-out tasks."""
    tokens_dropped: dict[str, Amount] = {}
    """Reason -> tokens."""
    trajectories: dict[str, Amount] = {}
    """State -> trajectories, as the ledger ended: granted, trained, dropped, returned."""
    age_mean: Amount | None = None
    """Mean age of a trained trajectory over the run, in versions."""
    age_max: Amount | None = None
    wait_for_batch_share: Share | None = None
    """The learner's share of time without a batch."""
    diversity: dict[str, float] = {}
    """Of the last `LAST_STEPS` steps (`quarters.diversity_of`)."""
    quarters: tuple[dict[str, float], ...] = ()
    """Of each quarter of the steps (`quarters.quarters`)."""
    series: dict[str, list[float | None]] = {}
    heldout: tuple[Measured, ...] = ()

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        if len(self.quarters) not in (0, PARTS):
            raise ValueError(f"quarters has {len(self.quarters)} parts, not {PARTS}")
        lengths = {name: len(points) for name, points in self.series.items()}
        longest = max(lengths.values(), default=0)
        for name, length in lengths.items():
            if length < longest:
                raise ValueError(f"series.{name} has {length} points, where others have {longest}")
        for place, one in enumerate(self.heldout):
            if one.version > self.steps:
                raise ValueError(f"heldout[{place}].version = {one.version} is beyond the last step, {self.steps}")
        for place, (before, one) in enumerate(pairwise(self.heldout), 1):
            if one.version <= before.version:
                raise ValueError(f"heldout[{place}].version = {one.version} does not come after {before.version}")
            if one.solved.keys() != before.solved.keys():
                raise ValueError(f"heldout[{place}].solved has other kinds than heldout[{place - 1}].solved")
        return self

    @property
    def measured_last(self) -> bool:
        """Whether the last version was measured."""
        return bool(self.heldout) and self.heldout[-1].version == self.steps

    @property
    def run(self) -> StudyRun:
        """The run that this is the result of."""
        return StudyRun(self.arm, self.seed)


def collect(folder: RunFolder, run: StudyRun, exit_code: int | None, error: str = "") -> RunResult:
    """The result of a run that has ended, from its folder."""
    rows = folder.read_metrics()
    status: Literal["complete", "failed"] = "complete" if exit_code == 0 and rows else "failed"
    attempts = folder.all_attempts()
    records = [attempt.began() for attempt in attempts]
    base: dict[str, Any] = {
        "arm": run.arm,
        "seed": run.seed,
        "status": status,
        "exit_code": exit_code,
        "error": error if error or rows else "it has recorded no step",
        "written": now(),
        "attempts": attempts[-1].number if attempts else 0,
        # Of the run, which another machine may have made.
        "machine": _each(", ".join(one[name] for name in ("host", "machine") if name in one) for one in records),
        "azr": _each(one.get("azr", "") for one in records),
    }
    try:
        return RunResult.model_validate(
            base | (_figures(rows) | {"heldout": tuple(_measured(folder, rows))} if rows else {})
        )
    except ValidationError as failure:
        why = "; ".join(map(explain, failure.errors()))
        raise StudyError(
            f"the records in {folder.path} make no result: {why}. To make the run again, remove that folder"
        ) from None


def _each(texts: Iterable[str]) -> str:
    """Each of the texts of a run's attempts once; empty where they were not recorded."""
    return " then ".join(dict.fromkeys(text for text in texts if text))


def _figures(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    last, before_s = rows[-1], _before_s(rows)
    seconds = last["time_s"] - before_s
    trained = list(accumulate(row.get("tokens_trained") or 0.0 for row in rows))
    generated = _generated(rows)
    waited = sum(row.get("wait_for_batch_s") or 0.0 for row in rows)
    every = -(-len(rows) // MOST_POINTS)
    kept = sorted({*range(0, len(rows), every), len(rows) - 1})
    series: dict[str, list[float | None]] = {
        "step": [rows[place]["step"] for place in kept],
        "time_s": [round(rows[place]["time_s"] - before_s, 2) for place in kept],
        "tokens_trained": [trained[place] for place in kept],
        "tokens_generated": [generated[place] for place in kept],
    }
    series |= {name: [_rounded(rows[place].get(name)) for place in kept] for name in SERIES}
    return {
        "steps": int(last["step"]),
        "seconds": round(seconds, 2),
        "tokens_trained": trained[-1],
        "tokens_generated": generated[-1],
        "tokens_dropped": _over_lives(rows, "token_ledger/dropped_"),
        "trajectories": {
            state: last[f"ledger/{state}"]
            for state in ("granted", "trained", "dropped", "returned")
            if f"ledger/{state}" in last
        },
        "age_mean": _mean_age(rows),
        "age_max": max((row["age_max"] for row in rows if row.get("age_max") is not None), default=None),
        "wait_for_batch_share": _rounded(waited / seconds) if seconds > 0 else None,
        "diversity": diversity_of(rows[-LAST_STEPS:]),
        "quarters": quarters(rows),
        "series": series,
    }


def _measured(folder: RunFolder, rows: Sequence[Mapping[str, Any]]) -> list[Measured]:
    """The measurements of the run, the oldest version first. Raises MeasurementError."""
    tokens = list(accumulate(row.get("tokens_trained") or 0.0 for row in rows))
    before_s = _before_s(rows)
    reached = {
        row["version"]: (row["time_s"] - before_s, total, generated)
        for row, total, generated in zip(rows, tokens, _generated(rows), strict=True)
    }
    found: list[Measured] = []
    complete: list[Measurement] = []
    for version, path in files(folder).items():
        measurement = read_measurement(path)
        estimate = measurement.rate()
        if estimate is None or (version and version not in reached):
            continue
        time_s, trained, generated = reached.get(version, (0.0, 0.0, None))
        complete.append(measurement)
        found.append(
            Measured(
                version=version,
                time_s=round(time_s, 2),
                tokens_trained=trained,
                tokens_generated=generated,
                mean=estimate.value,
                low=estimate.low,
                high=estimate.high,
                solved={kind: _solved(measurement, kind) for kind in measurement.kinds},
                samples=measurement.samples,
                noise=_noise(measurement),
            )
        )
    for place in {0, len(found) - 1} if found else ():  # of all of them they would make the file large
        found[place] = found[place].model_copy(update={"programs": _by_program(complete[place])})
    return found


def _by_program(measurement: Measurement) -> dict[str, dict[str, tuple[int, int]]]:
    counts: dict[str, dict[str, tuple[int, int]]] = defaultdict(dict)
    for one in measurement.results.values():
        digest = hashlib.sha256(one.program.encode()).hexdigest()[:10]
        correct, solutions = counts[one.kind].get(digest, (0, 0))
        counts[one.kind][digest] = (correct + sum(one.correct), solutions + len(one.correct))
    return dict(counts)


def _solved(measurement: Measurement, kind: str) -> tuple[int, int]:
    """(correct solutions, solutions) of a kind."""
    of_kind = [one.correct for one in measurement.results.values() if one.kind == kind]
    return sum(sum(correct) for correct in of_kind), sum(len(correct) for correct in of_kind)


def _noise(measurement: Measurement) -> float | None:
    """The variance of the mean over kinds, given the tasks. With K kinds, n_k tasks of kind k and s samples a task, of
    which the share r_i is correct: the sum over tasks of r_i (1 - r_i) / (s - 1) / (K n_k)^2, without bias."""
    if measurement.samples < 2:
        return None
    kinds = Counter(one.kind for one in measurement.results.values())
    return sum(
        one.share * (1 - one.share) / (measurement.samples - 1) / (len(kinds) * kinds[one.kind]) ** 2
        for one in measurement.results.values()
    )


def _generated(rows: Sequence[Mapping[str, Any]]) -> list[float | None]:
    """The tokens that were generated to train, until each row: those of measurements on held-out tasks are left out."""
    return [
        None if (tokens := row.get("tokens_generated")) is None else tokens - (row.get("tokens_heldout") or 0.0)
        for row in rows
    ]


def _before_s(rows: Sequence[Mapping[str, Any]]) -> float:
    """Seconds before the first step in which the run measured its initial model, which is no part of training, and
    which most runs of a study take over from the first one. A measurement that was given up is not known here."""
    first = rows[0]
    measured_s = float(first.get("heldout/time_s") or 0.0) if first.get("heldout/version") == 0 else 0.0
    return min(measured_s, float(first["time_s"]))


def _over_lives(rows: Sequence[Mapping[str, Any]], prefix: str) -> dict[str, float]:
    """The totals of counters that begin at 0 with each life of the learner."""
    totals: dict[str, float] = defaultdict(float)
    before: dict[str, float] = defaultdict(float)
    for row in rows:
        for name, value in row.items():
            if name.startswith(prefix) and value is not None:
                reason = name.removeprefix(prefix)
                totals[reason] += value - before[reason] if value >= before[reason] else value
                before[reason] = value
    return dict(totals)


def _mean_age(rows: Sequence[Mapping[str, Any]]) -> float | None:
    """Over trajectories: steps weighted by their batch sizes."""
    known = [(row["age_mean"], row.get("batch_size", 1)) for row in rows if row.get("age_mean") is not None]
    size = sum(size for _, size in known)
    return _rounded(sum(age * size for age, size in known) / size) if size else None


def _rounded(value: float | None) -> float | None:
    return None if value is None else float(f"{value:.5g}")


def is_finished(folder: RunFolder) -> bool:
    """Whether the run has all its steps, or its time or its tokens were up: its last event is the end of a complete
    run."""
    ended: str | None = None
    for event in folder.read_events():
        if event.get("event") in ("run_started", "run_resumed"):
            ended = None
        elif event.get("event") == "run_ended":
            ended = event.get("why", "")
    return ended is not None and (ended == COMPLETE or ended.startswith(("run.max_minutes", "run.max_tokens")))


def write_result(result: RunResult, path: Path) -> None:
    """Write a result file, in one piece."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, to_json(result.model_dump(mode="json")) + "\n")


def read_result(folder: StudyFolder, run: StudyRun) -> RunResult | None:
    """The result of a run; None where there is none. Raises StudyError."""
    path = folder.result(run)
    try:
        result = RunResult.model_validate_json(path.read_bytes())
    except OSError as error:
        if isinstance(error, FileNotFoundError) and not path.is_symlink():
            return None
        why = error.strerror
    except ValidationError as error:
        why = explain(error.errors()[0])
    else:
        if result.run == run:
            return result
        why = f"arm = {result.arm} and seed = {result.seed} are of another run"
    mend = PUT_BACK
    if folder.run(run).config.exists():
        mend = "Remove it; azr study resume makes it from the run's folder again"
    raise StudyError(f"{path} is no result of {run.name}: {why}. {mend}")
