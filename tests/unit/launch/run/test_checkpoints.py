"""Checkpoints of a whole run: the task buffer is in them, and after what waits in the queue."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from launch.config import Config
from launch.run.checkpoints import Saved
from launch.run.gate import make_gate
from learner.checkpoint import Checkpoints
from learner.model.policy_copy import PolicyCopy
from learner.ranks import Ranks


class FakePolicy:
    dtype = torch.float32

    def __init__(self, model_dir: Path) -> None:
        self.model_dir = model_dir
        (model_dir / "config.json").write_text("{}")
        self.weight = torch.zeros(2)

    def copy(self) -> PolicyCopy:
        weight = self.weight.clone()
        state: Any = SimpleNamespace(write=lambda folder, group: (folder / "weight").write_text(str(weight.tolist())))
        return PolicyCopy(state, [("weight", weight)], self.model_dir, self.dtype)

    def export(self) -> Iterator[tuple[str, torch.Tensor]]:
        yield "weight", self.weight


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
    trainer: Any = SimpleNamespace(policy=FakePolicy(folder), ranks=Ranks())
    return Saved(Checkpoints(folder, 2), trainer, snapshot)


def test_the_buffer_is_written_after_the_queue_while_the_stream_runs(tmp_path: Path) -> None:
    stream: Any = FakeStream()

    def snapshot(path: Path) -> None:
        assert (path.parent / "gate.json").exists(), "a task whose proposal waits could be missing"
        assert not stream.held, "a large copy would hold up the actors' heartbeats"
        path.write_text("tasks")

    saved = make(tmp_path, snapshot)
    saved.save(3, stream)
    saved.trainer.policy.weight.fill_(1.0)  # training goes on at once
    saved.wait()
    folder = tmp_path / "step_00000003"
    assert (folder / "tasks.sqlite").read_text() == "tasks"
    assert (folder / "model" / "weight").read_text() == "[0.0, 0.0]"
    assert load_file(folder / "hf" / "model-00001.safetensors")["weight"].tolist() == [0.0, 0.0]


def test_a_snapshot_that_fails_is_no_checkpoint(tmp_path: Path) -> None:
    def snapshot(path: Path) -> None:
        path.write_text("half")
        raise OSError("disk full")

    stream: Any = FakeStream()
    with pytest.raises(OSError, match="disk full"):
        make(tmp_path, snapshot).save(3, stream)
    assert Checkpoints(tmp_path, 2).latest() is None


def test_only_the_rank_with_the_stream_asks_for_the_buffer(tmp_path: Path) -> None:
    saved = make(tmp_path, lambda path: pytest.fail("a second rank wrote it too"))
    saved.save(3, None)
    saved.wait()
    assert not (tmp_path / "step_00000003" / "tasks.sqlite").exists()
