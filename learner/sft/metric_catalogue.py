"""The metrics of supervised fine-tuning (`azr sft`)."""

from __future__ import annotations

from learner.metrics.catalogue import SECONDS, Kind, Metric, Section, Whose


def _gauge(name: str, unit: str, meaning: str, healthy: str = "") -> Metric:
    return Metric(name=name, kind=Kind.GAUGE, unit=unit, whose=Whose.LEARNER, meaning=meaning, healthy=healthy)


def _seconds(name: str, meaning: str) -> Metric:
    return Metric(name=name, kind=Kind.DURATION, unit=SECONDS, whose=Whose.LEARNER, meaning=meaning)


SFT = Section(
    "Supervised fine-tuning",
    "Of one step of `azr sft`.",
    (
        Metric(name="step", kind=Kind.COUNTER, unit="steps", whose=Whose.LEARNER, meaning="training steps"),
        Metric(name="version", kind=Kind.COUNTER, unit="versions", whose=Whose.LEARNER, meaning="equal to `step`"),
        _gauge("loss", "nats", "mean of -log p over the batch's response tokens", "falls"),
        _gauge("perplexity", "", "exp of the loss"),
        _gauge("grad_norm", "", "gradient norm before clipping"),
        Metric(
            name="skipped_update",
            kind=Kind.SHARE,
            whose=Whose.LEARNER,
            meaning="1 where the update was skipped because the gradient was not finite",
            healthy="0",
        ),
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
