"""Mistakes that executors for Absolute Zero are known to have made, one test each, so that this one never does."""

from __future__ import annotations

import ast
import asyncio
from pathlib import Path

import pytest

from executor import judge as judge_module
from executor.judge import Judge
from executor.tasks import Rejection, RejectionReason, Validated, Verdict, VerdictReason

DIGITS = "def f(x): return str(10 ** 4000 + x)"


def validate(judge: Judge, program: str, *inputs: str) -> Validated | Rejection:
    return asyncio.run(judge.validate(program, inputs))


def check(judge: Judge, expected: str, answer: str) -> Verdict:
    (verdict,) = judge.check_values(expected, [answer])
    return verdict


def reason(judge: Judge, program: str, *inputs: str) -> RejectionReason:
    rejection = validate(judge, program, *inputs)
    assert isinstance(rejection, Rejection)
    return rejection.reason


@pytest.mark.parametrize(
    "program",
    ["def f(x): return id([])", "def f(x): return repr(object())", "class A: pass\ndef f(x): return str(A())[-9:]"],
)
def test_trap_1_nondeterministic_programs_are_rejected(judge: Judge, program: str) -> None:
    assert reason(judge, program, "1") is RejectionReason.NONDETERMINISTIC


def test_trap_1_nan_is_no_nondeterminism(judge: Judge) -> None:
    """NaN agrees with itself, so that a task with NaN is sound, and can be solved."""
    task = validate(judge, "def f(x): return [float('nan'), x]", "1")
    assert isinstance(task, Validated)
    assert check(judge, task.outputs[0], "[nan, 1]").correct
    assert check(judge, task.outputs[0], "[float('nan'), 1]").correct


@pytest.mark.parametrize(
    "line",
    [
        "import {0}\n{0}", "import {0} as y\ny", "from {0} import *", "import math, {0}\n{0}",
    ],
)  # fmt: skip
@pytest.mark.parametrize(
    "module", ["os", "os.path", "socket", "shutil", "ctypes", "subprocess", "importlib", "random", "time"]
)
def test_trap_2_banned_modules_are_refused_under_every_name(judge: Judge, line: str, module: str) -> None:
    rejection = validate(judge, line.format(module) + "\ndef f(x): return 1", "1")
    assert isinstance(rejection, Rejection)
    assert rejection.reason is RejectionReason.UNSAFE


def test_trap_2_dynamic_imports_are_refused(judge: Judge) -> None:
    for expression in ("__import__('os')", "eval('1')", "exec('import os')", "__builtins__", "f.__globals__"):
        rejection = validate(judge, f"def f(x): return {expression}", "1")
        assert isinstance(rejection, Rejection)
        assert rejection.reason is RejectionReason.UNSAFE


def test_trap_4_long_outputs_are_kept_whole_or_rejected(judge: Judge) -> None:
    task = validate(judge, DIGITS, "7")
    assert isinstance(task, Validated)
    assert len(task.outputs[0]) == 4003
    assert check(judge, task.outputs[0], task.outputs[0]).correct
    assert not check(judge, task.outputs[0], task.outputs[0][:-2] + "8'").correct
    rejection = validate(judge, "def f(x): return 'a' * 70_000", "1")
    assert rejection == Rejection(RejectionReason.OUTPUT_TOO_LARGE)


@pytest.mark.parametrize(
    ("gold", "answer"),
    [("'[1, 2]'", "'[1,2]'"), ("'1'", "1"), ("True", "1"), ("1", "1.0"), ("'a'", "'\\'a\\''"), ("[1]", "(1,)")],
)
def test_trap_5_values_are_compared_and_not_their_texts(judge: Judge, gold: str, answer: str) -> None:
    assert check(judge, gold, answer).reason is VerdictReason.WRONG
    assert check(judge, gold, f" {gold} ").reason is VerdictReason.CORRECT


def test_trap_6_inputs_span_lines(judge: Judge) -> None:
    task = validate(judge, "def f(a, b, c): return [a, b, c]", "[\n  1,\n  2,\n],\n{'k':\n 'v'},\n'''x\ny'''")
    assert task == Validated(
        "def f(a, b, c): return [a, b, c]",
        ("[1, 2], {'k': 'v'}, 'x\\ny'",),
        ("[[1, 2], {'k': 'v'}, 'x\\ny']",),
    )


@pytest.mark.parametrize(
    "program",
    ["def f(x): return hash('abc')", "def f(x): return list({'a', 'b', 'c', 'd', 'e', x})", "def f(x): return hash(f)"],
)
def test_trap_11_runs_differ_in_their_hash_seed(judge: Judge, program: str) -> None:
    assert reason(judge, program, "'z'") is RejectionReason.NONDETERMINISTIC


def test_trap_11_sets_themselves_are_sound(judge: Judge) -> None:
    task = validate(judge, "def f(x): return {*x}, {c: 1 for c in {*x}}", "'hello'")
    assert isinstance(task, Validated)
    assert check(judge, task.outputs[0], "{'o', 'l', 'e', 'h'}, {'o': 1, 'h': 1, 'l': 1, 'e': 1}").correct


def test_model_text_is_never_evaluated_by_its_reader(judge: Judge, tmp_path: Path) -> None:
    """The third trap: an input or an answer that would run in the trainer's own process."""
    mark = tmp_path / "ran"
    attack = f"__import__('pathlib').Path({str(mark)!r}).touch()"
    assert isinstance(validate(judge, "def f(x): return x", attack), Rejection)
    verdicts = [
        *judge.check_values("1", [attack]),
        *asyncio.run(judge.check_inputs("def f(x): return x", "1", [attack])),
        *asyncio.run(judge.check_programs([("2", "2")], [attack])),
    ]
    assert [verdict.correct for verdict in verdicts] == [False] * 3
    assert not mark.exists()


def test_the_supervising_files_hold_no_evaluator() -> None:
    room = Path(judge_module.__file__).parent
    for name in ("judge", "pool", "sandbox/sandbox", "values", "tasks"):
        tree = ast.parse((room / f"{name}.py").read_text())
        called = {
            node.func.id for node in ast.walk(tree) if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)
        }
        imported = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
        assert not called & {"eval", "exec", "compile"}
        assert not imported & {"ast", "pickle", "marshal"}
