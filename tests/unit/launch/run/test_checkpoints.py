"""Checkpoints of a whole run: the task buffer is in them, and after what waits in the queue."""

from __future__ import annotations

import json
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file

from launch.config import Config
from launch.recipe import ConfigError
from launch.run.checkpoints import Saved
from launch.run.gate import make_gate
from learner.checkpoint import Checkpoints
from learner.ledger import conserved, totals
from learner.loop import Hooks, learn
from learner.model.policy_copy import PolicyCopy
from learner.protocols import StepGivenUp
from learner.ranks import Ranks
from learner.settings import LearnerSettings
from learner.staleness import Gate, Grant
from learner.time_ledger import LEARNER_PARTS, TimeLedger
from learner.trajectory import Trajectory
from learner.turns import Seat
from tests.examples import examples
from tests.unit.learner.playing import BATCH, Actors


class FakePolicy:
    dtype = torch.float32

    def __init__(self, model_dir: Path) -> None:
        self.model_dir = model_dir
        (model_dir / "config.json").write_text("{}")
        self.weight = torch.zeros(2)

    def copy(self, exports: bool) -> PolicyCopy:
        weight = self.weight.clone()
        state: Any = SimpleNamespace(write=lambda folder, group: (folder / "weight").write_text(str(weight.tolist())))
        return PolicyCopy(state, [("weight", weight)] if exports else None, self.model_dir, self.dtype)

    def export(self) -> Iterator[tuple[str, torch.Tensor]]:
        yield "weight", self.weight

    def load_checkpoint(self, folder: Path) -> None:
        self.weight = torch.tensor(json.loads((folder / "weight").read_text()))


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


def test_serial_mode_refuses_another_modes_checkpoint_and_leaves_it(tmp_path: Path) -> None:
    stream: Any = FakeStream()
    saved = make(tmp_path, lambda path: path.write_text("tasks"))
    saved.save(3, stream)
    saved.wait()
    saved.exact = SimpleNamespace()
    saved.trainer.policy.load_checkpoint = lambda path: None
    with pytest.raises(ConfigError, match=r"not written by run.mode = serial.*go on without run.mode=serial"):
        saved.resume(None, lambda queued: None)
    assert Checkpoints(tmp_path, 2).latest() == tmp_path / "step_00000003"


def test_only_the_rank_with_the_stream_asks_for_the_buffer(tmp_path: Path) -> None:
    saved = make(tmp_path, lambda path: pytest.fail("a second rank wrote it too"))
    saved.save(3, None)
    saved.wait()
    assert not (tmp_path / "step_00000003" / "tasks.sqlite").exists()


@pytest.mark.parametrize("when", ["before", "meanwhile"])
def test_a_checkpoint_without_time_for_an_export_is_complete_and_has_none(tmp_path: Path, when: str) -> None:
    stream: Any = FakeStream()
    saved = make(tmp_path, lambda path: path.write_text("tasks"))
    asked = 0

    def hurried() -> bool:
        nonlocal asked
        asked += 1
        return when == "before" or asked > 1

    saved.hurried = hurried
    saved.save(3, stream)
    saved.wait()
    newest = Checkpoints(tmp_path, 2).latest()
    assert newest is not None and not (newest / "hf").exists() and (newest / "model" / "weight").exists()


