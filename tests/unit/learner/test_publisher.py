"""Publishing over the real stream and the real weight groups (gloo): who gets which weights, and who is counted out."""

from __future__ import annotations

import asyncio
import time
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
from learner.weights.delta import DeltaDecoder, Header
from learner.weights.group import GroupSpec, WeightSyncError
from learner.weights.manifest import manifest_from_json
from learner.weights.transfer import Delta, WeightReceiver, WeightSender
from tests.unit.learner.stream.streaming import BATCH, DEADLINE_S
from tests.waiting import wait_until

Weights = dict[str, torch.Tensor]


@dataclass
class Policy:
    """The part of a policy that is published: tensors that say which version they are of."""

    version: int = 0
    layers: int = 0
    """Further tensors of a megabyte each: more than what travels without the receiver."""

    def export(self) -> Iterator[tuple[str, torch.Tensor]]:
        yield "embedding", torch.arange(6.0).reshape(2, 3) + 100 * self.version
        for index in range(self.layers):
            yield f"layer{index}", torch.full((1 << 18,), float(self.version))
        yield "head", torch.full((3,), float(self.version))


class DamagedMemory(DeltaDecoder):
    """The end of a receiver whose memory changes a bit of whatever it holds."""

    def take(self, index: int, header: Header, payload: torch.Tensor | None) -> torch.Tensor:
        if payload is not None:
            payload.view(torch.uint8)[3] ^= 1
        return super().take(index, header, payload)


@dataclass
class Actor:
    """An engine without a model: joins groups, receives weights, and says so."""

    actor_id: str
    joins: bool = True
    """Otherwise it ends when it is asked to join a group."""
    loads: bool = True
    """Otherwise it fails after it has received the weights."""
    dies_at: int = -1
    """The version in whose broadcast its last worker ends, after the first tensors, and it with it."""
    damaged_at: int = -1
    """The version before which a bit of the weights that it keeps is flipped, once."""
    always_damaged: bool = False
    """Whether its last worker has damaged memory."""
    workers: int = 1
    """Ranks that it takes in the group, each of which receives everything."""
    said: list[str] = field(default_factory=list)
    weights: dict[int, list[Weights]] = field(default_factory=dict)
    """By version, what each worker has."""

    async def live(self, endpoint: str) -> None:
        client = StreamClient(endpoint, self.actor_id, 0, capacity=4, learner_silent_s=1.0, learner_timeout_s=8.0)
        receivers = [WeightReceiver() for _ in range(self.workers)]
        if self.always_damaged:
            receivers[-1] = WeightReceiver(decoder=DamagedMemory())
        manifest: list[Any] = []
        group = 0
        try:
            await client.connect(DEADLINE_S)
            async for message in client.messages():
                self.said.append(message["type"])
                if message["type"] == "join" and not self.joins:
                    return  # as a process that dies
                if message["type"] == "weights" and message["version"] == self.dies_at:
                    await asyncio.to_thread(lambda: next(receivers[-1].receive(manifest)))
                    return
                if message["type"] == "manifest":
                    manifest = manifest_from_json(message["manifest"])
                if message["type"] == "join":
                    group = message["spec"]["group_id"]
                try:
                    await self.obey(message, client, receivers, manifest)
                except Exception as error:
                    await client.send_load_failed(group, str(error), isinstance(error, WeightSyncError))
                if message["type"] == "shutdown":
                    return
        finally:
            for receiver in receivers:
                receiver.close()
            client.close()

    async def obey(
        self, message: dict[str, Any], client: StreamClient, receivers: list[WeightReceiver], manifest: list[Any]
    ) -> None:
        def take(receiver: WeightReceiver) -> Weights:
            return {name: tensor.clone() for name, tensor in receiver.receive(manifest)}

        if message["type"] == "join":
            spec, first = GroupSpec.from_json(message["spec"]), message["rank"]
            ranks = enumerate(receivers, first)
            await asyncio.gather(*(asyncio.to_thread(one.connect, spec, rank) for rank, one in ranks))
        elif message["type"] == "weights":
            if message["version"] == self.damaged_at:
                self.damaged_at = -1
                kept = receivers[-1]._decoder._contents[0]
                assert kept is not None
                kept.view(torch.uint8)[3] ^= 1
            found = await asyncio.gather(*(asyncio.to_thread(take, one) for one in receivers))
            if not self.loads:
                raise MemoryError("no room for the new weights")
            self.weights[message["version"]] = found
            await client.send_loaded(message["version"], {"load_s": 0.25})


class World:
    """One learner and its actors, each with a loop of its own."""

    def __init__(self, pool: ThreadPoolExecutor, timeout_s: float, layers: int, delta: Delta, workers: int) -> None:
        self.events: list[dict[str, Any]] = []
        self.server = StreamServer(
            Gate(BATCH, 1, solutions=1),
            "run",
            on_event=lambda name, **details: self.events.append(details | {"name": name}),
        )
        self.policy = Policy(layers=layers)
        self.sender = WeightSender(timeout_s=timeout_s, bucket_bytes=1 << 20, delta=delta)
        self.publisher = GroupPublisher(
            self.policy,  # type: ignore[arg-type]
            Ranks(),
            self.server,
            self.sender,
            workers,
        )
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

        def make(timeout_s: float = DEADLINE_S, layers: int = 0, delta: Delta = "off", workers: int = 1) -> World:
            worlds.append(World(pool, timeout_s, layers, delta, workers))
            return worlds[-1]

        yield make
        for each in worlds:
            each.close()


