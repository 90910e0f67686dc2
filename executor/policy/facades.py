"""The surroundings of a program that runs: its globals, its builtins, and facades in place of modules.

They are the runtime half of the policy; the gate (`safety.py`) reads a program before it runs. Functions that take an
attribute's name at run time, or evaluate text, are guards (`guards.py`) or run with guards (`library.py`).

Inputs that share a child share the objects that are not made anew for each call: the builtins and, for a program that
imports, the members of the facades. Their types cannot be changed once they are sealed, and the facades refuse changes.
A malicious program can still change other mutable objects, such as `keyword.kwlist`, a registry, or the attributes of a
function.
"""

from __future__ import annotations

import builtins
import codecs
import ctypes
import gc
import hashlib
import importlib
import sys
import types
from collections.abc import Mapping
from typing import Any, NoReturn

from executor.policy import rewriting
from executor.policy.guards import Classes, Guards
from executor.policy.library import Stream, guarded_modules, no_input
from executor.policy.safety import ALLOWED_MODULES, BANNED_NAMES, OFFERED

# Names that would be a way round the policy, and have no guard.
_LEFT_OUT = {
    "collections": {"UserString"},  # formats text
    # They write into any module, read from any class, and hand out the interpreter's own `getattr`.
    "enum": {
        "global_enum", "global_enum_repr", "global_flag_repr", "global_str", "pickle_by_enum_name",
        "pickle_by_global_name", "property",
    },
}  # fmt: skip

# Codecs that `str.encode` would have to load from files, which cannot be opened inside the wall.
_CODECS = (
    "ascii", "latin_1", "utf_7", "utf_8", "utf_8_sig", "utf_16", "utf_16_be", "utf_16_le", "utf_32", "utf_32_be",
    "utf_32_le", "unicode_escape", "raw_unicode_escape", "punycode", "idna", "hex", "base64", "rot13", "zlib", "quopri",
    "uu", "big5", "gb2312", "gbk", "gb18030", "shift_jis", "euc_jp", "euc_kr", "iso2022_jp", "cp437", "cp850", "cp852",
    "cp866", "cp874", "cp932", "cp949", "koi8_r", "koi8_u", "mac_roman", *[f"cp125{digit}" for digit in range(9)],
    *[f"iso8859_{part}" for part in range(1, 17) if part != 12],
)  # fmt: skip

MAX_RECURSION = 100_000
"""The highest limit that a program may set. Calls among Python functions need no stack of the process."""
_RECURSION = 1_000

_STREAM = Stream()

NAME = "solution"
"""The `__name__` of every program."""


def load_codecs() -> None:
    """Load the codecs that programs may use."""
    for codec in _CODECS:
        codecs.lookup(codec)


def program_globals(offered: dict[str, Any]) -> dict[str, Any]:
    """New globals for one call of a program. `offered`: its builtins, of `program_builtins`.

    They are those of a module of this name, which the library looks up for a class's annotations.
    """
    sys.setrecursionlimit(_RECURSION)
    # Not the streams of the process, which lead to files.
    sys.stdin = sys.stdout = sys.stderr = _STREAM  # type: ignore[assignment]
    module = sys.modules[NAME] = types.ModuleType(NAME)
    found = vars(module)
    found["__builtins__"] = offered
    return found


def program_builtins() -> dict[str, Any]:
    """The builtins that programs get: without the banned ones, with guards, and with imports of facades."""
    guards = Guards()
    facades = _facades(guards)
    guards.shared |= {id(member) for facade in facades.values() for member in vars(facade).values()}
    guards.settle()
    offered = {name: value for name, value in vars(builtins).items() if name not in BANNED_NAMES}
    guards.offered = offered
    # Bound methods: unlike functions and instances of classes, they have no attributes that could be set.
    offered |= {
        "getattr": guards.get, "hasattr": guards.has, "setattr": guards.set, "delattr": guards.delete,
        "vars": guards.dictionary, "id": guards.identity, rewriting.ATTRIBUTE: guards.attribute,
        rewriting.CLASSES: Classes, "input": no_input, "exit": sys.exit, "quit": sys.exit,
        "__import__": _Importer(facades).call, "__build_class__": builtins.__build_class__,
    }  # fmt: skip
    return offered


