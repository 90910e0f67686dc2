"""The rollout actor on a real stream: what is cancelled, what fails, and what goes first."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import actors.rollout
from actors.buffer.task_buffer import LocalBuffer
from actors.engine.generation import EngineDead
from actors.environment import Environment
from actors.roles import model_roles
from actors.rollout import MAX_LOAD_FAILURES, Patience, Rollout, RolloutBroken
from actors.settings import SelfPlaySettings
from executor.judge import Judge
from executor.pool import SandboxPool
from executor.settings import ExecutorSettings
from learner.ledger import conserved, totals
from learner.staleness import Gate, Grant
from learner.stream.client import StreamClient
from learner.stream.server import StreamServer
from learner.trajectory import Role
from tests.unit.actors.scripted import Answer, Script, new_store, reply
from tests.unit.learner.stream.streaming import BATCH, DEADLINE_S, make, until


class Engine:
    """As far as the loop needs one."""

    async def set_version(self, version: int) -> None:
        pass

    async def died(self) -> None:
        await asyncio.Event().wait()

    async def update_weights(self, manifest: Any, version: int) -> dict[str, float]:
        return {"load_s": 0.0}

    def stats(self) -> dict[str, float]:
        return {}


class Player:
    """Plays each episode once it is let go; notes which were cancelled."""

    go: asyncio.Event
    cancelled: list[int]
    begun: list[str]
    seed: int | None

    def __init__(self, *args: Any, seed: int | None, **kwargs: Any) -> None:
        Player.seed = seed

    def executed(self) -> int:
        return 0

    def counts(self) -> dict[str, float]:
        return {}

    async def play(self, grant: Grant, emit: Any, give_back: Any) -> None:
        Player.begun.append("episode")
        try:
            await Player.go.wait()
        except asyncio.CancelledError:
            Player.cancelled.append(grant.episode)
            raise
        for slot in grant.propose:
            await emit(make(slot))
        for slot in grant.solve:
            await emit(make(slot, Role.SOLVE))


async def no_seeding(*args: Any) -> int:
    return 0


async def publish(server: StreamServer, version: int = 0) -> None:
    await until(lambda: bool(server.members()))
    members = server.members()
    server.send(members[0], {"type": "weights", "version": version})
    assert await asyncio.to_thread(server.wait_until_loaded, members, version, DEADLINE_S) == []
    server.mark_loaded()


@asynccontextmanager
async def played(rollout: Rollout, client: StreamClient, server: StreamServer) -> AsyncIterator[None]:
    """The actor runs while the block does, and then leaves in good order when the learner closes."""
    running = asyncio.create_task(rollout.run(DEADLINE_S))
    try:
        yield
        await asyncio.to_thread(server.close)
        await asyncio.wait_for(running, DEADLINE_S)
    finally:
        running.cancel()
        client.close()


def test_what_the_learner_cancels_is_not_played_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(actors.rollout, "Player", Player)
    monkeypatch.setattr(actors.rollout, "seed_buffer", no_seeding)
    server = StreamServer(Gate(BATCH, 1, solutions=1), "run")

    async def main() -> None:
        Player.go, Player.cancelled, Player.begun = asyncio.Event(), [], []
        client = StreamClient(server.endpoint, "a", 0, capacity=100)
        rollout = Rollout(Engine(), None, None, client, SimpleNamespace())  # type: ignore[arg-type]
        async with played(rollout, client, server):
            await publish(server)
            await until(lambda: len(client.held) == 8)
            server.lose(server.members()[0], "a test")  # it comes back, and none of its slots counts any more
            await until(lambda: len(Player.cancelled) == 4)
            await publish(server)
            await until(lambda: len(client.held) == 8)
            Player.go.set()
            await until(lambda: len(server.queued()) == 8)

    try:
        asyncio.run(main())
    finally:
        server.close()
    sums = totals(server.gate.ledger())
    assert (sums["dropped"], sums["queued"], server.gate.late) == (8, 8, 0)
    assert conserved(server.gate.ledger())


def test_an_engine_gets_the_label_of_a_version_with_its_weights_and_not_before(monkeypatch: pytest.MonkeyPatch) -> None:
    """Else `azr verify` would compare the initial model's weights with those of the version that runs elsewhere."""
    monkeypatch.setattr(actors.rollout, "Player", Player)
    monkeypatch.setattr(actors.rollout, "seed_buffer", no_seeding)
    server = StreamServer(Gate(BATCH, 0, solutions=1, version=7), "run")

    class Labelled(Engine):
        label = 0

        async def set_version(self, version: int) -> None:
            self.label = version

        async def update_weights(self, manifest: Any, version: int) -> dict[str, float]:
            labels.append(self.label)
            self.label = version
            return {"load_s": 0.0}

    labels: list[int] = []

    async def main() -> None:
        Player.go, Player.begun = asyncio.Event(), []
        client = StreamClient(server.endpoint, "a", 0, capacity=100)
        engine = Labelled()
        rollout = Rollout(engine, None, None, client, SimpleNamespace())  # type: ignore[arg-type]
        async with played(rollout, client, server):
            await publish(server, 7)
            labels.append(engine.label)

    try:
        asyncio.run(main())
    finally:
        server.close()
    assert labels == [0, 7]


