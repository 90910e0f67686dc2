"""What a run folder has recorded, as the calibration reads it: its settings, rows of metrics, and trained batches."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from launch.config import Config, build
from launch.run.folder import RunFolder
from launch.tune.calibration import CalibrationError
from learner.trajectory import Cell, Role


@dataclass(frozen=True, slots=True)
class Recorded:
    """One trained trajectory."""

    step: int
    slot: int
    episode: str
    """The proposal that a solution belongs to has the same one."""
    cell: Cell
    actor: str
    prompt_key: int
    """Equal for equal prompts of one run."""
    prompt: int
    """Tokens of the prompt."""
    response: int
    """Tokens of the response."""
    valid: bool
    """Of a proposal: whether it was one."""
    known: bool
    """Of a valid proposal: whether the buffer had it already."""
    correct: bool
    fresh: bool
    """Of a solution: whether its task was a proposal of this episode, not one of the buffer."""
    sampling_s: float
    """Seconds from its request to its last token."""
    execute_s: float
    oldest: int
    newest: int


class RunRecord:
    """One run folder."""

    def __init__(self, path: Path) -> None:
        """Raises CalibrationError for a folder that has no settings or no steps."""
        self.path = path
        self.folder = RunFolder(path)
        try:
            self.config: Config = build(tomllib.loads(self.folder.config.read_text()))
        except OSError:
            raise CalibrationError(f"{path} is no run folder: it has no config.toml") from None
        self.rows = self.folder.read_metrics()
        if len(self.rows) < 2:
            raise CalibrationError(
                f"{path} has {len(self.rows)} recorded steps; a calibration needs 2 or more, and 6 to 20 are better"
            )

    @property
    def name(self) -> str:
        """The run's name."""
        return self.path.name

    @property
    def steady(self) -> list[dict[str, Any]]:
        """Rows without the first step, whose time has the start of the run in it."""
        return self.rows[1:]

    @cached_property
    def batches(self) -> dict[int, list[Recorded]]:
        """Trained trajectories by step; empty where the run did not record them (`run.record_trajectories`)."""
        found = {}
        for path in sorted(self.folder.trajectories.glob("step_*.jsonl")):
            step = int(path.stem.removeprefix("step_"))
            with path.open() as lines:
                found[step] = [_read(step, json.loads(line)) for line in lines if line.strip()]
        return found

    def throughput(self, first: int = 1) -> float:
        """Steps an hour after row `first` (counted from 1)."""
        seconds = float(self.rows[-1]["time_s"] - self.rows[first - 1]["time_s"])
        return 3600 * (len(self.rows) - first) / seconds

    def age_mean(self, first: int = 1) -> float:
        """Mean age of the trajectories of the rows after row `first`, in versions."""
        rows = self.rows[first:]
        return float(sum(r["age_mean"] * r["batch_size"] for r in rows) / sum(r["batch_size"] for r in rows))


def publish_s(row: dict[str, Any]) -> float:
    """Seconds of a step's publication, from a row of metrics."""
    return float(row.get("weights/connect_s", 0.0) + row["weights/send_s"] + row["weights/wait_loaded_s"])


def read_runs(paths: Iterable[Path]) -> list[RunRecord]:
    """The records of run folders, in order. Raises CalibrationError."""
    return [RunRecord(path) for path in paths]


def _read(step: int, item: dict[str, Any]) -> Recorded:
    parts, timings = item["reward_parts"], item["timings"]
    return Recorded(
        step=step,
        slot=item["slot"],
        episode=item["episode"],
        cell=Cell(item["kind"], Role(item["role"])),
        actor=item["actor"],
        prompt_key=hash(tuple(item["prompt_ids"])),
        prompt=len(item["prompt_ids"]),
        response=len(item["response_ids"]),
        valid=bool(parts.get("valid", 0.0)),
        known=bool(parts.get("duplicate", 0.0)),
        correct=bool(parts.get("correct", 0.0)),
        fresh=bool(parts.get("estimate", 0.0)),
        sampling_s=timings["queue_s"] + timings["generate_s"],
        execute_s=timings["execute_s"],
        oldest=min(span[0] for span in item["versions"]),
        newest=max(span[0] for span in item["versions"]),
    )
