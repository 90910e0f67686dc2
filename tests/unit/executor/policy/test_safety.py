"""The policy: what the gate refuses, and what it must let pass."""

from __future__ import annotations

import types
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from executor.policy import facades, safety
from executor.policy.safety import Unsafe, check, compile_checked


@pytest.mark.parametrize(
    ("program", "reason", "name"),
    [
        ("import os\nos.x", Unsafe.IMPORT, "os"),
        ("import os.path as p\np", Unsafe.IMPORT, "os.path"),
        ("from os import path\npath", Unsafe.IMPORT, "os"),
        ("def f(x):\n    import socket\n    socket.x", Unsafe.IMPORT, "socket"),
        ("import math, os\nos", Unsafe.IMPORT, "os"),
        ("import collections.os\ncollections", Unsafe.IMPORT, "collections.os"),
        ("from . import x", Unsafe.IMPORT, "."),
        ("from .math import x", Unsafe.IMPORT, ".math"),
        ("import numpy\nnumpy", Unsafe.IMPORT, "numpy"),
        ("try: import numpy\nexcept ValueError: numpy = 0\nnumpy", Unsafe.IMPORT, "numpy"),
        ("try: pass\nexcept ImportError:\n    import numpy\nnumpy", Unsafe.IMPORT, "numpy"),
        ("from os import *", Unsafe.IMPORT, "os"),
        ("import sys\nsys.modules", Unsafe.ATTRIBUTE, "sys.modules"),
        ("import sys as s\ns.path", Unsafe.ATTRIBUTE, "sys.path"),
        ("from sys import modules", Unsafe.IMPORT, "sys.modules"),
        ("from io import open", Unsafe.IMPORT, "io.open"),
        ("import codecs\ncodecs.open", Unsafe.ATTRIBUTE, "codecs.open"),
        ("def g(): return open('x')\nh = g", Unsafe.NAME, "open"),
        ("def g(): return open('x')\ndef f(x): return g()", Unsafe.NAME, "open"),
        ("def g(a=open): pass", Unsafe.NAME, "open"),
        ("@print\ndef g(): return open('x')", Unsafe.NAME, "open"),
        ("def g(): return open('x')\ndef f(x):\n    global g\n    g += 1", Unsafe.NAME, "open"),
        ("__name__ = '__main__'\nif __name__ == '__main__': open('x')", Unsafe.NAME, "open"),
        ("if __name__ != '__main__': open('x')", Unsafe.NAME, "open"),
        ("if __name__ == '__main__': pass\nelse: open('x')", Unsafe.NAME, "open"),
        ("import os\nclass A(os.X): pass\ndef f(x): return A()", Unsafe.IMPORT, "os"),
        ("import os\n@f\nclass A(os.X): pass", Unsafe.IMPORT, "os"),
        ("class A(f): open('x')", Unsafe.NAME, "open"),
        ("import ast\nast.parse('1')", Unsafe.ATTRIBUTE, "ast.parse"),
        ("int.__dict__", Unsafe.ATTRIBUTE, "__dict__"),
        ("import math\nmath.__dict__", Unsafe.ATTRIBUTE, "__dict__"),
        ("match f:\n    case str(format=g): pass", Unsafe.ATTRIBUTE, "format"),
        ("Enum._convert_", Unsafe.ATTRIBUTE, "_convert_"),
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
        ("'{0.__globals__}'.format(f)", Unsafe.ATTRIBUTE, "__globals__"),
        ("'{0[a]. gi_frame!r:>{1}}'.format(f, 2)", Unsafe.ATTRIBUTE, "gi_frame"),
        ("'{:{1.__code__}}'.format(f, f)", Unsafe.ATTRIBUTE, "__code__"),
        ("class A: __module__ = 'os'", Unsafe.NAME, "__module__"),
        ("def f(__module__): pass", Unsafe.NAME, "__module__"),
        ("try: pass\nexcept ValueError as __builtins__: pass", Unsafe.NAME, "__builtins__"),
        ("match f:\n    case {**__builtins__}: pass", Unsafe.NAME, "__builtins__"),
        ("x = __dict__", Unsafe.NAME, "__dict__"),
        ("import math\nmath.seen = 1", Unsafe.MUTATION, "math"),
        ("import math as m\ndef f(x):\n    m.seen += x", Unsafe.MUTATION, "m"),
        ("from fractions import Fraction\nFraction.seen = 1", Unsafe.MUTATION, "Fraction"),
        ("import collections.abc\ndel collections.abc.Sized.x", Unsafe.MUTATION, "collections"),
        ("import keyword\nkeyword.kwlist[0] = 'x'", Unsafe.MUTATION, "keyword"),
        ("import math\nfor math.x in (1, 2): pass", Unsafe.MUTATION, "math"),
    ],
)
def test_refused(program: str, reason: Unsafe, name: str) -> None:
    assert check(program) == (reason, name)
    assert compile_checked(program) == (reason, name)


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
        "from __future__ import annotations\nfrom io import StringIO",
        "class V:\n    def __add__(s, o): return s\n    __radd__ = __add__",
        "class V:\n    def __init__(s, x): object.__setattr__(s, 'x', x)",
        "def f(xs):\n    for _, __ in xs: print(__)",
        "try: pass\nexcept ValueError as input: print(input)",
        "from collections import Counter\ndef f(x):\n    c = Counter(); c.x = 1; c['a'] += 1; return c",
        "import decimal\ndecimal.getcontext().prec = 50",
        "from collections import Counter\ndef f(Counter): Counter.x = 1",
        "'{0.name} {x[__class__]}'.format(f)",
        "import os, random\nfrom time import time\ndef f(x): return x",
        "def main():\n    import os\n    open(input())\nif __name__ == '__main__':\n    main()",
        "def g(): return h()\ndef h(): return open('x')\ndef f(x): return x",
        "if '__main__' == __name__: import os; os.system('x')",
        "try:\n    import numpy as np\nexcept ImportError:\n    np = None\ndef f(x): return np",
        "try:\n    from numpy import array\nexcept:\n    array = list\ndef f(x): return array",
        "import sys\nprint(sys.maxsize, file=sys.stderr)",
        "class A:\n    def __init__(self, **k): self.__dict__.update(k)",
        "'a.__globals__ {}'",
        "import unittest as u\nclass T(u.TestCase):\n    def test(s): open('x')\nif __name__ == '__main__': u.main()",
        "from ast import literal_eval\ndef f(x): return literal_eval(x)",
        "import enum\nclass C(enum.Enum):\n    A = 1\nC.__members__",
    ],
)
def test_accepted(program: str) -> None:
    assert check(program) is None
    assert isinstance(compile_checked(program), types.CodeType)


