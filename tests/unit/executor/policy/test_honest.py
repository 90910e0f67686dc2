"""Honest programs as models write them: each gives in a sandbox what it gives in an ordinary interpreter.

`honest.txt` holds those that gates refuse easily, each under a line `#: name | input`; `honest_functions.jsonl` is a
sample of 311 of what a model of 7B writes, with what must become of each: plain functions, their habits (a main block,
tests, prints, imports that nothing needs), and 26 that no task can be made of, each with its reason. They are the
project's own, so that they may run here, too.
"""

from __future__ import annotations

import ast
import asyncio
import contextlib
import io
import json
import sys
import types
from pathlib import Path
from typing import Any

import pytest

from executor.codec import decode, encode
from executor.judge import Judge
from executor.literals import parse_literal
from executor.outcomes import Status
from executor.pool import SerialPool
from executor.settings import ExecutorSettings
from executor.values import equal

_TEXTS = Path(__file__).with_name("honest.txt").read_text("utf-8").split("#: ")[1:]
_PROGRAMS = [(*text.partition("\n")[0].split(" | ", 1), text.partition("\n")[2]) for text in _TEXTS]


def _in_an_ordinary_interpreter(program: str, given: str, monkeypatch: pytest.MonkeyPatch) -> Any:
    module = types.ModuleType("solution")
    monkeypatch.setitem(sys.modules, "solution", module)
    monkeypatch.setattr(sys, "stdin", io.StringIO())
    limit = sys.getrecursionlimit()
    try:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            exec(compile(program, "<program>", "exec", dont_inherit=True), vars(module))
            return decode(encode(vars(module)["f"](*ast.literal_eval(f"[{given}]"))))
    finally:
        sys.setrecursionlimit(limit)


@pytest.mark.parametrize(("name", "given", "program"), _PROGRAMS, ids=[name for name, _, _ in _PROGRAMS])
def test_an_honest_program_is_let_through(
    name: str, given: str, program: str, serial_pool: SerialPool, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = _in_an_ordinary_interpreter(program, given, monkeypatch)
    judge = Judge(serial_pool, ExecutorSettings())
    outcome = asyncio.run(judge.determine(program, given))
    assert outcome.status is Status.OK, outcome.detail
    assert equal(parse_literal(outcome.value), expected)


def test_there_are_enough_of_them() -> None:
    assert len({name for name, _, _ in _PROGRAMS}) == len(_PROGRAMS) >= 60


_SAMPLE = [
    json.loads(line) for line in Path(__file__).with_name("honest_functions.jsonl").read_text("utf-8").splitlines()
]


@pytest.mark.slow
@pytest.mark.parametrize("sample", _SAMPLE, ids=lambda sample: sample["name"])
def test_a_sample_of_what_models_write(
    sample: dict[str, str], serial_pool: SerialPool, monkeypatch: pytest.MonkeyPatch
) -> None:
    outcome = asyncio.run(Judge(serial_pool, ExecutorSettings()).determine(sample["program"], sample["input"]))
    if sample["expect"] == "ok":
        assert outcome.status is Status.OK, outcome.detail
        expected = _in_an_ordinary_interpreter(sample["program"], sample["input"], monkeypatch)
        assert equal(parse_literal(outcome.value), expected)
    else:
        status, _, detail = sample["expect"].partition(": ")
        assert outcome.status == status
        assert not detail or outcome.detail == detail


def test_the_sample_is_mostly_tasks() -> None:
    assert sum(sample["expect"] == "ok" for sample in _SAMPLE) == 285
    assert len(_SAMPLE) == 311
