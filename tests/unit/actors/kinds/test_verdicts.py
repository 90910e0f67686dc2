"""Which proposals become tasks of a kind, and which answers solve them; with the real sandbox."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from actors.environment import Environment
from actors.kinds.induction import hidden, num_shown, shown
from executor.judge import Judge
from executor.pool import SerialPool
from executor.settings import ExecutorSettings
from executor.tasks import (
    Proposal,
    Rejection,
    RejectionReason,
    Task,
    ValidationRules,
    Verdict,
    VerdictReason,
)
from learner.settings import BatchSettings

KINDS = BatchSettings().kinds

SUM = "def f(xs, k):\n    return [x + k for x in xs]"
DOUBLE = "def f(x): return x * 2"
SETTINGS = ExecutorSettings(timeout_s=0.5, memory_mb=64)


@pytest.fixture(scope="module")
def pool() -> Iterator[SerialPool]:
    pool = SerialPool(SETTINGS)
    asyncio.run(pool.start())
    yield pool
    asyncio.run(pool.close())


@pytest.fixture
def environment(pool: SerialPool) -> Environment:
    return Environment(Judge(pool, SETTINGS))


def validate(environment: Environment, kind: str, program: str, *inputs: str, message: str = "") -> Task | Rejection:
    return asyncio.run(environment.validate(Proposal(kind, program, inputs, message)))


def verify(environment: Environment, task: Task, answer: str) -> Verdict:
    return asyncio.run(environment.verify(task, answer))


@pytest.mark.parametrize("kind", ["deduction", "abduction"])
def test_a_sound_proposal_becomes_a_task(environment: Environment, kind: str) -> None:
    task = validate(environment, kind, f"\n\n{SUM}\n", "[ 1,2 ],\n  3  # comment")
    assert task == Task(kind, SUM, ("[1, 2], 3",), ("[4, 5]",))


def test_an_induction_task_shows_half(environment: Environment) -> None:
    inputs = ["1", "2", "(3)", "4", "5"]
    task = validate(environment, "induction", "def f(x): return x * x", *inputs, message="squares")
    assert isinstance(task, Task)
    assert (num_shown(task), task.message) == (2, "squares")
    assert shown(task) == (("1", "1"), ("2", "4"))
    assert hidden(task) == (("3", "9"), ("4", "16"), ("5", "25"))


@pytest.mark.parametrize(
    ("kind", "program", "inputs", "reason"),
    [
        ("deduction", SUM, (), RejectionReason.INPUT_COUNT),
        ("abduction", SUM, ("[], 1", "[], 2"), RejectionReason.INPUT_COUNT),
        ("induction", SUM, ("[], 1",), RejectionReason.INPUT_COUNT),
        ("induction", SUM, ("[], 1", "[],1 # again"), RejectionReason.DUPLICATE_INPUT),
        ("induction", SUM, ("{2, 1}, 1", "[], 1", "{1, 2}, 1"), RejectionReason.DUPLICATE_INPUT),
        ("deduction", SUM, ("xs",), RejectionReason.UNPARSEABLE_INPUT),
        ("deduction", SUM, ("[1]",), RejectionReason.ERROR),
        ("induction", "def f(x): return 1 // x", ("1", "2", "0"), RejectionReason.ERROR),
    ],
)
def test_rejections(
    environment: Environment, kind: str, program: str, inputs: tuple[str, ...], reason: RejectionReason
) -> None:
    rejection = validate(environment, kind, program, *inputs)
    assert isinstance(rejection, Rejection)
    assert rejection.reason is reason


@pytest.mark.parametrize("kind", ["deduction", "abduction"])
def test_a_program_that_ignores_its_input_is_refused(pool: SerialPool, kind: str) -> None:
    strict = Environment(Judge(pool, SETTINGS, rules=ValidationRules(input_dependence="reject")))
    rejection = validate(strict, kind, "def f(x): return 6", "1")
    assert isinstance(rejection, Rejection)
    assert rejection.reason is RejectionReason.IGNORES_INPUT
    measured = Environment(Judge(pool, SETTINGS, rules=ValidationRules(input_dependence="measure")))
    task = validate(measured, kind, "def f(x): return 6", "1")
    assert isinstance(task, Task) and task.ignores_input


@pytest.mark.parametrize(
    ("task", "answer", "reason"),
    [
        (Task("deduction", SUM, ("[1, 2], 3",), ("[4, 5]",)), " [4,5]", VerdictReason.CORRECT),
        (Task("deduction", SUM, ("[1, 2], 3",), ("[4, 5]",)), "[1, 2], 3", VerdictReason.WRONG),
        (Task("abduction", SUM, ("[1, 2], 3",), ("[4, 5]",)), "[0, 1], 4", VerdictReason.CORRECT),
        (Task("abduction", SUM, ("[1, 2], 3",), ("[4, 5]",)), "[4, 5]", VerdictReason.ERROR),
        (Task("induction", DOUBLE, ("1", "2"), ("2", "4")), "def f(x): return x + 2", VerdictReason.CORRECT),
        (Task("induction", DOUBLE, ("1", "2"), ("2", "4")), "def f(x): return x + 1", VerdictReason.WRONG),
    ],
)
def test_answers_are_judged_by_the_kind(
    environment: Environment, task: Task, answer: str, reason: VerdictReason
) -> None:
    assert verify(environment, task, answer) == Verdict(reason is VerdictReason.CORRECT, reason)


def test_the_tasks_own_answer_is_known(environment: Environment) -> None:
    verify(environment, Task("abduction", SUM, ("[1, 2], 3",), ("[4, 5]",)), "[1,2],3")
    verify(environment, Task("induction", DOUBLE, ("1", "2"), ("2", "4")), f"{DOUBLE}\n")
    assert (environment.stats.shared_own, environment.stats.executed) == (2, 0)


def test_all_at_once_is_the_same_as_one_by_one(pool: SerialPool) -> None:
    tasks = {
        Task("deduction", DOUBLE, ("2",), ("4",)): ["4", "x", "5", "4"],
        Task("abduction", DOUBLE, ("2",), ("4",)): ["2", "3", "2.0", "'a'", "None", "2", "]"],
        Task("induction", DOUBLE, ("2", "3"), ("4", "6")): [DOUBLE, "def f(x): return x + 3", "", "f = abs"],
    }
    for task, answers in tasks.items():
        one_by_one = [verify(Environment(Judge(pool, SETTINGS)), task, answer) for answer in answers]
        assert asyncio.run(Environment(Judge(pool, SETTINGS)).verify_all(task, answers)) == one_by_one


def test_nothing_to_verify(environment: Environment) -> None:
    for kind in KINDS:
        task = Task(kind, DOUBLE, ("1", "2"), ("2", "4"))
        assert asyncio.run(environment.verify_all(task, [])) == []


def test_model_text_is_never_evaluated_by_its_reader(environment: Environment, tmp_path: Path) -> None:
    mark = tmp_path / "ran"
    attack = f"__import__('pathlib').Path({str(mark)!r}).touch()"
    assert isinstance(validate(environment, "deduction", "def f(x): return x", attack), Rejection)
    for kind in KINDS:
        task = Task(kind, "def f(x): return x", ("1", "2"), ("1", "2"))
        assert not verify(environment, task, attack).correct
    assert not mark.exists()


def test_work_is_recorded_as_it_was_asked(pool: SerialPool) -> None:
    lines: list[dict[str, Any]] = []
    record: Callable[[dict[str, Any]], None] = lines.append
    environment = Environment(Judge(pool, SETTINGS), record)
    task = validate(environment, "induction", f"{DOUBLE}\n", " 1", "2", message="doubles")
    assert isinstance(task, Task)
    asyncio.run(environment.verify_all(task, [DOUBLE, "f = 1"]))
    verify(environment, task, "")
    about = {"kind": "induction", "message": "doubles"}
    valid = {**about, "program": DOUBLE, "inputs": ["1", "2"], "outputs": ["2", "4"]}
    assert lines == [
        {"op": "validate", **about, "program": f"{DOUBLE}\n", "inputs": [" 1", "2"]},
        {"op": "verify", **valid, "answers": [DOUBLE, "f = 1"]},
        {"op": "verify", **valid, "answers": [""]},
    ]