_PIECES = st.sampled_from([
    "f", "x", "open", "eval", "input", "__init__", "__globals__", "__builtins__", "__module__", "gi_frame", ".", ".",
    "=", "(", ")", "\n", "\n ", ":", "import ", "from ", "as ", "del ", "def ", "class ", "lambda ", "os", "math", ",",
    "'{0.", "}'", "# ", "'", "ﬁ", "ｏpen", "__ｇlobals__", " ", "match ", "case ", "0x1for ", "in ", "\\\n",
])  # fmt: skip


@given(st.lists(_PIECES, max_size=10).map("".join))
def test_the_short_check_lets_nothing_pass_that_the_long_one_refuses(program: str) -> None:
    """Except for a bare special name that is not bound, which is a NameError."""
    if not safety._is_plain(program):
        return
    try:
        found = check(program)
    except (SyntaxError, ValueError):
        return
    assert found is None or (found[0] is Unsafe.NAME and found[1] in safety.ALLOWED_DUNDERS)


def test_most_programs_are_plain() -> None:
    assert safety._is_plain("class A:\n    def __init__(self): self.x = 'e'.upper()")
    for program in ("import math", "x = open", "f.__globals__", "x = 'é'", "__x__ = 1"):
        assert not safety._is_plain(program)


def test_every_allowed_name_is_taken_as_a_whole() -> None:
    for name in safety.ALLOWED_MODULES:
        assert check(f"import {name}") is None
        assert check(f"import {name}.os as o\no") == (Unsafe.IMPORT, f"{name}.os")


def test_text_that_does_not_parse_raises() -> None:
    with pytest.raises(SyntaxError):
        check("def f(x:")


def test_programs_find_facades_without_the_modules_inside() -> None:
    builtins = facades.program_builtins()
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
    exec("import io\nassert not hasattr(io, 'open') and not hasattr(io, 'FileIO')\nio.StringIO('x')", namespace)


@pytest.mark.parametrize(
    "program",
    [
        "import math\nmath.seen = 1",
        "import math\nsetattr(math, 'seen', 1)",
        "import math\ndel math.pi",
        "from fractions import Fraction as F\nsetattr(F, 'seen', 1)",
        "import textwrap\nsetattr(textwrap.dedent, 'seen', 1)",
        "getattr.seen = 1",
        "setattr(setattr, 'seen', 1)",
        "type(getattr).seen = 1",
        "print.seen = 1",
        "int.seen = 1",
        "ValueError.seen = 1",
    ],
)
def test_what_inputs_share_refuses_to_be_changed(program: str) -> None:
    """At run time, whatever the gate may have overlooked."""
    with pytest.raises((AttributeError, TypeError)):
        exec(program, {"__builtins__": facades.program_builtins()})


def test_guarded_functions_work_as_usual() -> None:
    program = (
        "class A: x = 1\n"
        "a = A()\n"
        "setattr(a, 'y', 2)\n"
        "results = [getattr(a, 'x'), getattr(a, 'z', 3), hasattr(a, 'y'), hasattr(a, 'z')]\n"
        "delattr(a, 'y')\n"
        "results.append(hasattr(a, 'y'))\n"
        "results.append(list(map(getattr, [a], ['x'])))\n"
    )
    namespace: dict[str, Any] = {"__builtins__": facades.program_builtins()}
    exec(program, namespace)
    assert namespace["results"] == [1, 3, True, False, False, [1]]
