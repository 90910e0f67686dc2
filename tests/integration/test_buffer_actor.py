"""The task buffer as a Ray actor: the same answers as the store, snapshots beside requests, failures that surface."""

from __future__ import annotations

import asyncio
import sqlite3
import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import ray

from actors.buffer.remote import RemoteBuffer
from actors.buffer.task_buffer import Added, NewTask, TaskBuffer
from executor.tasks import Task
from launch.cluster.buffer_actor import BufferActor, options
from launch.cluster.placement import Assignment, Needs, Part
from launch.cluster.ray_port import Ray
from launch.config import Config
from launch.run.folder import RunFolder
from launch.settings import RunSettings

pytestmark = [pytest.mark.integration, pytest.mark.timeout(300)]


@pytest.fixture(scope="module", autouse=True)
def cluster() -> Iterator[None]:
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, _node_ip_address="127.0.0.1")
    yield
    ray.shutdown()


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    folder = RunFolder(tmp_path / "run")
    folder.create()
    return folder


@pytest.fixture
def actor(folder: RunFolder) -> Iterator[Any]:
    config = Config(run=RunSettings(name="run"))
    assignment = Assignment(Part.BUFFER, 0, Ray().nodes()[0].name, Needs(num_cpus=0))
    actor = Ray().start(assignment, BufferActor, config, folder, **options(max_restarts=3))
    ray.get(actor.open.remote(False))
    yield actor
    ray.kill(actor)


def make(number: int) -> Task:
    return Task("deduction", f"def f(x): return {number}", ("1",), (str(number),))


def new(number: int) -> NewTask:
    task = make(number)
    return NewTask(task, normal=task.program, proposer_version=0, episode_id="e", references=(1,))


def test_many_callers_get_what_the_store_gives(actor: Any, folder: RunFolder, tmp_path: Path) -> None:
    remote = RemoteBuffer(actor)

    async def story() -> None:
        added = await asyncio.gather(*(remote.add(new(n)) for n in range(400)))
        assert sorted(one.task_id for one in added) == list(range(3, 403))
        assert await remote.add(new(7)) == Added(added[7].task_id, False), "a proposal whose answer was lost"
        assert await remote.add(replace(new(7), episode_id="another")) == Added(added[7].task_id, True)
        await asyncio.gather(*(remote.record(task_id, 1, 8, 3) for task_id in range(3, 403)))
        await remote.rewarded(3, 0.5)
        with pytest.raises(KeyError):
            await remote.rewarded(999, 0.5)

    asyncio.run(story())
    snapshot = tmp_path / "copy.sqlite"
    ray.get(actor.snapshot.remote(snapshot))
    copy = TaskBuffer(snapshot)
    for seed in ("a", "b"):
        assert asyncio.run(remote.references(("deduction",), 6, seed)) == copy.references(("deduction",), 6, seed)
        assert asyncio.run(remote.replay("deduction", seed)) == copy.replay("deduction", seed)
    assert ray.get(actor.metrics.remote()) == ray.get(actor.counts.remote()) == copy.metrics()
    copy.close()
    with closing(sqlite3.connect(snapshot)) as database:
        assert database.execute("SELECT sum(attempts), sum(solved), max(reward) FROM tasks").fetchone() == (
            3200,
            1200,
            0.5,
        )


def test_a_request_that_the_file_fails_is_no_secret(actor: Any, folder: RunFolder) -> None:
    with closing(sqlite3.connect(folder.tasks)) as database:
        database.execute("CREATE TRIGGER full BEFORE INSERT ON tasks BEGIN SELECT RAISE(FAIL, 'disk full'); END")
        database.commit()
    assert ray.get(actor.metrics.remote())["buffer/deduction"] == 1
    with pytest.raises(sqlite3.Error, match="disk full"):
        asyncio.run(RemoteBuffer(actor).add(new(1)))
    with pytest.raises(sqlite3.Error, match="disk full"):
        ray.get(actor.metrics.remote())


def test_a_killed_actor_has_lost_nothing_that_it_acknowledged(actor: Any, folder: RunFolder) -> None:
    ids = [asyncio.run(RemoteBuffer(actor).add(new(n))).task_id for n in range(20)]
    ray.kill(actor)
    time.sleep(1)
    store = TaskBuffer(folder.tasks)
    assert [task_id for task_id, _ in store.references(("deduction",), 99, "s")] == [1, *ids]
    store.close()
