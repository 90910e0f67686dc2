"""Facts of programs, found in a sandbox's child and checked outside; stripping; variants of inputs."""

from __future__ import annotations

import ast
import asyncio
import random

import pytest

from executor.inspection import MAX_SHAPE, Facts, inspect, strip
from executor.literals import parse_args, parse_literal
from executor.outcomes import Outcome, Status
from executor.outcomes import Outcome as Found
from executor.pool import SandboxPool, SerialPool
from executor.sandbox.request import facts_of
from executor.settings import ExecutorSettings
from executor.values import canonical
from executor.variants import MAX_VARIANTS, variants


def facts(program: str) -> Facts:
    return Facts.of(inspect(program))


# ------------------------------------------------------------------------------------------------------- in a sandbox


def ask(pool: SerialPool, program: str, **options: bool) -> Facts | Outcome:
    return asyncio.run(pool.inspect(program, **options))


def test_facts_come_from_a_sandbox(serial_pool: SerialPool) -> None:
    program = "def f(x):  # é\n    'doc'\n    return [x, 1]"
    found = ask(serial_pool, program, strip_comments=True, strip_docstrings=True)
    assert found == Facts.of(inspect(program, True, True))
    assert isinstance(found, Facts)
    assert (found.normal, found.stripped) == ("def f(v0):\n    return [v0, 1]", "def f(x):\n    return [x, 1]")


def test_nothing_of_the_program_runs(serial_pool: SerialPool) -> None:
    found = ask(serial_pool, "import os\nwhile True: pass\ndef f(x): return x")
    assert isinstance(found, Facts) and found.uses_input


@pytest.mark.parametrize(
    ("program", "status"),
    [
        ("def f(x) return x", Status.ERROR),
        ("", None),
        ("\0", Status.ERROR),
        ("def f(x): return '\ud800'", Status.ERROR),
        ("x = 1 #" + "y" * (1 << 16), Status.ERROR),
        ("x = " + "(" * 1000 + ")" * 1000, Status.ERROR),
        ("x = " + "-" * 30_000 + "1", Status.MEMORY),
        ("x = " + "9" * 10_000, Status.ERROR),
        ("x = " + "1 + " * 3_000 + "1", Status.ERROR),
        ("x = " + "1 + " * 400 + "1", None),
    ],
)
def test_what_cannot_be_read_is_an_outcome(serial_pool: SerialPool, program: str, status: Status | None) -> None:
    pid = serial_pool.pids[0]
    found = ask(serial_pool, program)
    if status is None:
        assert isinstance(found, Facts)
    else:
        assert isinstance(found, Outcome)
        assert found.status in {status, Status.CRASHED, Status.MEMORY, Status.ERROR}
    assert serial_pool.pids[0] == pid, "the fork server is not hurt"


def test_both_pools_and_no_execution_is_counted() -> None:
    async def scenario() -> None:
        pool = SandboxPool(ExecutorSettings())
        await pool.start()
        try:
            found = await asyncio.gather(*[pool.inspect(f"def f(x): return {number}") for number in range(8)])
            assert [one.normal[-1] for one in found if isinstance(one, Facts)] == list("01234567")
            assert pool.stats.executions == 0
        finally:
            await pool.close()

    asyncio.run(scenario())


def test_facts_from_outside_are_checked() -> None:
    good = inspect("def f(x): return x")
    assert isinstance(facts_of(Found(Status.OK, canonical(good))), Facts)
    for bad in (1, (), good[:-1], [*good], (*good[:5], 1, ""), (good[0], "x" * (MAX_SHAPE + 1), *good[2:])):
        found = facts_of(Found(Status.OK, canonical(bad)))
        assert isinstance(found, Outcome)
        assert found.status is Status.CRASHED
    assert facts_of(Found(Status.OK, canonical((*good[:4], float("nan"), *good[5:])))) != Facts.of(good)


# -------------------------------------------------------------------------------------------------------- normal form


def test_the_same_program_with_other_names_has_one_normal_form() -> None:
    one = "def g(a):\n    # doubled\n    return a * 2\n\ndef f(items):\n    return [g(i) for i in items]"
    two = "def helper(n):\n  'Doc.'\n  return n*2\ndef f(xs: list) -> list:\n  return [helper(x) for x in xs]"
    assert facts(one).normal == facts(two).normal
    assert facts(one).shape == facts(two).shape