class _Importer:
    """`__import__` of the facades."""

    def __init__(self, facades: dict[str, types.ModuleType]) -> None:
        self._facades = facades

    def call(
        self,
        name: str,
        globals: Mapping[str, object] | None = None,
        locals: Mapping[str, object] | None = None,
        fromlist: tuple[str, ...] | None = (),
        level: int = 0,
    ) -> types.ModuleType:
        if level or name not in self._facades:
            raise ModuleNotFoundError(f"No module named {name!r}")
        return self._facades[name] if fromlist else self._facades[name.partition(".")[0]]


class _Facade(types.ModuleType):
    """A module that can't be changed, neither by accident nor to remember something from one input to the next."""

    def __setattr__(self, name: str, value: object) -> NoReturn:
        raise AttributeError("modules can't be changed")

    def __delattr__(self, name: str) -> NoReturn:
        raise AttributeError("modules can't be changed")


def _facades(guards: Guards) -> dict[str, types.ModuleType]:
    """Modules with the public, non-module members of the allowed ones: `json.codecs.open` is no way out."""
    facades: dict[str, types.ModuleType] = {}
    modules = guarded_modules(guards)
    own = {
        "operator": {"attrgetter": guards.attrgetter, "methodcaller": guards.methodcaller},
        "hashlib": {name: _constructor(name) for name in OFFERED["hashlib"]},
        "sys": {"setrecursionlimit": _limit_recursion, "stdin": _STREAM, "stdout": _STREAM, "stderr": _STREAM},
    }
    for name in ALLOWED_MODULES:
        module = modules.get(name) or importlib.import_module(name)
        facade = _Facade(name, module.__doc__)
        public = {*getattr(module, "__all__", ())} or {key for key in vars(module) if not key.startswith("_")}
        for key in OFFERED.get(name, public) - _LEFT_OUT.get(name, set()):
            if not isinstance(getattr(module, key), types.ModuleType):
                vars(facade)[key] = getattr(module, key)
        vars(facade).update(own.get(name, {}))
        facades[name] = facade
    for name, inner in facades.items():
        parent, _, child = name.rpartition(".")
        if parent:
            vars(facades[parent])[child] = inner
    return facades


def _constructor(name: str) -> Any:
    """The interpreter's own hash, not OpenSSL's, which reads its configuration from files."""
    return vars(hashlib)["__get_builtin_constructor"](name)


def _limit_recursion(limit: int) -> None:
    sys.setrecursionlimit(min(limit, MAX_RECURSION))


# ------------------------------------------------------------------------------------------------------------- sealing

_SEARCHED = 256  # bytes at the beginning of a type, which has more than 800
_IMMUTABLE = 1 << 8  # Py_TPFLAGS_IMMUTABLETYPE: the interpreter refuses to set or delete attributes of the type


def seal() -> None:
    """Make all classes that exist immutable, as `int` is. For a fork server that has loaded everything.

    Python offers this to extensions only, so the flag is set in memory, at the place where `__flags__` reads it.
    """
    flags = type.__dict__["__flags__"].__get__
    word = ctypes.sizeof(ctypes.c_ulong)
    kinds = [kind for kind in gc.get_objects() if isinstance(kind, type)]
    places = [
        offset
        for offset in range(0, _SEARCHED, word)
        if all(ctypes.c_ulong.from_address(id(kind) + offset).value == flags(kind) for kind in kinds)
    ]
    if len(places) != 1:
        raise RuntimeError("this interpreter keeps the flags of types in another place")
    for kind in kinds:
        ctypes.c_ulong.from_address(id(kind) + places[0]).value |= _IMMUTABLE
