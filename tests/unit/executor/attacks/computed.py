"""Attempts to reach attributes by names that only the run knows, to have the library evaluate a text, and to write into
what programs share.

Each kind of way is tried in several forms: by the language (patterns, `str.format`), by builtins, and by what a module
of the library does with the names and texts that it is given.
"""

from __future__ import annotations

from tests.unit.executor.attacks.policy import ERROR, UNSAFE, policy

ATTACKS = (
    policy(
        "frames by a format text that is put together",
        "def f(x):\n"
        "    try: 1 / 0\n"
        "    except ZeroDivisionError as e:\n"
        "        return (chr(123) + '0.__traceback__.tb_frame' + '.f_back' * 6"
        " + '.f_locals[outcomes]' + chr(125)).format(e)",
        UNSAFE,
    ),
    policy(
        "builtins by patterns of a metaclass",
        "class Meta(type):\n"
        "    def __instancecheck__(cls, o): return True\n"
        "def get(o, name):\n"
        "    M = Meta('M', (), {'__match_args__': (name,)})\n"
        "    match o:\n"
        "        case M(v): return v\n"
        "\n"
        "def f(x):\n"
        "    b = get(f, '__glo' + 'bals__')['__buil' + 'tins__']\n"
        "    imp = b['__imp' + 'ort__']\n"
        "    g = get(get(imp, '__fu' + 'nc__'), '__glo' + 'bals__')\n"
        "    return g['importlib'].import_module('os').getpid() > 0",
        UNSAFE,
    ),
    policy(
        "a lambda by a reference to a type",
        "from typing import List, get_args\n"
        "def f(x):\n"
        "    r = get_args(List['(lambda: __import__(\"os\").uname)'])[0]\n"
        "    return r._evaluate({}, {}, frozenset())().__name__",
        UNSAFE,
    ),
    policy(
        "globals by an annotation",
        "import functools\n"
        "got = []\n"
        "def keep(v): got.append(v); return int\n"
        "@functools.singledispatch\n"
        "def g(x): return 0\n"
        "@g.register\n"
        'def _(x: "keep(keep.__globals__)"): return 1\n'
        "def f(x):\n"
        "    return sorted(got[0])[:3]",
        UNSAFE,
    ),
    policy(
        "a traceback by a field that is renamed",
        "import dataclasses\n"
        "@dataclasses.dataclass\n"
        "class D: x: int = 0\n"
        "fld = dataclasses.fields(D)[0]\n"
        "class E(Exception):\n"
        "    def __init__(self, **kw): self.kw = kw\n"
        "    __dataclass_fields__ = {'t': fld}\n"
        "def f(x):\n"
        "    setattr(fld, 'name', '__trace' + 'back__')\n"
        "    try: raise E()\n"
        "    except E as e:\n"
        "        return str(dataclasses.replace(e).kw)[:20]",
        UNSAFE,
    ),
    policy(
        "enum  convert",
        "import enum\n"
        "def f(x): return list(enum.Enum._convert_('X', 'builtins', lambda n: n == 'eval'))[0].value('1+1')",
        UNSAFE,
    ),
    policy(
        "enum  convert  computed",
        "import enum\n"
        "def f(x): return list(getattr(enum.Enum, '_conv' + 'ert_')('X', 'builtins', lambda n: n == 'eval'))"
        "[0].value('1+1')",
        UNSAFE,
    ),
    policy(
        "enum property",
        "import enum\n"
        "class P(enum.property): pass\n"
        "def f(x):\n"
        "    p = enum.property(); p.name = '__glo' + 'bals__'\n"
        "    return sorted(p.__get__(type(f)).__get__(f))",
        ERROR,
        "AttributeError",
    ),
    policy(
        "enum property via Enum",
        "import enum\nclass E(enum.Enum):\n    A = 1\ndef f(x):\n    P = type(enum.Enum.name)\n    return str(P)",
        ERROR,
        "AttributeError",
    ),
    policy(
        "userstring",
        "from collections import UserString\n"
        "def f(x):\n"
        "    return str(UserString('{0.__glo' + 'bals__}').format(f))[:30]",
        ERROR,
        "ImportError",
    ),
    policy(
        "redirect",
        "import contextlib\n"
        "def f(x):\n"
        "    r = contextlib.redirect_stdout(None); r._stream = 'mod' + 'ules'; r.__enter__()\n"
        "    return len(r._old_targets[0])",
        UNSAFE,
    ),
    policy(
        "generic alias getattr",
        "from typing import List\n"
        "def g(): yield 1\n"
        "def f(x):\n"
        "    A = type(List[int])\n"
        "    return str(A(g(), (int,)).__getattr__('gi_' + 'frame'))[:20]",
        ERROR,
        "AttributeError",
    ),
    policy(
        "dataclass annotation text",
        "from dataclasses import dataclass\n"
        "class C: __annotations__ = {'x, q=[print.__self__]': int}\n"
        "def f(x):\n"
        "    dataclass(C)\n"
        "    return 1",
        ERROR,
        "SyntaxError",
    ),
    policy(
        "dataclass annotation eval",
        "from dataclasses import dataclass\n"
        "class C: __annotations__ = {'x, q=__imp' + 'ort__(\"os\").getpid()': int}\n"
        "def f(x):\n"
        "    dataclass(C)\n"
        "    return C.__init__.__defaults__[0]",
        UNSAFE,
    ),
    policy(
        "make dataclass text",
        "import dataclasses\n"
        "def f(x):\n"
        "    C = dataclasses.make_dataclass('C', [('a', int, dataclasses.field(default=1))],"
        " namespace={'__annotations__': {}})\n"
        "    F = dataclasses.fields(C)[0]; F.name = 'a=__import__(\"os\").getpid()):\\n  pass\\n def z('\n"
        "    class D(C): pass\n"
        "    dataclasses.dataclass(D)\n"
        "    return 1",
        ERROR,
        "IndentationError",
    ),
    policy(
        "dataclass default read",
        "from dataclasses import dataclass, fields\n"
        "class C: pass\n"
        "def f(x):\n"
        "    D = type('D', (), {'__annotations__': {'__subcl' + 'asses__': int}})\n"
        "    dataclass(D)\n"
        "    return str(fields(D)[0].default)[:30]",
        UNSAFE,
    ),
    policy(
        "asdict",
        "import dataclasses\n"
        "@dataclasses.dataclass\n"
        "class D: x: int = 0\n"
        "def f(x):\n"
        "    dataclasses.fields(D)[0].name = '__red' + 'uce_ex__'\n"
        "    return str(dataclasses.astuple(D()))[:50]",
        UNSAFE,
    ),
    policy(
        "slot set",
        "import dataclasses\n"
        "@dataclasses.dataclass\n"
        "class D: x: int = 0\n"
        "def f(x):\n"
        "    dataclasses.Field.name.__set__(dataclasses.fields(D)[0], '__red' + 'uce_ex__')\n"
        "    return str(dataclasses.astuple(D()))[:50]",
        UNSAFE,
    ),
    policy(
        "namedtuple match",
        "from collections import namedtuple\n"
        "class M(type):\n"
        "    def __instancecheck__(c, o): return True\n"
        "class Q(namedtuple('Q', 'gi_' + 'frame')): pass\n"
        "class R(metaclass=M): __match_args__ = Q._fields\n"
        "def g(): yield 1\n"
        "def f(x):\n"
        "    match g():\n"
        "        case R(fr): return str(fr)[:20]",
        UNSAFE,
    ),
    policy(
        "match exception",
        "class E(Exception): __match_args__ = ('__trace' + 'back__',)\n"
        "def f(x):\n"
        "    try: raise E\n"
        "    except E as e:\n"
        "        match e:\n"
        "            case E(t): return str(t)[:20]",
        UNSAFE,
    ),
    policy(
        "match changing",
        "n = 0\n"
        "class M(type):\n"
        "    def __instancecheck__(c, o): return True\n"
        "    @property\n"
        "    def __match_args__(c):\n"
        "        global n\n"
        "        n += 1\n"
        "        return ('a',) if n % 2 else ('__glo' + 'bals__',)\n"
        "class C(metaclass=M): pass\n"
        "def f(x):\n"
        "    f.a = 1\n"
        "    for i in range(4):\n"
        "        match f:\n"
        "            case C(v): \n"
        "                if v != 1: return str(v)[:20]",
        UNSAFE,
    ),
    policy(
        "match eq meta",
        "class M(type):\n"
        "    def __eq__(c, o): return True\n"
        "    __hash__ = type.__hash__\n"
        "    def __instancecheck__(c, o): return True\n"
        "C = M('C', (), {'__match_args__': ('__glo' + 'bals__',)})\n"
        "def f(x):\n"
        "    match f:\n"
        "        case C(v): return str(v)[:20]",
        UNSAFE,
    ),
    policy(
        "match format",
        "class S(str): __match_args__ = ('for' + 'mat',)\n"
        "def f(x):\n"
        "    match S('{0.__glo' + 'bals__}'):\n"
        "        case S(v): return v(f)[:20]",
        UNSAFE,
    ),
    policy(
        "match kw format",
        "def f(x):\n    match '{0.__glo' + 'bals__}':\n        case str(format=v): return v(f)[:20]",
        UNSAFE,
    ),
    policy(
        "format bound map",
        "def f(x): return list(map(str.format, ['{0.__glo' + 'bals__}'], [f]))[0][:20]",
        UNSAFE,
    ),
    policy(
        "format super",
        "class S(str):\n"
        "    def g(s, *a): return super().format(*a)\n"
        "def f(x): return S('{0.__glo' + 'bals__}').g(f)[:20]",
        UNSAFE,
    ),
    policy(
        "format getattr",
        "def f(x): return getattr('{0.__glo' + 'bals__}', 'for' + 'mat')(f)[:20]",
        UNSAFE,
    ),
    policy(
        "format nested spec",
        "def f(x): return ('{:{1.__glo' + 'bals__}}').format(1, f)[:20]",
        UNSAFE,
    ),
    policy(
        "format methodcaller",
        "from operator import methodcaller\ndef f(x): return methodcaller('format', f)('{0.__glo' + 'bals__}')[:20]",
        UNSAFE,
    ),
    policy(
        "format partial",
        "from functools import partial, partialmethod\n"
        "class A:\n"
        "    g = partialmethod(str.format)\n"
        "def f(x): return partial(str.format, '{0.__glo' + 'bals__}')(f)[:20]",
        UNSAFE,
    ),
    policy(
        "a formatter's fields",
        "import string\ndef f(x): return str(string.Formatter().get_field('0.__glo' + 'bals__', [f], {}))[:20]",
        UNSAFE,
    ),
    policy(
        "formatter sub",
        "import string\n"
        "class F(string.Formatter):\n"
        "    def format_field(s, v, spec): got.append(v); return ''\n"
        "got = []\n"
        "def f(x):\n"
        "    F().format('{0.__glo' + 'bals__}', f); return str(got)[:20]",
        UNSAFE,
    ),
    policy(
        "attrgetter dotted",
        "from operator import attrgetter\ndef f(x): return str(attrgetter('__class__.__ba' + 'se__')(1))",
        UNSAFE,
    ),
    policy(
        "attrgetter format",
        "from operator import attrgetter\ndef f(x): return attrgetter('for' + 'mat')('{0.__glo' + 'bals__}')(f)[:20]",
        UNSAFE,
    ),
    policy(
        "object setattr facade",
        "import math\ndef f(x):\n    object.__setattr__(math, 'pi', 3)\n    return math.pi",
        UNSAFE,
    ),
    policy(
        "super setattr facade",
        "import math\ndef f(x):\n    super(type(math), math).__setattr__('pi', 3)\n    return math.pi",
        UNSAFE,
    ),
    policy(
        "type setattr",
        "from fractions import Fraction\n"
        "def f(x):\n"
        "    type.__setattr__(Fraction, 'seen', 3)\n"
        "    return Fraction.seen",
        UNSAFE,
    ),
    policy(
        "alias set class attr",
        "from fractions import Fraction\ndef f(x):\n    g = [Fraction][0]\n    g.seen = 3\n    return g.seen",
        ERROR,
        "TypeError",
    ),
    policy(
        "dataclass shared",
        "from fractions import Fraction\n"
        "import dataclasses\n"
        "def f(x):\n"
        "    dataclasses.dataclass([Fraction][0])\n"
        "    return str(Fraction(1))",
        UNSAFE,
    ),
    policy(
        "total ordering shared",
        "import functools, textwrap\n"
        "def f(x):\n"
        "    class O: pass\n"
        "    functools.update_wrapper(textwrap.dedent, f)\n"
        "    return textwrap.dedent.__name__",
        UNSAFE,
    ),
    policy(
        "cached property facade",
        "import functools, math\n"
        "def f(x):\n"
        "    c = functools.cached_property(lambda s: 3); c.attrname = 'pi'; c.__get__(math)\n"
        "    return math.pi",
        ERROR,
        "TypeError",
    ),
    policy(
        "copy state facade",
        "import copy, math\n"
        "class A:\n"
        "    def __reduce_ex__(s, p): return (lambda: math, (), {'pi': 3})\n"
        "def f(x):\n"
        "    copy.copy(A()); return math.pi",
        ERROR,
        "TypeError",
    ),
    policy(
        "copy slotstate read",
        "import copy\n"
        "class A:\n"
        "    def __setstate__(s, st): got.append(st)\n"
        "    __slots__ = ()\n"
        "got = []\n"
        "def f(x):\n"
        "    B = type('B', (A,), {'__slotn' + 'ames__': ['__cla' + 'ss__', '__red' + 'uce_ex__']})\n"
        "    copy.copy(B()); return str(got)[:60]",
        UNSAFE,
    ),
    policy(
        "copy slotstate write",
        "import copy\n"
        "from fractions import Fraction\n"
        "class A:\n"
        "    def __reduce_ex__(s, p): return (lambda: Fraction, (), (None, {'seen': 3}))\n"
        "def f(x):\n"
        "    copy.copy(A()); return Fraction.seen",
        ERROR,
        "TypeError",
    ),
    policy(
        "get type hints text",
        "from typing import get_type_hints\n"
        "def g(a: 'f.__glo' 'bals__'): pass\n"
        "def f(x): return str(get_type_hints(g))[:50]",
        UNSAFE,
    ),
    policy(
        "get type hints other globals",
        "from typing import get_type_hints\n"
        "import textwrap\n"
        "class O: pass\n"
        "def f(x):\n"
        "    o = O(); o.__annotations__ = {'a': 're'}; o.__wrapped__ = textwrap.dedent\n"
        "    return str(get_type_hints(o))[:80]",
        ERROR,
        "NameError",
    ),
    policy(
        "get type hints module name",
        "from typing import get_type_hints\n"
        "def f(x):\n"
        "    C = type('C', (), {'__module__': 'os', '__annotations__': {'a': 'getpid'}})\n"
        "    return str(get_type_hints(C))[:80]",
        ERROR,
        "NameError",
    ),
    policy(
        "get type hints builtins",
        "from typing import get_type_hints\n"
        "def f(x):\n"
        "    C = type('C', (), {'__annotations__': {'a': 'open'}})\n"
        "    return str(get_type_hints(C))[:80]",
        UNSAFE,
    ),
    policy(
        "forwardref direct",
        "from typing import ForwardRef\n"
        "def f(x): return ForwardRef('().__cla' + 'ss__.__ba' + 'se__')._evaluate({}, {}, frozenset())",
        UNSAFE,
    ),
    policy(
        "NamedTuple default",
        "from typing import NamedTuple, List, get_args\n"
        "def f(x): return str(get_args(List['print.__se' 'lf__'])[0]._evaluate({}, {}, frozenset()))",
        UNSAFE,
    ),
    policy(
        "singledispatchmethod",
        "import functools\n"
        "class A:\n"
        "    @functools.singledispatchmethod\n"
        "    def g(s, x): return 0\n"
        "    @g.register\n"
        "    def _(s, x: 'f.__globals__'): return 1\n"
        "def f(x): return 1",
        UNSAFE,
    ),
    policy(
        "update wrapper dict of type",
        "import functools\n"
        "class Spy:\n"
        "    def update(s, d): got.append(d)\n"
        "got = []\n"
        "def f(x):\n"
        "    W = type('W', (), {'__di' + 'ct__': property(lambda s: Spy())})\n"
        "    functools.update_wrapper(W(), type(f))\n"
        "    return sorted(got[0])[:5]",
        "[]",
    ),
    policy(
        "lru dict of type",
        "import functools\ndef f(x):\n    w = functools.lru_cache(type(f))\n    return sorted(w.__dict__)[:9]",
        UNSAFE,
    ),
    policy(
        "lru dict of type getattr",
        "import functools\ndef f(x):\n    w = functools.lru_cache(type(f))\n    return sorted(vars(w))[:9]",
        UNSAFE,
    ),
    policy(
        "class dict",
        "def f(x):\n    F = type(f)\n    return sorted(F.__dict__)[:5]",
        UNSAFE,
    ),
    policy(
        "class dict flags",
        "class M(type): __flags__ = 1 << 9\ndef f(x):\n    F = type(f)\n    return sorted(vars(F))[:5]",
        UNSAFE,
    ),
    policy(
        "json default frames",
        "import json\n"
        "def f(x):\n"
        "    try: json.dumps(object())\n"
        "    except TypeError as e: return str(getattr(e, '__trace' + 'back__'))[:20]",
        UNSAFE,
    ),
    policy(
        "exit tb",
        "class C:\n"
        "    def __enter__(s): return s\n"
        "    def __exit__(s, t, v, tb): s.tb = tb; return True\n"
        "def f(x):\n"
        "    with C() as c: 1 / 0\n"
        "    return str(getattr(c.tb, 'tb_' + 'frame'))[:20]",
        UNSAFE,
    ),
    policy(
        "sys modules",
        "import sys\ndef f(x): return len(sys.modules)",
        UNSAFE,
    ),
    policy(
        "sys getframe",
        "from sys import _getframe\ndef f(x): return str(_getframe())[:10]",
        UNSAFE,
    ),
    policy(
        "sys star",
        "from sys import *\ndef f(x): return str(_getframe())[:10]",
        ERROR,
        "NameError",
    ),
    policy(
        "sys as",
        "import sys as s\ng = [s][0]\ndef f(x): return len(g.modules)",
        ERROR,
        "AttributeError",
    ),
    policy(
        "codecs open",
        "import codecs\ndef f(x): return codecs.open('/etc/passwd').read(1)",
        UNSAFE,
    ),
    policy(
        "queue threading",
        "import queue\ndef f(x): return str(queue.threading)[:20]",
        ERROR,
        "AttributeError",
    ),
    policy(
        "queue mutex",
        "import queue\ndef f(x): return str(queue.Queue().not_empty._is_owned.__func__.__globals__)[:20]",
        UNSAFE,
    ),
    policy(
        "dead code that lives",
        "def main(): return open('x')\ng = main\ndef f(x): return g()",
        UNSAFE,
    ),
    policy(
        "dead code via class",
        "def main(): return f.__globals__\nclass A: m = main\ndef f(x): return A.m()",
        UNSAFE,
    ),
    policy(
        "dead code via global",
        "def main(): return f.__globals__\ndef f(x):\n    global main\n    return main()",
        UNSAFE,
    ),
    policy(
        "main block that lives",
        "__name__ = '__main__'\nif __name__ == '__main__':\n    import os\ndef f(x): return os.getpid()",
        UNSAFE,
    ),
    policy(
        "guard names",
        "def f(x): return globals()['<attribute>']",
        UNSAFE,
    ),
    policy(
        "str subclass name",
        "class S(str):\n"
        "    def __eq__(s, o): return False\n"
        "    __hash__ = str.__hash__\n"
        "def f(x): return str(setattr(f, S('__co' + 'de__'), 1))",
        UNSAFE,
    ),
    policy(
        "type with slots dict",
        "class A: __slots__ = ('__di' + 'ct__', )\ndef f(x):\n    return A.__dict__",
        UNSAFE,
    ),
    policy(
        "dataclass exec globals",
        "from dataclasses import dataclass\n"
        "def f(x):\n"
        "    D = type('D', (), {'__module__': 'os', '__annotations__': {'a, b=getpid': int}})\n"
        "    dataclass(D)\n"
        "    return str(D().b)",
        ERROR,
        "SyntaxError",
    ),
    policy(
        "delattr",
        "import fractions\ndef f(x):\n    type.__delattr__(fractions.Fraction, 'numerator')\n    return 1",
        UNSAFE,
    ),
    policy(
        "class assign",
        "import math\n"
        "class M(type(math)): pass\n"
        "def f(x):\n"
        "    m = [math][0]\n"
        "    m.__class__ = M\n"
        "    m.pi = 3\n"
        "    return math.pi",
        ERROR,
        "AttributeError",
    ),
    policy(
        "redirect old stdout",
        "import contextlib\n"
        "def f(x):\n"
        "    r = contextlib.redirect_stdout(None); r.__enter__()\n"
        "    return str(r._old_targets[0].buffer.raw)[:30]",
        ERROR,
        "AttributeError",
    ),
    # The interpreter's own functions, and the guards themselves, where the library hands them out.
    policy(
        "the type of an attrgetter",
        "from operator import attrgetter\ndef f(x): return sorted(type(attrgetter('a'))('__glo' + 'bals__')(f))[:2]",
        ERROR,
        "TypeError",
    ),
    policy(
        "the type of a methodcaller",
        "from operator import methodcaller\ndef f(x): return str(type(methodcaller('a'))('__red' + 'uce_ex__', 4)(x))",
        ERROR,
        "TypeError",
    ),
    policy(
        "the real getattr, from pickling an enumeration",
        "import enum\n"
        "def f(x):\n"
        "    class E(enum.Enum): A = 1\n"
        "    g = enum.pickle_by_enum_name(E.A, 4)[0]\n"
        "    return sorted(g(f, '__glo' + 'bals__'))[:2]",
        ERROR,
        "AttributeError",
    ),
    policy(
        "a guard, from the memory of a copy",
        "import copy\n"
        "def f(x):\n"
        "    memo = {}\n"
        "    try: copy.deepcopy(getattr, memo)\n"
        "    except Exception: pass\n"
        "    guards = [v for v in memo.values() if hasattr(v, 'library_get')]\n"
        "    return sorted(guards[0].library_get(['__glo' + 'bals__'])(f, '__glo' + 'bals__'))[:2]",
        ERROR,
        "IndexError",
    ),
    policy(
        "builtins, from the dict of a partial",
        "import functools\n"
        "class D:\n"
        "    def __get__(s, o, c): return print\n"
        "    def __call__(s): pass\n"
        "class A:\n"
        "    p = functools.partialmethod(D())\n"
        "class W: pass\n"
        "def f(x):\n"
        "    w = W()\n"
        "    functools.update_wrapper(w, A().p)\n"
        "    return str(vars(w)['__se' + 'lf__'])",
        ERROR,
        "KeyError",
    ),
    policy(
        "a guard, from the dict of a partial",
        "import functools\n"
        "class D:\n"
        "    def __get__(s, o, c): return getattr\n"
        "    def __call__(s): pass\n"
        "class A:\n"
        "    p = functools.partialmethod(D())\n"
        "class W: pass\n"
        "def f(x):\n"
        "    w = W()\n"
        "    functools.update_wrapper(w, A().p)\n"
        "    return str(vars(w)['__se' + 'lf__'].offered)[:9]",
        ERROR,
        "KeyError",
    ),
    policy(
        "globals that only seem to be a program",
        "from typing import get_type_hints\n"
        "class G(dict):\n"
        "    def __contains__(s, k): return True\n"
        "    def get(s, k, d=None): return print\n"
        "def g(a: 'open'): pass\n"
        "h = type('H', (), {})()\n"
        "def f(x): return str(get_type_hints(g, G()))",
        UNSAFE,
    ),
    policy(
        "a method of a stream, from the memory of a copy",
        "import copy, sys\n"
        "def f(x):\n"
        "    memo = {}\n"
        "    copy.deepcopy(sys.stdout.write, memo)\n"
        "    return [str(v) for v in memo.values() if 'Stream' in str(v)][0]",
        ERROR,
        "IndexError",
    ),
    # Names and texts that only seem to be what they are checked for.
    policy(
        "a name that equals every name, as a stream's",
        "import contextlib\n"
        "class S(str):\n"
        "    def __eq__(s, o): return True\n"
        "    __hash__ = str.__hash__\n"
        "def f(x):\n"
        "    r = contextlib.redirect_stdout(None); r._stream = S('mod' + 'ules')\n"
        "    try: r.__enter__()\n"
        "    except Exception: pass\n"
        "    return len(r._old_targets[0])",
        ERROR,
        "IndexError",
    ),
    policy(
        "a name that equals every name, as a field's",
        "import dataclasses\n"
        "class S(str):\n"
        "    def __eq__(s, o): return True\n"
        "    __hash__ = str.__hash__\n"
        "@dataclasses.dataclass\n"
        "class D(Exception): x: int = 0\n"
        "def f(x):\n"
        "    dataclasses.fields(D)[0].name = S('__trace' + 'back__')\n"
        "    try: raise D()\n"
        "    except D as e: return str(dataclasses.astuple(e))[:20]",
        ERROR,
        "TypeError",
    ),
    policy(
        "a text that says it is of ASCII",
        "from typing import ForwardRef\n"
        "class S(str):\n"
        "    def isascii(s): return True\n"
        "def g(): yield 1\n"
        "def f(x): return str(ForwardRef(S('g().gi_\\uff46rame'))._evaluate({'g': g}, {}, frozenset()))",
        UNSAFE,
    ),
    policy(
        "a state that hides its names",
        "import copy, textwrap\n"
        "class Hiding(dict):\n"
        "    def __iter__(s): return iter(())\n"
        "class A:\n"
        "    def __reduce_ex__(s, p): return (lambda: g, (), Hiding({'__wrap' + 'ped2__': 3}))\n"
        "def g(): pass\n"
        "def f(x):\n"
        "    copy.copy(A()); return hasattr(g, 'a')",
        UNSAFE,
    ),
    policy(
        "a state that is no dict",
        "import copy\n"
        "class Names:\n"
        "    def keys(s): return ['__wrap' + 'ped2__']\n"
        "    def __getitem__(s, k): return 3\n"
        "class A:\n"
        "    def __reduce_ex__(s, p): return (lambda: g, (), Names())\n"
        "def g(): pass\n"
        "def f(x):\n"
        "    copy.copy(A()); return 1",
        UNSAFE,
    ),
    policy(
        "a match in a class, whose names a metaclass keeps",
        "class Any(type):\n"
        "    def __instancecheck__(c, o): return True\n"
        "C = Any('C', (), {'__match_args__': ('__glo' + 'bals__',)})\n"
        "class O: c0 = C\n"
        "class Names(dict):\n"
        "    def __getitem__(s, k): return O if k.startswith('<match') else dict.__getitem__(s, k)\n"
        "class Meta(type):\n"
        "    def __prepare__(n, b): return Names()\n"
        "def f(x):\n"
        "    g = f\n"
        "    class B(metaclass=Meta):\n"
        "        match g:\n"
        "            case C(v): got = v\n"
        "    return sorted(B.got)[:4]",
        UNSAFE,
    ),
    # What the library reads of an object, and hands to a method that a program has defined.
    policy(
        "the dict of a type, from a printer",
        "import pprint\n"
        "class P(pprint.PrettyPrinter):\n"
        "    def _format_namespace_items(self, items, *a): got.extend(items)\n"
        "got = []\n"
        "def f(x):\n"
        "    P()._pprint_simplenamespace(type(f), None, 0, 0, set(), 1)\n"
        "    return sorted(dict(got)['__glo' + 'bals__'].__get__(pprint.pprint))[:4]",
        ERROR,
        "AttributeError",
    ),
    policy(
        "what a method is bound to, from a partial",
        "import copy, functools\n"
        "class D:\n"
        "    def __get__(s, o, c): return dict.fromkeys\n"
        "    def __call__(s): pass\n"
        "class A:\n"
        "    p = functools.partialmethod(D())\n"
        "def f(x):\n"
        "    memo = {}\n"
        "    copy.deepcopy(A().p, memo)\n"
        "    return [v for v in memo.values() if type(v) is dict and v]",
        "[]",
    ),
    policy(
        "the names of a module, by an update",
        "import functools, math\n"
        "class W: pass\n"
        "def f(x):\n"
        "    w = W(); w.pi = 3\n"
        "    try: functools.update_wrapper(math, w, assigned=())\n"
        "    except AttributeError: pass\n"
        "    return math.pi",
        "3.141592653589793",
    ),
    policy(
        "the clock, by a queue",
        "import queue\n"
        "class Q(queue.Queue):\n"
        "    def _qsize(s): return 0\n"
        "class Wait:\n"
        "    def __enter__(s): return s\n"
        "    def __exit__(s, *a): return False\n"
        "    def wait(s, left): raise ValueError(left)\n"
        "def f(x):\n"
        "    q = Q(); q.not_empty = Wait()\n"
        "    try: q.get(timeout=5)\n"
        "    except ValueError as e: return e.args[0]",
        ERROR,
        "Empty",
    ),
)
