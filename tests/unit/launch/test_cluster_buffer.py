"""The supervisor's watch over the task buffer, without Ray's processes."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import ray

from launch import supervisor as supervision
from launch.recorder import RunFolder


class FakeRay:
    """Answers of the buffer's `metrics`, one a request; None: no answer yet; an exception: that is the answer."""

    def __init__(self, *answers: Any) -> None:
        self.answers = list(answers)
        self.asked = 0
        self.now = 100.0

    def remote(self) -> int:
        self.asked += 1
        return self.asked

    def wait(self, refs: list[int], timeout: float) -> tuple[list[int], list[int]]:
        return (refs, []) if self.answers[0] is not None else ([], refs)

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
    return supervisor


def watch(supervisor: Any, fake: FakeRay, monkeypatch: pytest.MonkeyPatch) -> Any:
    supervisor.buffer = SimpleNamespace(metrics=fake)
    module = SimpleNamespace(wait=fake.wait, get=fake.get, exceptions=ray.exceptions)
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


def test_its_silence_ends_the_run(supervisor: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    fake = FakeRay(None)
    poll = watch(supervisor, fake, monkeypatch)
    poll()
    fake.now += supervision.BUFFER_TIMEOUT_S - 1
    poll()
    fake.now += 2
    with pytest.raises(supervision.RunFailed, match="has not answered for 60 s"):
        poll()
