"""What the loop's hooks add to a step's metrics: the task buffer's, and the step's share of what actors count."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from launch.config import Config
from launch.run.hooks import make_hooks
from launch.run.status import Progress


def test_the_buffers_numbers_are_recorded_with_each_step() -> None:
    rows: list[dict[str, float]] = []
    recorder: Any = SimpleNamespace(step=lambda metrics, batch: rows.append(dict(metrics)), last={})
    hooks = make_hooks(Config(), recorder, lambda version: None, Progress(), lambda: {"buffer/deduction": 4.0})
    hooks.on_step({"step": 1, "tokens_generated": 10.0}, [])
    assert rows[0]["buffer/deduction"] == 4.0


def test_a_run_that_goes_on_counts_its_tokens_from_the_newest_recorded_step() -> None:
    rows: list[dict[str, float]] = []
    recorder: Any = SimpleNamespace(step=lambda metrics, batch: rows.append(dict(metrics)), last={})
    hooks = make_hooks(Config(), recorder, lambda version: None, Progress(), dict, counted=30.0)
    for total in (50.0, 55.0):
        hooks.on_step({"step": 4, "tokens_generated": total}, [])
    assert [row["tokens_generated_step"] for row in rows] == [20.0, 5.0]
