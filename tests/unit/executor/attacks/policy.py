"""Attempts to get around the gate: to reach what it does not offer by names, attributes, texts or modules."""

from __future__ import annotations

from executor.outcomes import Status
from tests.unit.executor.attacks.attack import NOT_OK, Attack, Expected

UNSAFE, ERROR = Status.UNSAFE, Status.ERROR
_HIDDEN = ("AttributeError", "ImportError", "NameError", "KeyError", "TypeError")


def policy(name: str, program: str, expected: Expected = UNSAFE, *details: str) -> Attack:
    """An attack that the policy alone must stop."""
    return Attack(f"policy: {name}", "policy", program, expected, details=details, gate=True)


def _in_f(name: str, expression: str, expected: Expected = UNSAFE, *details: str) -> Attack:
    return policy(name, f"def f(x): return {expression}", expected, *details)


_IMPORTS = tuple(
    policy(f"import {module}", f"import {module}\ndef f(x): return str({module})")
    for module in (
        "os", "ctypes", "socket", "subprocess", "importlib", "builtins", "gc", "signal", "threading", "random", "time",
        "inspect", "pickle", "marshal", "atexit", "posix", "tempfile", "code", "executor",
    )
)  # fmt: skip

ATTACKS = (
    *_IMPORTS,
    policy("import inside f", "def f(x):\n from os import path\n return path.sep"),
    policy("import among allowed ones", "import math, os as math\ndef f(x): return math.sep"),
    policy("relative import", "from . import sandbox\ndef f(x): return 1"),
    policy("import of a part", "import collections.os\ndef f(x): return collections.os.sep"),
    policy("import of a module's module", "from re import sys\ndef f(x): return 1", ERROR, *_HIDDEN),
    policy("a module's module", "import contextlib\ndef f(x): return contextlib.os.getcwd()", ERROR, *_HIDDEN),
    policy("a module's private module", "import collections\ndef f(x): return collections._sys.path", ERROR, *_HIDDEN),
    policy("a module's loader", "import math\ndef f(x): return math.__loader__"),
    policy("star import", "from os import *\ndef f(x): return 1"),
    _in_f("__import__", "__import__('os').getcwd()"),
    _in_f("eval", "eval('1')"),
    _in_f("exec", "exec('import os')"),
    _in_f("compile", "compile('1', 'a', 'eval')"),
    _in_f("open", "open('/etc/passwd')"),
    _in_f("globals", "globals()['__builtins__']"),
    _in_f("__builtins__", "__builtins__"),
    policy("another __builtins__", "__builtins__ = {}\ndef f(x): return 1"),
    policy("a variable called eval", "eval = 3\ndef f(x): return eval + x", "4"),
    _in_f("subclasses", "().__class__.__base__.__subclasses__()"),
    _in_f("method resolution", "int.mro()"),
    _in_f("globals of a function", "f.__globals__"),
    _in_f("code of a function", "f.__code__.co_consts"),
    _in_f("closure", "(lambda: x).__closure__"),
    _in_f("dict of a type", "int.__dict__"),
    _in_f("frame of a generator", "(0 for _ in ()).gi_frame.f_back"),
    _in_f("reduction", "[].__reduce_ex__(4)"),
    _in_f("raw attribute access", "object.__getattribute__(f, '__globals__')"),
    policy("frame of a traceback", "def f(x):\n try: 1 / 0\n except ZeroDivisionError as e:\n"
            "  return e.__traceback__.tb_frame.f_back.f_globals"),
    policy("attribute in a pattern", "def f(x):\n match f:\n  case object(__globals__=g): return g"),
    _in_f("attribute by a built name", "getattr(f, '__glo' + 'bals__')"),
    _in_f("attribute by a mapped name", "list(map(getattr, [f], ['__globals__']))"),
    policy("attribute by a name that changes", "class S(str): pass\ndef f(x): return getattr(f, S('__globals__'))"),
    policy("attribute by operator", "import operator\ndef f(x): return operator.attrgetter('__globals__')(f)"),
    policy("method by operator", "from operator import methodcaller\ndef f(x): return methodcaller('__reduce__')(f)"),
    policy("formatter", "import string\ndef f(x): return string.Formatter().get_field('0.__globals__', [f], {})"),
    policy("text that is evaluated for types",
           "import typing\ndef f(x):\n class A: a: 'open'\n return typing.get_type_hints(A)"),
    _in_f("setting a hidden attribute", "setattr(f, '__code__', 1)"),
    _in_f("asking for a hidden attribute", "hasattr(f, '__globals__')"),
    _in_f("code from bytes", "type(f)(f.__code__.replace(co_code=b'd'), {})"),
    policy("a class's way of looking up", "class A:\n def __getattribute__(s, n): return 1\ndef f(x): return A().a",
           "1"),
    policy("field names that are code", "import collections\ndef f(x): return collections.namedtuple('P', 'a=1 b')",
           ERROR, "ValueError"),
    policy("data class fields that are code",
           "import dataclasses\ndef f(x): return dataclasses.make_dataclass('P', ['a: 1'])", ERROR, "TypeError"),
    policy("a module's main program", "import base64\ndef f(x): return base64.main()", NOT_OK),
    policy("help", "def f(x): return help()"),
    policy("input", "def f(x): return input()", ERROR, "EOFError"),
    policy("a debugger", "def f(x): breakpoint()"),
    policy("an exit", "def f(x): exit(0)", ERROR, "SystemExit"),
)  # fmt: skip
