"""The judge: which programs are sound for their inputs, and which answers are right."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import pytest

from executor.determinism import seeds_for
from executor.inspection import Facts
from executor.judge import Judge
from executor.memo import Memo
from executor.outcomes import InfrastructureError, Outcome, Status
from executor.pool import SerialPool
from executor.settings import ExecutorSettings
from executor.tasks import (
    Rejection,
    RejectionReason,
    Validated,
    ValidationRules,
    Verdict,
    VerdictReason,
)
from executor.values import CodecError, Equality

SUM = "def f(xs, k):\n    return [x + k for x in xs]"


def validate(judge: Judge, program: str, *inputs: str) -> Validated | Rejection:
    return asyncio.run(judge.validate(program, inputs))


@dataclass(frozen=True)
class Value:
    """Answers are compared with a value."""

    expected: str

    async def check(self, judge: Judge, answers: Sequence[str]) -> list[Verdict]:
        return judge.check_values(self.expected, answers)


@dataclass(frozen=True)
class Input:
    """Answers are inputs for which a program should return a value."""

    program: str
    own: str
    expected: str

    async def check(self, judge: Judge, answers: Sequence[str]) -> list[Verdict]:
        return await judge.check_inputs(self.program, self.expected, answers, known=[self.own])


@dataclass(frozen=True)
class Program:
    """Answers are programs that should give these pairs."""

    own: str
    pairs: tuple[tuple[str, str], ...]

    async def check(self, judge: Judge, answers: Sequence[str]) -> list[Verdict]:
        return await judge.check_programs(self.pairs, answers, known=[self.own])


Question = Value | Input | Program


def check(judge: Judge, question: Question, *answers: str) -> list[Verdict]:
    return asyncio.run(question.check(judge, answers))


def reasons(judge: Judge, question: Question, *answers: str) -> list[str]:
    return [verdict.reason.value for verdict in check(judge, question, *answers)]


class Watched:
    """A pool that notes what it is asked for."""

    def __init__(self, pool: SerialPool) -> None:
        self._pool = pool
        self.workers, self.seeds = pool.workers, pool.seeds
        self.runs: list[tuple[str, list[str]]] = []
        self.under: list[int | None] = []
        """The seed of every run and probe."""

    async def execute(
        self, program: str, inputs: Sequence[str], seed: int | None = None, **options: Any
    ) -> list[Outcome]:
        self.runs.append((program, list(inputs)))
        self.under.append(seed)
        return await self._pool.execute(program, inputs, seed, **options)

    async def probe(
        self, program: str, inputs: Sequence[str], seed: int | None = None, **options: Any
    ) -> list[Outcome]:
        self.under.append(seed)
        return await self._pool.probe(program, inputs, seed, **options)

    async def inspect(self, program: str, **options: bool) -> Facts | Outcome:
        return await self._pool.inspect(program, **options)


@pytest.fixture
def watched(serial_pool: SerialPool) -> Watched:
    return Watched(serial_pool)


@pytest.fixture
def sharing(watched: Watched, settings: ExecutorSettings) -> Judge:
    return Judge(watched, settings)  # type: ignore[arg-type]  # it neither starts nor closes


def test_a_sound_program_is_validated(judge: Judge) -> None:
    found = validate(judge, f"\n\n{SUM}\n", "[ 1,2 ],\n  3  # comment")
    assert found == Validated(SUM, ("[1, 2], 3",), ("[4, 5]",))


@pytest.mark.parametrize(
    ("program", "inputs", "reason"),
    [
        (SUM, (), RejectionReason.INPUT_COUNT),
        (SUM, ("[], 1", "[],1 # again"), RejectionReason.DUPLICATE_INPUT),
        (SUM, ("{2, 1}, 1", "[], 1", "{1, 2}, 1"), RejectionReason.DUPLICATE_INPUT),
        (SUM, ("xs",), RejectionReason.UNPARSEABLE_INPUT),
        (SUM, ("",), RejectionReason.UNPARSEABLE_INPUT),
        (SUM, ("[1]",), RejectionReason.ERROR),
        ("", ("1",), RejectionReason.ERROR),
        ("def f(x):\n while True: pass", ("1",), RejectionReason.TIMEOUT),
        ("def f(x): return bytearray(1 << 40)", ("1",), RejectionReason.MEMORY),
        ("def f(x): return 'a' * 10**6", ("1",), RejectionReason.OUTPUT_TOO_LARGE),
        ("def f(x): return range(x)", ("1",), RejectionReason.UNSERIALISABLE),
        ("import os\ndef f(x): return os.sep", ("1",), RejectionReason.UNSAFE),
        ("def f(x): return 1 // x", ("1", "2", "0"), RejectionReason.ERROR),
    ],
)
def test_rejections(judge: Judge, program: str, inputs: tuple[str, ...], reason: RejectionReason) -> None:
    rejection = validate(judge, program, *inputs)
    assert isinstance(rejection, Rejection)
    assert rejection.reason is reason


def test_inputs_that_python_calls_equal_are_no_duplicates(judge: Judge) -> None:
    task = validate(judge, "def f(x): return [x, x]", "1", "1.0", "True", "0.0", "-0.0")
    assert isinstance(task, Validated)
    assert task.outputs == ("[1, 1]", "[1.0, 1.0]", "[True, True]", "[0.0, 0.0]", "[-0.0, -0.0]")


@pytest.mark.parametrize(
    "change",
    [
        "keyword.kwlist.append(x)",
        "kept = keyword.kwlist; kept[0] = 'x' * len(kept[0]) * 2",
        "F = fractions.Fraction; F.seen = getattr(F, 'seen', 0) + x",
        "fractions.Fraction.seen = x",
        "keyword.kwlist[0] = x",
        "setattr(keyword, 'seen', x)",
        "setattr(fractions.Fraction, 'seen', x)",
    ],
)
def test_a_change_to_a_module_does_not_reach_the_next_input(judge: Judge, change: str) -> None:
    """Every input has a child of its own: its value is the one that it gives alone, unless the program is refused."""
    seen = "getattr(fractions.Fraction, 'seen', 0)"
    program = f"import fractions, keyword\ndef f(x):\n {change}\n return keyword.kwlist, {seen}"
    found = validate(judge, program, "1", "2", "3")
    if isinstance(found, Validated):
        assert list(found.outputs) == [asyncio.run(judge.determine(program, given)).value for given in ("1", "2", "3")]
    else:
        assert found.reason in {RejectionReason.NONDETERMINISTIC, RejectionReason.UNSAFE, RejectionReason.ERROR}


@pytest.mark.parametrize(
    "program",
    [
        "n = 0\ndef f(x):\n global n\n n += 1\n return n",
        "def f(x, seen=[]):\n seen.append(x)\n return len(seen)",
        "class A: n = 0\ndef f(x):\n A.n += 1\n return A.n",
        "def f(x):\n f.n = getattr(f, 'n', 0) + 1\n return f.n",
        "def f(x):\n try: getattr.n = 1\n except AttributeError: return 1\n return 2",
        "def f(x):\n try: type(getattr).n = 1\n except TypeError: return 1\n return 2",
        "def f(x):\n try: setattr(setattr, 'n', 1)\n except AttributeError: return 1\n return 2",
        "def f(x):\n try: ValueError.n = 1\n except TypeError: return 1\n return 2",
        "def f(x):\n global len\n n = len('ab')\n len = lambda s: 3\n return n",
        "def f(x):\n try: raise MemoryError\n except MemoryError as e: n = getattr(e, 'n', 0); e.n = 1; return n",
        "def f(x):\n try: next(iter([]))\n except StopIteration as e: n = getattr(e, 'n', 0); e.n = 1; return n",
        "def f(x):\n c = [[]] + [1, (2, [])][:1]\n c[0].append(x)\n return c",
        "def f(x):\n g = (i for i in (1, 2))\n next(g)\n return next(g)",
    ],
)
def test_without_imports_nothing_is_left_for_the_next_input(serial_pool: SerialPool, program: str) -> None:
    """So the variants of an input, which share a child, find no difference where there is none."""
    outcomes = asyncio.run(serial_pool.probe(program, ["1", "1", "1"]))
    assert {outcome.status for outcome in outcomes} == {Status.OK}
    assert len({outcome.value for outcome in outcomes}) == 1


def test_determine(judge: Judge) -> None:
    def determine(program: str, given: str) -> Outcome:
        return replace(asyncio.run(judge.determine(program, given)), detail="")

    assert determine("def f(x): return x * 2", " 21 ") == Outcome(Status.OK, "42")
    assert determine("def f(x): return hash('a')", "1") == Outcome(Status.NONDETERMINISTIC)
    assert determine("def f(x): return 1 / x", "0") == Outcome(Status.ERROR)
    assert determine("import os\nos", "0") == Outcome(Status.UNSAFE)
    with pytest.raises(CodecError):
        determine("def f(x): return x", "x")


def test_nondeterminism_says_what_differed(judge: Judge) -> None:
    detail = asyncio.run(judge.determine("def f(x): return hash('a')", "1")).detail
    one, _, other = detail.partition(" in one run, ")
    assert int(one) != int(other.removesuffix(" in the other"))


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
    task = Value("[4, 5]")
    assert check(judge, task, answer) == [Verdict(reason is VerdictReason.CORRECT, reason)]


def test_equality_is_selectable(serial_pool: SerialPool, settings: ExecutorSettings) -> None:
    task = Value("1")
    assert not check(Judge(serial_pool, settings), task, "1.0")[0].correct
    assert check(Judge(serial_pool, settings, Equality.PYTHON), task, "1.0")[0].correct


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
    task = Input(SUM, "[1, 2], 3", "[4, 5]")
    assert check(judge, task, answer) == [Verdict(reason is VerdictReason.CORRECT, reason)]


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
        ("import subprocess\ndef f(x): return subprocess.call(x)", VerdictReason.UNSAFE),
        ("def f(x): return f", VerdictReason.UNSERIALISABLE),
    ],
)
def test_induction(judge: Judge, answer: str, reason: VerdictReason) -> None:
    task = Program("def f(x): return x * x", (("3", "9"), ("4", "16")))
    assert check(judge, task, answer) == [Verdict(reason is VerdictReason.CORRECT, reason)]


def test_a_failing_sandbox_is_never_a_verdict(settings: ExecutorSettings) -> None:
    class Broken(SerialPool):
        async def execute(self, *args: object, **kwargs: object) -> list[Outcome]:
            raise InfrastructureError("no sandbox")

    judge = Judge(Broken(settings), settings)
    with pytest.raises(InfrastructureError):
        validate(judge, SUM, "[1], 2")
    with pytest.raises(InfrastructureError):
        check(judge, Input(SUM, "[1], 2", "[3]"), "[2], 1")


@pytest.mark.parametrize("count", [0, 1, 3])
@pytest.mark.parametrize("run", [1, 2])
def test_a_pool_that_answers_for_too_few_inputs_or_too_many_is_never_a_verdict(
    settings: ExecutorSettings, count: int, run: int
) -> None:
    """In the first run of a program, or in the one that confirms it. All that it does answer is right."""

    class Miscounting(SerialPool):
        runs = 0

        async def execute(self, program: str, inputs: Sequence[str], *args: Any, **options: Any) -> list[Outcome]:
            self.runs += 1
            return [Outcome(Status.OK, "4")] * (count + (count >= len(inputs)) if self.runs == run else len(inputs))

    varies = "def f(x): return len({x}) + 3"
    for request in (
        lambda judge: judge.validate(varies, ["1", "2"]),
        lambda judge: judge.determine(varies, "1"),
        lambda judge: judge.evaluate(varies, ["1"]),
        lambda judge: judge.check_inputs(varies, "4", ["1"]),
        lambda judge: judge.check_programs([("1", "4"), ("2", "4")], [varies]),
    ):
        with pytest.raises(InfrastructureError):
            asyncio.run(request(Judge(Miscounting(settings), settings)))


# ---------------------------------------------------------------------------------------- several answers, one request

DOUBLE = "def f(x): return x * 2"


def test_answers_to_deduction_run_nothing(sharing: Judge, watched: Watched) -> None:
    task = Value("4")
    assert reasons(sharing, task, "4", "5", "four", " 4 ", "4.0", "") == [
        "correct", "wrong", "unparseable", "correct", "wrong", "unparseable",
    ]  # fmt: skip
    assert watched.runs == []
    assert (sharing.stats.answers, sharing.stats.shared_equal, sharing.stats.executed) == (6, 1, 0)


def test_every_answer_to_abduction_runs_alone(sharing: Judge, watched: Watched) -> None:
    task = Input("def f(x): return x % 3", "4", "1")
    answers = ["7", "4", "8", " 7", "'a'", "x", "7.0", "[1]"]
    expected = ["correct", "correct", "wrong", "correct", "error", "unparseable", "wrong", "error"]
    assert reasons(sharing, task, *answers) == expected
    ran = [[given] for given in ("7", "8", "'a'", "7.0", "[1]")]
    assert watched.runs == [(task.program, given) for given in ran], "the task's own input is known"
    stats = sharing.stats
    assert (stats.answers, stats.shared_equal, stats.shared_own, stats.executed) == (8, 1, 1, 5)
    watched.runs.clear()
    assert reasons(sharing, task, *answers[::-1]) == expected[::-1]
    assert watched.runs == [(task.program, [given]) for given in ("[1]", "'a'")], "values are remembered, failures not"
    assert stats.memo_hits == 3


def test_an_answer_runs_twice_where_the_program_may_vary(sharing: Judge, watched: Watched) -> None:
    program = "def f(x):\n if x == 3: return 1\n return 1 if hash('a') % 2 ** 20 == 12345 else 2 + hash('a') % 7"
    assert reasons(sharing, Input(program, "3", "1"), "3", "4") == ["correct", "nondeterministic"]
    assert len(set(watched.under)) == len(watched.under) == 2
    assert reasons(sharing, Input(program, "3", "1"), "4") == ["nondeterministic"], "it is not remembered"
    sound = "def f(x): return sorted({*x, 1})"
    assert reasons(sharing, Input(sound, "[1]", "[1, 2]"), "[2]", "[3]") == ["correct", "wrong"]


def test_an_answers_program_is_not_correct_by_luck(judge: Judge, serial_pool: SerialPool) -> None:
    program = "def f(x): return hash('a')"
    lucky = seeds_for(program, ("1",), serial_pool.workers, serial_pool.seeds)[0]
    (first,) = asyncio.run(serial_pool.execute(program, ["1"], lucky))
    for _ in range(2):
        (verdict,) = asyncio.run(judge.check_programs([("1", first.value)], [program]))
        assert verdict.reason is VerdictReason.NONDETERMINISTIC


def test_what_an_answer_returned_is_not_taken_for_a_tasks_value(sharing: Judge, watched: Watched) -> None:
    """An answer's program may be random; a task's is not."""
    assert reasons(sharing, Program(DOUBLE, (("2", "4"),)), f"{DOUBLE} # so") == ["correct"]
    watched.runs.clear()
    reasons(sharing, Input(f"{DOUBLE} # so", "1", "2"), "2")
    assert watched.runs == [(f"{DOUBLE} # so", ["2"])]


def test_one_answers_timeout_or_memory_is_not_the_others(sharing: Judge) -> None:
    program = (
        "def f(x):\n"
        "    while x == 'loop': pass\n"
        "    kept = bytearray(25_000_000)\n"
        "    def g(): return kept\n"
        "    return bytes(10) if x == 'all' and bytearray(1 << 40) else 1"
    )
    task = Input(program, "0", "1")
    answers = ["1", "'loop'", "2", "'all'", "3", "4", "5"]
    assert reasons(sharing, task, *answers) == [
        "correct", "timeout", "correct", "memory", "correct", "correct", "correct",
    ]  # fmt: skip


def test_memory_that_others_hold_is_not_an_answers_fault(sharing: Judge, watched: Watched) -> None:
    """Alone, each of these answers fits."""
    program = "class B(bytearray): pass\nkept = []\ndef f(x):\n    kept.append(B(25_000_000))\n    return 1"
    task = Input(program, "0", "1")
    assert reasons(sharing, task, "1", "2", "3", "4", "5") == ["correct"] * 5


def test_answers_to_induction_never_share_a_child(sharing: Judge, watched: Watched) -> None:
    task = Program(DOUBLE, (("3", "6"), ("4", "8")))
    plus, square = "def f(x): return x + x", "def f(x): return x * x"
    answers = [plus, square, DOUBLE, f"\n{plus}\n", "def f(x) x", f"{DOUBLE}\n"]
    assert reasons(sharing, task, *answers) == ["correct", "wrong", "correct", "correct", "error", "correct"]
    assert sorted(watched.runs) == sorted([(plus, ["3"]), (plus, ["4"]), (square, ["3"]), ("def f(x) x", ["3"])])
    assert (sharing.stats.shared_equal, sharing.stats.shared_own) == (2, 1)
    watched.runs.clear()
    assert reasons(sharing, task, plus) == ["correct"]
    assert watched.runs == [], "its values are remembered"


def test_all_at_once_is_the_same_as_one_by_one(serial_pool: SerialPool, settings: ExecutorSettings) -> None:
    tasks = {
        Value("4"): ["4", "x", "5", "4"],
        Input(DOUBLE, "2", "4"): ["2", "3", "2.0", "'a'", "None", "2", "]"],
        Program(DOUBLE, (("3", "6"),)): [DOUBLE, "def f(x): return x + 3", "", "f = abs"],
    }
    for task, answers in tasks.items():
        one_by_one = [check(Judge(serial_pool, settings), task, answer)[0] for answer in answers]
        assert check(Judge(serial_pool, settings), task, *answers) == one_by_one
        again = Judge(serial_pool, settings)
        assert [check(again, task, answer)[0] for answer in answers * 2] == one_by_one * 2


def test_nothing_to_verify(judge: Judge) -> None:
    for question in (Value("2"), Input(DOUBLE, "1", "2"), Program(DOUBLE, (("2", "4"),))):
        assert reasons(judge, question) == []


def test_nothing_is_validated_from_memory(sharing: Judge, watched: Watched) -> None:
    task = Input(DOUBLE, "1", "2")
    reasons(sharing, task, "5")
    watched.runs.clear()
    validate(sharing, DOUBLE, "5")
    assert watched.runs == [(DOUBLE, ["5"])] * 2


def test_a_memo_is_bounded_and_forgets_what_was_used_longest_ago() -> None:
    memo = Memo(max_bytes=30)
    for number in range(3):
        memo.put("program", str(number), "v" * 2)
    assert memo.bytes == 30
    assert memo.get("program", "0") == "vv"
    memo.put("program", "3", "vv")
    assert [memo.get("program", str(number)) for number in range(4)] == ["vv", None, "vv", "vv"]
    memo.put("program", "3", "ignored: the first counts")
    memo.put("p" * 40, "", "")
    assert memo.bytes == 0, "what is larger than all of it is not kept"


def test_a_failing_sandbox_fails_the_whole_request(serial_pool: SerialPool, settings: ExecutorSettings) -> None:
    class Failing(Watched):
        async def execute(self, program: str, *args: Any, **options: Any) -> list[Outcome]:
            if "fail" in program:
                raise InfrastructureError("no sandbox")
            return await super().execute(program, *args, **options)

    judge = Judge(Failing(serial_pool), settings)  # type: ignore[arg-type]
    task = Program(DOUBLE, (("2", "4"),))
    with pytest.raises(InfrastructureError):
        check(judge, task, "def f(x): return x", "fail", "def f(x): return 4")


# --------------------------------------------------------------------------------------------------- rules, inspection


@pytest.fixture
def strict(watched: Watched, settings: ExecutorSettings) -> Judge:
    return Judge(watched, settings, rules=ValidationRules(input_dependence="reject"))  # type: ignore[arg-type]


def test_ignoring_the_input_can_be_measured_without_being_refused(watched: Watched, settings: ExecutorSettings) -> None:
    judge = Judge(watched, settings, rules=ValidationRules(input_dependence="measure"))  # type: ignore[arg-type]
    found = [validate(judge, program, "3") for program in ("def f(x): return 6", "def f(x): return x + 1")]
    assert [isinstance(task, Validated) and task.ignores_input for task in found] == [True, False]


@pytest.mark.parametrize(
    ("program", "inputs", "copies"),
    [
        ("def f(x): return x", ["1"], True),
        ("def f(x): return x.strip()", ["'a b'"], True),
        ("def f(x): return sorted(x)", ["[1, 2]"], True),
        ("def f(x): return {*x}", ["{'b', 'a'}"], True),
        ("def f(x, y): return x, y", ["1, 'a'"], True),
        ("def f(x): return x", ["1", "'a'"], True),
        ("def f(x): return abs(x)", ["1", "-1"], False),
        ("def f(x): return x,", ["1"], False),
        ("def f(x): return [x]", ["1"], False),
        ("def f(x, y): return [x, y]", ["1, 2"], False),
        ("def f(x, y): return x", ["1, 2"], True),
        ("def f(x): return x,", ["(1,)"], False),
        ("def f(x): return x", ["1.0"], True),
        ("def f(x): return int(x)", ["1.0"], False),
        ("def f(x): return x == 1", ["1"], False),
        ("def f(x): return str(x)", ["1"], False),
    ],
)
def test_a_program_that_gives_its_input_back_is_refused(
    watched: Watched, settings: ExecutorSettings, program: str, inputs: list[str], copies: bool
) -> None:
    judge = Judge(watched, settings, rules=ValidationRules(reject_copies=True))  # type: ignore[arg-type]
    found = validate(judge, program, *inputs)
    assert (found.reason is RejectionReason.COPIES_INPUT) if copies else isinstance(found, Validated)
    allowed = Judge(watched, settings)  # type: ignore[arg-type]
    assert isinstance(validate(allowed, program, *inputs), Validated)


@pytest.mark.parametrize(
    ("program", "given"),
    [
        ("def f(x): return 6", "1"),
        ("def f(x): return 0 * x + 6", "7"),
        ("def f(x): return len([1, 2])", "'abc'"),
        ("def f(x):\n x = 5\n return x", "3"),
        ("def f(x, y): return [1, {2}, {'a': 3}]", "[1], 'a'"),
        ("def f(x): print(x)", "'a'"),
        ("def f(x): return 'a' if isinstance(x, str) else x", "'b'"),
        ("def f(x): return {'a', 'b', 'c', x[:0]}", "'q'"),
        ("def f(x): return 10 / x * 0 + 1.0", "4"),
        ("def f(x): return 6", "None"),
    ],
)
def test_a_program_that_ignores_its_input_is_refused(strict: Judge, program: str, given: str) -> None:
    rejection = validate(strict, program, given)
    assert isinstance(rejection, Rejection)
    assert rejection.reason is RejectionReason.IGNORES_INPUT


@pytest.mark.parametrize(
    ("program", "given"),
    [
        ("def f(x): return x", "1"),
        ("def f(x): return x", "None"),
        ("def f(x): return x > 0", "5"),
        ("def f(x): return x > 0", "-5"),
        ("def f(x): return x > 100", "5"),
        ("def f(x): return x % 2 == 0", "4"),
        ("def f(x): return x % 7 == 0", "5"),
        ("def f(x): return all(x % i for i in range(2, x))", "7"),
        ("def f(x): return x == x[::-1]", "'level'"),
        ("def f(x): return x == x[::-1]", "'ab'"),
        ("def f(x): return x.isupper()", "'abc'"),
        ("def f(x): return x.isdigit()", "'123'"),
        ("def f(x): return len(x) > 3", "'abcdef'"),
        ("def f(x): return len(x) > 3", "'ab'"),
        ("def f(x): return 'a' in x", "'cat'"),
        ("def f(x): return 'e' in x", "'cat'"),
        ("def f(x): return x == sorted(x)", "[1, 2, 3]"),
        ("def f(x): return x == sorted(x)", "[3, 2, 1]"),
        ("def f(x): return sum(x) > 10", "[1, 2]"),
        ("def f(x): return len(set(x)) == len(x)", "[1, 2, 2]"),
        ("def f(x): return len(set(x)) == len(x)", "[1, 2, 3]"),
        ("def f(x): return any(i < 0 for i in x)", "[1, 2]"),
        ("def f(x): return max(x)", "[3, 1]"),
        ("def f(x): return 3 in x", "[3, 4]"),
        ("def f(x, y): return x > y", "5, 2"),
        ("def f(x, y): return x in y", "'a', ['a', 'b']"),
        ("def f(x): return not x", "True"),
        ("def f(x): return bool(x)", "[1]"),
        ("def f(x): return x.get('a', 0)", "{'a': 1}"),
        ("def f(x): return 'b' in x", "{'a': 1, 'b': 2}"),
        ("def f(x): return {'a': 1, 'b': 2}[x]", "'a'"),
        ("def f(x):\n if x != 'secret': raise ValueError\n return 1", "'secret'"),
        ("def f(x):\n while x != 3: pass\n return 1", "3"),
        ("def f(x): return {x, 1, 2}", "9"),
    ],
)
def test_a_program_that_uses_its_input_is_accepted(strict: Judge, program: str, given: str) -> None:
    assert isinstance(validate(strict, program, given), Validated)


def test_variants_share_a_child_and_stop_at_the_first_other_value(strict: Judge, watched: Watched) -> None:
    assert isinstance(validate(strict, DOUBLE, "3"), Validated)
    assert watched.runs == [(DOUBLE, ["3"])] * 2
    stats = strict.stats
    assert (stats.executed, stats.variants, stats.inspected) == (4, 2, 0)
    watched.runs.clear()
    validate(strict, "def f(x): return 6", "3")
    assert len(watched.runs) == 1, "there is no second run for what is refused after the first"
    assert stats.variants > 5


def test_a_tasks_outputs_are_those_of_its_own_inputs(strict: Judge, judge: Judge) -> None:
    program = "seen = []\ndef f(x):\n seen.append(x)\n return [x, len(seen)]"
    assert validate(strict, program, "3") == validate(judge, program, "3")
    rejection = validate(strict, "def f(x): return hash('a') + x", "1")
    assert isinstance(rejection, Rejection)
    assert rejection.reason is RejectionReason.NONDETERMINISTIC


def test_inputs_of_an_induction_proposal_are_each_others_variants(strict: Judge, watched: Watched) -> None:
    task = validate(strict, "def f(x): return x > 3", "1", "2", "5")
    assert isinstance(task, Validated)
    assert task.outputs == ("False", "False", "True")
    assert strict.stats.variants == 0
    rejection = validate(strict, "def f(x): return x > 3", "1", "2", "3")
    assert rejection == Rejection(RejectionReason.IGNORES_INPUT, "False for 3 inputs")


def test_without_the_rule_a_constant_is_a_task(judge: Judge) -> None:
    assert isinstance(validate(judge, "def f(x): return 6", "1"), Validated)
    assert judge.stats.variants == 0


def test_a_variant_that_dies_or_never_ends_changes_nothing(strict: Judge) -> None:
    ways = [
        "while True: pass",
        "return bytearray(1 << 40)",
        "raise ValueError",
        "return range(x)",
        "return 'a' * 10**6",
    ]
    for way in ways:
        task = validate(strict, f"def f(x):\n if x != 5:\n  {way}\n return x", "5")
        assert isinstance(task, Validated), way
        assert task.outputs == ("5",)


def test_stripped_programs_are_what_is_validated(serial_pool: SerialPool, settings: ExecutorSettings) -> None:
    rules = ValidationRules(strip_comments=True, strip_docstrings=True)
    judge = Judge(serial_pool, settings, rules=rules)
    task = validate(judge, "# twice\ndef f(x):\n    'Doubles.'\n    return x * 2  # so\n", "2")
    assert task == Validated("def f(x):\n    return x * 2", ("2",), ("4",))
    told = validate(judge, "def f(x):\n    'Doubles.'\n    return [x, f.__doc__]", "2")
    assert isinstance(told, Validated)
    assert told.outputs == ("[2, None]",)
    assert isinstance(task, Validated)
    asyncio.run(judge.inspect(task.program))
    assert judge.stats.inspected == 2, "what is known of a program is known of it stripped"
    broken = validate(judge, "def f(x) return x  # so", "2")
    assert isinstance(broken, Rejection)
    assert (broken.reason, broken.detail) == (RejectionReason.ERROR, "SyntaxError")


def test_inspections_are_remembered(judge: Judge) -> None:
    async def scenario() -> None:
        first = await judge.inspect(DOUBLE)
        assert first is not None
        assert (first.normal, first.stripped) == ("def f(v0):\n    return v0 * 2", "")
        assert await judge.inspect(f"\n{DOUBLE} ") is first
        assert await judge.inspect("def f(x) x") is None
        assert await judge.inspect("def f(x) x") is None

    asyncio.run(scenario())
    assert judge.stats.inspected == 2
