"""Honest programs as models write them: each gives in a sandbox what it gives in an ordinary interpreter.

`honest.txt` holds them, each under a line `#: name | input`. They are the project's own, so that they may run here,
too.
"""

from __future__ import annotations

import ast
import asyncio
import contextlib
import io
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
