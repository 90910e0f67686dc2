"""The policy: which programs are refused before they run, and what a program finds in its builtins.

This is not the wall. It keeps honest programs deterministic and refuses obvious mischief with a named reason; the wall
(`jail.py`) must hold without it. Both halves are here: the static gate, `check`, and the runtime half,
`program_builtins`, which gives a program facades of a few modules in place of the modules themselves.

Runs in the sandbox: the process that supervises it never parses model text.
"""

from __future__ import annotations

import ast
import builtins
import importlib
import types
from collections.abc import Mapping
from enum import StrEnum
from typing import Any

ALLOWED_MODULES = (
    "abc", "array", "base64", "binascii", "bisect", "cmath", "collections", "collections.abc", "contextlib", "copy",
    "dataclasses", "decimal", "difflib", "enum", "fractions", "functools", "graphlib", "heapq", "itertools", "json",
    "keyword", "math", "numbers", "operator", "pprint", "re", "statistics", "string", "struct", "textwrap", "typing",
    "unicodedata", "zlib",
)  # fmt: skip
"""Dotted names, each as a whole: nothing is allowed because a part of its name is."""

# They reach attributes, or evaluate text, that the check of the program's own text has not seen.
_LEFT_OUT = {
    "operator": {"attrgetter", "methodcaller"},
    "string": {"Formatter"},
    "typing": {"ForwardRef", "get_type_hints"},
}

BANNED_NAMES = frozenset({
    "__import__", "__builtins__", "__build_class__", "__loader__", "__spec__", "breakpoint", "compile", "eval", "exec",
    "exit", "globals", "help", "input", "locals", "open", "quit", "vars",
})  # fmt: skip

BANNED_ATTRIBUTES = frozenset({
    "ag_await", "ag_code", "ag_frame", "cr_await", "cr_code", "cr_frame", "cr_origin", "f_back", "f_builtins", "f_code",
    "f_globals", "f_lineno", "f_locals", "f_trace", "gi_code", "gi_frame", "gi_yieldfrom", "mro", "tb_frame", "tb_next",
})  # fmt: skip

_SPECIAL_METHODS = """
abs add and annotations bool bytes call ceil class complex contains copy deepcopy delitem dir divmod doc enter eq exit
float floor floordiv format ge get getattr getitem gt hash iadd iand ifloordiv ilshift imatmul imod imul index init
init_subclass int invert ior ipow irshift isub iter itruediv ixor le len length_hint lshift lt match_args matmul missing
mod mul name ne neg new next or pos post_init pow qualname radd rand rdivmod repr reversed rfloordiv rlshift rmatmul
rmod rmul ror round rpow rrshift rshift rsub rtruediv rxor set set_name setitem slots str sub truediv trunc xor
"""
ALLOWED_DUNDERS = frozenset(f"__{name}__" for name in _SPECIAL_METHODS.split())
"""Special attributes that a program may name. Those that lead from a value to the interpreter are not among them."""

ALLOWED_DUNDER_NAMES = frozenset({"__class__", "__debug__", "__doc__", "__name__"})
"""The same for names that stand alone."""


class Unsafe(StrEnum):
    """What the gate objects to."""

    IMPORT = "import"
    """An import of a module that is not allowed."""
    NAME = "name"
    """A builtin that is not offered, such as `open` or `eval`."""
    ATTRIBUTE = "attribute"
    """An attribute that leads into the interpreter, such as `__globals__`."""


def _is_dunder(name: str) -> bool:
    return name[:2] == "__" == name[-2:]


def is_banned_attribute(name: str) -> bool:
    """Whether an attribute of this name may not be touched."""
    return name in BANNED_ATTRIBUTES or (_is_dunder(name) and name not in ALLOWED_DUNDERS)


def check(program: str) -> tuple[Unsafe, str] | None:
    """The first thing in `program` that the policy refuses, with the name concerned; None for an acceptable program.

    Raises what `ast.parse` does for text that is no program: SyntaxError, ValueError, RecursionError, MemoryError.
    """
    bound: set[str] = set()
    suspects: list[str] = []
    for node in ast.walk(ast.parse(program)):
        if isinstance(node, ast.Attribute):
            if is_banned_attribute(node.attr):
                return Unsafe.ATTRIBUTE, node.attr
        elif isinstance(node, ast.Name):
            if not isinstance(node.ctx, ast.Load):
                bound.add(node.id)
            elif node.id in BANNED_NAMES or _is_dunder(node.id):
                suspects.append(node.id)
        elif isinstance(node, ast.Import):
            for alias in node.names:
                if alias.name not in ALLOWED_MODULES:
                    return Unsafe.IMPORT, alias.name
                bound.add(alias.asname or alias.name)
        elif isinstance(node, ast.ImportFrom):
            if node.level or node.module not in ALLOWED_MODULES:
                return Unsafe.IMPORT, "." * node.level + (node.module or "")
            bound.update(alias.asname or alias.name for alias in node.names)
        elif isinstance(node, ast.arg):
            bound.add(node.arg)
        elif isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            bound.add(node.name)
        elif isinstance(node, ast.MatchClass):
            for name in node.kwd_attrs:
                if is_banned_attribute(name):
                    return Unsafe.ATTRIBUTE, name
    for name in suspects:
        # A program may call its own variable `input`.
        if name not in (ALLOWED_DUNDER_NAMES if _is_dunder(name) else bound):
            return Unsafe.NAME, name
    for name in sorted(bound & BANNED_NAMES):
        if _is_dunder(name):
            return Unsafe.NAME, name
    return None


# ---------------------------------------------------------------------------------------------------- the runtime half


def program_builtins() -> dict[str, Any]:
    """The builtins that programs get: without the banned ones, with guarded attributes and imports of facades."""
    facades = _facades()
    offered = {name: value for name, value in vars(builtins).items() if name not in BANNED_NAMES}

    def guarded_import(
        name: str,
        globals: Mapping[str, object] | None = None,
        locals: Mapping[str, object] | None = None,
        fromlist: tuple[str, ...] | None = (),
        level: int = 0,
    ) -> types.ModuleType:
        if level or name not in facades:
            raise ImportError(f"module not allowed: {name}")
        return facades[name] if fromlist else facades[name.partition(".")[0]]

    def guard(function: Any) -> Any:
        def guarded(target: object, name: str, *rest: object) -> object:
            # The exact type: a subclass of str could answer differently when it is asked again.
            if type(name) is not str or is_banned_attribute(name):
                raise AttributeError("attribute not allowed")
            return function(target, name, *rest)

        guarded.__name__ = guarded.__qualname__ = function.__name__
        return guarded

    for function in (getattr, setattr, delattr, hasattr):
        offered[function.__name__] = guard(function)
    offered["__import__"] = guarded_import
    offered["__build_class__"] = builtins.__build_class__
    return offered


def _facades() -> dict[str, types.ModuleType]:
    """Modules with the public, non-module members of the allowed ones: `json.codecs.open` is no way out."""
    facades: dict[str, types.ModuleType] = {}
    for name in ALLOWED_MODULES:
        module = importlib.import_module(name)
        facade = types.ModuleType(name, module.__doc__)
        public = [key for key in vars(module) if not key.startswith("_")]
        for key in {*public, *getattr(module, "__all__", ())} - _LEFT_OUT.get(name, set()):
            if not isinstance(getattr(module, key), types.ModuleType):
                setattr(facade, key, getattr(module, key))
        facades[name] = facade
    for name, facade in facades.items():
        parent, _, child = name.rpartition(".")
        if parent:
            setattr(facades[parent], child, facade)
    return facades
