"""Measurements on the held-out tasks: that they ask and count what they should."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any, get_args

import pytest

from actors.engine.generation import Completion, Sampling
from actors.environment import Environment
from actors.heldout.measure import Heldout, examples_for
from actors.heldout.measurement import Measurement, MeasurementError, gain
from actors.heldout.tasks import HeldoutTask, digest, load_tasks
from actors.settings import SelfPlaySettings
from executor.judge import Judge
from executor.pool import SerialPool
from executor.settings import ExecutorSettings
from executor.tasks import Task
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
    settings = ExecutorSettings(timeout_s=60)  # a thousand executions, on a machine that may be busy
    pool = SerialPool(settings)
    loop.run_until_complete(pool.start())
    yield Environment(Judge(pool, settings))
    loop.run_until_complete(pool.close())


TINY = [
    HeldoutTask("d", 1, Task("deduction", "def f(x):\n    return x + 41", ("1",), ("42",)), "+41"),
    HeldoutTask("d2", 3, Task("deduction", "def f(x):\n    return x + 51", ("1",), ("52",)), "+51"),
    HeldoutTask("a", 1, Task("abduction", "def f(x):\n    return x * 7", ("3",), ("21",)), "*7"),
]


def play(**settings: Any) -> SelfPlaySettings:
    defaults = {"heldout_every": 5, "heldout_samples": 1, "max_solve_tokens": 9}
    return SelfPlaySettings(prompt_format="completion", **defaults | settings)


def heldout_of(
    engine: Scripted, environment: Environment, tasks: Sequence[HeldoutTask] = TINY, width: int = 8, **settings: Any
) -> Heldout:
    return Heldout(engine, environment, play(**settings), width, tasks)  # type: ignore[arg-type]


def test_rates_are_by_kind_and_difficulty(environment: Environment, loop: asyncio.AbstractEventLoop) -> None:
    engine = Scripted({"x + 41": "42\n", "x + 51": "1\n", "x * 7": "3\n"})
    numbers = loop.run_until_complete(heldout_of(engine, environment).maybe_run(0))
    assert numbers is not None
    numbers.pop("heldout/time_s")
    intervals = {name for name in numbers if name.endswith(("_low", "_high"))}
    assert intervals == {
        f"heldout/{what}_{end}" for what in ("mean", "deduction", "abduction") for end in ("low", "high")
    }
    assert {name: value for name, value in numbers.items() if name not in intervals} == {
        "heldout/deduction": 0.5,
        "heldout/abduction": 1.0,
        "heldout/difficulty_1": 1.0,
        "heldout/difficulty_3": 0.0,
        "heldout/mean": 0.75,
        "heldout/deduction_copies": 0.5,
        "heldout/deduction_distinct_answers": 1.0,
        "heldout/abduction_distinct_answers": 1.0,
        "heldout/set": 2.0,
        "heldout/tasks": 3.0,
        "heldout/skipped": 0.0,
        "heldout/samples": 1.0,
        "heldout/temperature": 1.0,
        "heldout/tokens": 3.0,
        "heldout/version": 0.0,
        "heldout/version_newest": 0.0,
    }


def test_samples_are_drawn_by_the_same_seeds_in_every_version(
    environment: Environment, loop: asyncio.AbstractEventLoop
) -> None:
    def asked(version: int) -> list[tuple[str, Sampling, str]]:
        engine = Scripted({})
        loop.run_until_complete(heldout_of(engine, environment, heldout_samples=3).maybe_run(version))
        return engine.asked

    first, later = asked(3), asked(8)
    assert {(sampling.max_tokens, sampling.temperature) for _, sampling, _ in first} == {(9, 1.0)}
    assert len({request for _, _, request in first}) == 3 * len(TINY), "vLLM refuses a request id that is in use"
    assert len({sampling.seed for _, sampling, _ in first}) == 3 * len(TINY)
    assert [sampling for _, sampling, _ in first] == [sampling for _, sampling, _ in later]


UNCHANGED = {"intrinsic", "seed_tasks"}
"""Settings that `another` leaves as they are: a table, and a file that there would have to be."""


def another(name: str, value: Any) -> Any:
    """Another value of a setting; of these three, one that changes prompts."""
    chosen = {"examples": 1, "max_prompt_tokens": 600, "heldout_tasks": 21}
    if name in chosen:
        return chosen[name]
    choices = get_args(SelfPlaySettings.model_fields[name].annotation)
    match value:
        case bool():
            return not value
        case int():
            return 2 * value + 3
        case float():
            return value / 3 + 0.25
        case str():
            return next(choice for choice in choices if choice != value)
    return value


def test_measurements_that_asked_otherwise_are_not_compared(
    environment: Environment, loop: asyncio.AbstractEventLoop
) -> None:
    """Each setting but `UNCHANGED` is changed, and what the engine is asked is looked at."""
    base = play(examples=2, heldout_tasks=9, max_prompt_tokens=400)

    def measure(settings: SelfPlaySettings) -> tuple[dict[str, tuple[str, Sampling]], Measurement]:
        engine = Scripted({})
        found = loop.run_until_complete(Heldout(engine, environment, settings, 8).run(0))  # type: ignore[arg-type]
        asked = {
            request.rpartition(".")[0]: (text, replace(sampling, seed=None)) for text, sampling, request in engine.asked
        }
        return asked, found

    def is_refused(before: Measurement, after: Measurement) -> bool:
        try:
            gain(before, after)
        except MeasurementError:
            return True
        return False

    asked, measured = measure(base)
    refused = set()
    for name, value in base:
        other = another(name, value)
        assert (other == value) == (name in UNCHANGED), name
        changed = SelfPlaySettings.model_validate(base.model_dump() | {name: other})
        now_asked, now_measured = measure(changed)
        same = all(asked[task] == now_asked[task] for task in asked.keys() & now_asked.keys())
        assert same != is_refused(measured, now_measured), name
        refused |= set() if same else {name}
    expected = {"prompt_format", "max_prompt_tokens", "max_solve_tokens", "examples", "heldout_tasks"}
    assert refused == expected | {"heldout_temperature"}


def test_greedy_solutions_are_one_a_task_and_need_no_seed(
    environment: Environment, loop: asyncio.AbstractEventLoop
) -> None:
    engine = Scripted({})
    loop.run_until_complete(heldout_of(engine, environment, heldout_temperature=0.0).maybe_run(0))
    assert {(sampling.temperature, sampling.seed) for _, sampling, _ in engine.asked} == {(0.0, None)}
    with pytest.raises(ValueError, match="set heldout_samples = 1"):
        play(heldout_temperature=0.0, heldout_samples=2)


def test_a_reply_that_cannot_be_read_is_not_solved(environment: Environment, loop: asyncio.AbstractEventLoop) -> None:
    engine = Scripted({"x + 41": "```\n", "x + 51": "", "x * 7": "3 +\n"})
    numbers = loop.run_until_complete(heldout_of(engine, environment).maybe_run(0))
    assert numbers is not None
    assert numbers["heldout/mean"] == 0.0
    assert numbers["heldout/mean_high"] > 0.1, "no solution of three tasks says little"


def test_a_task_that_does_not_fit_is_left_out_and_counted(
    environment: Environment, loop: asyncio.AbstractEventLoop
) -> None:
    long = HeldoutTask("long", 1, Task("deduction", "def f(x):\n    return x" + " " * 9000, ("1",), ("1",)), "")
    heldout = heldout_of(Scripted({"x + 41": "42\n"}), environment, [TINY[0], long])
    numbers = loop.run_until_complete(heldout.maybe_run(0))
    assert numbers is not None
    assert (numbers["heldout/deduction"], numbers["heldout/skipped"]) == (1.0, 1.0)


def test_a_measurement_is_kept_whole(environment: Environment, loop: asyncio.AbstractEventLoop) -> None:
    kept: list[Measurement] = []
    engine = Scripted({"x + 41": "42\n", "x + 51": "```\n", "x * 7": "4\n"})
    heldout = Heldout(engine, environment, play(heldout_samples=2), 8, TINY, kept.append)  # type: ignore[arg-type]
    loop.run_until_complete(heldout.maybe_run(5))
    (measurement,) = kept
    assert Measurement.from_json(json.loads(json.dumps(measurement.to_json()))) == measurement
    assert measurement.results["d"].answers == ("42", "42") and measurement.results["d"].correct == (True, True)
    assert measurement.results["d2"].answers == (None, None) and measurement.results["a"].correct == (False, False)
    assert measurement.digest == digest(TINY) and list(measurement.results) == ["d", "d2", "a"]


@pytest.mark.parametrize(("alone", "in_flight"), [(True, 8), (False, 2)])
def test_beside_episodes_few_requests_are_in_flight_until_nothing_else_needs_the_engine(
    environment: Environment, loop: asyncio.AbstractEventLoop, alone: bool, in_flight: int
) -> None:
    async def asked() -> tuple[int, int, int | None]:
        engine = Scripted({})
        engine.gate = asyncio.Event()
        tasks = [replace(TINY[0], name=f"d{number}") for number in range(20)]
        heldout = heldout_of(engine, environment, tasks, heldout_samples=2)
        measuring = asyncio.ensure_future(heldout.maybe_run(5, alone))
        await until(lambda: len(engine.asked) >= in_flight)
        before = len(engine.asked)
        version = heldout.hurry()
        await until(lambda: len(engine.asked) >= 8)
        engine.gate.set()
        await measuring
        return before, len(engine.asked), version

    assert loop.run_until_complete(asked()) == (in_flight, 40, 5)


async def until(holds: Callable[[], bool]) -> None:
    while not holds():
        await asyncio.sleep(0)


def versions_measured(
    environment: Environment, loop: asyncio.AbstractEventLoop, every: int, versions: Sequence[int]
) -> list[int]:
    heldout = heldout_of(Scripted({}), environment, TINY[:1], heldout_every=every)
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


def test_the_last_version_is_measured_once_whatever_is_due(
    environment: Environment, loop: asyncio.AbstractEventLoop
) -> None:
    heldout = heldout_of(Scripted({}), environment)
    assert [loop.run_until_complete(heldout.maybe_run(version)) is None for version in (0, 3)] == [False, True]
    assert [loop.run_until_complete(heldout.run_last(3)) is None for _ in range(2)] == [False, True]
    heldout.undo(2)
    assert loop.run_until_complete(heldout.run_last(3)) is not None, "it has other weights by now"
    assert loop.run_until_complete(heldout_of(Scripted({}), environment, heldout_every=0).run_last(3)) is None


def test_one_measurement_at_a_time(environment: Environment, loop: asyncio.AbstractEventLoop) -> None:
    async def both() -> tuple[Any, Any, Any]:
        engine = Scripted({})
        engine.gate = asyncio.Event()
        heldout = heldout_of(engine, environment)
        first = asyncio.ensure_future(heldout.maybe_run(0))
        await asyncio.sleep(0)
        second = await heldout.maybe_run(5)
        engine.gate.set()
        return await first, second, await heldout.maybe_run(6)

    first, second, third = loop.run_until_complete(both())
    assert first is not None
    assert second is None
    assert third is not None, "what was due meanwhile is made up for"


@pytest.mark.parametrize("count", [0, 1, 3])
def test_prompts_show_as_many_examples_as_in_the_run_and_never_the_program_asked(count: int) -> None:
    tasks = load_tasks()
    of = {(one.task.kind, one.task.program, one.task.inputs): one for one in tasks}
    for entry in tasks[:200]:
        found = examples_for(entry, tasks, count)
        assert found == examples_for(entry, tasks, count) and len(found) == count
        shown = [of[one.kind, one.program, one.inputs] for one in found]
        assert {one.task.kind for one in shown} <= {entry.task.kind}
        assert len({entry.normal, *(one.normal for one in shown)}) == count + 1
        assert not any(one.outputs[0] == one.inputs[0] for one in found)


def test_a_version_that_was_not_measured_is_not_taken_for_done_after_an_undo(
    environment: Environment, loop: asyncio.AbstractEventLoop
) -> None:
    forgotten: list[int] = []
    heldout = Heldout(Scripted({}), environment, play(), 8, TINY, forget=forgotten.append)  # type: ignore[arg-type]
    assert loop.run_until_complete(heldout.run_last(5)) is not None
    heldout.undo(3)
    assert forgotten == [3]
    assert loop.run_until_complete(heldout.run_last(3)) is not None, "the run ends where it went on from"
    heldout.undo(3)
    assert loop.run_until_complete(heldout.run_last(3)) is None, "that one was measured"


def test_a_measurement_that_is_given_up_leaves_no_request_behind(
    environment: Environment, loop: asyncio.AbstractEventLoop
) -> None:
    class Counting(Scripted):
        under_way = 0

        async def generate(self, prompt_ids: Sequence[int], sampling: Sampling, request_id: str) -> Completion:
            self.under_way += 1
            try:
                return await super().generate(prompt_ids, sampling, request_id)
            finally:
                for _ in range(20):  # as an engine that is told to abort
                    await asyncio.sleep(0)
                self.under_way -= 1

    async def given_up() -> int:
        engine = Counting({})
        engine.gate = asyncio.Event()
        measuring = asyncio.ensure_future(heldout_of(engine, environment, heldout_samples=2).maybe_run(0, alone=True))
        await until(lambda: engine.under_way == 6)
        measuring.cancel()
        await asyncio.gather(measuring, return_exceptions=True)
        return engine.under_way

    assert loop.run_until_complete(given_up()) == 0
