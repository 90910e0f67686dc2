"""Settings of supervised fine-tuning: the data, the batches, the schedule, and the learner that trains on them."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from executor.settings import Section
from learner.settings import OptimizerSettings, ParallelSettings


class SftSettings(Section):
    """`[sft]`: which examples are learned, in which order and how fast."""

    data: str = Field(min_length=1)
    """JSON Lines file of examples, one a line: {"prompt": ..., "response": ...} or {"messages": [...]}, and perhaps "weight"
    (docs/sft.md). A relative path counts from where azr is called, then from the folder of the recipes that ship."""
    validation_data: str = ""
    """File of examples that are only measured; with it, `validation_share` is not used."""
    validation_share: float = Field(default=0.05, ge=0, lt=1)
    """Share of the examples of `data` that is held out and only measured. Examples with one prompt stay together."""
    epochs: float = Field(default=1.0, gt=0)
    """How often each example is learned; 0.5 is half of them once."""
    batch_size: int = Field(default=32, ge=1)
    """Examples of one optimizer step, over all ranks."""
    max_tokens: int = Field(default=2048, ge=2)
    """Longest example, prompt and response together, in tokens."""
    too_long: Literal["skip", "refuse"] = "skip"
    """What becomes of a longer one: `skip` leaves it out and says how many there were, `refuse` stops before training."""
    append_eos: bool = True
    """End each response with the tokenizer's end-of-sequence token, where it does not end so already. Without it, the model does
    not learn where to stop."""
    schedule: Literal["constant", "linear", "cosine"] = "cosine"
    """The learning rate after the warm-up (`learner.optimizer.warmup_steps`): constant, or falling to `final_lr_share`."""
    final_lr_share: float = Field(default=0.0, ge=0, le=1)
    """What a falling schedule falls to, as a share of `learner.optimizer.lr`."""
    validate_every: int = Field(default=0, ge=0)
    """Steps between measurements of the validation loss; it is always measured before the first step and after the last. 0: only
    then."""


class SftLearnerSettings(Section):
    """`[learner]` of a fine-tuning recipe: the optimizer, the parallel layout, the checkpoints."""

    micro_batch_tokens: int = Field(default=4096, ge=64)
    """Token budget of one forward and backward pass."""
    threads: int = Field(default=0, ge=0)
    """CPU threads of each learner rank; 0 leaves the choice to torch."""
    checkpoint_every: int = Field(default=0, ge=0)
    """Steps between checkpoints; one is always written at the end. 0: only that one."""
    keep_checkpoints: int = Field(default=2, ge=1)
    """Newest checkpoints that stay on disk."""
    rank_timeout_s: float = Field(default=600.0, gt=0)
    """Deadline of every exchange between learner ranks, in seconds."""
    optimizer: OptimizerSettings = OptimizerSettings(lr=1e-5)
    parallel: ParallelSettings = ParallelSettings()
