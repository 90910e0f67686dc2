"""Attempts to use up time, memory, stack, descriptors, processes, or the reader of results."""

from __future__ import annotations

import zlib

from executor.outcomes import Status
from tests.unit.executor.attacks.attack import NOT_OK, Attack, Expected, libc

TIMEOUT, MEMORY, TOO_LARGE, ERROR, UNSAFE = (
    Status.TIMEOUT, Status.MEMORY, Status.OUTPUT_TOO_LARGE, Status.ERROR, Status.UNSAFE,
)  # fmt: skip
EITHER = frozenset({TIMEOUT, MEMORY})


def _use(what: str, name: str, program: str, expected: Expected, *details: str, gate: bool = False) -> Attack:
    return Attack(f"{what}: {name}", what, program, expected, details=details, gate=gate)


def _bomb(layers: int = 2, size: int = 1 << 27) -> bytes:
    """A few hundred bytes that inflate to `size` in two steps."""
    packer = zlib.compressobj(1)
    data = b"".join(packer.compress(bytes(1 << 20)) for _ in range(size >> 20)) + packer.flush()
    for _ in range(layers - 1):
        data = zlib.compress(data)
    return data


_TIME = (
    _use("time", "loop", "def f(x):\n while True: pass", TIMEOUT),
    _use("time", "loop that catches everything", "def f(x):\n while True:\n  try:\n   while True: pass\n"
         "  except BaseException: pass", TIMEOUT),
    _use("time", "loop before f exists", "while True: pass", TIMEOUT),
    _use("time", "loop in C", "import itertools\ndef f(x): return sum(itertools.repeat(1))", TIMEOUT),
    _use("time", "sleep", "import time\ndef f(x): time.sleep(60)", TIMEOUT),
    _use("time", "deaf to signals", "import signal\nfor s in range(1, 65):\n try: signal.signal(s, signal.SIG_IGN)\n"
         " except (OSError, ValueError): pass\ndef f(x):\n while True: pass", TIMEOUT),
    _use("time", "regular expression that backtracks",
         "import re\ndef f(x): return bool(re.match('(a|a)*$', 'a' * 64 + 'b'))", TIMEOUT, gate=True),
    _use("time", "tower of powers", "def f(x): return 9 ** 9 ** (8 + x) % 7", EITHER, gate=True),
    _use("time", "colliding hashes", "def f(x): return len({i * ((1 << 61) - 1) for i in range(10 ** 5)})", TIMEOUT,
         gate=True),
    _use("time", "slow comparison",
         "class A:\n def __lt__(s, o):\n  while True: pass\ndef f(x): return sorted([A(), A()])", TIMEOUT, gate=True),
    _use("time", "noise without end", "def f(x):\n while True: print('y' * 65536)", TIMEOUT, gate=True),
)  # fmt: skip

_MEMORY = (
    _use("memory", "list that grows", "def f(x):\n a = []\n while True: a.append(bytearray(1 << 20))", MEMORY),
    _use("memory", "at once", "def f(x): return len(bytearray(1 << 40))", MEMORY),
    _use("memory", "long text", "def f(x): return len('a' * (1 << 36))", MEMORY),
    _use("memory", "folded constant", "def f(x): return len((((x,) * 250) * 250) * 250 * 250)", MEMORY),
    _use("memory", "wide format", "def f(x): return len('%0999999999d' % x)", MEMORY),
    _use("memory", "replacement", "def f(x): return len(('a' * 9999).replace('a', 'a' * 99999))", MEMORY),
    _use("memory", "doubling", "def f(x):\n a = [x]\n while True: a += a", MEMORY),
    _use("memory", "recursion", "import sys\nsys.setrecursionlimit(10 ** 9)\ndef f(x): return f([x])", NOT_OK),
    _use("memory", "recursion in C", "import sys\nsys.setrecursionlimit(10 ** 9)\ndef f(x):\n a = []\n"
         " for _ in range(10 ** 6): a = [a]\n return repr(a)", NOT_OK),
    _use("memory", "iterators in iterators",
         "def f(x):\n i = iter([])\n for _ in range(10 ** 6): i = zip(i)\n return list(i)", NOT_OK),
    _use("memory", "caught, and on", "def f(x):\n a = []\n while True:\n  try: a.append(bytearray(1 << 20))\n"
         "  except MemoryError: pass", EITHER),
    _use("memory", "caught, and given back",
         "def f(x):\n try: return len(bytearray(1 << 40))\n except MemoryError: return 'caught'", "'caught'"),
    _use("memory", "past Python", libc("ctypes.c_long(c.mmap(None, ctypes.c_size_t(1 << 40), 3, 0x22, -1, 0)).value"),
         ERROR, "OSError"),
    _use("memory", "archive that inflates",
         f"import zlib\ndef f(x): return len(zlib.decompress(zlib.decompress({_bomb()!r})))", MEMORY, gate=True),
    _use("memory", "count without end", "import itertools\ndef f(x): return list(itertools.count())", EITHER,
         gate=True),
    _use("memory", "precision", "import decimal\ndef f(x):\n decimal.getcontext().prec = 10 ** 9\n"
         " return str(decimal.Decimal(x) / 7)[:5]", NOT_OK, gate=True),
)  # fmt: skip

