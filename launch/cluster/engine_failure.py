"""Explains why an engine did not start: vLLM tells its caller "See root cause above", and the cause to the log."""

from __future__ import annotations

import re
from pathlib import Path

from executor.user_error import UserError

_ERROR = re.compile(r"\b(\w*(?:Error|Exception)): (.+)")
_NO_CAUSE = re.compile("Engine core initialization failed|WorkerProc initialization failed")
_LASTING = ("ValueError", "ValidationError", "NotImplementedError", "KeyError", "OutOfMemoryError", "MemoryError")
"""Exceptions that the same settings raise again; others, such as a port that is taken, may pass."""
_SETTINGS = (
    ("kv cache|cache blocks|gpu_memory_utilization|free memory",
     "engine.kv_cache_gib on a CPU, engine.gpu_memory_utilization on GPUs"),
    ("max_model_len|max seq len", "engine.max_model_len"),
    ("tensor.parallel", "engine.tensor_parallel"),
    ("max_num_batched_tokens", "engine.max_num_batched_tokens"),
    ("max_num_seqs", "engine.max_num_seqs"),
    ("dtype|bfloat16|float16", "engine.dtype"),
    ("out of memory|allocate", "engine.kv_cache_gib, engine.gpu_memory_utilization, actors.num_actors"),
    ("architecture|config.json|tokenizer|safetensors", "model.path"),
)  # fmt: skip
"""Subjects of vLLM's messages, and azr's settings that decide them."""


class EngineStartFailed(UserError):
    """An engine cannot start with these settings, now or later. The message has vLLM's reason and azr's settings."""

    exit_code = 1


def explain(error: Exception, log: Path, start: int) -> Exception:
    """The exception to raise for an engine that failed to start with `error`.

    `log`: the log of its process, which had `start` bytes before. Returns EngineStartFailed where the same settings
    would fail again, and `error` otherwise.
    """
    with log.open("rb") as file:
        file.seek(start)
        text = file.read().decode("utf-8", "replace")
    found = [match.groups() for match in _ERROR.finditer(text) if not _NO_CAUSE.search(match[2])]
    name, why = (
        found[-1] if found else (type(error).__name__, str(error).strip().splitlines()[-1] if str(error) else "")
    )
    if name not in _LASTING:
        return error
    settings = [ours for words, ours in _SETTINGS if re.search(words, why, re.IGNORECASE)]
    hint = f" Look at {'; '.join(settings)}." if settings else ""
    return EngineStartFailed(f"the engine cannot start: {why.strip().rstrip('.')}.{hint}")
