"""The reason of an engine that does not start, from what vLLM wrote, with the names of our settings."""

from __future__ import annotations

from pathlib import Path

import pytest

from launch.cluster.engine_failure import EngineStartFailed, explain

FAILED = RuntimeError("Engine core initialization failed. See root cause above. Failed core proc(s): {}")
BEFORE = "ValueError: of an earlier time\n"
CORE = "(EngineCore pid=7) ERROR 11-27 08:58:29 [core.py:1510] "


@pytest.mark.parametrize(
    ("why", "setting"),
    [
        ("ValueError: To serve at least one request (0.03 GiB KV cache is needed", "engine.kv_cache_gib"),
        (
            "ValueError: Total number of attention heads (9) must be divisible by tensor parallel size (2).",
            "engine.tensor_parallel",
        ),
        (
            "ValueError: User-specified max_model_len (9000) is greater than the derived max_model_len",
            "engine.max_model_len",
        ),
    ],
)
def test_the_settings_that_decide_it_are_named(tmp_path: Path, why: str, setting: str) -> None:
    log = tmp_path / "log"
    worker = f"{CORE}Exception: WorkerProc initialization failed due to an exception in a background process.\n"
    log.write_text(f"{BEFORE}{CORE}EngineCore failed to start.\n{CORE}{why}\n{worker}\nRuntimeError: {FAILED}\n")
    error = explain(FAILED, log, len(BEFORE))
    assert isinstance(error, EngineStartFailed) and setting in str(error)
    assert why.partition(": ")[2][:40] in str(error) and "root cause above" not in str(error)


@pytest.mark.parametrize("text", ["", f"{CORE}OSError: Address already in use\n"])
def test_what_may_pass_is_left_as_it_is(tmp_path: Path, text: str) -> None:
    log = tmp_path / "log"
    log.write_text(BEFORE + text)
    assert explain(FAILED, log, len(BEFORE)) is FAILED


def test_an_error_of_this_process_needs_no_log(tmp_path: Path) -> None:
    (tmp_path / "log").touch()
    error = explain(ValueError("max_num_seqs must be at least 1"), tmp_path / "log", 0)
    assert isinstance(error, EngineStartFailed) and "engine.max_num_seqs" in str(error)