_PARSER = (
    _use("parser", "brackets", "def f(x): return " + "(" * 500 + ")" * 500, ERROR, "SyntaxError"),
    _use("parser", "lists", "def f(x): return " + "[" * 190 + "]" * 190, NOT_OK),
    _use("parser", "signs", "def f(x): return " + "-" * 50_000 + "x", NOT_OK),
    _use("parser", "sum", "def f(x): return " + "x+" * 20_000 + "x", NOT_OK),
    _use("parser", "attributes", "def f(x): return x" + ".a" * 20_000, NOT_OK),
    _use("parser", "indentation", "".join(" " * i + "if 1:\n" for i in range(200)) + " " * 200 + "pass\n", ERROR,
         "IndentationError"),
    _use("parser", "else after else", "def f(x):\n if x: pass\n" + " elif x: pass\n" * 3000, NOT_OK),
    _use("parser", "nested functions", "f = " + "lambda x: " * 1000 + "x", NOT_OK),
    _use("parser", "a zero byte", "def f(x): return 1\0", ERROR, "ValueError", "SyntaxError"),
    _use("parser", "half a character", "def f(x): return '\ud800'", ERROR, "UnicodeEncodeError", "SyntaxError",
         "ValueError"),
    _use("parser", "a long number", "def f(x): return " + "9" * 9000, ERROR, "SyntaxError"),
    _use("parser", "a long program", "def f(x): return 1\n#" + "a" * 70_000, ERROR, "ProgramTooLarge"),
    _use("parser", "json", "import json\ndef f(x): return json.loads('[' * 10 ** 5)", ERROR, "RecursionError",
         gate=True),
    _use("parser", "regular expression", "import re\ndef f(x): return bool(re.compile('(' * 9999))", NOT_OK, gate=True),
)  # fmt: skip

_OUTPUT = (
    _use("output", "long text", "def f(x): return 'a' * 70_000", TOO_LARGE),
    _use("output", "very long text", "def f(x): return 'a' * (1 << 25)", TOO_LARGE),
    _use("output", "text that grows when it is written", "def f(x): return '\\0' * 20_000", TOO_LARGE),
    _use("output", "long bytes", "def f(x): return bytes(40_000)", TOO_LARGE),
    _use("output", "many values", "def f(x): return [x] * 60_000", TOO_LARGE),
    _use("output", "deep", "def f(x):\n a = []\n for _ in range(10 ** 5): a = [a]\n return a", TOO_LARGE),
    _use("output", "wide by sharing", "def f(x):\n a = [x]\n for _ in range(40): a = [a, a]\n return a", TOO_LARGE),
    _use("output", "itself", "def f(x):\n a = []\n a.append(a)\n return a", TOO_LARGE),
    _use("output", "a huge integer", "def f(x): return 10 ** 5000", TOO_LARGE),
    _use("output", "a huge integer as a key", "def f(x): return {(10 ** 5000,): x}", TOO_LARGE),
    _use("output", "an integer as text", "def f(x): return str(10 ** 10 ** 5)", ERROR, "ValueError"),
)

_KERNEL_TABLES = (
    _use("descriptors", "pipes", "import os\ndef f(x):\n a = []\n while True: a.append(os.pipe())", UNSAFE),
    _use("descriptors", "copies", "import os\ndef f(x):\n while True: os.dup(0)", ERROR, "PermissionError", "OSError"),
    _use("descriptors", "events", libc("c.eventfd(0, 0)"), ERROR, "PermissionError", "OSError"),
    _use("processes", "fork bomb", "import os\ndef f(x):\n while True:\n  try: os.fork()\n  except OSError: pass",
         UNSAFE),
    _use("processes", "thread bomb",
         "import _thread, time\ndef f(x):\n while True:\n  try: _thread.start_new_thread(time.sleep, (9,))\n"
         "  except RuntimeError: pass", UNSAFE),
    _use("timers", "timers", libc("c.timer_create(0, None, ctypes.byref(ctypes.c_long()))"), ERROR, "PermissionError",
         "OSError"),
    _use("memory", "locked", libc("c.mlockall(3)"), ERROR, "PermissionError", "OSError"),
)  # fmt: skip

ATTACKS = (*_TIME, *_MEMORY, *_PARSER, *_OUTPUT, *_KERNEL_TABLES)