@pytest.mark.parametrize(
    ("one", "two"),
    [
        ("def f(x): return x", "def f(x): return 1"),
        ("def f(x, y): return x - y", "def f(x, y): return y - x"),
        ("def f(x): return x", "def g(x): return x"),
        ("def f(x): return len(x)", "def f(x): return sum(x)"),
        ("def f(len): return len", "def f(x): return len"),
        ("def f(x):\n def g(a): return a\n return g(a=x)", "def f(x):\n def g(b): return b\n return g(a=x)"),
        ("import math\ndef f(x): return math.pi", "import cmath\ndef f(x): return cmath.pi"),
        ("class A: n = 0\ndef f(x): return A.n", "class A: m = 0\ndef f(x): return A.n"),
        ("def f(x):\n def g(): pass\n return g.__name__", "def f(x):\n def h(): pass\n return h.__name__"),
        ("def f(x): return v0", "def f(v0): return v0"),
        ("def f(x): return 1", "def f(x): return 1.0"),
        ("def f(x): return 1", "def f(x): return True"),
    ],
)
def test_different_programs_have_different_normal_forms(one: str, two: str) -> None:
    assert facts(one).normal != facts(two).normal


def test_a_normal_form_means_the_same_program() -> None:
    program = (
        "import math as m\nfrom functools import reduce\nclass P:\n    def __init__(self, k): self.k = k\n"
        "def g(n, *rest, flag=False, **more):\n    global seen\n    seen = n\n    try: return n // len(rest)\n"
        "    except ZeroDivisionError as error: return [n, type(error).__name__]\n"
        "def f(x, y=2):\n    total = 0\n    def step(a):\n        nonlocal total\n        total += a\n"
        "    for i in x: step(i)\n    match y:\n"
        "        case {'k': value, **rest}: total += value\n        case [head, *tail]: total += head\n"
        "        case other: total += other\n"
        "    if (n := total) > 3: total = reduce(lambda a, b: a + b, [n, m.floor(2.5)])\n"
        "    return total, g(1), g(total, 2, flag=True), seen, P(k=3).k, f'{total=}'"
    )
    normal = facts(program).normal

    def run(text: str) -> object:
        space: dict[str, object] = {}
        exec(text, space)
        function = space["f"]
        assert callable(function)
        return [function([1, 2, 3]), function([1], [5, 6]), function([], {"k": 9})]

    assert run(normal) == run(program)
    without = program.replace("type(error).__name__", "1").replace("f'{total=}'", "0")
    assert "total" not in facts(without).normal
    assert run(facts(without).normal) == run(without)


def test_shape_and_nodes() -> None:
    one = facts("def f(x):\n    return x + 1")
    assert one.nodes == len(one.shape) == 7  # function, parameter, return, sum, x, +, 1
    assert facts("def g(y):\n    'doc'\n    return y + 2").shape == one.shape
    assert facts("def f(x):\n    return x - 1").shape != one.shape
    long = facts("def f(x):\n" + "    x += 1\n" * 2000)
    assert (len(long.shape), long.nodes) == (MAX_SHAPE, 2 + 4 * 2000)


@pytest.mark.parametrize(
    ("body", "complexity"),
    [
        ("return x", 0),
        ("if x: return 1\n    return 2", 1),
        ("if x: return 1\n    else: return 2", 2),
        ("if x: return 1\n    elif y: return 2\n    else: return 3", 3),
        ("return 1 if x else 2", 1),
        ("for i in x:\n        if i:\n            while i: i -= 1", 6),
        ("try: pass\n    except ValueError: pass", 1),
        ("return x and y and z", 1),
        ("return x and y or z", 2),
        ("return [i for i in x if i]", 2),
        ("return f(x - 1) + f(x - 2)", 1),
        ("def g(a):\n        if a: return 1\n    return g(x)", 2),
        ("match x:\n        case 1: return 2", 1),
    ],
)
def test_cognitive_complexity(body: str, complexity: int) -> None:
    assert facts(f"def f(x):\n    {body}").complexity == complexity


def test_halstead_effort() -> None:
    # Operators: def, return, +; operands: x twice, 1. n1 = N1 = 3, n2 = 2, N2 = 3.
    assert facts("def f(x): return x + 1").halstead == pytest.approx(3 / 2 * 3 / 2 * 6 * 2.321928, rel=1e-6)
    assert facts("pass").halstead == 0
    assert facts("def f(x): return sorted(x)[0]").halstead > facts("def f(x): return x").halstead


@pytest.mark.parametrize(
    ("program", "uses"),
    [
        ("def f(x): return 6", False),
        ("def f(x): return 0 * x + 6", True),
        ("def f(x): return len([1, 2])", False),
        ("def f(x): return x", True),
        ("def f(): return 6", False),
        ("def f(x, y): return y", True),
        ("def f(*args, **more): return more", True),
        ("def f(*args): return 1", False),
        ("def f(x): x += 1", True),
        ("def f(x):\n x = 1", False),
        ("def f(x):\n def g(): return x\n return 1", True),
        ("def g(x): return x\ndef f(y): return g(1)", False),
        ("f = lambda x: 1", False),
        ("f = lambda x: x", True),
        ("def f(x): return x\ndef f(x): return 1", False),
        ("def f(x): return 1\nf = str", True),
        ("def f(x): return 1\nif 1: f = str", True),
        ("def d(g): return str\n@d\ndef f(x): return 1", True),
        ("x = 1", True),
    ],
)
def test_uses_input(program: str, uses: bool) -> None:
    assert facts(program).uses_input is uses


