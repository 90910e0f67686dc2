"""Saves and resumes a run: weights, optimizer, ledger, queue and task buffer of one moment in one checkpoint."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Protocol

from launch.recipe import ConfigError
from launch.run.task_buffer import SNAPSHOT
from learner.checkpoint import Checkpoints, Finish, read_stream_state, unloadable, write_stream_state
from learner.loop import Stream
from learner.protocols import Learns
from learner.trajectory import Trajectory

_EXACT = "serial.json"


class Exact(Protocol):
    """State that only a run with exact resumption saves (serial mode); plain data, kept as JSON."""

    def state_dict(self) -> dict[str, Any]:
        """Everything that the next steps depend on."""

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The inverse of `state_dict`."""


@dataclass
class Saved:
    """A run's checkpoints, and what a resumed run starts from."""

    checkpoints: Checkpoints
    trainer: Learns
    snapshot: Callable[[Path], None] = lambda path: None
    """Writes the task buffer, as of now, to a file."""
    exact: Exact | None = None
    """State that serial mode adds; None in other modes."""
    hurried: Callable[[], bool] = lambda: False
    """Whether a deadline leaves no time to export weights to `hf/`; rank 0 asks, on any thread."""
    _come: int = 0
    """Slots that had ended or come in at the newest checkpoint."""

    def resume(self, stream: Stream | None, requeue: Callable[[list[Trajectory]], None]) -> int:
        """Load the newest complete checkpoint, if there is one; returns its version. Collective. Raises
        CheckpointError."""
        latest = self.checkpoints.latest()
        if latest is None:
            return 0
        try:
            self.trainer.policy.load_checkpoint(latest / "model")
            gate_state, queued = read_stream_state(latest)
            if self.exact is not None:
                if not (latest / _EXACT).exists():
                    raise ConfigError(
                        f"{latest} was not written by run.mode = serial, which needs more than it has: go on without "
                        "run.mode=serial, or begin a serial run from its model: model.path="
                        f"{latest / 'hf'} run.name=NAME"
                    )
                self.exact.load_state_dict(json.loads((latest / _EXACT).read_text()))
        except ConfigError:
            raise
        except Exception as error:
            raise unloadable(latest, error) from error
        self.trainer.version = gate_state["trained_batches"]
        if stream is not None:
            stream.gate.load_state_dict(gate_state, keep_in_flight=stream.gate.life > 0)
            requeue(queued)
            self._come = _num_come(stream)
        return self.trainer.version

    def unsaved(self, stream: Stream | None) -> bool:
        """Whether a slot has come in, or ended, since the newest checkpoint. False on ranks without the stream."""
        return stream is not None and _num_come(stream) != self._come

    def save(self, version: int, stream: Stream | None) -> None:
        """Copy what a checkpoint holds, and start to write it; on every rank. Raises CheckpointError for the one
        before.

        The run waits for copies in memory and for the small files: ledger, queue, task buffer. A thread writes the
        rest. Where `hurried` holds, it leaves out `hf/`, also of a checkpoint that is being written.
        """
        exports = self.trainer.ranks.share(lambda: not self.hurried())

        def write(folder: Path) -> Finish:
            policy = self.trainer.policy.copy(exports)
            if stream is not None:
                with stream.frozen():
                    write_stream_state(folder, stream.gate.state_dict(), stream.queued())
                    self._come = _num_come(stream)
                # After the queue, so that the snapshot has every task whose proposal waits there. What it may have
                # beyond these are tasks of rollouts that were in flight, and that a resumed run drops.
                self.snapshot(folder / SNAPSHOT)
            if self.exact is not None:
                (folder / _EXACT).write_text(json.dumps(self.exact.state_dict(), allow_nan=False))

            return partial(policy.write, folder, hurried=self.hurried)

        self.checkpoints.save(version, self.trainer.ranks, write)

    def wait(self) -> None:
        """Wait until the newest checkpoint is complete; raises CheckpointError if it could not be written."""
        self.checkpoints.wait()


def _num_come(stream: Stream) -> int:
    """The number of slots that have come in or ended."""
    with stream.frozen():
        return sum(counts.granted - counts.in_flight for counts in stream.gate.ledger().values())
