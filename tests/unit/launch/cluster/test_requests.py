"""Requests to a running driver: over its real socket, to a whole supervisor over a Ray that the test answers for."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from launch.cluster import control
from launch.cluster.control import ControlError
from launch.cluster.placement import Node
from launch.cluster.requests import Requests
from launch.cluster.supervisor import Supervisor
from launch.config import Config
from launch.run.folder import RunFolder
from launch.run.scratch import scratch
from launch.run.status import RunStatus
from launch.settings import RunSettings
from launch.workloads.model import ModelWorkload
from learner.phase import Phase
from tests.unit.launch.cluster.fake_ray import Clock, FakeRay


class Driver:
    """A driver whose requests are served when the test says so."""

    def __init__(self, folder: Path) -> None:
        config = Config(run=RunSettings(dir=str(folder), name="first"))
        self.folder = config.folder
        self.ray = FakeRay((Node("here", num_cpus=8),))
        self.ray.always |= {
            "buffer.0.open": None,
            "buffer.0.metrics": {},
            "learner0.0.listening": "tcp://127.0.0.1:5",
            "learner0.0.status": RunStatus(phase=Phase.WAITING_FOR_BATCH, members=("rollout0",), loaded=("rollout0",)),
        }
        run_folder = RunFolder(self.folder)
        run_folder.create()
        self.supervisor = Supervisor(config, run_folder, self.ray, lambda text: None, ModelWorkload(), Clock())
        self.supervisor.start(resume=False)
        self.requests = Requests(config, self.ray)
        self.poll()

    def poll(self) -> None:
        for _ in range(2):
            assert not self.supervisor.poll()
            self.requests.serve(self.supervisor)


@pytest.fixture
def driver(tmp_path: Path) -> Iterator[Driver]:
    driver = Driver(tmp_path / "runs")
    with scratch(driver.folder), driver.requests.accepted():
        yield driver


def test_actors_are_added_on_the_supervisors_thread(driver: Driver) -> None:
    assert control.ask(driver.folder, "scale", actors=3) == {"actors": 3}
    assert sorted(driver.supervisor.processes("actor")) == [0]
    driver.poll()
    assert sorted(driver.supervisor.processes("actor")) == [0, 1, 2]


@pytest.mark.parametrize(
    ("actors", "why"),
    [(0, "a whole number from 1 on"), (True, "a whole number"), ("2", "a whole number"), (8, "rollout7 does not fit")],
)
def test_what_cannot_be_is_refused_and_changes_nothing(driver: Driver, actors: object, why: str) -> None:
    with pytest.raises(ControlError, match=why):
        control.ask(driver.folder, "scale", actors=actors)
    driver.poll()
    assert sorted(driver.supervisor.processes("actor")) == [0]


def test_a_verification_is_begun_followed_and_reported(driver: Driver) -> None:
    assert control.ask(driver.folder, "verify") == {"number": 0}
    assert control.ask(driver.folder, "verified", number=0)["waits_for"] == "the run's driver"
    driver.poll()
    assert control.ask(driver.folder, "verified", number=0)["waits_for"] == "the learner's next publication"
    driver.ray.always |= {"learner0.0.digests": {4: {"a": "1"}}, "rollout0.0.checksums": (4, {"a": "1"})}
    driver.poll()
    assert control.ask(driver.folder, "verified", number=0) == {
        "done": True,
        "waits_for": "",
        "results": {"rollout0": {"version": 4, "tensors": 1, "different": []}},
    }


def test_a_verification_that_was_never_begun_is_refused(driver: Driver) -> None:
    with pytest.raises(ControlError, match="no verification number 3"):
        control.ask(driver.folder, "verified", number=3)
