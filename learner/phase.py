"""The phases of a learner. Other processes decide on the member of the enum, never on the words of a status line."""

from __future__ import annotations

from enum import StrEnum


class Phase(StrEnum):
    """The phases of `learner.loop.learn` and `learner.sft.trainer.fine_tune`, and of the processes around them."""

    STARTING = "starting"
    """The model loads; no rollout actor is connected yet."""
    WAITING_FOR_ACTORS = "waiting_for_actors"
    """Rollout actors connect; no weights have been published."""
    WAITING_FOR_BATCH = "waiting_for_batch"
    """The next batch is not complete."""
    TRAINING = "training"
    """Optimizer steps on one batch."""
    PUBLISHING = "publishing"
    """The new weights go to the engines."""
    RECORDING = "recording"
    """The metrics of a step are collected and written."""
    VALIDATING = "validating"
    """Fine-tuning measures the validation loss."""
    SAVING = "saving"
    """A checkpoint is copied and written."""
    DRAINING = "draining"
    """A run that stops early waits for the trajectories in flight."""
    MEASURING = "measuring"
    """The run is saved, and waits for a measurement of its last version."""
    DONE = "done"
    """The loop has ended; the process closes what it opened."""
    RESTARTING = "restarting"
    """The learner's processes ended; the supervisor starts them again from the last checkpoint."""