# ----------------------------------------------------------------------------------------------------------- stripping


@pytest.mark.parametrize(
    ("program", "comments", "docstrings", "stripped"),
    [
        ("# a\ndef f(x):  # b\n    # c\n    return '# no'  # d", True, False, "def f(x):\n    return '# no'"),
        ("def f(x):\n    '''a\n    b'''\n    return x  # d", False, True, "def f(x):\n    return x  # d"),
        ("def f(x):\n    'a'  # b\n    return x", True, True, "def f(x):\n    return x"),
        ("def f(x):\n    'é' # b\n    return x", False, True, "def f(x):\n     # b\n    return x"),
        ("'m'\ndef f(x): 'd'", False, True, "def f(x): pass"),
        ("class A:\n    'd'\n    n = 1\n", False, True, "class A:\n    n = 1"),
        ("def f(x): 'd'; return x", False, True, "def f(x):\n    return x"),
        ("def f(x):\n    'd';\n    return x", False, True, "def f(x):\n    return x"),
        ("x = 1 + \\\n    2 # a", True, False, "x = 1 + \\\n    2"),
        ("f(1, # a\n  # b\n  2)", True, False, "f(1,\n  2)"),
        ("x = 1\r\n# a\r\ny = 2", True, False, "x = 1\ny = 2"),
        ("x = '''\n# no\n'''", True, True, "x = '''\n# no\n'''"),
        ("def f(x):\n\n    return x", True, True, "def f(x):\n\n    return x"),
        ("def f(x):\n    return x, 'not a doc'", True, True, "def f(x):\n    return x, 'not a doc'"),
    ],
)
def test_strip(program: str, comments: bool, docstrings: bool, stripped: str) -> None:
    assert strip(program, comments, docstrings) == stripped
    assert strip(stripped, comments, docstrings) == stripped


def test_stripping_changes_nothing_else() -> None:
    """On the library's own sources, which have comments and docstrings of every kind."""
    for name in ("textwrap", "fractions", "heapq", "keyword"):
        source = __import__("inspect").getsource(__import__(name))
        bare = strip(source, True, False)
        assert ast.dump(ast.parse(bare)) == ast.dump(ast.parse(source))
        assert len(bare) < len(source)
        assert len(strip(source, True, True)) < len(bare)


# ------------------------------------------------------------------------------------------------------------ variants


@pytest.mark.parametrize(
    "given",
    [
        "5",
        "0",
        "True",
        "'abc'",
        "''",
        "0.5",
        "[1, 2, 3]",
        "(1, 'a')",
        "{'a': 1}",
        "{1, 2}",
        "b'x'",
        "[]",
        "[[1], [2]]",
        "1, 'a'",
    ],
)
def test_variants_are_other_inputs_of_the_same_types(given: str) -> None:
    args = parse_args(given)
    found = variants(args)
    assert 1 <= len(found) <= MAX_VARIANTS
    assert len(set(found)) == len(found)
    for text in found:
        other = parse_args(text)
        assert [type(value) for value in other] == [type(value) for value in args]
        assert other != args
    assert variants(args) == found, "no chance in it"


def test_where_nothing_can_be_varied() -> None:
    assert variants((None,)) == []
    assert variants(("x" * 20_000,)) == []
    assert variants((2**3_300,)), "what would be too long is left out"


def test_variants_of_any_value_can_be_read() -> None:
    chance = random.Random(1)

    def value(depth: int) -> object:
        kind = chance.randrange(9 if depth < 3 else 5)
        items = [value(depth + 1) for _ in range(chance.randrange(4))] if kind >= 5 else []
        flat = [chance.choice([1, "a", 2.5, None, True, (1, 2)]) for _ in items]
        plain = [
            None,
            chance.randrange(-9, 9),
            chance.random(),
            chance.choice(["", "Ab", "é\n"]),
            chance.random() < 0.5,
        ]
        return [*plain, items, tuple(items), dict(zip(flat, items, strict=True)), set(flat)][kind]

    for _ in range(300):
        args = tuple(value(0) for _ in range(chance.randrange(1, 4)))
        for text in variants(args):
            assert len(parse_args(text)) == len(args)
            assert parse_literal(f"({text},)") is not None
