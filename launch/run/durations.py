"""Measured durations of a run: those of a step and of a checkpoint, from which a stop plans its time.

They are in the run folder, so that a submission or a resume knows them before the run begins: each row of
`metrics.jsonl` has the seconds of training and publishing, each event `checkpoint` its `seconds`.
"""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from launch.run.folder import RunFolder

CHECKPOINT_S = 30.0
"""Seconds that a checkpoint is thought to take before the first one is measured."""
RECENT = 5
"""Number of newest measurements that count."""
SURPLUS = 1.25
"""Factor by which a plan is longer than what was measured."""
SPARE_S = 5.0
"""Seconds of a plan for what is not measured: a look at the clock, messages between processes."""
_STEP = ("train_s", "weights/send_s", "weights/wait_loaded_s")
"""Metrics of a step that add up to `Durations.step_s`."""
_TAIL_BYTES = 1 << 18


@dataclass(frozen=True)
class Durations:
    """The longest of the newest `RECENT` measurements, in seconds; None where nothing was measured yet."""

    step_s: float | None = None
    """A step without the wait for its batch: training and publishing."""
    checkpoint_s: float | None = None
    """A whole checkpoint, from the copy in memory to its name on the disk."""

    @property
    def save_s(self) -> float:
        """Seconds to plan for the last checkpoint of a stop."""
        return SURPLUS * (CHECKPOINT_S if self.checkpoint_s is None else self.checkpoint_s) + SPARE_S

    @property
    def stop_s(self) -> float:
        """Seconds to plan for a whole stop: a step under way, then the last checkpoint."""
        return SURPLUS * (self.step_s or 0.0) + self.save_s


NOTHING_MEASURED = Durations()


def read_durations(folder: RunFolder) -> Durations:
    """The durations that the run in `folder` has measured in all its attempts."""
    steps = [sum(row.get(part) or 0.0 for part in _STEP) for row in _tail(folder.metrics) if row.get("train_s")]
    saves = [event["seconds"] for event in _tail(folder.events) if event.get("event") == "checkpoint"]
    return Durations(max(steps[-RECENT:], default=None), max(saves[-RECENT:], default=None))


class Measured:
    """Durations as a run measures them, after those of its earlier attempts."""

    def __init__(self, before: Durations) -> None:
        """`before`: those of the earlier attempts, which count until there are measurements of this one."""
        self._before = before
        self._steps: deque[float] = deque(maxlen=RECENT)
        self._saves: deque[float] = deque(maxlen=RECENT)

    def step(self, seconds: float) -> None:
        """Note a step's duration."""
        self._steps.append(seconds)

    def checkpoint(self, seconds: float) -> None:
        """Note a checkpoint's duration. Any thread may call it."""
        self._saves.append(seconds)

    @property
    def durations(self) -> Durations:
        """The present durations."""
        return Durations(
            max(tuple(self._steps), default=self._before.step_s),
            max(tuple(self._saves), default=self._before.checkpoint_s),
        )


def _tail(path: Path) -> Iterator[dict[str, Any]]:
    """The JSON objects on the last lines of a file, without reading all of a long one."""
    try:
        with path.open("rb") as file:
            file.seek(max(0, path.stat().st_size - _TAIL_BYTES))
            lines = file.read().splitlines()
    except OSError:
        return
    for line in lines:
        try:
            found = json.loads(line)
        except ValueError:  # one that the look begins in, or that a kill cut short
            continue
        if isinstance(found, dict):
            yield found
