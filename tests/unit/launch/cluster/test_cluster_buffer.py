"""The supervisor's watch over the task buffer, without Ray's processes."""

from __future__ import annotations

import asyncio
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import ray

from actors.buffer import RemoteBuffer
from launch.cluster import supervisor as supervision
from launch.cluster.budget import FailureBudget
from launch.cluster.buffer_actor import ask_buffer
from launch.config import Config
from launch.run.folder import RunFolder


class FakeRay:
    """Answers of the buffer's `metrics`, one a request; None: no answer yet; an exception: that is the answer."""

    def __init__(self, *answers: Any) -> None:
        self.answers = list(answers)
        self.asked = 0
        self.now = 100.0
        self.killed = 0

    def remote(self) -> int:
        self.asked += 1
        return self.asked

    def wait(self, refs: list[int], timeout: float) -> tuple[list[int], list[int]]:
        return (refs, []) if self.answers[0] is not None else ([], refs)

    def kill(self, actor: Any, no_restart: bool) -> None:
        assert not no_restart
        self.killed += 1

    def get(self, ref: int) -> Any:
        answer = self.answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer


@pytest.fixture
def supervisor(tmp_path: Path) -> Any:
    supervisor: Any = supervision.Supervisor.__new__(supervision.Supervisor)
    supervisor._folder = RunFolder(tmp_path)
    supervisor._asked, supervisor._asked_at = None, 0.0
    supervisor._config = Config()
    supervisor._buffer_budget = FailureBudget(1, 3600.0)
    supervisor._console = SimpleNamespace(say=lambda text: None)
    return supervisor


def watch(supervisor: Any, fake: FakeRay, monkeypatch: pytest.MonkeyPatch) -> Any:
    supervisor.buffer = SimpleNamespace(metrics=fake)
    module = SimpleNamespace(wait=fake.wait, get=fake.get, kill=fake.kill, exceptions=ray.exceptions)
    monkeypatch.setattr(supervision, "ray", module)
    monkeypatch.setattr(supervision, "time", SimpleNamespace(monotonic=lambda: fake.now))
    return supervisor._watch_buffer


def test_it_asks_once_a_second(supervisor: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    fake = FakeRay({}, {}, {}, {})
    poll = watch(supervisor, fake, monkeypatch)
    for _ in range(40):
        poll()
        fake.now += 0.1
    assert fake.asked in (3, 4), "4 seconds"


@pytest.mark.parametrize(
    "error", [ray.exceptions.ActorDiedError(), ray.exceptions.RayError("OperationalError: disk full")]
)
def test_its_failure_ends_the_run(supervisor: Any, monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    poll = watch(supervisor, FakeRay(error), monkeypatch)
    poll()
    with pytest.raises(supervision.RunFailed, match=r"the task buffer failed: (.|\n)*buffer\.0\.log"):
        poll()


def test_its_silence_starts_it_again_and_then_ends_the_run(supervisor: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    fake = FakeRay(None)
    poll = watch(supervisor, fake, monkeypatch)
    poll()
    fake.now += supervision.BUFFER_SILENT_S - 1
    poll()
    assert not fake.killed
    fake.now += 2
    poll()
    assert fake.killed == 1 and not supervisor._buffer_is_back
    fake.now += 2
    poll()
    fake.now += supervision.BUFFER_SILENT_S + 1
    with pytest.raises(supervision.RunFailed, match="has not answered for 60 s"):
        poll()


class Restarting:
    """A task buffer that answers `metrics` as it is told: an exception is raised, None is never answered."""

    def __init__(self, *answers: Any) -> None:
        self.answers = list(answers)
        self.metrics = SimpleNamespace(remote=self._answer)

    async def _answer(self) -> Any:
        answer = self.answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer if answer is not None else await asyncio.Event().wait()


def test_a_request_is_made_again_while_the_buffer_starts_again() -> None:
    gone = ray.exceptions.ActorUnavailableError("it starts again", None)
    assert ask_buffer(Restarting(gone, gone, {"buffer/deduction": 3.0}), "metrics") == {"buffer/deduction": 3.0}


def test_what_a_request_fails_with_is_raised_at_once() -> None:
    with pytest.raises(ray.exceptions.ActorDiedError):
        ask_buffer(Restarting(ray.exceptions.ActorDiedError()), "metrics")


def test_a_buffer_that_does_not_answer_is_not_waited_for_for_ever() -> None:
    with pytest.raises(TimeoutError, match="did not answer 'metrics' for 0 s"):
        asyncio.run(RemoteBuffer(Restarting(None), patience_s=0.05).ask("metrics"))
