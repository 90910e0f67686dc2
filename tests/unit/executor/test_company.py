"""A verdict is a function of the task and the answer: not of the other answers, their order, or what was judged
before."""

from __future__ import annotations

import asyncio

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from executor.judge import Judge
from executor.outcomes import Outcome
from executor.pool import SerialPool
from executor.settings import ExecutorSettings
from executor.tasks import Validated, Verdict
from tests.unit.executor.attacks.company import COMPANIONS, Companion

LIMITS = ExecutorSettings(timeout_s=5, memory_mb=64)
few = settings(max_examples=3, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
companions = pytest.mark.parametrize("companion", COMPANIONS, ids=lambda companion: companion.name)


def pool_of(companion: Companion, serial_pool: SerialPool, wall_pool: SerialPool) -> SerialPool:
    return serial_pool if companion.gate else wall_pool


def alone(pool: SerialPool, program: str, given: str) -> Outcome:
    return asyncio.run(pool.execute(program, [given], 0))[0]


@companions
@given(data=st.data())
@few
def test_an_input_gives_what_it_gives_alone(
    companion: Companion, data: st.DataObject, serial_pool: SerialPool, wall_pool: SerialPool
) -> None:
    pool = pool_of(companion, serial_pool, wall_pool)
    inputs = data.draw(st.lists(st.sampled_from(companion.inputs), min_size=1, max_size=5))
    together = asyncio.run(pool.execute(companion.program, inputs, 0))
    expected = {text: alone(pool, companion.program, text) for text in sorted(set(inputs))}
    assert together == [expected[text] for text in inputs]


@companions
@given(data=st.data())
@few
def test_an_answer_that_is_an_input_is_judged_as_alone(
    companion: Companion, data: st.DataObject, serial_pool: SerialPool, wall_pool: SerialPool
) -> None:
    pool = pool_of(companion, serial_pool, wall_pool)
    expected = alone(pool, companion.program, "1").value or "0"
    answers = data.draw(st.lists(st.sampled_from([*companion.inputs, "'a'"]), min_size=1, max_size=5))

    def check(answers: list[str]) -> list[Verdict]:
        return asyncio.run(Judge(pool, LIMITS).check_inputs(companion.program, expected, answers))

    assert check(answers) == [check([answer])[0] for answer in answers]


@companions
@given(data=st.data())
@few
@pytest.mark.slow
def test_an_answer_that_is_a_program_is_judged_as_alone(
    companion: Companion, data: st.DataObject, serial_pool: SerialPool, wall_pool: SerialPool
) -> None:
    """After and beside answers that are right, that are wrong, and that fail."""
    pool = pool_of(companion, serial_pool, wall_pool)
    outcomes = {text: alone(pool, companion.program, text) for text in data.draw(st.permutations(companion.inputs))}
    pairs = [(text, outcome.value or "0") for text, outcome in outcomes.items()]
    others = ["def f(x): return x", "def f(x) x", "def f(x): return 1 // 0", f"{companion.program}\n# a copy"]
    answers = data.draw(st.lists(st.sampled_from([companion.program, *others]), min_size=1, max_size=4))

    def check(answers: list[str]) -> list[Verdict]:
        return asyncio.run(Judge(pool, LIMITS).check_programs(pairs, answers))

    assert check(answers) == [check([answer])[0] for answer in answers]
    assert check([companion.program])[0].correct == all(outcome.status == "ok" for outcome in outcomes.values())


@companions
@pytest.mark.slow
def test_outputs_are_those_of_each_input_alone(
    companion: Companion, serial_pool: SerialPool, wall_pool: SerialPool
) -> None:
    """Whatever the order of the inputs; unless the program is refused."""
    pool = pool_of(companion, serial_pool, wall_pool)
    for inputs in (companion.inputs, companion.inputs[::-1], companion.inputs[1:3]):
        found = asyncio.run(Judge(pool, LIMITS).validate(companion.program, inputs))
        if isinstance(found, Validated):
            assert list(found.outputs) == [alone(pool, companion.program, text).value for text in inputs]


def test_an_answer_that_holds_much_memory_is_judged_by_each_input_alone(serial_pool: SerialPool) -> None:
    """A table of 48 MB, and five inputs."""
    program = "S = [True] * 6_000_001\ndef f(n):\n    return S[n] and n % 2 == 1"
    pairs = [(str(number), str(number % 2 == 1)) for number in range(6, 11)]
    (verdict,) = asyncio.run(Judge(serial_pool, LIMITS).check_programs(pairs, [program]))
    assert verdict.correct
