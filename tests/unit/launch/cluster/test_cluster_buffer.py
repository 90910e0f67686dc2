"""The supervisor's watch over the task buffer, without Ray's processes."""

from __future__ import annotations

import asyncio
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import ray

from actors.buffer.remote import RemoteBuffer
from launch.cluster.buffer_actor import ask_buffer
from launch.cluster.buffer_process import SILENT_S, BufferProcess
from launch.cluster.context import RunContext, RunFailed
from launch.cluster.places import Places
from launch.config import Config
from launch.run.folder import RunFolder
from launch.settings import SupervisionSettings
from launch.workloads.model import ModelWorkload
from tests.unit.launch.cluster.fake_ray import Clock, FakeRay


@pytest.fixture
def ray_port() -> FakeRay:
    return FakeRay()


@pytest.fixture
def clock() -> Clock:
    return Clock(100.0)


@pytest.fixture
def buffer(tmp_path: Path, ray_port: FakeRay, clock: Clock) -> BufferProcess:
    config = Config(supervision=SupervisionSettings(max_buffer_restarts=1))
    folder = RunFolder(tmp_path)
    folder.create()
    places = Places(config, ray_port, lambda text: None, clock)
    places.settle()
    process = BufferProcess(RunContext(config, folder, ray_port, lambda text: None, ModelWorkload(), clock), places)
    ray_port.always["buffer.0.open"] = None
    process.start(resume=False)
    process.wait_until_open(1.0)
    return process


def test_it_is_asked_once_a_second(buffer: BufferProcess, ray_port: FakeRay, clock: Clock) -> None:
    ray_port.always["buffer.0.metrics"] = {}
    for _ in range(40):
        buffer.poll()
        clock.now += 0.1
    assert ray_port.count("buffer.0", "metrics") in (3, 4), "4 seconds"


@pytest.mark.parametrize(
    "error", [ray.exceptions.ActorDiedError(), ray.exceptions.RayError("OperationalError: disk full")]
)
def test_its_failure_ends_the_run(buffer: BufferProcess, ray_port: FakeRay, error: Exception) -> None:
    ray_port.always["buffer.0.metrics"] = error
    buffer.poll()
    with pytest.raises(RunFailed, match=r"the task buffer failed: (.|\n)*buffer\.0\.log"):
        buffer.poll()


def test_a_file_that_cannot_be_opened_ends_the_run(buffer: BufferProcess, ray_port: FakeRay) -> None:
    ray_port.always["buffer.0.open"] = OSError("disk full")
    with pytest.raises(RunFailed, match=r"the task buffer failed: OSError: disk full"):
        buffer.wait_until_open(1.0)


def test_its_silence_starts_it_again_and_then_ends_the_run(
    buffer: BufferProcess, ray_port: FakeRay, clock: Clock
) -> None:
    buffer.poll()
    clock.now += SILENT_S - 1
    buffer.poll()
    assert not ray_port.killed
    clock.now += 2
    buffer.poll()
    assert ray_port.killed == ray_port.restarted == ["buffer.0"] and not buffer.is_answering
    clock.now += 2
    buffer.poll()
    clock.now += SILENT_S + 1
    with pytest.raises(RunFailed, match="has not answered for 60 s"):
        buffer.poll()


def test_one_restart_by_ray_counts_once_however_often_it_is_asked_meanwhile(
    buffer: BufferProcess, ray_port: FakeRay, clock: Clock
) -> None:
    ray_port.always["buffer.0.metrics"] = ray.exceptions.ActorUnavailableError("it starts again", None)
    for _ in range(20):
        buffer.poll()
        clock.now += 1.5
    assert buffer.restarts == 1 and not buffer.is_answering
    ray_port.always["buffer.0.metrics"] = {"buffer/deduction": 3.0}
    for _ in range(3):
        buffer.poll()
        clock.now += 1.5
    assert buffer.is_answering and buffer.metrics == {"buffer/deduction": 3.0}


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
