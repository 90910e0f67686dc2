"""Decides what follows an attempt: whether the job is queued again, and why."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from launch.run.interrupts import NOTHING_TO_SAVE, SAVED
from launch.slurm.client import JobState


@dataclass(frozen=True)
class Decision:
    """What the batch script does after an attempt."""

    requeue: bool
    exit_code: int
    """That of the job, where it is not requeued."""
    reason: str
    """A sentence for the log."""


@dataclass(frozen=True)
class Ending:
    """How an attempt ended."""

    exit_code: int
    part: str = ""
    """The part whose exit code it is, such as `driver`."""
    node: str = ""
    reason: str = ""
    node_failure: bool = False
    """Whether a node was lost."""

    @property
    def stopped(self) -> bool:
        """Whether the run was asked to stop, and did."""
        return self.exit_code in (SAVED, NOTHING_TO_SAVE) and not self.node_failure


@dataclass(frozen=True)
class Starts:
    """The earlier starts since the run was submitted, by how they ended."""

    requeues: int = 0
    """Stopped, saved and requeued by the job itself."""
    preemptions: int = 0
    """Ended without a word, or lost a node."""
    unused: int = 0
    """The last ones that were stopped with nothing to save and requeued, in a row."""


def count(records: Iterable[dict[str, Any]]) -> Starts:
    """Count the starts of `attempt.json` records, those since the submission."""
    requeues = preemptions = unused = 0
    for record in records:
        unused = unused + 1 if record.get("requeue") and record.get("exit_code") == NOTHING_TO_SAVE else 0
        if "srun_code" not in record or record.get("node_failure"):  # it ended before its script could say a word
            preemptions += 1
        elif record.get("requeue"):
            requeues += 1
    return Starts(requeues, preemptions, unused)


def decide(
    ending: Ending, state: JobState, starts: Starts, requeue: bool, max_requeues: int, max_preemptions: int
) -> Decision:
    """Decide after an attempt.

    `state`: of the job at this moment. `starts`: those before this one. `requeue`, `max_requeues`, `max_preemptions`:
    the settings of `[slurm]`.

    A job that SLURM is ending already is left to SLURM: it queues the job again itself after a preemption or
    `scontrol requeue`, and not after `scancel`, after which a `scontrol requeue` from here would bring the job back.
    The time limit is the exception: SLURM ends such a job for good.
    """
    if ending.exit_code == 0:
        return Decision(False, 0, "the run is complete")
    code = ending.exit_code
    if state.state != "RUNNING" and state.reason != "TimeLimit":
        return Decision(False, code, f"left to SLURM, which is ending the job (state {state.state or 'unknown'})")
    if not ending.stopped and not ending.node_failure:
        return Decision(False, code, "the run failed, and would fail again")
    if not requeue:
        return Decision(False, code, "slurm.requeue is false")
    if ending.node_failure and starts.preemptions >= max_preemptions:
        return Decision(False, code, f"slurm.max_preemptions = {max_preemptions} is used up")
    if ending.stopped and starts.requeues >= max_requeues:
        return Decision(False, code, f"slurm.max_requeues = {max_requeues} is used up")
    what = "a node was lost" if ending.node_failure else "the run was stopped, and goes on"
    if code == NOTHING_TO_SAVE and starts.unused >= 2:
        what += f"; {starts.unused + 1} starts in a row had nothing to save: slurm.time may be too short for a start"
    return Decision(True, code, what)