def assert_runs(actor: Actor, version: int, layers: int = 0) -> None:
    expected = dict(Policy(version, layers).export())
    assert len(actor.weights[version]) == actor.workers
    for weights in actor.weights[version]:
        assert weights.keys() == expected.keys()
        assert all(torch.equal(weights[name], tensor) for name, tensor in expected.items())


def lost(world: World) -> dict[str, str]:
    return {event["actor"]: event["why"] for event in world.events if event["name"] == "actor_lost"}


@pytest.mark.parametrize("workers", [1, 2])
def test_every_actor_gets_each_version_through_one_group(world: Callable[..., World], workers: int) -> None:
    here, actors = world(workers=workers), [Actor("a", workers=workers), Actor("b", workers=workers)]
    here.add(*actors)
    for version in range(3):
        phases = here.publish(version)
        assert {"connect_s", "ready_s", "transfer_s", "send_s", "wait_loaded_s"} <= phases.keys()
        assert [m.loaded_version for m in here.server.members()] == [version, version]
    for actor in actors:
        assert_runs(actor, 2)
        assert actor.said.count("join") == 1, "membership did not change"
        assert actor.said.count("manifest") == 1, "it is long: 20,000 tensors are a megabyte"
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
    assert (first.said.count("manifest"), second.said.count("manifest")) == (1, 1)
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


@pytest.mark.slow
@pytest.mark.parametrize("workers", [1, 2])
def test_who_survives_a_broken_broadcast_is_not_blamed_for_it(world: Callable[..., World], workers: int) -> None:
    here = world(layers=32, workers=workers)
    sound, dying = Actor("sound", workers=workers), Actor("dying", dies_at=2, workers=workers)
    here.add(dying, sound)
    here.publish(1)
    here.publish(2)
    assert set(lost(here)) == {"dying"}
    assert [m.loaded_version for m in here.server.members()] == [2]
    assert sound.said.count("join") == 2
    assert_runs(sound, 2, layers=32)


def test_sparse_updates_reach_every_actor_and_what_is_damaged_is_sent_again_whole(world: Callable[..., World]) -> None:
    here, sound, damaged = world(delta="auto"), Actor("sound"), Actor("damaged")
    here.add(sound, damaged)
    sent = []
    for number in range(4):
        damaged.damaged_at = 1 if number == 2 else -1
        phases = here.publish(1)
        sent.append((phases["bytes"] - 40, phases["sparse_bytes"]))  # one bucket with its header
        assert_runs(sound, 1)
        assert_runs(damaged, 1)
    assert sent == [(36, 0), (0, 36), (36, 0), (0, 36)], "an update that was refused does not count"
    assert damaged.said.count("join") == 2, "the whole update went through a group of its own"
    assert not lost(here)


@pytest.mark.parametrize("workers", [1, 2])
def test_an_actor_that_refuses_whole_updates_is_lost_alone(world: Callable[..., World], workers: int) -> None:
    here = world(delta="auto", workers=workers)
    sound, damaged = Actor("sound", workers=workers), Actor("damaged", workers=workers, always_damaged=True)
    here.add(damaged, sound)
    here.publish(1)
    assert set(lost(here)) == {"damaged"}
    assert "the digest of bucket 0 is not the sender's" in lost(here)["damaged"]
    assert_runs(sound, 1)


def test_an_actor_that_is_to_leave_stays_until_the_weights_are_out(world: Callable[..., World]) -> None:
    here, staying, leaving = world(), Actor("staying"), Actor("leaving")
    here.add(staying, leaving)
    here.publish(1)
    here.server.hold_departures()
    here.server.retire("leaving")
    with here.server.frozen():
        here.server._members.tick(time.monotonic())
        assert not any(member.dismissed for member in here.server.members())
    here.publish(2)
    assert_runs(leaving, 2)
    wait_until(lambda: "leaving" in {e["actor"] for e in here.events if e["name"] == "actor_left"})
    here.publish(3)
    assert_runs(staying, 3)
    assert 3 not in leaving.weights and not lost(here)


def test_an_actor_that_was_told_to_stop_is_sent_no_more_weights(world: Callable[..., World]) -> None:
    here, staying, leaving = world(), Actor("staying"), Actor("leaving")
    here.add(staying, leaving)
    here.publish(1)
    here.server.retire("leaving")
    for version in range(2, 6):  # whichever of these it is told in between
        here.publish(version)
        assert_runs(staying, version)
    wait_until(lambda: any(e["name"] == "actor_left" for e in here.events))
    assert not lost(here)


def test_a_failure_in_an_earlier_group_counts_no_more(world: Callable[..., World]) -> None:
    here, actor = world(), Actor("a")
    here.add(actor)
    here.publish(1)
    (member,) = here.server.members()
    with here.server.frozen():
        here.server._members.load_failed(member, here.sender._group_id - 1, False, "long ago")
    assert here.server.load_failures() == {}
    here.publish(2)
    assert_runs(actor, 2)


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
