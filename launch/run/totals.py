"""The totals of a run over all its attempts: its seconds, and what its actors have counted.

They are kept in `totals.json` of the run folder, written with each row of metrics. A learner that starts again goes on
from there and not from the row of its checkpoint: the seconds and the tokens of steps that a restart undid were spent,
and a speed "over the run" counts them.
"""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from launch.json_lines import to_json
from launch.metric_catalogue import METRICS
from learner.metrics.catalogue import Combine, Kind

NOTHING: Mapping[str, Any] = {"ended": {}, "lives": []}
"""`Reports.state_dict` of a run that has counted nothing."""
ACTOR_PARTS = (
    "prefill",
    "decode",
    "between",
    "executor",
    "other",
    "wait_for_grants",
    "paused",
    "loading",
)
"""The parts of an actor's time that do not overlap: `actor_time/..._actor_s`."""
_COUNTED = (
    "tokens_generated",
    "wait_for_policy_actor_s",
    "connected_actor_s",
    *(f"actor_time/{part}_actor_s" for part in ACTOR_PARTS),
)


class RunTotals:
    """Seconds of the run, and the counters that `learner.stream.reports.Reports` keeps."""

    def __init__(self, path: Path, resumed: bool, went_on: bool, last: Mapping[str, Any]) -> None:
        """`resumed`: go on from what `path` has. `went_on`: the run was not down since then, only its learner, so the
        seconds in between count, and its actors may be those that were. `last`: the newest row of metrics that is kept,
        to begin with in a run folder without totals."""
        self._path = path
        saved = _read(path) if resumed else None
        time_s = 0.0
        self.reports: Mapping[str, Any] = NOTHING
        """The counters of earlier lives, for `Reports.load_state_dict`."""
        self.actors_live = went_on
        if saved is not None:
            time_s, self.reports = saved["time_s"], saved["reports"]
            if went_on:
                time_s += max(0.0, time.time() - saved["written"])
        elif resumed:
            time_s = last.get("time_s", 0.0)
            self.reports = {"ended": {name: value for name, value in last.items() if _is_reported(name)}, "lives": []}
        self._started = time.monotonic() - time_s
        self._before = _sums(self.reports) | {"time_s": time_s if not went_on or saved is None else saved["time_s"]}
        """The totals of the row before."""

    @property
    def time_s(self) -> float:
        """Seconds since the run began to train, without the time between its attempts."""
        return time.monotonic() - self._started

    def of_step(self, metrics: Mapping[str, float]) -> dict[str, float]:
        """The time of a step, and the step's part of what actors count: `launch.metric_catalogue.RUN`.

        `metrics`: the step's, with the totals of `Reports.combined`. Call it once a step.
        """
        now = {name: metrics[name] for name in _COUNTED if name in metrics} | {"time_s": self.time_s}
        spent = {name: value - self._before.get(name, 0.0) for name, value in now.items()}
        self._before |= now
        row = {"time_s": now["time_s"], "step_s": spent["time_s"]}
        if "tokens_generated" in spent:
            row["tokens_generated_step"] = spent["tokens_generated"]
            row["generate_tokens_per_s"] = spent["tokens_generated"] / spent["time_s"]
        if "wait_for_batch_s" in metrics:
            row["wait_for_batch_share"] = metrics["wait_for_batch_s"] / spent["time_s"]
        if connected := spent.get("connected_actor_s"):
            row["wait_for_policy_share"] = spent.get("wait_for_policy_actor_s", 0.0) / connected
            if f"actor_time/{ACTOR_PARTS[0]}_actor_s" in metrics:
                parts = sum(spent.get(f"actor_time/{part}_actor_s", 0.0) for part in ACTOR_PARTS)
                row["actor_time/unaccounted_actor_s"] = connected - parts
        return row

    def write(self, time_s: float, reports: Mapping[str, Any]) -> None:
        """Write the totals in one step. `time_s`: of the row that was just written; `reports`: `Reports.state_dict`."""
        fresh = self._path.with_suffix(".partial")
        saved = {"time_s": time_s, "written": time.time(), "reports": reports}
        fresh.write_text(to_json(saved))
        fresh.rename(self._path)


def _read(path: Path) -> dict[str, Any] | None:
    """The totals that were written; None if there is no such file, or it cannot be read."""
    try:
        saved = json.loads(path.read_text())
        return {"time_s": float(saved["time_s"]), "written": float(saved["written"]), "reports": saved["reports"]}
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _sums(reports: Mapping[str, Any]) -> dict[str, float]:
    sums = Counter(reports["ended"])
    for _, _, counters in reports["lives"]:
        sums.update(counters)
    return dict(sums)


def _is_reported(name: str) -> bool:
    metric = METRICS.find(name)
    return metric is not None and metric.kind is Kind.COUNTER and Combine.SUM in metric.combined
