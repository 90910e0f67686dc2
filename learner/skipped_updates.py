"""Ends a run whose optimizer steps are skipped again and again, because their gradients are not finite."""

from __future__ import annotations

from typing import ClassVar

from executor.user_error import UserError


class UpdatesSkipped(UserError):
    """Several optimizer steps in a row were skipped; the message says what to do."""

    exit_code: ClassVar[int] = 1


class SkippedUpdates:
    """Counts optimizer steps that were skipped in a row. A skipped step leaves weights and optimizer as they were."""

    def __init__(self, most: int) -> None:
        """`most`: `learner.max_skipped_updates`."""
        self._most = most
        self._norms: list[float] = []

    def count(self, grad_norm: float, updated: bool, step: int) -> None:
        """Take note of an optimizer step of training step `step`.

        Raises `UpdatesSkipped` at the `most`-th skipped one in a row, on every rank alike, since all have the same
        norm.
        """
        if updated:
            self._norms.clear()
            return
        self._norms.append(grad_norm)
        if len(self._norms) >= self._most:
            raise UpdatesSkipped(
                f"training stops at step {step}: the last {len(self._norms)} optimizer steps were skipped, because the "
                f"gradient was not finite (norms {', '.join(map(str, self._norms))}), so nothing is learned any more. "
                "Compare loss, grad_norm and rewards of the steps before in metrics.jsonl; then go on from a "
                "checkpoint with a lower learner.optimizer.lr or with model.dtype=float32, or raise "
                "learner.max_skipped_updates"
            )
