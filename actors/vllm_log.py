"""Removes from vLLM's log what it reports as a fault and is none."""

from __future__ import annotations

import logging

_RELOAD = "vllm.model_executor.model_loader.reload.layerwise"
_SHUTDOWN = "vllm.v1.utils"


def silence_reload(head_is_tied: bool) -> None:
    """Keep vLLM from warning, at every weight update, of layers without weights of their own.

    They are rotary embeddings, and the output head where it shares the input embedding's weight (`head_is_tied`).
    """
    without = ("RotaryEmbedding", "ParallelLMHead") if head_is_tied else ("RotaryEmbedding",)

    def report(record: logging.LogRecord) -> bool:
        layer, _, rest = record.getMessage().partition(": ")
        return not (rest.startswith("Failed to load weights") and layer.endswith(without))

    logging.getLogger(_RELOAD).addFilter(report)


def silence_shutdown() -> None:
    """Keep vLLM from warning that it had to kill the engine's processes, which is how `AsyncEngine` ends them."""
    logging.getLogger(_SHUTDOWN).addFilter(lambda record: "force killing" not in record.getMessage())
