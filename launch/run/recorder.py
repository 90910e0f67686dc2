"""Writes a run's steps as they happen: `metrics.jsonl`, TensorBoard, the trajectories of each batch, events.

There is one recorder a run: in the learner's rank 0, or in the only process of serial mode.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Mapping, Sequence
from typing import Any

from launch.json_lines import to_json
from launch.metric_catalogue import METRICS
from launch.run.aside import undo_steps
from launch.run.folder import RunFolder, append_event
from launch.run.totals import NOTHING, RunTotals
from launch.whole_file import write_text
from learner.metrics.catalogue import Catalogue
from learner.trajectory import Trajectory

_LOG = logging.getLogger(__name__)


class Recorder:
    """Writes steps and events as they happen."""

    def __init__(
        self,
        folder: RunFolder,
        tokenizer: Any,
        record_trajectories: bool,
        resumed_step: int = 0,
        went_on: bool = False,
        catalogue: Catalogue = METRICS,
    ) -> None:
        """`resumed_step`: what is recorded of later steps moves aside, since they are taken again. `went_on`: as for
        `RunTotals`. `catalogue`: where the names of metrics are looked up."""
        from torch.utils.tensorboard import SummaryWriter

        folder.create()
        self._folder = folder
        self._tokenizer = tokenizer
        self._record_trajectories = record_trajectories
        self._lock = threading.Lock()
        if aside := undo_steps(folder, resumed_step):
            self.event("steps_set_aside", after=resumed_step, moved_to=str(aside.relative_to(folder.path)))
        kept = folder.read_metrics()
        self._catalogue = catalogue
        # A run that is stopped before its first step has totals, too.
        resumed = resumed_step > 0 or went_on or folder.totals.exists()
        self.totals = RunTotals(folder.totals, resumed, went_on, kept[-1] if kept else {})
        self._board = SummaryWriter(str(folder.tensorboard), purge_step=resumed_step + 1)
        self.last: dict[str, float] = kept[-1] if kept else {}
        self.tokens_trained: float = sum(row.get("tokens_trained", 0.0) for row in kept)
        """Response tokens that the recorded steps have trained, over all attempts."""
        measured = [row["heldout/version"] for row in kept if "heldout/version" in row]
        self._heldout_version: float | None = measured[-1] if measured else None

    def step(
        self, metrics: dict[str, float], batch: Sequence[Trajectory], reports: Mapping[str, Any] = NOTHING
    ) -> None:
        """One optimizer step. Of the held-out metrics, which actors report again and again, each version's come
        once. `reports`: the counters to keep in the run's totals (`Reports.state_dict`). Raises OwnerLost."""
        self._folder.check_owner()
        if metrics.get("heldout/version", self._heldout_version) == self._heldout_version:
            metrics = {name: value for name, value in metrics.items() if not name.startswith("heldout/")}
        else:
            self._heldout_version = metrics["heldout/version"]
        row = {
            "step": int(metrics["step"]),
            "version": int(metrics["version"]),
            "time_s": metrics.get("time_s", self.totals.time_s),
        }
        row |= {key: value for key, value in metrics.items() if key not in row}
        self._catalogue.check(row)
        with self._lock, self._folder.metrics.open("a") as file:
            file.write(to_json(row) + "\n")
        self.totals.write(row["time_s"], reports)
        for name, value in row.items():
            self._board.add_scalar(name, value, row["step"])
        self._board.flush()
        if self._record_trajectories:
            path = self._folder.trajectories / f"step_{row['step']:08d}.jsonl"
            path.write_text("".join(to_json(self._readable(t)) + "\n" for t in batch))
        if row.get("skipped_update"):
            self.event("update_skipped", step=row["step"], grad_norm=row["grad_norm"])
        self.last = row
        self.tokens_trained += row.get("tokens_trained", 0.0)
        _LOG.info("step %d is done: version %d, %d trajectories", row["step"], row["version"], len(batch))

    def measured(self, numbers: Mapping[str, float]) -> None:
        """Add the held-out metrics of the last version, which was measured after its step, to the step's row, unless
        it has them."""
        if not self.last or numbers.get("heldout/version", self._heldout_version) == self._heldout_version:
            return
        self._folder.check_owner()
        row = self.last | dict(numbers)
        self._catalogue.check(row)
        with self._lock:
            rows = [*self._folder.read_metrics()[:-1], row]
            write_text(self._folder.metrics, "".join(to_json(one) + "\n" for one in rows))
        for name, value in numbers.items():
            self._board.add_scalar(name, value, row["step"])
        self.last, self._heldout_version = row, numbers["heldout/version"]

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
            "kind": t.cell.kind,
            "role": t.cell.role.value,
            "reward": t.reward,
            "reward_parts": t.reward_parts,
            "outcome": t.outcome,
            "status": t.status.value,
            "versions": [[span.version, span.start, span.end] for span in t.versions],
            **({"lives": [span.life for span in t.versions]} if any(span.life for span in t.versions) else {}),
            "actor": f"{t.actor_id}#{t.incarnation}",
            "timings": t.timings,
            "prompt": self._tokenizer.decode(t.prompt_ids.tolist()),
            "response": self._tokenizer.decode(t.response_ids.tolist()),
            "prompt_ids": t.prompt_ids.tolist(),
            "response_ids": t.response_ids.tolist(),
            "logprobs": [round(float(x), 6) for x in t.logprobs],
        }