class Attempt:
    """One attempt of a run, stopped after `events` arrivals and steps; real loop, gate, queue and checkpoints.

    Training only counts: the weight is the version.
    """

    def __init__(self, folder: Path, events: int, every: int, staleness: int, gives_up: bool) -> None:
        self.ranks = Ranks()
        self.time = TimeLedger(LEARNER_PARTS)
        self.policy = FakePolicy(folder)
        self.gate = Gate(BATCH, staleness, solutions=2)
        self.time = TimeLedger(LEARNER_PARTS)
        self.version = 0
        self.left = events
        self.gives_up = gives_up
        self.settings = LearnerSettings(steps=1000, max_staleness=staleness, checkpoint_every=every, batch=BATCH)
        self.settings = self.settings.model_copy(update={"checkpoint_minutes": 0.0})
        self.come: list[int] = []
        self.steps: dict[int, list[int]] = {}
        self.actors = Slow(self.gate, self)
        trainer: Any = self
        self.saved = Saved(Checkpoints(folder, 2), trainer, lambda path: path.write_text("tasks"))

    def spend(self) -> bool:
        self.left -= 1
        return self.left < 0

    def learn(self) -> None:
        stream: Any = self.actors
        trainer: Any = self
        self.saved.resume(stream, self.actors.queue.restore)
        hooks = Hooks(
            interrupted=lambda: self.left < 0,
            on_step=lambda metrics, batch: self.steps.update({int(metrics["step"]): [t.slot for t in batch]}),
            save=lambda version: self.saved.save(version, stream),
            unsaved=lambda: self.saved.unsaved(stream),
            gives_up_step=lambda: self.gives_up and self.spend(),
        )
        learn(trainer, stream, trainer, self.settings, hooks)
        self.saved.wait()

    def train(
        self,
        batch: Sequence[Trajectory],
        fresh: Callable[[], Sequence[Trajectory]],
        gives_up: Callable[[], bool],
    ) -> dict[str, float]:
        if gives_up():
            raise StepGivenUp
        self.version += 1
        self.policy.weight = torch.full((2,), float(self.version))
        return {}

    def publish(self, version: int) -> dict[str, float]:
        for seat in self.actors.seats:
            seat.loaded_version = version
        return {}

    def close(self) -> None:
        """Nothing to close."""


class Slow(Actors):
    """They answer one slot at a time, and what they hold when the run stops is lost with them."""

    def __init__(self, gate: Gate, attempt: Attempt) -> None:
        super().__init__(gate)
        self.attempt = attempt
        self.held: list[tuple[Seat, Grant, int]] = []

    def next_batch(self, timeout_s: float, interrupt: Callable[[], bool]) -> list[Trajectory] | None:
        while not interrupt():
            if (batch := self.queue.batch()) is not None:
                return batch
            for seat, grant in self.turns.grants(self.seats):
                self.held += [(seat, grant, slot) for slot in reversed(grant.slots)]
            seat, grant, slot = self.held.pop(len(self.held) // 2)
            self.answer(seat, Grant(grant.episode, grant.kind, grant.batch, *_only(grant, slot)))
            self.attempt.come.append(slot)
            self.attempt.spend()
        return None

    def play(self) -> int:
        return 0  # nothing comes while weights are published


def _only(grant: Grant, slot: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
    return ((slot,), ()) if slot in grant.propose else ((), (slot,))


@examples(60)
@given(
    st.lists(st.tuples(st.integers(0, 40), st.booleans()), min_size=1, max_size=5),
    st.integers(0, 3),
    st.integers(0, 2),
)
def test_whenever_a_run_is_stopped_its_checkpoint_accounts_for_all_that_had_come_in(
    stops: list[tuple[int, bool]], every: int, staleness: int
) -> None:
    with tempfile.TemporaryDirectory() as directory:
        come: list[int] = []
        trained: Counter[int] = Counter()
        steps: list[int] = []
        for events, gives_up in stops:
            attempt = Attempt(Path(directory), events, every, staleness, gives_up)
            attempt.learn()
            come += attempt.come
            steps += attempt.steps
            trained.update(slot for slots in attempt.steps.values() for slot in slots)
            kept = Attempt(Path(directory), 0, every, staleness, False)
            stream: Any = kept.actors
            assert kept.saved.resume(stream, kept.actors.queue.restore) == attempt.version
            assert kept.policy.weight.tolist() == [float(attempt.version)] * 2
            assert steps == list(range(1, attempt.version + 1)), "no step twice, and none is missing"
            assert max(trained.values(), default=1) == 1, "nothing is trained twice"
            assert sorted([*trained, *(t.slot for t in kept.actors.queued())]) == sorted(come)
            ledger = kept.gate.ledger()
            assert conserved(ledger) and totals(ledger)["trained"] == trained.total()
