"""Programs that do not agree with themselves, programs that must, and values that are easily got wrong."""

from __future__ import annotations

from executor.outcomes import Status
from tests.unit.executor.attacks.attack import Attack, Expected

DIFFERS, OTHER_TYPE = Status.NONDETERMINISTIC, Status.UNSERIALISABLE


def _agree(name: str, program: str, expected: Expected, given: str = "1", gate: bool = True) -> Attack:
    return Attack(f"determinism: {name}", "determinism", program, expected, given, gate=gate)


def _value(name: str, expression: str, expected: Expected, given: str = "1") -> Attack:
    return Attack(f"value: {name}", "value", f"def f(x): return {expression}", expected, given, gate=True)


_DETERMINISM = (
    _agree("id", "def f(x): return id([])", DIFFERS),
    _agree("address in a repr", "def f(x): return repr(object())", DIFFERS),
    _agree("address of a lambda", "def f(x): return str(lambda: 0)", DIFFERS),
    _agree("address in a message", "def f(x):\n try: object().a + {}[print]\n except KeyError as e: return str(e)\n"
           " except AttributeError: return str(f)", DIFFERS),
    _agree("address of a bound method", "def f(x): return repr([].append)", DIFFERS),
    _agree("hash of a str", "def f(x): return hash('abc')", DIFFERS),
    _agree("hash of bytes", "def f(x): return hash(b'abc') % 1000", DIFFERS),
    _agree("hash of an object", "class A: pass\ndef f(x): return hash(A())", DIFFERS),
    _agree("order of a set", "def f(x): return list(set('abcdefghijklmnop'))", DIFFERS),
    _agree("order of a frozenset's text", "def f(x): return str(frozenset('abcdefghijklmnop'))", DIFFERS),
    _agree("first of a set", "def f(x): return [set('abcdefghijklmnop' + str(i)).pop() for i in range(20)]", DIFFERS),
    _agree("time", "import time\ndef f(x): return time.time()", DIFFERS, gate=False),
    _agree("fine clock", "import time\ndef f(x): return time.perf_counter_ns() % 10 ** 6", DIFFERS, gate=False),
    _agree("random bytes", "import os\ndef f(x): return os.urandom(8)", DIFFERS, gate=False),
    _agree("a sorted set", "def f(x): return sorted(set('hello'))", "['e', 'h', 'l', 'o']"),
    _agree("a set is a value", "def f(x): return {'a', 'b', 'c'}", "{'a', 'b', 'c'}"),
    _agree("sum of a set of floats", "def f(x): return sum({0.5, 0.25, 0.125})", "0.875"),
    _agree("order of a dict", "def f(x): return {'b': x, 'a': 2}", "{'b': 1, 'a': 2}"),
    _agree("hash of an int", "def f(x): return hash(2 ** 61)", "1"),
    _agree("a counter in a global", "n = 0\ndef f(x):\n global n\n n += 1\n return n", "1"),
    _agree("a counter in a class", "class A: n = 0\ndef f(x):\n A.n += 1\n return A.n", "1"),
    _agree("a counter in a default", "def f(x, seen=[]):\n seen.append(x)\n return seen", "[1]"),
    _agree("a counter in a cache", "import functools\n@functools.cache\ndef g(x): return [x]\n"
           "def f(x):\n g(x).append(2)\n return g(x)", "[1, 2]"),
    _agree("a counter on the function", "def f(x):\n f.n = getattr(f, 'n', 0) + 1\n return f.n", "1"),
    _agree("input changed in place", "def f(x):\n x.append(9)\n return x", "[1, 9]", "[1]"),
)  # fmt: skip

