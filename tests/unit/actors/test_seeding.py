"""The seeding phase: what the initial model writes before the first batch, and what the actor's loop makes of it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from actors.buffer.task_buffer import LocalBuffer, TaskBuffer
from actors.environment import Environment
from actors.kinds.registry import kind_of
from actors.roles import model_roles
from actors.rollout import Rollout
from actors.sampler import Identity
from actors.seeding import ROUND, SeedingFailed, seed_buffer
from actors.settings import SelfPlaySettings
from tests.unit.actors.scripted import Answer, Script, new_store, reply

SETTINGS = SelfPlaySettings(prompt_format="completion", references=2, max_prompt_tokens=4000)
WHO = Identity("", "rollout0", 0)


def run(
    environment: Environment, store: TaskBuffer, answer: Answer, target: int
) -> tuple[int, Script, list[tuple[int, int]]]:
    engine, said = Script(answer), []
    settings = SETTINGS.model_copy(update={"seed_tasks_target": target})
    count = asyncio.run(
        seed_buffer(
            model_roles(engine, environment, LocalBuffer(store), settings),  # type: ignore[arg-type]
            LocalBuffer(store),
            settings,
            WHO,
            1,
            lambda *numbers: said.append(numbers),
        )
    )
    return count, engine, said


def numbered(every: int = 1) -> Answer:
    """A new task with every so many replies."""
    calls = iter(range(10**9))

    def answer(prompt: str, turn: int) -> str:
        number = next(calls)
        return "x): no" if number % every else reply(f"def f(x):\n    return x + {1000 + number}", "1")

    return answer


def test_no_target_asks_nothing(environment: Environment, store: TaskBuffer) -> None:
    count, engine, said = run(environment, store, numbered(), 0)
    assert (count, engine.prompts, said) == (0, [], [])


def test_deduction_and_abduction_start_from_the_same_set(environment: Environment, store: TaskBuffer) -> None:
    count, engine, said = run(environment, store, numbered(every=4), 30)
    assert count == len(engine.prompts) == 2 * ROUND
    assert store.sizes() == {"deduction": 33, "abduction": 33, "induction": 0}, "the zero triplet, and a quarter of 128"
    sets = [
        {(t.program, t.inputs, t.outputs) for _, t in store.references(kind_of(kind).reference_kinds, 99, "s")}
        for kind in ("deduction", "abduction")
    ]
    assert sets[0] == sets[1]
    assert said == [(1, 30), (17, 30), (30, 30)]


def test_later_proposals_see_earlier_ones(environment: Environment, store: TaskBuffer) -> None:
    _, engine, _ = run(environment, store, numbered(every=4), 30)
    first, second = engine.prompts[:ROUND], engine.prompts[ROUND:]
    assert not any("x + " in prompt for prompt in first)
    assert all("x + " in prompt for prompt in second)


def test_a_buffer_that_has_enough_is_left_alone(environment: Environment, store: TaskBuffer) -> None:
    run(environment, store, numbered(), 10)
    count, engine, _ = run(environment, store, numbered(), 10)
    assert (count, engine.prompts) == (0, [])


def test_a_model_that_writes_no_tasks_is_given_up_with_words(environment: Environment, store: TaskBuffer) -> None:
    with pytest.raises(
        SeedingFailed, match=r"rollout0 sees 1 of selfplay.seed_tasks_target = 2 triplets: ask for fewer"
    ):
        run(environment, store, lambda prompt, turn: "x): no", 2)


def test_the_same_seed_gives_the_same_set(environment: Environment, tmp_path: Path) -> None:
    found = []
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        store = new_store(tmp_path / name)
        _, engine, _ = run(environment, store, numbered(every=5), 20)
        found.append((store.references(("deduction",), 99, "s"), engine.prompts))
        store.close()
    assert found[0] == found[1]


class Client:
    """The learner's end, as one actor sees it: says what was scripted, then shuts down."""

    run_id = "run"
    incarnation = 0
    capacity = 8
    stats: Any = None

    def __init__(self, log: list[str], actor_id: str, messages: list[dict[str, Any]]) -> None:
        self.actor_id = actor_id
        self._log = log
        self._messages = messages

    async def connect(self, timeout_s: float, report: Any) -> int:
        self._log.append("connect")
        self.stats = report
        return 0

    async def messages(self) -> AsyncIterator[dict[str, Any]]:
        for message in self._messages:
            yield message
            for _ in range(20):
                await asyncio.sleep(0)

    async def send_loaded(self, version: int, timings: dict[str, float]) -> None:
        self._log.append(f"loaded {version}")


class Engine(Script):
    """A scripted engine that takes weights."""

    async def set_version(self, version: int) -> None:
        pass

    async def died(self) -> None:
        await asyncio.Event().wait()

    async def update_weights(self, manifest: Any, version: int) -> dict[str, float]:
        return {}

    def stats(self) -> dict[str, float]:
        return {"running": 0.0}


class Measured:
    """A measurement of the initial model and every second version, which fails at the fourth."""

    def __init__(self, log: list[str]) -> None:
        self._log = log
        self.measured = -1

    def undo(self, version: int) -> None:
        self._log.append(f"the learner is at {version}")

    async def maybe_run(self, version: int, alone: bool = False) -> dict[str, float] | None:
        if version == 4:
            raise RuntimeError("engine gone")
        if version % 2 or version == self.measured:
            return None
        self.measured = version
        self._log.append(f"measured {version}")
        return {"heldout/deduction": version / 10}


def test_an_actor_seeds_before_it_greets_the_learner_and_measures_beside_its_play(
    environment: Environment, store: TaskBuffer, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    log: list[str] = []
    replies = numbered()

    def answer(prompt: str, turn: int) -> str:
        log.append("proposal")
        return replies(prompt, turn)

    weights = [{"type": "weights", "version": version} for version in (0, 1, 2, 3, 4)]
    client = Client(log, "rollout0", [*weights, {"type": "shutdown"}])
    settings = SETTINGS.model_copy(update={"seed_tasks_target": 5})
    buffer, heldout = LocalBuffer(store), Measured(log)
    engine = Engine(answer)
    roles = model_roles(engine, environment, buffer, settings)  # type: ignore[arg-type]
    rollout = Rollout(engine, roles, buffer, client, settings, heldout=heldout)  # type: ignore[arg-type]
    asyncio.run(rollout.run())
    assert log[:ROUND] == ["proposal"] * ROUND
    assert log[ROUND : ROUND + 3] == ["measured 0", "connect", "the learner is at 0"], "the initial model comes first"
    assert log[ROUND + 3 :] == ["loaded 0", "loaded 1", "loaded 2", "measured 2", "loaded 3", "loaded 4"]
    numbers = client.stats()
    assert numbers["heldout/deduction"] == 0.2, "the last one that succeeded"
    assert (numbers["seeded"], numbers["heldout_failures"], numbers["tasks_too_long"]) == (ROUND, 1, 0)
    said = caplog.text
    assert "seeding: 5 of 5 triplets" in said
    assert "held-out measurement at version 4 failed: RuntimeError: engine gone" in said
