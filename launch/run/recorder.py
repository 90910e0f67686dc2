"""What a run leaves on disk: `runs/<name>/` with configuration, metrics, events, trajectories and TensorBoard.

One writer, in the learner's process (rank 0), or in the only process of serial mode.
"""

from __future__ import annotations

import json
import os
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from learner.trajectory import Trajectory


class RunFolder:
    """The paths of one run."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.config = path / "config.toml"
        self.metrics = path / "metrics.jsonl"
        self.events = path / "events.jsonl"
        self.trajectories = path / "trajectories"
        self.tasks = path / "tasks.sqlite"
        self.tensorboard = path / "tensorboard"
        self.checkpoints = path / "checkpoints"
        self.logs = path / "logs"

    def create(self) -> None:
        """Make the folders."""
        for folder in (self.trajectories, self.tensorboard, self.checkpoints, self.logs):
            folder.mkdir(parents=True, exist_ok=True)

    def read_metrics(self) -> list[dict[str, Any]]:
        """One object a step, in order."""
        if not self.metrics.exists():
            return []
        # A line without its end is one that a kill cut short.
        lines = self.metrics.read_text().splitlines(keepends=True)
        return [json.loads(line) for line in lines if line.endswith("\n") and line.strip()]


def append_event(folder: RunFolder, name: str, **details: Any) -> None:
    """One line in `events.jsonl`; any process may write there, since a line goes out in one piece."""
    line = json.dumps({"time": time.time(), "event": name, **details})
    with folder.events.open("a") as file:
        file.write(line + "\n")


def work_log(folder: RunFolder, actor_id: str, wanted: bool) -> Callable[[dict[str, Any]], None] | None:
    """What `Judge` takes as `record`: appends to `executor_work.<actor>.jsonl`; None if it is not wanted."""
    if not wanted:
        return None
    # Line by line, for the life of the process: what an actor was asked last is there when it is killed.
    stream = (folder.path / f"executor_work.{actor_id}.jsonl").open("a", buffering=1)

    def record(entry: dict[str, Any]) -> None:
        stream.write(json.dumps(entry) + "\n")

    return record


def log_to(folder: RunFolder, process: str, attempt: int) -> Path:
    """Send this process's output, and its children's, to `logs/<process>.<attempt>.log`."""
    path = folder.logs / f"{process}.{attempt}.log"
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    sys.stdout.flush()
    sys.stderr.flush()
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    os.close(descriptor)
    return path


class Recorder:
    """Writes steps and events as they happen."""

    def __init__(self, folder: RunFolder, tokenizer: Any, record_trajectories: bool, resumed_step: int = 0) -> None:
        """`resumed_step`: steps after it are forgotten, for they will be taken again."""
        from torch.utils.tensorboard import SummaryWriter

        folder.create()
        self._folder = folder
        self._tokenizer = tokenizer
        self._record_trajectories = record_trajectories
        self._lock = threading.Lock()
        kept = [row for row in folder.read_metrics() if row["step"] <= resumed_step]
        fresh = folder.metrics.with_suffix(".partial")
        fresh.write_text("".join(json.dumps(row) + "\n" for row in kept))
        fresh.rename(folder.metrics)
        for path in folder.trajectories.glob("step_*.jsonl"):
            if int(path.stem.removeprefix("step_")) > resumed_step:
                path.unlink()
        # Time goes on where the run stopped, so that curves over time have no gap and no overlap.
        self._started = time.monotonic() - (kept[-1]["time_s"] if kept else 0.0)
        self._board = SummaryWriter(str(folder.tensorboard), purge_step=resumed_step + 1)
        self.last: dict[str, float] = kept[-1] if kept else {}
        measured = [row["heldout/version"] for row in kept if "heldout/version" in row]
        self._heldout_version: float | None = measured[-1] if measured else None

    def step(self, numbers: dict[str, float], batch: Sequence[Trajectory]) -> None:
        """One optimizer step. Of the held-out numbers, which actors report again and again, each version's come once."""
        if numbers.get("heldout/version", self._heldout_version) == self._heldout_version:
            numbers = {name: value for name, value in numbers.items() if not name.startswith("heldout/")}
        else:
            self._heldout_version = numbers["heldout/version"]
        row = {
            "step": int(numbers["step"]),
            "version": int(numbers["version"]),
            "time_s": time.monotonic() - self._started,
        }
        row |= {key: value for key, value in numbers.items() if key not in row}
        with self._lock, self._folder.metrics.open("a") as file:
            file.write(json.dumps(row) + "\n")
        for name, value in row.items():
            self._board.add_scalar(name, value, row["step"])
        self._board.flush()
        if self._record_trajectories:
            path = self._folder.trajectories / f"step_{row['step']:08d}.jsonl"
            path.write_text("".join(json.dumps(self._readable(t)) + "\n" for t in batch))
        self.last = row

    def event(self, name: str, **details: Any) -> None:
        """Something that is not a step: a join, a loss, a refusal, a failure."""
        with self._lock:
            append_event(self._folder, name, **details)

    def close(self) -> None:
        """Flush what is buffered."""
        self._board.close()

    def _readable(self, t: Trajectory) -> dict[str, Any]:
        return {
            "slot": t.slot,
            "episode": t.episode_id,
            "kind": t.cell.kind.value,
            "role": t.cell.role.value,
            "reward": t.reward,
            "reward_parts": t.reward_parts,
            "outcome": t.outcome,
            "status": t.status.value,
            "versions": [list(span) for span in t.versions],
            "actor": f"{t.actor_id}#{t.incarnation}",
            "timings": t.timings,
            "prompt": self._tokenizer.decode(t.prompt_ids.tolist()),
            "response": self._tokenizer.decode(t.response_ids.tolist()),
            "prompt_ids": t.prompt_ids.tolist(),
            "response_ids": t.response_ids.tolist(),
            "logprobs": [round(float(x), 6) for x in t.logprobs],
        }