def test_an_actor_whose_engine_dies_ends_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not after a number of failed episodes; its supervisor starts it again, and its slots are granted again."""
    monkeypatch.setattr(actors.rollout, "Player", Player)
    monkeypatch.setattr(actors.rollout, "seed_buffer", no_seeding)
    server = StreamServer(Gate(BATCH, 1, solutions=1), "run")

    async def main() -> None:
        Player.go, Player.cancelled, Player.begun = asyncio.Event(), [], []
        dead = asyncio.Event()

        class Dying(Engine):
            async def died(self) -> None:
                await dead.wait()
                raise EngineDead

        client = StreamClient(server.endpoint, "a", 0, capacity=100)
        rollout = Rollout(Dying(), None, None, client, SimpleNamespace())  # type: ignore[arg-type]
        running = asyncio.create_task(rollout.run(DEADLINE_S))
        try:
            await publish(server)
            await until(lambda: len(client.held) == 8)
            dead.set()
            with pytest.raises(EngineDead):
                await asyncio.wait_for(running, DEADLINE_S)
            assert len(Player.cancelled) == 4 and rollout.stats.failures == 0
        finally:
            client.close()

    try:
        asyncio.run(main())
        server.lose(server.members()[0], "its life ended")  # as the supervisor has it
    finally:
        server.close()
    sums = totals(server.gate.ledger())
    assert (sums["dropped"], sums["queued"]) == (8, 0)
    assert conserved(server.gate.ledger())


@pytest.mark.parametrize("seed", [7, None])
def test_a_seeded_actor_measures_first_and_plays_then(monkeypatch: pytest.MonkeyPatch, seed: int | None) -> None:
    """As serial mode does; without a seed the measurement goes on beside the episodes."""
    monkeypatch.setattr(actors.rollout, "Player", Player)
    monkeypatch.setattr(actors.rollout, "seed_buffer", no_seeding)
    server = StreamServer(Gate(BATCH, 0, solutions=1), "run")

    async def main() -> None:
        Player.go, Player.begun = asyncio.Event(), []
        Player.go.set()
        client = StreamClient(server.endpoint, "a", 0, capacity=100)

        class Heldout:
            measured = 0

            def undo(self, version: int) -> None:
                pass

            async def maybe_run(self, version: int, alone: bool = False) -> dict[str, float]:
                await until(lambda: bool(client.held))
                if seed is None:
                    await until(lambda: bool(Player.begun))
                else:
                    await asyncio.sleep(0.1)  # an episode that does not wait would begin
                Player.begun.append("measured")
                return {}

        settings = SimpleNamespace(heldout_wait_s=1.0)
        rollout = Rollout(Engine(), None, None, client, settings, Heldout(), seed=seed)  # type: ignore[arg-type]
        async with played(rollout, client, server):
            await publish(server)
            await until(lambda: len(server.queued()) == 4)

    try:
        asyncio.run(main())
    finally:
        server.close()
    assert Player.seed == seed
    assert (Player.begun[0] == "measured") is (seed is not None)


def test_the_last_version_is_measured_on_request_and_its_numbers_arrive(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(actors.rollout, "Player", Player)
    monkeypatch.setattr(actors.rollout, "seed_buffer", no_seeding)
    server = StreamServer(Gate(BATCH, 0, solutions=1), "run")
    asked: list[int] = []

    class Heldout:
        measured = 0

        def undo(self, version: int) -> None:
            pass

        def hurry(self) -> int | None:
            return None

        async def maybe_run(self, version: int, alone: bool = False) -> None:
            return None

        async def run_last(self, version: int) -> dict[str, float]:
            asked.append(version)
            return {"heldout/version": float(version), "heldout/mean": 0.5}

    async def main() -> None:
        Player.go, Player.begun = asyncio.Event(), []
        client = StreamClient(server.endpoint, "a", 0, capacity=100)
        settings = SimpleNamespace(heldout_wait_s=1.0)
        rollout = Rollout(Engine(), None, None, client, settings, Heldout(), seed=None)  # type: ignore[arg-type]
        async with played(rollout, client, server):
            await publish(server)
            server.measure(3)  # which no engine runs
            server.measure(0)
            await until(lambda: server.stats().get("heldout/mean") == 0.5)

    try:
        asyncio.run(main())
    finally:
        server.close()
    assert asked == [0]


def test_patience_ends_with_a_spell_of_failures_not_with_a_burst() -> None:
    patience = Patience(most=4, spell_s=10.0, longest_s=1.0)
    burst = [patience.failed(0.0) for _ in range(20)]
    assert burst[:5] == [0.0, 0.1, 0.2, 0.4, 0.8] and set(burst[5:]) == {1.0}
    assert patience.failed(9.9) == 1.0
    assert patience.failed(10.0) is None
    patience.played()
    assert patience.failed(11.0) == 0.0, "what was before an episode that was played is forgiven"
    assert [patience.failed(30.0) for _ in range(3)] == [0.1, 0.2, None]


class ScriptedEngine(Script):
    """A scripted engine that takes part in a run."""

    async def set_version(self, version: int) -> None:
        pass

    async def died(self) -> None:
        await asyncio.Event().wait()

    async def update_weights(self, manifest: Any, version: int) -> dict[str, float]:
        return {"load_s": 0.0}

    def stats(self) -> dict[str, float]:
        return {}


def valid_each_time(prompt: str, turn: int) -> str:
    return reply("def f(x):\n    return x * 2.5", str(turn)) if prompt.endswith("def f(") else "wrong"


def malformed_now_and_then(prompt: str, turn: int) -> str:
    """A fifth of the proposals needs no sandbox."""
    return valid_each_time(prompt, turn) if turn % 5 else "nothing"


@pytest.mark.parametrize("answer", [valid_each_time, malformed_now_and_then])
def test_broken_sandboxes_end_the_actor_and_not_the_learner(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, answer: Answer
) -> None:
    """Fork servers die and cannot be started again. The slots are dropped as failed, at a bearable rate, then the actor
    gives up; its next life, which has sandboxes, plays them. Malformed proposals, which need no sandbox, do not hide
    it."""
    settings = SelfPlaySettings(prompt_format="completion", references=1, solutions=1, max_prompt_tokens=4000)
    places = 40
    server = StreamServer(Gate(BATCH, places // 4 - 1, solutions=1), "run")
    store = new_store(tmp_path)

    async def live(incarnation: int, broken: bool) -> Rollout:
        """One life of the actor: until it gives up, or until every place is filled."""
        executor = ExecutorSettings(timeout_s=2)
        pool = SandboxPool(executor)
        await pool.start()
        client = StreamClient(server.endpoint, "a", incarnation, capacity=100)
        engine, buffer = ScriptedEngine(answer), LocalBuffer(store)
        environment = Environment(Judge(pool, executor, rules=settings.rules))
        rollout = Rollout(
            engine,  # type: ignore[arg-type]
            model_roles(engine, environment, buffer, settings),  # type: ignore[arg-type]
            buffer,
            client,
            settings,
            patience=Patience(most=4, spell_s=0.5, longest_s=0.2),
        )
        with monkeypatch.context() as patched:
            if broken:
                patched.setattr(sys, "executable", str(tmp_path / "no-interpreter"))
                for pid in filter(None, pool.pids):
                    os.kill(pid, signal.SIGKILL)
            running = asyncio.create_task(rollout.run(DEADLINE_S))
            try:
                await publish(server)
                if not broken:
                    await until(lambda: len(server.queued()) == places)
                    await asyncio.to_thread(server.close)
                await asyncio.wait_for(running, DEADLINE_S)
            finally:
                running.cancel()
                client.close()
                await pool.close()
        return rollout

    try:
        with pytest.raises(RolloutBroken, match="InfrastructureError: the sandbox's interpreter could not be started"):
            asyncio.run(live(0, broken=True))
        sums = totals(server.gate.ledger())
        assert 4 <= sums["dropped"] <= 300, "a failure is reported, and not at full speed"
        valid = [t for t in server.queued() if t.outcome == "valid"]
        assert not valid, "an episode that nobody could judge was rewarded"
        for member in server.members():
            server.lose(member, "its life ended")  # as the supervisor has it
        asyncio.run(live(1, broken=False))
    finally:
        server.close()
        store.close()
    assert totals(server.gate.ledger())["queued"] == places
    assert any(t.outcome == "valid" for t in server.queued())
    assert conserved(server.gate.ledger())


class GroupsBreak(Engine):
    """An engine in whose groups something always fails: in a join it is the others, in an update it is itself."""

    async def join(self, spec: Any, rank: int) -> None:
        raise TimeoutError("waited for ranks [2]")

    async def update_weights(self, manifest: Any, version: int) -> dict[str, float]:
        raise MemoryError("no room")


def test_a_broken_group_is_not_blamed_on_an_actor_but_too_many_end_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(actors.rollout, "Player", Player)
    monkeypatch.setattr(actors.rollout, "seed_buffer", no_seeding)
    server = StreamServer(Gate(BATCH, 1, solutions=1), "run")

    async def main() -> None:
        client = StreamClient(server.endpoint, "a", 0, capacity=100)
        rollout = Rollout(GroupsBreak(), None, None, client, SimpleNamespace())  # type: ignore[arg-type]
        running = asyncio.create_task(rollout.run(DEADLINE_S))
        try:
            await until(lambda: bool(server.members()))
            (member,) = members = server.members()
            spec = {
                "group_id": 7,
                "host": "h",
                "port": 1,
                "world_size": 3,
                "backend": "gloo",
                "timeout_s": 1.0,
                "bucket_bytes": 1,
            }
            server.begin_group(7, members, [])
            server.send(member, {"type": "join", "spec": spec, "rank": 1})
            await until(lambda: bool(server.interrupted()))
            assert server.load_failures() == {}
            for version in range(1, MAX_LOAD_FAILURES):
                server.expect_load(members)
                server.send(member, {"type": "weights", "version": version})
                assert await asyncio.to_thread(server.wait_until_loaded, members, version, DEADLINE_S) == members
                assert server.load_failures() == {"a": "MemoryError: no room"}
            with pytest.raises(RolloutBroken, match="the last 5 weight updates have failed, the last with MemoryError"):
                await asyncio.wait_for(running, DEADLINE_S)
        finally:
            running.cancel()
            client.close()

    try:
        asyncio.run(main())
    finally:
        server.close()