_VALUES = (
    _value("nan", "[float('nan'), x]", "[nan, 1]"),
    _value("nan as a key", "{float('nan'): x}", "{nan: 1}"),
    _value("infinities", "(float('inf'), -float('inf'))", "(inf, -inf)"),
    _value("minus zero", "[-0.0, 0.0]", "[-0.0, 0.0]"),
    _value("overflowing float", "1e308 * 10", "inf"),
    _value("smallest float", "5e-324", "5e-324"),
    _value("a float that needs all digits", "0.1 + 0.2", "0.30000000000000004"),
    _value("integer beyond 64 bits", "2 ** 200 + x", str(2**200 + 1)),
    _value("largest integer", "2 ** 14000 - x", str(2**14000 - 1)),
    _value("one more bit", "2 ** 14000", Status.OUTPUT_TOO_LARGE),
    _value("bool is no int", "[True, 1, 1.0]", "[True, 1, 1.0]"),
    _value("none", "None", "None"),
    _value("bytes", "b'\\xff\\x00a'", "b'\\xff\\x00a'"),
    _value("half a character", "'\\ud800'", "'\\ud800'"),
    _value(
        "two halves of a character",
        "[x, len(x), [ord(c) for c in x]]",
        "['\\ud83d\\ude00', 2, [55357, 56832]]",
        "'\\ud83d\\ude00'",
    ),
    _value(
        "halves beside a character",
        "'\\ud83d\\ude00' + chr(128512) + x",
        "'\\ud83d\\ude00\U0001f600\\ude00\\ud83d'",
        "'\\ude00\\ud83d'",
    ),
    _value("halves as keys", "{'\\ud83d\\ude00': 1, chr(128512): 2}", "{'\\ud83d\\ude00': 1, '\U0001f600': 2}"),
    _value("two nan in a set", "(len({float('nan'), float('nan')}), {float('nan'), float('nan')})", "(2, {nan, nan})"),
    _value("two nan as keys", "{float('nan'): x, float('nan'): 2}", "{nan: 1, nan: 2}"),
    _value("two nan in keys", "{(float('nan'),): x, (float('nan'),): x}", "{(nan,): 1, (nan,): 1}"),
    _value("one nan twice", "[(n := float('nan')), {n, n}]", "[nan, {nan}]"),
    _value("nan as input", "sorted(map(str, x)), len(x)", "(['nan', 'nan'], 2)", "{nan, nan}"),
    _value("zero, lines, separators", "'a\\x00\\n\\r\\u2028b'", "'a\\x00\\n\\r\\u2028b'"),
    _value("beyond the first plane", "'\\U0001f600' + x", "'\U0001f600é'", "'é'"),
    _value("quotes", "'\\'\"'", "'\\'\"'"),
    _value("tuple of one", "(x,)", "(1,)"),
    _value("empty ones", "[(), [], {}, set(), frozenset(), '', b'']", "[(), [], {}, set(), frozenset(), '', b'']"),
    _value("set of numbers", "{3, 1, 2}", "{1, 2, 3}"),
    _value("set of mixed types", "{1, 'a', None}", "{'a', 1, None}"),
    _value("frozenset in a set", "{frozenset({2, 1})}", "{frozenset({1, 2})}"),
    _value("set of tuples", "{(i, i * i) for i in range(3)}", "{(0, 0), (1, 1), (2, 4)}"),
    _value(
        "input of many kinds", "x", "{'k': [1, (2.5, None)], b'z': {True}}", "{'k': [1, (2.5, None)], b'z': {True}}"
    ),
    _value("a tuple is one argument", "x", "(1, 2)", "(1, 2)"),
    _value("range", "range(3)", OTHER_TYPE),
    _value("complex", "1j", OTHER_TYPE),
    _value("bytearray", "[bytearray(2)]", OTHER_TYPE),
    _value("memoryview", "memoryview(b'a')", OTHER_TYPE),
    _value("type", "int", OTHER_TYPE),
    _value("function", "f", OTHER_TYPE),
    _value("ellipsis", "...", OTHER_TYPE),
    _value("view of a dict", "{}.keys()", OTHER_TYPE),
    _value("exception", "ValueError(x)", OTHER_TYPE),
)


def _container(name: str, expression: str, expected: Expected) -> Attack:
    return Attack(
        f"container: {name}",
        "value",
        "from collections import *\nfrom typing import NamedTuple\n"
        "class P(NamedTuple):\n a: int\n b: str = 'z'\n"
        "class Q(namedtuple('Q', 'a b')):\n def __iter__(s): return iter('lies')\n __len__ = lambda s: 0\n"
        "class T(tuple): pass\nclass M(type): _fields = ()\nclass U(tuple, metaclass=M): pass\n"
        "class C(Counter): pass\nclass O(OrderedDict): pass\n"
        f"def f(x): return {expression}",
        expected,
        gate=True,
    )


# What the containers of `collections` are forms of. A subclass is a program's own, and so is what it would say of
# itself.
_CONTAINERS = (
    _container("a counter", "Counter('aab')", "{'a': 2, 'b': 1}"),
    _container("a default dict", "[d := defaultdict(list), d['k'].append(x)][0]", "{'k': [1]}"),
    _container("an ordered dict", "OrderedDict(b=1, a=2)", "{'b': 1, 'a': 2}"),
    _container("an order that was changed", "[o := OrderedDict(a=1, b=2), o.move_to_end('a')][0]", "{'b': 2, 'a': 1}"),
    _container("a deque", "deque([1, (x,)], maxlen=2)", "[1, (1,)]"),
    _container("a named tuple", "namedtuple('P', 'a b')(x, 2)", "(1, 2)"),
    _container("a typed named tuple", "{P(x): [P(2, 'y')]}", "{(1, 'z'): [(2, 'y')]}"),
    _container("a named tuple that lies", "Q(x, 2)", "(1, 2)"),
    _container("within others", "[defaultdict(Counter, {x: Counter(a=1)}), {P(1)}]", "[{1: {'a': 1}}, {(1, 'z')}]"),
    _container("too deep", "[d := deque(), [d := deque([d]) for _ in range(70)]][1][-1]", Status.OUTPUT_TOO_LARGE),
    _container("a tuple without fields", "T([x])", OTHER_TYPE),
    _container("a metaclass with fields", "U([x])", OTHER_TYPE),
    _container("a counter of its own", "C('a')", OTHER_TYPE),
    _container("an ordered dict of its own", "O()", OTHER_TYPE),
    _container("other containers", "ChainMap({})", OTHER_TYPE),
    _container("a dict of another kind", "UserDict()", OTHER_TYPE),
)

ATTACKS = (*_DETERMINISM, *_VALUES, *_CONTAINERS)
