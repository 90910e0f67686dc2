"""The policy: what the gate refuses, and what it must let pass."""

from __future__ import annotations

from typing import Any

import pytest

from executor import safety
from executor.safety import Unsafe, check


@pytest.mark.parametrize(
    ("program", "reason", "name"),
    [
        ("import os", Unsafe.IMPORT, "os"),
        ("import os.path as p", Unsafe.IMPORT, "os.path"),
        ("from os import path", Unsafe.IMPORT, "os"),
        ("def f(x):\n    import socket", Unsafe.IMPORT, "socket"),
        ("import math, sys", Unsafe.IMPORT, "sys"),
        ("import collections.os", Unsafe.IMPORT, "collections.os"),
        ("from . import x", Unsafe.IMPORT, "."),
        ("from .math import x", Unsafe.IMPORT, ".math"),
        ("import numpy", Unsafe.IMPORT, "numpy"),
        ("open('x')", Unsafe.NAME, "open"),
        ("g = eval", Unsafe.NAME, "eval"),
        ("__import__('os')", Unsafe.NAME, "__import__"),
        ("__builtins__['open']", Unsafe.NAME, "__builtins__"),
        ("__builtins__ = {}", Unsafe.NAME, "__builtins__"),
        ("class __builtins__: pass", Unsafe.NAME, "__builtins__"),
        ("import math as __builtins__", Unsafe.NAME, "__builtins__"),
        ("f.__globals__", Unsafe.ATTRIBUTE, "__globals__"),
        ("().__class__.__base__", Unsafe.ATTRIBUTE, "__base__"),
        ("int.mro()", Unsafe.ATTRIBUTE, "mro"),
        ("g.gi_frame", Unsafe.ATTRIBUTE, "gi_frame"),
        ("e.__traceback__", Unsafe.ATTRIBUTE, "__traceback__"),
        ("match f:\n    case object(__globals__=g): pass", Unsafe.ATTRIBUTE, "__globals__"),
    ],
)
def test_refused(program: str, reason: Unsafe, name: str) -> None:
    assert check(program) == (reason, name)


@pytest.mark.parametrize(
    "program",
    [
        "import math, re\nfrom collections import Counter, defaultdict\nimport collections.abc",
        "def f(input, vars): return input + vars",
        "open = 3\nx = open",
        "class A:\n    __slots__ = ('x',)\n    def __init__(self): self._x = self.__y = 1\n    def __reduce__(s): pass",
        "def f(x): return x.__class__.__name__",
        "if __name__ == '__main__': pass",
        "class A(B):\n    def __eq__(self, o): return super().__eq__(o)",
        "from dataclasses import dataclass, field\n@dataclass\nclass P:\n    x: int = 0",
    ],
)
def test_accepted(program: str) -> None:
    assert check(program) is None


def test_every_allowed_name_is_taken_as_a_whole() -> None:
    for name in safety.ALLOWED_MODULES:
        assert check(f"import {name}") is None
        assert check(f"import {name}.os") == (Unsafe.IMPORT, f"{name}.os")


def test_text_that_does_not_parse_raises() -> None:
    with pytest.raises(SyntaxError):
        check("def f(x:")


def test_programs_find_facades_without_the_modules_inside() -> None:
    builtins = safety.program_builtins()
    namespace: dict[str, Any] = {"__builtins__": builtins}
    exec(
        "import json, dataclasses, statistics, enum, collections.abc, re\n"
        "from math import *\n"
        "leaks = [name for m in (json, dataclasses, statistics, enum, re) for name in ('sys', 'codecs', 'random')"
        " if hasattr(m, name)]\n"
        "results = [json.dumps([1]), sqrt(4.0), collections.abc.Sized.__name__]\n",
        namespace,
    )
    assert namespace["leaks"] == []
    assert namespace["results"] == ["[1]", 2.0, "Sized"]
    for program in ("import os", "import os.path", "getattr(f, '__globals__')", "open('x')", "eval('1')"):
        with pytest.raises((ImportError, AttributeError, NameError)):
            exec(program, {"__builtins__": builtins, "f": lambda: 0})
