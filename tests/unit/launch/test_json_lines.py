"""What azr writes as JSON is strict JSON: every reader takes it, whatever the numbers are."""

from __future__ import annotations

import ast
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from launch.json_lines import NOT_FINITE, to_json
from launch.run.folder import RunFolder, append_event, work_log
from launch.run.recorder import Recorder
from learner.trajectory import Cell, Role, Trajectory, VersionSpan

ROOT = Path(__file__).parents[3]
BETWEEN_OWN_PROCESSES = ("executor/sandbox/", "executor/codec.py")
"""Requests to a sandbox, which Python reads at the other end, and which do carry NaN."""
ANOTHERS_FILE = ("learner/model/convert.py",)
"""`config.json` of a model folder, which transformers wrote and reads."""


def strict(text: str) -> Any:
    def refuse(name: str) -> None:
        raise AssertionError(f"{name} is not JSON")

    return json.loads(text, parse_constant=refuse)


values = st.recursive(
    st.none() | st.booleans() | st.integers(-9, 9) | st.floats() | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=8,
)


@given(st.dictionaries(st.text(min_size=1, max_size=3), values, max_size=4))
def test_any_record_is_strict_json_and_names_what_was_not_finite(record: dict[str, Any]) -> None:
    read = strict(to_json(record))
    nan_at_top = {name for name, value in record.items() if isinstance(value, float) and not math.isfinite(value)}
    if nan_at_top:
        assert all(read[name] is None for name in nan_at_top)
    assert nan_at_top <= set(read.get(NOT_FINITE, ()))
    if NOT_FINITE not in read:
        assert read == record


def test_everything_that_a_run_records_is_strict_json(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    recorder = Recorder(folder, _Words(), True)
    ids = np.array([1], np.int32)
    trajectory = Trajectory(
        "run", "a", 0, 0, "e", Cell("deduction", Role.SOLVE), ids, ids, np.zeros(1, np.float32),
        (VersionSpan(0, 0, 1),), math.nan, {"estimate": math.inf},
    )  # fmt: skip
    skipped = {"loss": math.nan, "grad_norm": math.inf, "kl_behave": -math.inf, "entropy": 1.0}
    recorder.step({"step": 1, "version": 1, **skipped}, [trajectory])
    recorder.close()
    append_event(folder, "update_skipped", grad_norm=math.inf)
    record = work_log(folder, "actor", True)
    assert record is not None
    record({"seconds": math.nan})
    files = [path for path in tmp_path.rglob("*.json*") if path.is_file()]
    assert {path.name for path in files} >= {
        "metrics.jsonl", "events.jsonl", "totals.json", "step_00000001.jsonl", "executor_work.actor.jsonl",
    }  # fmt: skip
    for path in files:
        for line in path.read_text().splitlines():
            strict(line)
    (row,) = folder.read_metrics()
    assert set(row[NOT_FINITE]) == {"loss", "grad_norm", "kl_behave"} and row["grad_norm"] is None
    resumed = Recorder(folder, _Words(), True, resumed_step=1)
    resumed.close()
    assert folder.read_metrics() == [row], "a resumed run keeps the row as it is"


def test_nothing_writes_json_in_another_way() -> None:
    """Every call of `json.dump(s)` refuses NaN: a record that may have one goes through `to_json`."""
    lax = []
    for package in ("executor", "actors", "learner", "launch"):
        for path in (ROOT / package).rglob("*.py"):
            name = path.relative_to(ROOT).as_posix()
            if name.startswith(BETWEEN_OWN_PROCESSES) or name in ANOTHERS_FILE:
                continue
            for node in ast.walk(ast.parse(path.read_text())):
                if not (isinstance(node, ast.Call) and ast.unparse(node.func) in ("json.dumps", "json.dump")):
                    continue
                strictly = any(k.arg == "allow_nan" and ast.unparse(k.value) == "False" for k in node.keywords)
                if not strictly:
                    lax.append(f"{name}:{node.lineno}")
    assert lax == []


class _Words:
    """A tokenizer, as far as the recorder needs one."""

    def decode(self, ids: list[int]) -> str:
        return " ".join(map(str, ids))
