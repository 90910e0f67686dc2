"""Settings of supervised fine-tuning: the data, the batches, the schedule, and the learner that trains on them."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from executor.settings_table import SettingsTable
from learner.settings import KernelSettings, OptimizerSettings, ParallelSettings


class SftSettings(SettingsTable):
    """`[sft]`: the examples, their order and the learning rate schedule."""

    data: str = Field(min_length=1)
    """JSON Lines file with one example a line, as `{"prompt", "response"}` or `{"messages"}`.
    `"weight"` is optional. A relative path is looked up in the working directory, then among the recipes that ship.
    Format: docs/sft.md."""
    validation_data: str = ""
    """JSON Lines file of examples that are measured and not trained on.
    It replaces `sft.validation_share`."""
    validation_share: float = Field(default=0.05, ge=0, lt=1)
    """Share of the examples of `sft.data` that is held out for measurement, 0 to 1.
    Examples with the same prompt stay on one side."""
    epochs: float = Field(default=1.0, gt=0)
    """Number of passes over the examples; 0.5 trains on half of them once.
    Too many: the training loss falls while `validation_loss` rises."""
    batch_size: int = Field(default=32, ge=1)
    """Number of examples per optimizer step, over all ranks."""
    max_tokens: int = Field(default=2048, ge=2)
    """Maximum length of an example in tokens, prompt and response together.
    Longer ones are treated as `sft.too_long` says. Must not exceed `learner.micro_batch_tokens`."""
    too_long: Literal["skip", "refuse"] = "skip"
    """Treatment of an example longer than `sft.max_tokens`: `skip` or `refuse`.
    `skip` leaves it out and reports how many there were; `refuse` stops before training."""
    append_eos: bool = True
    """Append the tokenizer's end-of-sequence token to responses that lack it.
    Without it the model does not learn where to stop."""
    schedule: Literal["constant", "linear", "cosine"] = "cosine"
    """Learning rate after the warm-up (`learner.optimizer.warmup_steps`): `constant`, `linear` or `cosine`.
    The last two fall to `sft.final_lr_share` of it by the last step."""
    final_lr_share: float = Field(default=0.0, ge=0, le=1)
    """Final learning rate of a falling schedule, as a share of `learner.optimizer.lr`."""
    validate_every: int = Field(default=0, ge=0)
    """Steps between measurements of the validation loss.
    It is always measured before the first and after the last step; 0: only then."""


class SftLearnerSettings(SettingsTable):
    """`[learner]` of a fine-tuning recipe: optimizer, parallel layout, checkpoints."""

    micro_batch_tokens: int = Field(default=4096, ge=64)
    """Maximum number of rows (tokens, shared prompts counted once) in one forward and backward pass.
    Higher is faster until memory runs out. At least `sft.max_tokens`."""
    max_skipped_updates: int = Field(default=3, ge=1)
    """Number of steps in a row that may be skipped because the gradient is not finite; then the run stops."""
    threads: int = Field(default=0, ge=0)
    """CPU threads of each learner rank; 0: as many as this process may use."""
    checkpoint_every: int = Field(default=0, ge=0)
    """Steps between checkpoints; 0: they do not count.
    A checkpoint is also written after `learner.checkpoint_minutes`, and at the end of the run."""
    checkpoint_minutes: float = Field(default=10.0, ge=0)
    """Minutes after which a step is followed by a checkpoint; 0: they do not count.
    A run that is killed loses at most the work since the last one. Training waits until it is on disk."""
    keep_checkpoints: int = Field(default=2, ge=1)
    """Number of newest checkpoints to keep; older ones are deleted."""
    rank_timeout_s: float = Field(default=600.0, gt=0)
    """Deadline in seconds of every exchange between learner ranks."""
    optimizer: OptimizerSettings = OptimizerSettings(lr=1e-5)
    kernels: KernelSettings = KernelSettings()
    parallel: ParallelSettings = ParallelSettings()
