"""Publishing over the real stream and the real weight groups (gloo): who gets which weights, and who is counted out."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch

from learner.publisher import GroupPublisher
from learner.ranks import Ranks
from learner.staleness import Gate
from learner.stream.client import StreamClient
from learner.stream.server import StreamServer
from learner.weights.group import GroupSpec
from learner.weights.manifest import manifest_from_json
from learner.weights.transfer import WeightReceiver, WeightSender
from tests.unit.learner.stream.streaming import BATCH, DEADLINE_S

Weights = dict[str, torch.Tensor]


@dataclass
class Policy:
    """The part of a policy that is published: two tensors that say which version they are of."""

    version: int = 0

    def export(self) -> Iterator[tuple[str, torch.Tensor]]:
        yield "embedding", torch.arange(6.0).reshape(2, 3) + 100 * self.version
        yield "head", torch.full((3,), float(self.version))


@dataclass
class Actor:
    """An engine without a model: joins groups, receives weights, and says so."""

    actor_id: str
    joins: bool = True
    """Otherwise it ends when it is asked to join a group."""
    loads: bool = True
    """Otherwise it fails after it has received the weights."""
    said: list[str] = field(default_factory=list)
    weights: dict[int, Weights] = field(default_factory=dict)

    async def live(self, endpoint: str) -> None:
        client = StreamClient(endpoint, self.actor_id, 0, capacity=4, learner_silent_s=1.0, learner_timeout_s=4.0)
        receiver = WeightReceiver()
        try:
            await client.connect(DEADLINE_S)
            async for message in client.messages():
                self.said.append(message["type"])
                if message["type"] == "join" and not self.joins:
                    return  # as a process that dies
                try:
                    await self.obey(message, client, receiver)
                except Exception as error:
                    await client.send_load_failed(int(message.get("version", -1)), str(error))
                if message["type"] == "shutdown":
                    return
        finally:
            receiver.close()
            client.close()

    async def obey(self, message: dict[str, Any], client: StreamClient, receiver: WeightReceiver) -> None:
        if message["type"] == "join":
            await asyncio.to_thread(receiver.connect, GroupSpec.from_json(message["spec"]), message["rank"])
        elif message["type"] == "weights":
            manifest = manifest_from_json(message["manifest"])
            found = await asyncio.to_thread(lambda: {name: t.clone() for name, t in receiver.receive(manifest)})
            if not self.loads:
                raise MemoryError("no room for the new weights")
            self.weights[message["version"]] = found
            await client.send_loaded(message["version"], {"load_s": 0.25})


class World:
    """One learner and its actors, each with a loop of its own."""

    def __init__(self, pool: ThreadPoolExecutor, timeout_s: float) -> None:
        self.events: list[dict[str, Any]] = []
        self.server = StreamServer(
            Gate(BATCH, 1, solutions=1),
            "run",
            on_event=lambda name, **details: self.events.append(details | {"name": name}),
        )
        self.policy = Policy()
        self.sender = WeightSender(timeout_s=timeout_s)
        self.publisher = GroupPublisher(self.policy, Ranks(), self.server, self.sender, workers=1)  # type: ignore[arg-type]
        self._pool = pool
        self._lives: list[Any] = []

    def add(self, *actors: Actor) -> None:
        for actor in actors:
            before = len(self.server.members())
            self._lives.append(self._pool.submit(asyncio.run, actor.live(self.server.endpoint)))
            self.server.wait_for_members(before + 1, DEADLINE_S)

    def publish(self, version: int) -> dict[str, float]:
        self.policy.version = version
        return self.publisher.publish(version)

    def close(self) -> None:
        self.publisher.close()
        self.server.close()
        for life in self._lives:
            life.exception(DEADLINE_S)


@pytest.fixture
def world() -> Iterator[Callable[..., World]]:
    worlds: list[World] = []
    with ThreadPoolExecutor(8) as pool:

        def make(timeout_s: float = DEADLINE_S) -> World:
            worlds.append(World(pool, timeout_s))
            return worlds[-1]

        yield make
        for each in worlds:
            each.close()


def assert_runs(actor: Actor, version: int) -> None:
    expected = dict(Policy(version).export())
    assert actor.weights[version].keys() == expected.keys()
    assert all(torch.equal(actor.weights[version][name], tensor) for name, tensor in expected.items())


def lost(world: World) -> dict[str, str]:
    return {event["actor"]: event["why"] for event in world.events if event["name"] == "actor_lost"}


def test_every_actor_gets_each_version_through_one_group(world: Callable[..., World]) -> None:
    here, actors = world(), [Actor("a"), Actor("b")]
    here.add(*actors)
    for version in range(3):
        phases = here.publish(version)
        assert {"connect_s", "ready_s", "transfer_s", "send_s", "wait_loaded_s"} <= phases.keys()
        assert [m.loaded_version for m in here.server.members()] == [version, version]
    for actor in actors:
        assert_runs(actor, 2)
        assert actor.said.count("join") == 1, "membership did not change"
    assert not lost(here)


def test_an_actor_that_joins_is_brought_to_the_present_version_in_a_new_group(world: Callable[..., World]) -> None:
    here, first, second = world(), Actor("a"), Actor("b")
    here.add(first)
    here.publish(4)
    assert not here.server.newcomers()
    here.add(second)
    assert here.server.newcomers()
    here.publish(4)
    assert not here.server.newcomers()
    assert_runs(second, 4)
    assert (first.said.count("join"), second.said.count("join")) == (2, 1)
    assert here.sender._spec is not None and here.sender._spec.world_size == 3


@pytest.mark.slow
def test_an_actor_that_cannot_load_is_lost_with_its_reason_and_the_others_go_on(world: Callable[..., World]) -> None:
    here, sound, full = world(), Actor("sound"), Actor("full", loads=False)
    here.add(sound, full)
    here.publish(1)
    assert lost(here) == {"full": "no room for the new weights"}
    assert [m.holder.actor_id for m in here.server.members()] == ["sound"]
    here.publish(2)
    assert_runs(sound, 2)


@pytest.mark.slow
def test_an_actor_that_dies_before_it_joins_is_counted_out_by_name_and_the_broadcast_goes_on(
    world: Callable[..., World],
) -> None:
    here, sound, absent = world(timeout_s=3.0), Actor("sound"), Actor("absent", joins=False)
    here.add(absent, sound)
    here.publish(1)
    assert set(lost(here)) == {"absent"}
    assert "waited 3.0 s for ranks [1]" in lost(here)["absent"]
    assert_runs(sound, 1)


def test_with_nobody_there_nothing_is_sent(world: Callable[..., World]) -> None:
    here = world()
    assert here.publish(1).keys() == {"connect_s"}


def test_what_the_export_yields_out_of_order_is_an_error_and_no_version(world: Callable[..., World]) -> None:
    here, actor = world(timeout_s=3.0), Actor("a")
    here.add(actor)
    here.publish(0)
    export = here.policy.export
    here.policy.export = lambda: reversed(list(export()))  # type: ignore[assignment, method-assign]
    with pytest.raises(ValueError, match="the manifest says"):
        here.publish(1)
    assert 1 not in actor.weights
