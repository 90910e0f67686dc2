"""A recorded trace: the settings of a run that was really made, and the few numbers of each step that a prediction is
held against. A few kilobytes, so that predictions can be checked without engines."""

from __future__ import annotations

import json
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from launch.config import Config, build
from launch.json_lines import to_json
from launch.machine import describe_machine
from launch.tune.calibration import CalibrationError
from launch.tune.records import RunRecord
from launch.tune.scenario import buffered_by

Purpose = Literal["calibration", "held-out"]
TABLES = ("model", "selfplay", "engine", "executor", "actors", "learner", "rehearsal")
"""Tables of the configuration that a scenario is made of."""
COLUMNS = (
    "time_s",
    "step_s",
    "wait_for_batch_s",
    "train_s",
    "tokens_trained",
    "tokens_computed",
    "batch_size",
    "age_mean",
    "age_max",
    "actors",
    "wait_for_policy_actor_s",
    "connected_actor_s",
    "weights/connect_s",
    "weights/ready_s",
    "weights/send_s",
    "weights/wait_loaded_s",
)
"""Metrics of a step that are kept."""


@dataclass(frozen=True)
class Trace:
    """One run that was really made."""

    name: str
    purpose: Purpose
    tables: dict[str, Any]
    """`TABLES` of its configuration, and `run.mode`."""
    buffered: dict[str, int]
    """Tasks by kind that its buffer started with."""
    rows: list[dict[str, float]]
    machine: dict[str, Any]

    @property
    def config(self) -> Config:
        """The configuration, with the present defaults for what the trace leaves out. Raises ConfigError."""
        return build(json.loads(json.dumps(self.tables, allow_nan=False)))

    @property
    def rehearsed(self) -> bool:
        """Whether engines and learner only took time."""
        return bool(self.tables["run"]["mode"] == "rehearse")

    @property
    def seconds(self) -> float:
        """Seconds of all steps but the first, whose time has the start of the run in it."""
        return self.rows[-1]["time_s"] - self.rows[0]["time_s"]

    @property
    def steps_per_hour(self) -> float:
        """Training steps an hour."""
        return 3600 * (len(self.rows) - 1) / self.seconds

    @property
    def trained_per_s(self) -> float:
        """Response tokens trained a second."""
        return sum(row["tokens_trained"] for row in self.rows[1:]) / self.seconds

    @property
    def age_mean(self) -> float:
        """Mean age of a trajectory, in versions."""
        rows = self.rows[1:]
        return sum(row["age_mean"] * row["batch_size"] for row in rows) / sum(row["batch_size"] for row in rows)

    def write(self, path: Path) -> None:
        """Write the trace: settings in a line a table, rows in a line each."""
        tables = ",\n  ".join(
            f"{json.dumps(name, allow_nan=False)}: {to_json(table)}" for name, table in self.tables.items()
        )
        rows = ",\n  ".join(to_json(row) for row in self.rows)
        head = {"name": self.name, "purpose": self.purpose, "machine": self.machine, "buffered": self.buffered}
        first = "".join(
            f" {json.dumps(key, allow_nan=False)}: {json.dumps(value, allow_nan=False)},\n"
            for key, value in head.items()
        )
        path.write_text(f'{{\n{first} "tables": {{\n  {tables}\n }},\n "rows": [\n  {rows}\n ]\n}}\n')


def trace_of(run: RunRecord, name: str, purpose: Purpose) -> Trace:
    """The trace of a run folder."""
    written = tomllib.loads(run.folder.config.read_text())
    tables = {table: written[table] for table in TABLES if table in written}
    tables["run"] = {"mode": written["run"]["mode"]}
    rows = [{key: round(float(row[key]), 4) for key in COLUMNS if key in row} for row in run.rows]
    # The file of tasks is on this machine only.
    tables["selfplay"] = {key: value for key, value in written["selfplay"].items() if key != "seed_tasks"}
    return Trace(name, purpose, tables, buffered_by(run.config), rows, describe_machine())


def read_traces(folder: Path) -> list[Trace]:
    """The traces of a folder, by name. Raises CalibrationError."""
    found = []
    for path in sorted(folder.glob("*.trace.json")):
        try:
            data = json.loads(path.read_text())
            found.append(Trace(**data))
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise CalibrationError(f"{path} is no trace of a run: {type(error).__name__}: {error}") from None
    return found
