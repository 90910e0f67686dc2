"""Attempts to have a result accepted that the program did not return, or that is not what it seems."""

from __future__ import annotations

from executor.outcomes import Status
from tests.unit.executor.attacks.attack import NOT_OK, SURVIVE, Attack, Expected

CRASHED, ERROR, OTHER_TYPE = Status.CRASHED, Status.ERROR, Status.UNSERIALISABLE
_EVERY_PIPE = "import os\ndef f(x):\n for fd in range(3, 99):\n  try: {0}\n  except OSError: pass\n"


def _forgery(name: str, program: str, expected: Expected, *details: str) -> Attack:
    return Attack(f"forgery: {name}", "forgery", program, expected, details=details)


ATTACKS = (
    # The pipe.
    _forgery("zeros on every descriptor", _EVERY_PIPE.format("os.write(fd, bytes(64))") + " return 1", CRASHED),
    _forgery(
        "text of an outcome on every descriptor",
        _EVERY_PIPE.format("os.write(fd, b'[[\"ok\", \"\", \"42\"]]' * 3)") + " return 1",
        CRASHED,
    ),
    _forgery("a flood on every descriptor", _EVERY_PIPE.format("os.write(fd, bytes(1 << 24))") + " return 1", NOT_OK),
    _forgery(
        "a few bytes, then silence",
        _EVERY_PIPE.format("os.write(fd, bytes(3))") + " while True: pass",
        frozenset({Status.TIMEOUT, CRASHED}),
    ),
    _forgery("a few bytes, then the end", _EVERY_PIPE.format("os.write(fd, bytes(3))") + " os._exit(0)", CRASHED),
    _forgery("closed descriptors", "import os\ndef f(x):\n os.closerange(0, 256)\n return 1", CRASHED),
    _forgery("another pipe in its place", "import os\ndef f(x): os.dup2(0, 1); return 1", ERROR, "PermissionError"),
    _forgery(
        "reading what others wrote",
        "import os\ndef f(x):\n got = []\n for fd in range(3, 99):\n  try: got.append(os.read(fd, 9))\n"
        "  except OSError: pass\n return got",
        "[]",
    ),
    _forgery(
        "every frame's bytes, from the frames of the harness",
        "import os, sys\ndef f(x):\n frame = sys._getframe()\n while frame:\n"
        "  for v in list(frame.f_locals.values()):\n   if type(v) is bytes:\n    for fd in range(3, 64):\n"
        "     try: os.write(fd, v + bytes([0, 0, 0, 3]) + b'V42')\n"
        "     except OSError: pass\n  frame = frame.f_back\n os._exit(0)",
        NOT_OK,
    ),
    # The end of the process.
    _forgery("a silent end", "import os\ndef f(x): os._exit(0)", CRASHED),
    _forgery("an end with a code", "import os\ndef f(x): os._exit(7)", CRASHED),
    _forgery("an end before f exists", "import os\nos._exit(0)", CRASHED),
    _forgery("a polite end", "import sys\ndef f(x): sys.exit(0)", ERROR, "SystemExit"),
    _forgery("a polite end before f exists", "raise SystemExit(0)", ERROR, "SystemExit"),
    _forgery("an interrupt", "def f(x): raise KeyboardInterrupt", ERROR, "KeyboardInterrupt"),
    _forgery("GeneratorExit", "def f(x): raise GeneratorExit", ERROR, "GeneratorExit"),
    _forgery("an abort", "import os\ndef f(x): os.abort()", CRASHED),
    _forgery("a signal to itself", "import signal\ndef f(x): signal.raise_signal(9)", NOT_OK),
    _forgery("a late handler", "import atexit, os\natexit.register(os._exit, 3)\ndef f(x): return 1", "1"),
    _forgery("a destructor", "class A:\n def __del__(s):\n  while True: pass\nkept = A()\ndef f(x): return 3", "3"),
    _forgery(
        "a destructor of the value",
        "import os\nclass A:\n def __del__(s): os._exit(0)\ndef f(x): return [1, A()]",
        OTHER_TYPE,
        "A",
    ),
    _forgery(
        "a collector's callback",
        "import gc, os\ngc.callbacks.append(lambda *a: os._exit(0))\ndef f(x): gc.collect(); return 1",
        CRASHED,
    ),
    # Values that are not what they seem.
    _forgery("an int that equals all", "class N(int):\n def __eq__(s, o): return True\n __hash__ = int.__hash__\n"
             "def f(x): return N(1)", OTHER_TYPE, "N"),
    _forgery("a str with another repr", "class S(str):\n def __repr__(s): return '42'\ndef f(x): return [S('a')]",
             OTHER_TYPE),
    _forgery("a float with another repr", "class F(float):\n def __repr__(s): return '1'\ndef f(x): return (F(2),)",
             OTHER_TYPE),
    _forgery("a dict with other items", "class D(dict):\n def items(s): return [('a', 42)]\ndef f(x): return D()",
             OTHER_TYPE),
    _forgery("a list without an end", "class L(list):\n def __iter__(s):\n  while True: yield 1\ndef f(x): return L()",
             OTHER_TYPE),
    _forgery("a set's element", "class T(tuple): pass\ndef f(x): return {T((1,))}", OTHER_TYPE),
    _forgery("a dict's key", "class K(str): pass\ndef f(x): return {K('a'): 1}", OTHER_TYPE),
    _forgery("a class that calls itself int",
             "class M(type):\n def __eq__(s, o): return True\n __hash__ = type.__hash__\n"
             "class int(metaclass=M): pass\ndef f(x): return int()", OTHER_TYPE),
    _forgery("a property of a name", "class A:\n __class__ = property(lambda s: int)\ndef f(x): return A()",
             OTHER_TYPE),
    _forgery("a metaclass's name",
             "class M(type):\n __name__ = property(lambda s: 1 // 0)\nclass A(metaclass=M): pass\n"
             "def f(x): return A()", OTHER_TYPE),
    _forgery("an exception's own name", "class M(type):\n __name__ = 'forged'\nclass E(Exception, metaclass=M): pass\n"
             "def f(x): raise E", ERROR, "E"),
    _forgery("an exception's long name", "def f(x): raise type('E' * 9999, (Exception,), {})", ERROR, "E" * 80),
    _forgery("an exception that cannot be shown", "class E(Exception):\n def __str__(s): raise SystemExit\n"
             " __repr__ = __str__\ndef f(x): raise E", ERROR, "E"),
    _forgery("a generator", "def f(x): yield 1", OTHER_TYPE, "generator"),
    _forgery("a coroutine", "async def f(x): return 1", OTHER_TYPE, "coroutine"),
    _forgery("pickling", "class A:\n def __reduce__(s): return print, ('hello',)\ndef f(x): return A()", OTHER_TYPE,
             "A"),
    # The interpreter that makes the result. All of these are forks: nobody else has their memory.
    _forgery("other builtins", "import builtins\nfor name in ('len', 'repr', 'type', 'isinstance'):\n"
             " setattr(builtins, name, lambda *a: 42)\ndef f(x): return 'a'", SURVIVE),
    _forgery("another encoder", "import json\njson.dumps = lambda *a, **k: '42'\ndef f(x): return 'a'", SURVIVE),
    _forgery("every function of every module", "import sys\nfor m in list(sys.modules.values()):\n"
             " for k, v in list(vars(m).items()):\n  if callable(v) and not isinstance(v, type):\n"
             "   try: setattr(m, k, lambda *a, **k: 42)\n   except Exception: pass\ndef f(x): return 'a'", SURVIVE),
    _forgery("other programs in the cache", "import gc\nfor o in gc.get_objects():\n if isinstance(o, dict):\n"
             "  for k, v in list(o.items()):\n   if type(v).__name__ == 'code':\n"
             "    o[k] = compile('def f(x): return 666', 'x', 'exec')\ndef f(x): return 1", SURVIVE),
    _forgery("a tracing function", "import sys\ndef t(*a): raise SystemExit\nsys.settrace(t)\nsys.setprofile(t)\n"
             "def f(x): return 1", SURVIVE),
    _forgery("no modules", "import sys\nsys.modules.clear()\ndef f(x): return 1", SURVIVE),
    _forgery("a wrapper in the frames' globals", "import sys\nframe = sys._getframe()\nwhile frame:\n"
             " frame.f_globals['write_all'] = lambda *a: None\n frame = frame.f_back\ndef f(x): return 1", SURVIVE),
    _forgery("noise on stdout", "import os\ndef f(x):\n print('noise' * 999)\n os.write(1, b'42')\n return x", "1"),
    _forgery("no stdout", "import sys\nsys.stdout.close()\nsys.stdout = sys.stderr = None\ndef f(x): return x", "1"),
    # Shapes of f that are allowed, and must not confuse.
    _forgery("f is a class", "class f:\n def __new__(cls, x): return [x, 7]", "[1, 7]"),
    _forgery("f changes itself", "def f(x):\n global f\n f = lambda x: 2\n return 1", "1"),
    _forgery("f answers for a name of the harness", "value = args = nonce = namespace = 42\ndef f(x): return x", "1"),
)  # fmt: skip
