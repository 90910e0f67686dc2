"""Checkpoints of a whole run: the task buffer is in them, and after what waits in the queue."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from launch.assemble import Saved, make_gate, make_hooks
from launch.config import Config
from learner.checkpoint import Checkpoints
from learner.ranks import Ranks


class FakePolicy:
    def save_checkpoint(self, folder: Path) -> None:
        folder.mkdir()

    save_hf = save_checkpoint


class FakeStream:
    def __init__(self) -> None:
        self.gate = make_gate(Config())
        self.held = False

    def frozen(self) -> FakeStream:
        return self

    def __enter__(self) -> None:
        self.held = True

    def __exit__(self, *_: object) -> None:
        self.held = False

    def queued(self) -> list[Any]:
        return []


def make(folder: Path, snapshot: Any) -> Saved:
    trainer: Any = SimpleNamespace(policy=FakePolicy(), ranks=Ranks())
    return Saved(Checkpoints(folder, 2), trainer, snapshot)


def test_the_buffer_is_written_after_the_queue_while_the_stream_runs(tmp_path: Path) -> None:
    stream: Any = FakeStream()

    def snapshot(path: Path) -> None:
        assert (path.parent / "gate.json").exists(), "a task whose proposal waits could be missing"
        assert not stream.held, "a large copy would hold up the actors' heartbeats"
        path.write_text("tasks")

    make(tmp_path, snapshot).save(3, stream)
    assert (tmp_path / "step_00000003" / "tasks.sqlite").read_text() == "tasks"


def test_a_snapshot_that_fails_is_no_checkpoint(tmp_path: Path) -> None:
    def snapshot(path: Path) -> None:
        path.write_text("half")
        raise OSError("disk full")

    stream: Any = FakeStream()
    with pytest.raises(OSError, match="disk full"):
        make(tmp_path, snapshot).save(3, stream)
    assert Checkpoints(tmp_path, 2).latest() is None


def test_only_the_rank_with_the_stream_asks_for_the_buffer(tmp_path: Path) -> None:
    make(tmp_path, lambda path: pytest.fail("a second rank wrote it too")).save(3, None)
    assert not (tmp_path / "step_00000003" / "tasks.sqlite").exists()


def test_the_buffers_numbers_are_recorded_with_each_step() -> None:
    rows: list[dict[str, float]] = []
    recorder: Any = SimpleNamespace(step=lambda numbers, batch: rows.append(dict(numbers)), last={})
    hooks = make_hooks(Config(), recorder, lambda version: None, {}, lambda: {"buffer/deduction": 4.0})
    hooks.on_step({"step": 1, "tokens_generated": 10.0}, [])
    assert rows[0]["buffer/deduction"] == 4.0
