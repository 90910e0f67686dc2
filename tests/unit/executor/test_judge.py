"""The judge: which proposals become tasks, and which answers are correct."""

from __future__ import annotations

import asyncio

import pytest

from executor.judge import Judge
from executor.pool import InfrastructureError, Outcome, SerialPool
from executor.settings import ExecutorSettings
from executor.tasks import Kind, Proposal, Rejection, RejectionReason, Task, Verdict, VerdictReason
from executor.values import Equality

SUM = "def f(xs, k):\n    return [x + k for x in xs]"


def validate(judge: Judge, kind: Kind, program: str, *inputs: str, message: str = "") -> Task | Rejection:
    return asyncio.run(judge.validate(Proposal(kind, program, inputs, message)))


def verify(judge: Judge, task: Task, answer: str) -> Verdict:
    return asyncio.run(judge.verify(task, answer))


@pytest.mark.parametrize("kind", [Kind.DEDUCTION, Kind.ABDUCTION])
def test_a_sound_proposal_becomes_a_task(judge: Judge, kind: Kind) -> None:
    task = validate(judge, kind, f"\n\n{SUM}\n", "[ 1,2 ],\n  3  # comment")
    assert task == Task(kind, SUM, ("[1, 2], 3",), ("[4, 5]",))


def test_an_induction_task_shows_half(judge: Judge) -> None:
    inputs = ["1", "2", "(3)", "4", "5"]
    task = validate(judge, Kind.INDUCTION, "def f(x): return x * x", *inputs, message="squares")
    assert isinstance(task, Task)
    assert (task.num_shown, task.message) == (2, "squares")
    assert task.shown == (("1", "1"), ("2", "4"))
    assert task.hidden == (("3", "9"), ("4", "16"), ("5", "25"))


@pytest.mark.parametrize(
    ("kind", "program", "inputs", "reason"),
    [
        (Kind.DEDUCTION, SUM, (), RejectionReason.INPUT_COUNT),
        (Kind.ABDUCTION, SUM, ("[], 1", "[], 2"), RejectionReason.INPUT_COUNT),
        (Kind.INDUCTION, SUM, ("[], 1",), RejectionReason.INPUT_COUNT),
        (Kind.DEDUCTION, SUM, ("xs",), RejectionReason.UNPARSEABLE_INPUT),
        (Kind.DEDUCTION, SUM, ("",), RejectionReason.UNPARSEABLE_INPUT),
        (Kind.DEDUCTION, SUM, ("[1]",), RejectionReason.ERROR),
        (Kind.DEDUCTION, "", ("1",), RejectionReason.ERROR),
        (Kind.DEDUCTION, "def f(x):\n while True: pass", ("1",), RejectionReason.TIMEOUT),
        (Kind.DEDUCTION, "def f(x): return bytearray(1 << 40)", ("1",), RejectionReason.MEMORY),
        (Kind.DEDUCTION, "def f(x): return 'a' * 10**6", ("1",), RejectionReason.OUTPUT_TOO_LARGE),
        (Kind.DEDUCTION, "def f(x): return range(x)", ("1",), RejectionReason.UNSERIALISABLE),
        (Kind.DEDUCTION, "import sys\ndef f(x): return 1", ("1",), RejectionReason.UNSAFE),
        (Kind.INDUCTION, "def f(x): return 1 // x", ("1", "2", "0"), RejectionReason.ERROR),
    ],
)
def test_rejections(judge: Judge, kind: Kind, program: str, inputs: tuple[str, ...], reason: RejectionReason) -> None:
    rejection = validate(judge, kind, program, *inputs)
    assert isinstance(rejection, Rejection)
    assert rejection.reason is reason


