"""The metrics of supervised fine-tuning (`azr sft`)."""

from __future__ import annotations

from learner.metrics.catalogue import Entries, Section, Whose

_OF_LEARNER = Entries(Whose.LEARNER)
_gauge, _seconds = _OF_LEARNER.gauge, _OF_LEARNER.seconds

SFT = Section(
    "Supervised fine-tuning",
    "Of one step of `azr sft`.",
    (
        _OF_LEARNER.counter("step", "training steps", "steps"),
        _OF_LEARNER.counter("version", "equal to `step`", "versions"),
        _gauge("loss", "nats", "mean of -log p over the batch's response tokens", "falls"),
        _gauge("perplexity", "", "exp of the loss"),
        _gauge("grad_norm", "", "gradient norm before clipping"),
        _OF_LEARNER.share("skipped_update", "1 where the update was skipped because the gradient was not finite", "0"),
        _gauge("lr", "", "learning rate"),
        _gauge("epoch", "epochs", "passes over the examples"),
        _gauge("examples", "examples", "examples of the batch"),
        _gauge("tokens_trained", "tokens", "response tokens of the batch"),
        _gauge("tokens_computed", "rows", "rows that the learner computed"),
        _gauge("tokens_per_s", "rows/s", "`tokens_computed` / `train_s`"),
        _seconds("train_s", "the training step"),
        _gauge("validation_loss", "nats", "loss on the held-out examples", "falls; a rise is overfitting"),
        _gauge("validation_perplexity", "", "exp of it"),
        _seconds("validation_s", "measuring it"),
    ),
)
