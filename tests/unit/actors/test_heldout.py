"""Held-out tasks: that the file is what the sandbox says, and that a measurement counts what it should."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

import pytest

from actors.engine.generation import Completion, Sampling
from actors.environment import Environment
from actors.heldout import Heldout, HeldoutTask, load_tasks
from actors.kinds.induction import hidden, num_shown
from actors.settings import SelfPlaySettings
from executor.judge import Judge
from executor.pool import SerialPool
from executor.settings import ExecutorSettings
from executor.tasks import Task
from launch.shipped.heldout_tasks import SOURCES, make
from learner.settings import BatchSettings
from learner.trajectory import Status, VersionSpan

KINDS = BatchSettings().kinds


class Characters:
    """A tokenizer whose tokens are characters."""

    def encode(self, text: str, add_special_tokens: bool = False) -> list[int]:
        return [ord(c) for c in text]


class Scripted:
    """An engine that answers by what stands in the prompt."""

    tokenizer = Characters()

    def __init__(self, replies: dict[str, str]) -> None:
        self.replies = replies
        self.asked: list[tuple[str, Sampling, str]] = []
        self.gate: asyncio.Event | None = None

    async def generate(self, prompt_ids: Sequence[int], sampling: Sampling, request_id: str) -> Completion:
        text = "".join(map(chr, prompt_ids))
        self.asked.append((text, sampling, request_id))
        if self.gate is not None:
            await self.gate.wait()
        reply = next((reply for part, reply in self.replies.items() if part in text), "?")
        return Completion([1], [0.0], reply, Status.STOPPED, (VersionSpan(0, 0, 1),), 0.0, 0.0)


@pytest.fixture(scope="module")
def loop() -> Iterator[asyncio.AbstractEventLoop]:
    loop = asyncio.new_event_loop()
    yield loop
    loop.close()


@pytest.fixture(scope="module")
def environment(loop: asyncio.AbstractEventLoop) -> Iterator[Environment]:
    settings = ExecutorSettings(timeout_s=5)
    pool = SerialPool(settings)
    loop.run_until_complete(pool.start())
    yield Environment(Judge(pool, settings))
    loop.run_until_complete(pool.close())


TINY = [
    HeldoutTask("d", 1, Task("deduction", "def f(x):\n    return x + 41", ("1",), ("42",))),
    HeldoutTask("d2", 3, Task("deduction", "def f(x):\n    return x + 51", ("1",), ("52",))),
    HeldoutTask("a", 1, Task("abduction", "def f(x):\n    return x * 7", ("3",), ("21",))),
]


def play(**settings: Any) -> SelfPlaySettings:
    return SelfPlaySettings(prompt_format="completion", max_solve_tokens=9, **{"heldout_every": 5} | settings)


# -- the tasks that ship ---------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_the_file_is_what_the_generator_and_the_sandbox_make(
    environment: Environment, loop: asyncio.AbstractEventLoop
) -> None:
    assert loop.run_until_complete(make(environment)) == load_tasks(), (
        "python -m launch.shipped.heldout_tasks writes it anew"
    )


def test_there_are_enough_of_each_kind_and_difficulty() -> None:
    tasks = load_tasks()
    assert len({entry.name for entry in tasks}) == len(tasks)
    assert min(Counter(entry.task.kind for entry in tasks).values()) >= 60
    by_difficulty = Counter((entry.task.kind, entry.difficulty) for entry in tasks)
    assert all(by_difficulty[kind, difficulty] >= 15 for kind in KINDS for difficulty in (1, 2, 3))
    assert len({source.program for source in SOURCES}) == len(SOURCES)


def test_no_constant_and_only_one_identity_solves_an_induction_task() -> None:
    tasks = [entry.task for entry in load_tasks() if entry.task.kind == "induction"]
    assert all(num_shown(task) == 2 and len(hidden(task)) == 2 for task in tasks)
    assert not [task.program for task in tasks if len({output for _, output in hidden(task)}) == 1]
    unchanged = [task.program for task in tasks if all(given == output for given, output in hidden(task))]
    assert unchanged == ["def f(x):\n    return x"]


def test_their_own_answers_solve_them(environment: Environment, loop: asyncio.AbstractEventLoop) -> None:
    for entry in load_tasks():
        task = entry.task
        answer = {
            "deduction": task.outputs[0],
            "abduction": task.inputs[0],
            "induction": task.program,
        }[task.kind]
        assert loop.run_until_complete(environment.verify(task, answer)).correct, entry.name


def test_they_survive_the_file() -> None:
    for entry in load_tasks():
        assert HeldoutTask.from_json(entry.to_json()) == entry


# -- measuring -------------------------------------------------------------------------------------------------------


def test_rates_are_by_kind_and_difficulty(environment: Environment, loop: asyncio.AbstractEventLoop) -> None:
    engine = Scripted({"x + 41": "42\n", "x + 51": "0\n", "x * 7": "3\n"})
    numbers = loop.run_until_complete(Heldout(engine, environment, play(), TINY).maybe_run(0))  # type: ignore[arg-type]
    assert numbers == {
        "heldout/deduction": 0.5,
        "heldout/abduction": 1.0,
        "heldout/difficulty_1": 1.0,
        "heldout/difficulty_3": 0.0,
        "heldout/mean": 0.75,
        "heldout/tasks": 3.0,
        "heldout/skipped": 0.0,
        "heldout/version": 0.0,
    }


def test_sampling_is_greedy_within_the_solver_s_limit(
    environment: Environment, loop: asyncio.AbstractEventLoop
) -> None:
    engine = Scripted({})
    loop.run_until_complete(Heldout(engine, environment, play(), TINY).maybe_run(3))  # type: ignore[arg-type]
    assert {sampling.temperature for _, sampling, _ in engine.asked} == {0.0}
    assert {sampling.max_tokens for _, sampling, _ in engine.asked} == {9}
    assert len({request for _, _, request in engine.asked}) == len(TINY), "vLLM refuses a request id that is in use"


def test_a_reply_that_cannot_be_read_is_not_solved(environment: Environment, loop: asyncio.AbstractEventLoop) -> None:
    engine = Scripted({"x + 41": "```\n", "x + 51": "", "x * 7": "3 +\n"})
    numbers = loop.run_until_complete(Heldout(engine, environment, play(), TINY).maybe_run(0))  # type: ignore[arg-type]
    assert numbers is not None
    assert numbers["heldout/mean"] == 0.0


def test_a_task_that_does_not_fit_is_left_out_and_counted(
    environment: Environment, loop: asyncio.AbstractEventLoop
) -> None:
    long = HeldoutTask("long", 1, Task("deduction", "def f(x):\n    return x" + " " * 9000, ("1",), ("1",)))
    engine = Scripted({"x + 41": "42\n"})
    heldout = Heldout(engine, environment, play(), [TINY[0], long])  # type: ignore[arg-type]
    numbers = loop.run_until_complete(heldout.maybe_run(0))
    assert numbers is not None
    assert (numbers["heldout/deduction"], numbers["heldout/skipped"]) == (1.0, 1.0)


def versions_measured(
    environment: Environment, loop: asyncio.AbstractEventLoop, every: int, versions: Sequence[int]
) -> list[int]:
    heldout = Heldout(Scripted({}), environment, play(heldout_every=every), TINY[:1])  # type: ignore[arg-type]
    return [v for v in versions if loop.run_until_complete(heldout.maybe_run(v)) is not None]


def test_the_first_version_and_then_every_so_many_are_measured(
    environment: Environment, loop: asyncio.AbstractEventLoop
) -> None:
    assert versions_measured(environment, loop, 5, range(12)) == [0, 5, 10]
    assert versions_measured(environment, loop, 5, range(7, 12)) == [7, 10], "a resumed run has a first version as well"
    assert versions_measured(environment, loop, 5, [0, 4, 6, 7, 11]) == [0, 6, 11], (
        "a version that was passed is made up for"
    )
    assert versions_measured(environment, loop, 1, [3, 3, 4]) == [3, 4]
    assert versions_measured(environment, loop, 0, range(12)) == []


def test_one_measurement_at_a_time(environment: Environment, loop: asyncio.AbstractEventLoop) -> None:
    async def both() -> tuple[Any, Any, Any]:
        engine = Scripted({})
        engine.gate = asyncio.Event()
        heldout = Heldout(engine, environment, play(), TINY)  # type: ignore[arg-type]
        first = asyncio.ensure_future(heldout.maybe_run(0))
        await asyncio.sleep(0)
        second = await heldout.maybe_run(5)
        engine.gate.set()
        return await first, second, await heldout.maybe_run(6)

    first, second, third = loop.run_until_complete(both())
    assert first is not None
    assert second is None
    assert third is not None, "what was due meanwhile is made up for"