def test_leaks_between_inputs_are_nondeterminism(judge: Judge) -> None:
    """Fresh globals do not undo a change to a module; the reversed order of the second run shows it."""
    program = "import string\ndef f(x):\n string.seen = getattr(string, 'seen', 0) + x\n return string.seen"
    rejection = validate(judge, Kind.INDUCTION, program, "1", "2", "3")
    assert rejection == Rejection(RejectionReason.NONDETERMINISTIC)


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        ("[4, 5]", VerdictReason.CORRECT),
        ("  [4,\n 5] # so", VerdictReason.CORRECT),
        ("[4.0, 5]", VerdictReason.WRONG),
        ("(4, 5)", VerdictReason.WRONG),
        ("4, 5", VerdictReason.WRONG),
        ("'[4, 5]'", VerdictReason.WRONG),
        ("f([1, 2], 3)", VerdictReason.UNPARSEABLE),
        ("[1 + 3, 5]", VerdictReason.UNPARSEABLE),
        ("", VerdictReason.UNPARSEABLE),
        ("[" * 10_000, VerdictReason.UNPARSEABLE),
        ("'" + "\x01" * 200_000 + "'", VerdictReason.WRONG),
    ],
)
def test_deduction(judge: Judge, answer: str, reason: VerdictReason) -> None:
    task = Task(Kind.DEDUCTION, SUM, ("[1, 2], 3",), ("[4, 5]",))
    assert verify(judge, task, answer) == Verdict(reason is VerdictReason.CORRECT, reason)


def test_equality_is_selectable(serial_pool: SerialPool, settings: ExecutorSettings) -> None:
    task = Task(Kind.DEDUCTION, "def f(x): return x", ("1",), ("1",))
    assert not verify(Judge(serial_pool, settings), task, "1.0").correct
    assert verify(Judge(serial_pool, settings, Equality.PYTHON), task, "1.0").correct


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        ("[1, 2], 3", VerdictReason.CORRECT),
        ("[0, 1],\n4", VerdictReason.CORRECT),
        ("[0, 1], 3", VerdictReason.WRONG),
        ("([0, 1], 4)", VerdictReason.ERROR),
        ("[None], 4", VerdictReason.ERROR),
        ("[4, 5]", VerdictReason.ERROR),
        ("list([0, 1]), 4", VerdictReason.UNPARSEABLE),
        ("[0] * 10**9, 4", VerdictReason.UNPARSEABLE),
    ],
)
def test_abduction(judge: Judge, answer: str, reason: VerdictReason) -> None:
    task = Task(Kind.ABDUCTION, SUM, ("[1, 2], 3",), ("[4, 5]",))
    assert verify(judge, task, answer) == Verdict(reason is VerdictReason.CORRECT, reason)


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        ("def f(x):\n    return x ** 2\n", VerdictReason.CORRECT),
        ("f = {1: 1, 2: 4}.get", VerdictReason.WRONG),
        ("def f(x): return float(x * x)", VerdictReason.WRONG),
        ("def f(x): return x * x if x < 4 else 0", VerdictReason.WRONG),
        ("def f(x) return x", VerdictReason.ERROR),
        ("lambda x: x * x", VerdictReason.ERROR),
        ("def f(x):\n while True: pass", VerdictReason.TIMEOUT),
        ("import subprocess\ndef f(x): return x * x", VerdictReason.UNSAFE),
        ("def f(x): return f", VerdictReason.UNSERIALISABLE),
    ],
)
def test_induction(judge: Judge, answer: str, reason: VerdictReason) -> None:
    pairs = ("1", "2", "3", "4"), ("1", "4", "9", "16")
    task = Task(Kind.INDUCTION, "def f(x): return x * x", *pairs, "squares")
    assert verify(judge, task, answer) == Verdict(reason is VerdictReason.CORRECT, reason)


def test_a_failing_sandbox_is_never_a_verdict(settings: ExecutorSettings) -> None:
    class Broken(SerialPool):
        async def execute(self, *args: object, **kwargs: object) -> list[Outcome]:
            raise InfrastructureError("no sandbox")

    judge = Judge(Broken(settings), settings)
    with pytest.raises(InfrastructureError):
        validate(judge, Kind.DEDUCTION, SUM, "[1], 2")
    with pytest.raises(InfrastructureError):
        verify(judge, Task(Kind.ABDUCTION, SUM, ("[1], 2",), ("[3]",)), "[1], 2")
